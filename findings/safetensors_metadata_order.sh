#!/usr/bin/env bash
# safetensors writes two or more metadata entries in an order that changes from call to call.
#
# What happens: the same tensors with the same metadata of two entries give files of two kinds of bytes, also within one
# process. With one entry all files are equal.
#
# What one would expect: equal input gives an equal file, as for the tensors, whose order is fixed.
#
# Why it matters here: two runs of one recipe are compared by the hashes of their files, and a resumed run must give the
# same ones. burnish therefore writes one entry that holds JSON (burnish/policies/reward_model.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cat > "$folder/try.py" <<'PYTHON'
import hashlib

import numpy as np
import safetensors
from safetensors.numpy import save

print("safetensors", safetensors.__version__)
for metadata, several in (({"steps": "10", "seed": "0"}, True), ({"steps": "10"}, False)):
    files = {hashlib.sha256(save({"weight": np.zeros(2)}, metadata=metadata)).hexdigest() for _ in range(100)}
    print(len(metadata), "entries:", len(files), "different files of 100")
    assert (len(files) > 1) is several
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/try.py"
# Seen:
# safetensors 0.8.0
# 2 entries: 2 different files of 100
# 1 entries: 1 different files of 100
# as described
