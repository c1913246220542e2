#!/usr/bin/env bash
# Zamba2 gives other log-probabilities when it decodes from its cache than for the same text as a whole.
#
# What happens: transformers' Zamba2 clamps the time step of its state-space layers from below (time_step_min, 0.001 by
# default) where it reads a text as a whole, and does not where it reads one token after the cache. generate() therefore
# records log-probabilities that a forward pass of the same tokens does not confirm: with small time steps they differ by
# 1e-4 nats, in float64 too. Without the clamp (time_step_limit from 0) both are equal up to rounding.
#
# What one would expect: one function of the tokens, however it is computed.
#
# Why it matters here: a policy gradient takes the log-probabilities of sampling for those of the model. docs/models.md
# has the difference that burnish measures for this type, which is above its limit of 1e-4 nats.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.13.0
cat > "$folder/try.py" <<'PYTHON'
import torch
import transformers
from transformers import Zamba2Config, Zamba2ForCausalLM

transformers.logging.set_verbosity_error()
print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
config = Zamba2Config(
    vocab_size=100, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
    intermediate_size=64, mamba_d_state=8, n_mamba_heads=8, mamba_ngroups=1, mamba_headdim=8, num_mem_blocks=1,
    layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], chunk_size=8,
)
model = Zamba2ForCausalLM(config).eval()
mixers = [module for module in model.modules() if hasattr(module, "time_step_limit")]
with torch.no_grad():
    for weight in model.parameters():
        weight.add_(torch.randn_like(weight) * 0.1)
    for mixer in mixers:
        mixer.dt_bias.sub_(4.0)  # small time steps
prompt = torch.randint(3, 100, (1, 24), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def difference():
    """Return the largest difference, in nats, between generate's log-probabilities and those of one call."""
    result = model.generate(
        prompt, max_new_tokens=12, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    decoded = torch.stack(result.scores, 1).log_softmax(-1)
    whole = model(input_ids=result.sequences, use_cache=False).logits.log_softmax(-1)[:, prompt.shape[1] - 1 : -1]
    return float((decoded - whole).abs().max())


for dtype in (torch.float32, torch.float64):
    model.to(dtype)
    differences = []
    for least in (config.time_step_min, 0.0):
        for mixer in mixers:
            mixer.time_step_limit = (least, float("inf"))
        differences.append(difference())
        print(f"{str(dtype):16}least time step {least}: {differences[-1]:.1e} nats")
    assert differences[0] > 5e-5 > 10 * differences[1], differences
print("as described")
PYTHON
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore "$folder/try.py"
# Seen:
# transformers 5.24.0 torch 2.13.0+cpu
# torch.float32   least time step 0.001: 2.0e-04 nats
# torch.float32   least time step 0.0: 1.4e-06 nats
# torch.float64   least time step 0.001: 2.0e-04 nats
# torch.float64   least time step 0.0: 7.4e-07 nats
# as described
