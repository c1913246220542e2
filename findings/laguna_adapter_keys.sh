#!/usr/bin/env bash
# An adapter of Laguna's shared experts is lost when peft reads it back; a warning is all that says so.
#
# What happens: peft trains an adapter of gate_proj, up_proj and down_proj on transformers' Laguna and saves it. The file
# has the weights of the shared experts ("mlp.shared_experts"). Read back onto the same base, these layers keep the
# weights of a new adapter, which does nothing, and the model gives other logits. transformers renames keys that match
# "mlp.shared_expert.", in which the dot stands for any character, so that "mlp.shared_experts" is renamed too.
#
# What one would expect: the saved adapter, or an error.
#
# Why it matters here: a run would train one policy and publish another. burnish compares the keys of an adapter when it
# puts one on, leaves such layers out of "all-linear" and refuses them by name (burnish/policies/adapters.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 peft==0.21.2 torch==2.13.0
cat > "$folder/try.py" <<'PYTHON'
import sys
import warnings
from importlib.metadata import version

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LagunaConfig, LagunaForCausalLM

transformers.logging.set_verbosity_error()
print("transformers", transformers.__version__, "peft", version("peft"), "torch", torch.__version__)
folder = sys.argv[1]
torch.manual_seed(0)
config = LagunaConfig(
    vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, moe_intermediate_size=24, shared_expert_intermediate_size=24, num_experts=4,
    num_experts_per_tok=2, sliding_window=16, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    pad_token_id=0,
)
model = LagunaForCausalLM(config).eval()
model.save_pretrained(f"{folder}/base")
adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["gate_proj", "up_proj", "down_proj"]))
ids = torch.randint(3, 100, (1, 12))
with torch.no_grad():
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.copy_(torch.randn_like(weight) * 0.1)
    trained = adapted(ids).logits
adapted.save_pretrained(f"{folder}/adapter")
saved = [key for key in load_file(f"{folder}/adapter/adapter_model.safetensors") if "shared_experts" in key]
print(len(saved), "saved tensors of shared experts")
with warnings.catch_warnings(record=True) as caught, torch.no_grad():
    warnings.simplefilter("always")
    again = PeftModel.from_pretrained(LagunaForCausalLM.from_pretrained(f"{folder}/base"), f"{folder}/adapter").eval()
    difference = float((again(ids).logits - trained).abs().max())
missing = [str(one.message) for one in caught if "missing adapter keys" in str(one.message)]
lost = sum(float(weight.abs().max()) == 0 for name, weight in again.named_parameters() if "lora_B" in name)
print("logits differ by", round(difference, 2), "-", lost, "layers without their adapter, all of shared experts;",
      len(missing), "warning of missing keys")
assert saved and lost == len(saved) // 2 and difference > 0.05 and missing
print("as described")
PYTHON
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore "$folder/try.py" "$folder"
# Seen:
# transformers 5.24.0 peft 0.21.2 torch 2.13.0+cpu
# 18 saved tensors of shared experts
# logits differ by 0.31 - 9 layers without their adapter, all of shared experts; 1 warning of missing keys
# as described
