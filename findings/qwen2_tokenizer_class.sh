#!/usr/bin/env bash
# For a model of type qwen2, transformers' AutoTokenizer ignores the tokenizer class that the folder names.
#
# What happens: the folder says tokenizer_class = "TokenizersBackend", which reads tokenizer.json as it is. For qwen3,
# llama and gpt2 the tokenizer is that class, and encodes as the package tokenizers does with the same file. For qwen2 it
# is Qwen2Tokenizer, which builds a tokenizer of its own from the file's vocabulary and adds Unicode normalisation (NFC)
# that the file does not have: "e" with a combining accent gets other tokens. Nothing is printed.
#
# What one would expect: the named class, or a warning that it is replaced.
#
# Why it matters here: sampling, training and serving must encode a prompt alike. A model of this type whose tokenizer
# was trained without normalisation is read in two ways, depending on the program. burnish encodes a probe text both
# ways when it loads a model, takes tokenizer.json and warns (burnish/policies/token_rows.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
mkdir "$folder/model"
cd "$folder"
cat > try.py <<'PYTHON'
import json
from pathlib import Path

import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
model = Path("model")
file = Tokenizer(models.BPE())
file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
alphabet = pre_tokenizers.ByteLevel.alphabet()
file.train_from_iterator(["a plain text"], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
file.save(str(model / "tokenizer.json"))
(model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
text = "e\u0301"
for kind, name, same in (
    ("qwen3", "TokenizersBackend", True),
    ("llama", "TokenizersBackend", True),
    ("gpt2", "TokenizersBackend", True),
    ("qwen2", "Qwen2Tokenizer", False),
):
    (model / "config.json").write_text(json.dumps({"model_type": kind}))
    loaded = transformers.AutoTokenizer.from_pretrained(model)
    ids = loaded(text, add_special_tokens=False)["input_ids"]
    print(kind, type(loaded).__name__, ids, "the file's:", file.encode(text).ids)
    assert type(loaded).__name__ == name, (kind, type(loaded).__name__)
    assert (ids == file.encode(text).ids) is same, (kind, ids)
print("as described")
PYTHON
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" try.py
# Seen:
# transformers 5.24.0 tokenizers 0.23.3
# qwen3 TokenizersBackend [68, 136, 223] the file's: [68, 136, 223]
# llama TokenizersBackend [68, 136, 223] the file's: [68, 136, 223]
# gpt2 TokenizersBackend [68, 136, 223] the file's: [68, 136, 223]
# qwen2 Qwen2Tokenizer [127, 102] the file's: [68, 136, 223]
# as described
