#!/usr/bin/env bash
# ray.init takes SIGTERM away from the program, and after ray.shutdown no handler at all is called.
#
# What happens: a program sets a handler for SIGTERM, as one does to save its work when a scheduler asks it to stop, and
# calls ray.init() to start a local cluster. From then on signal.getsignal(SIGTERM) is a function of Ray, which raises
# SystemExit(15), and the program's own is not called. ray.shutdown() does not bring it back: getsignal still names Ray's
# function, and the signal now ends the process at once, as if there were none (status 143). The handler of SIGINT is
# left alone. ray.init has no argument about it.
#
# What one would expect: a handler that is there is kept or called after Ray's own, and is back after ray.shutdown(); and
# signal.getsignal names what a signal will do.
#
# Why it matters here: schedulers and containers stop a job by SIGTERM. A run that starts a cluster would lose what it
# has learnt since its last checkpoint; burnish puts its handlers back after each call of Ray that replaces them
# (burnish/backends/ray/cluster.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ray==2.60.0
cat > "$folder/try.py" <<'PYTHON'
import os
import signal
import sys

import ray


def save(number, frame):
    print("the program's own handler was called", flush=True)


def interrupt(number, frame):
    pass


signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, interrupt)
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error", _temp_dir=sys.argv[1])
connected = signal.getsignal(signal.SIGTERM)
print("ray", ray.__version__)
print("SIGTERM is the program's while connected:", connected is save, "- SIGINT:", signal.getsignal(signal.SIGINT) is interrupt)
if sys.argv[2] == "after shutdown":
    ray.shutdown()
now = signal.getsignal(signal.SIGTERM)
print("SIGTERM", sys.argv[2], "is the program's:", now is save, "- module of the handler:", now.__module__, flush=True)
assert connected is not save and now is not save and signal.getsignal(signal.SIGINT) is interrupt
try:
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
except SystemExit as left:
    print("SystemExit:", left.code, flush=True)
    os._exit(7)
PYTHON
for when in "while connected" "after shutdown"; do
  status=0
  RAY_USAGE_STATS_ENABLED=0 HOME="$folder" "$folder/venv/bin/python" "$folder/try.py" "$folder/ray" "$when" || status=$?
  echo "$when, the program ended with status $status"
  [ "$when $status" = "while connected 7" ] || [ "$when $status" = "after shutdown 143" ]
done

# Seen on 2026-11-29, with Ray's lines about the signal left out:
# ray 2.60.0
# SIGTERM is the program's while connected: False - SIGINT: True
# SIGTERM while connected is the program's: False - module of the handler: ray._private.worker
# SystemExit: 15
# while connected, the program ended with status 7
# ray 2.60.0
# SIGTERM is the program's while connected: False - SIGINT: True
# SIGTERM after shutdown is the program's: False - module of the handler: ray._private.worker
# after shutdown, the program ended with status 143
