"""Process that compares mathematical expressions with math-verify: one line of JSON in, one out.

It is run as a file, without burnish. Its parent ends it when a comparison takes too long; without a parent it ends
itself, some seconds later.
"""

from __future__ import annotations

import json
import logging
import signal
import sys


def main(memory: int, seconds: float) -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable()
    answers = sys.stdout
    sys.stdout = sys.stderr
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        if sys.platform != "win32":
            signal.setitimer(signal.ITIMER_REAL, 2 * seconds)
        try:
            # Only the LaTeX reader: the one for plain expressions evaluates text as Python.
            gold, answer = (
                parse(
                    f"${text}$",
                    extraction_config=[LatexExtractionConfig()],
                    fallback_mode="no_fallback",
                    parsing_timeout=0,
                )
                for text in json.loads(line)
            )
            equal = bool(gold and answer and verify(gold, answer, timeout_seconds=0))
        except (Exception, MemoryError, RecursionError):
            equal = False
        if sys.platform != "win32":
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(equal), file=answers, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
