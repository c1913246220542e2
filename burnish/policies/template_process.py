"""Process that renders chat templates: one line of JSON in, one out.

It is run as a file, without burnish, with limits of memory and of processor time per text, so a template that loops or
grows ends this process and nothing else. Without a parent its input ends, and so does it.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any


def main(memory: int, paths: str) -> None:
    if sys.platform != "win32":
        import resource

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
        for kind, limit in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
            with contextlib.suppress(ValueError, OSError):  # macOS refuses some
                resource.setrlimit(kind, (limit, limit))
    sys.path += json.loads(paths)
    render = renderer()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    for line in requests:
        if sys.platform != "win32":
            signal.setitimer(signal.ITIMER_PROF, 1 + len(line) / 1e6)  # its signal ends the process
        answer = _answer(render, line)
        if sys.platform != "win32":
            signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(answer + b"\n")
        answers.flush()


def _answer(render: Callable[..., dict[str, Any]], line: bytes) -> bytes:
    try:
        answer = render(**json.loads(line), most=4 * len(line) + (1 << 22))
    except MemoryError:
        answer = {"error": "it needs too much memory", "kind": "MemoryError"}
    except Exception as error:  # a template is a program of its own and may raise anything
        answer = {"error": _text(error), "kind": type(error).__name__}
    return json.dumps(answer).encode()


def _text(error: Exception) -> str:
    try:
        return str(error)[:2000]
    except Exception:
        return ""


def renderer() -> Callable[..., dict[str, Any]]:
    """Return a function that renders a template as transformers does: in Jinja's sandbox, with the same additions."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    spans: list[tuple[int, int]] = []
    written = [0]
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_marks(spans, written), loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= _names()
    compiled = lru_cache(16)(environment.from_string)

    def render(template: str, now: str, values: Mapping[str, Any], most: int) -> dict[str, Any]:
        spans.clear()
        written[0] = 0
        parts = []
        own = {"strftime_now": datetime.fromisoformat(now).strftime}
        for part in compiled(template).generate({**own, **values}):
            parts.append(part)
            written[0] += len(part)
            if written[0] > most:
                return {"error": f"it writes more than {most:,} characters", "kind": "MemoryError"}
        return {"text": "".join(parts), "spans": spans}

    return render


def _marks(spans: list[tuple[int, int]], written: list[int]) -> Any:
    """Return the tag ``{% generation %}`` around what the model writes; it adds its parts of the text to ``spans``."""
    from jinja2.ext import Extension
    from jinja2.nodes import CallBlock

    class Marks(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller: Callable[[], str]) -> str:
            text = caller()
            spans.append((written[0], written[0] + len(text)))
            return text

    return Marks


def _names() -> dict[str, Any]:
    """Return the functions that templates may call."""
    from jinja2 import utils
    from jinja2.exceptions import SecurityError, TemplateError

    class Dictionary:
        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    class Namespace(utils.Namespace):
        def __init__(*args: Any, **kwargs: Any) -> None:  # a template may name a value "self"
            values = dict(*args[1:], **kwargs)
            refuse_private(values)
            utils.Namespace.__init__(args[0], values)

        def __setitem__(self, name: str, value: Any) -> None:
            refuse_private([name])
            super().__setitem__(name, value)

    def refuse_private(names: Iterable[Any]) -> None:
        if any(isinstance(name, str) and name.startswith("_") for name in names):
            raise SecurityError("a namespace takes no names that begin with an underscore")

    def refuse(message: str) -> None:
        raise TemplateError(message)

    return {"raise_exception": refuse, "dict": Dictionary(), "namespace": Namespace}


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
