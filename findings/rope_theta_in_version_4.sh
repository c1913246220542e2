#!/usr/bin/env bash
# transformers 4.57 reads another rotary base than the one that transformers 5 has saved, without a word.
#
# What happens: version 5 writes the base of the rotary embedding into "rope_parameters" of config.json. Version 4 knows
# only the key "rope_theta" of the top level; it takes its default, 10000, and prints nothing. The weights load, and the
# logits are those of another model.
#
# What one would expect: the key that both versions read, or a warning in version 4 about a configuration of version 5.
#
# Why it matters here: people serve a model with another version than the one that trained it. burnish writes both keys
# into the models that it saves (burnish/catalogue/portable.py) and tries them in both versions (bench/opens.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 5.24.0 4.57.6; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version"
done
cat > "$folder/write.py" <<'PYTHON'
import sys

import transformers
from transformers import LlamaConfig, Qwen3Config

for config in (LlamaConfig, Qwen3Config):
    made = config(rope_parameters={"rope_type": "default", "rope_theta": 100000.0})
    made.save_pretrained(f"{sys.argv[1]}/{made.model_type}")
print("transformers", transformers.__version__, "writes", made.rope_parameters)
PYTHON
cat > "$folder/read.py" <<'PYTHON'
import sys
import warnings

import transformers
from transformers import AutoConfig

with warnings.catch_warnings():
    warnings.simplefilter("error")
    for kind in ("llama", "qwen3"):
        read = AutoConfig.from_pretrained(f"{sys.argv[1]}/{kind}")
        print("transformers", transformers.__version__, "reads", kind, read.rope_theta)
        assert read.rope_theta == 10000.0
print("as described")
PYTHON
"$folder/5.24.0/bin/python" "$folder/write.py" "$folder" 2>/dev/null
"$folder/4.57.6/bin/python" "$folder/read.py" "$folder" 2>"$folder/messages"
if grep -i rope "$folder/messages"; then exit 1; fi
# Seen:
# transformers 5.24.0 writes {'rope_type': 'default', 'rope_theta': 100000.0}
# transformers 4.57.6 reads llama 10000.0
# transformers 4.57.6 reads qwen3 10000.0
# as described
