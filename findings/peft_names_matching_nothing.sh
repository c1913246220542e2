#!/usr/bin/env bash
# A mistyped name in a LoRA configuration trains less than asked for, and only some of the options say so.
#
# What happens: peft warns of a key of `rank_pattern` that matches no module, and refuses `target_modules` if none of
# them matches. But a name of `target_modules` beside others that match, any name of `modules_to_save`, and an index of
# `layers_to_transform` beyond the last layer are dropped without a word: the adapter trains without them.
#
# What one would expect: each name or index that matches nothing is refused or warned of, as keys of `rank_pattern` are.
#
# Why it matters here: with `modules_to_save` a run may be meant to train the output head as well. Mistyped, it trains
# less, and looks healthy. A recipe's targets, and what an adapter that is loaded names, are checked name by name
# (burnish/policies/adapters.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 numpy==2.2.6 transformers==5.24.0 peft==0.21.2
cat > "$folder/try.py" <<'PYTHON'
import logging
import warnings

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

print("peft", peft.__version__, "transformers", transformers.__version__, "torch", torch.__version__)
tiny = LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2,
)
messages = []
handler = logging.Handler()
handler.emit = lambda record: messages.append(record.getMessage())
logging.getLogger().addHandler(handler)


def try_options(**options):
    """Print what is trained, and what was said."""
    messages.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = get_peft_model(LlamaForCausalLM(tiny), LoraConfig(r=2, **options))
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    said = [str(one.message) for one in caught if "peft" in one.filename] + messages
    about = [text for text in said if any(name in text for name in ("v_porj", "lm_haed", "k_proj", "7"))]
    print(f"{options}: {trained} tensors are trained; messages about it: {about}")
    return trained, about


assert try_options(target_modules=["q_proj", "v_proj"]) == (8, [])
assert try_options(target_modules=["q_proj", "v_porj"]) == (4, [])
assert try_options(target_modules=["q_proj"], modules_to_save=["lm_head"]) == (5, [])
assert try_options(target_modules=["q_proj"], modules_to_save=["lm_haed"]) == (4, [])
assert try_options(target_modules=["q_proj"], layers_to_transform=[0, 7]) == (2, [])
trained, about = try_options(target_modules=["q_proj"], rank_pattern={"k_proj": 8})
assert trained == 4 and len(about) == 1 and "did not match any targeted module" in about[0]
try:
    try_options(target_modules=["q_porj"])
except ValueError as error:
    print("refused:", str(error)[:70])
else:
    raise AssertionError("a single mistyped target was accepted")
PYTHON
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/try.py"
echo "as described"
# Seen:
# peft 0.21.2 transformers 5.24.0 torch 2.13.0+cpu
# {'target_modules': ['q_proj', 'v_proj']}: 8 tensors are trained; messages about it: []
# {'target_modules': ['q_proj', 'v_porj']}: 4 tensors are trained; messages about it: []
# {'target_modules': ['q_proj'], 'modules_to_save': ['lm_head']}: 5 tensors are trained; messages about it: []
# {'target_modules': ['q_proj'], 'modules_to_save': ['lm_haed']}: 4 tensors are trained; messages about it: []
# {'target_modules': ['q_proj'], 'layers_to_transform': [0, 7]}: 2 tensors are trained; messages about it: []
# {'target_modules': ['q_proj'], 'rank_pattern': {'k_proj': 8}}: 4 tensors are trained; messages about it: ["The
#   following rank_pattern keys did not match any targeted module and were ignored: ['k_proj']."]
# refused: Target modules {'q_porj'} not found in the base model. Please check th
# as described
