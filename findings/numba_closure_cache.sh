#!/usr/bin/env bash
# numba with cache=True never reuses a function that closes over another compiled function.
#
# What happens: a factory compiles a function and returns a second one that calls it, both with cache=True. Each process
# compiles the second one again and adds a file to the cache folder, without a warning. The first one, and a function of
# the module itself, are read from the cache.
#
# What one would expect: the second process reads both, or numba says that it cannot cache a closure, as it does for
# functions that use a pointer of ctypes.
#
# Why it matters here: compiling the loops of a decoding step takes ten seconds, and each run would pay for them and leave
# files behind. burnish's loops are functions of their module (burnish/policies/kernels/numba_loops.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numba==0.68.1 llvmlite==0.50.0 numpy==2.4.6
cat > "$folder/try.py" <<'PYTHON'
import sys
import warnings
from pathlib import Path

import numba

warnings.simplefilter("error")
SIGNATURE = numba.float64(numba.float64)


def square(x):
    return x * x


def make(body):
    inner = numba.njit(SIGNATURE, cache=True)(body)

    @numba.njit(SIGNATURE, cache=True)
    def closure(x):
        return inner(x)

    return closure, inner


@numba.njit(SIGNATURE, cache=True)
def plain(x):
    return x + 1


number = int(sys.argv[1])
closure, inner = make(square)
assert closure(3.0) == 9.0 and plain(3.0) == 4.0
hits = {one.py_func.__name__: sum(one.stats.cache_hits.values()) for one in (closure, inner, plain)}
files = len(list((Path(__file__).parent / "__pycache__").glob("*closure*.nbc")))
print(f"numba {numba.__version__}, process {number}: read from the cache {hits}, files of the closure: {files}")
assert hits == {"closure": 0, "square": number > 1, "plain": number > 1}
assert files == number
PYTHON
for number in 1 2 3; do "$folder/venv/bin/python" "$folder/try.py" "$number"; done
echo "as described"
# Seen:
# numba 0.68.1, process 1: read from the cache {'closure': 0, 'square': 0, 'plain': 0}, files of the closure: 1
# numba 0.68.1, process 2: read from the cache {'closure': 0, 'square': 1, 'plain': 1}, files of the closure: 2
# numba 0.68.1, process 3: read from the cache {'closure': 0, 'square': 1, 'plain': 1}, files of the closure: 3
# as described
