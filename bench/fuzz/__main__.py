"""``python -m bench.fuzz``: random damage to recipes, models, run folders, data and rewards, and a table of what came of it.

Cases are drawn by Hypothesis from a seed, and each command runs in a process of its own, with limits. A traceback, a
signal, a write outside of the working folder, a damaged checkpoint that passes, and a command past its limits are faults.
Each fault is made small and saved with the command that repeats it. ``make fuzz MINUTES=10``.
"""

from __future__ import annotations

import os

# Before anything imports torch. A thread of the server would be missing in its children, and what it held stay locked.
os.environ |= {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false", "NUMBA_NUM_THREADS": "1",
}  # fmt: skip

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench.fuzz.case import load_case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--cases", type=int, default=0, help="end after so many cases of each kind, whenever that is")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kinds", default="", help="names with commas; default: all")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="folder for the cases that fail")
    parser.add_argument("--repeat", type=Path, help="run the case of this folder again, and print what came of it")
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="burnish-fuzz-", ignore_cleanup_errors=True) as scratch:
        from bench.fuzz.campaign import Campaign

        campaign = Campaign(Path(scratch), options.out, options.seed)
        print(f"ready after {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
        if options.repeat:
            raise SystemExit(campaign.repeat(load_case(options.repeat)))
        kinds = options.kinds.split(",") if options.kinds else None
        campaign.run(kinds, minutes=options.minutes, cases=options.cases, workers=options.workers)
    print(campaign.report())
    raise SystemExit(bool(campaign.failures))


if __name__ == "__main__":
    main()
