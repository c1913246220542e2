#!/usr/bin/env bash
# torch.distributed replaces sys.excepthook when a process group is made, and leaves it replaced when it is destroyed.
#
# What happens: init_process_group puts a function of its own in place of sys.excepthook, which writes "[rank0]: " in
# front of every line of a traceback. destroy_process_group does not put the former one back, and the next group wraps
# what it finds: after three groups that were made and destroyed, an error of the program, which has nothing to do with
# any group any more, has "[rank0]: " three times in front of each line. Neither function's documentation says so.
#
# What one would expect: without a group the hook is the program's own again, and one prefix at most.
#
# Why it matters here: learners on a cluster form a new group each time that one of them is lost, and a program may train
# as one of many things that it does. burnish keeps the hook that it finds (burnish/backends/ray/group.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$folder/try.py" <<'PYTHON'
import sys

import torch
import torch.distributed as dist

own = sys.excepthook
print("torch", torch.__version__)
for number in range(3):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    dist.destroy_process_group()
print("a group is there:", dist.is_initialized(), "- the hook is the program's:", sys.excepthook is own, flush=True)
assert not dist.is_initialized() and sys.excepthook is not own
raise ValueError("of the program itself")
PYTHON
"$folder/venv/bin/python" "$folder/try.py" 2> "$folder/error" || true
tail -n 1 "$folder/error"
grep -q '^\[rank0\]: \[rank0\]: \[rank0\]: ValueError: of the program itself$' "$folder/error"
