"""Rendering of chat templates in a process of their own, with bounds on time, memory and size.

A template is a program from a model's folder. Jinja's sandbox keeps it from Python, but not from looping for ever or from
building a text of gigabytes, and it may do so for one message only; so every text is rendered under these bounds.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from burnish.errors import BurnishError, one_line

MEMORY = 512 << 20
"""Bytes of address space of the process; what a template builds is within it."""
_BROKEN = {
    "TemplateSyntaxError", "TemplateAssertionError", "SecurityError", "MemoryError", "OverflowError", "RecursionError",
}  # fmt: skip
_UNSET = {"UndefinedError", "TypeError"}


class TemplateError(ValueError):
    """A template that refused or failed to render a conversation.

    Attributes:
        broken: whether it is the template's own fault, and not one of the conversation or of missing variables.
    """

    def __init__(self, reason: str, *, broken: bool = False) -> None:
        super().__init__(reason)
        self.broken = broken


def render_template(template: str, now: datetime, values: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a template, and the parts of it that the template marks as what the model writes.

    Args:
        now: what the template reads as the present time.
        values: its variables, as JSON has them.

    Raises:
        TemplateError: it refuses the values, fails, or breaks a bound.
    """
    request = {"template": template, "now": now.isoformat(), "values": values}
    answer = _process.ask(json.dumps(request, default=lambda value: f"<{type(value).__name__}>").encode())
    if "error" not in answer:
        return str(answer["text"]), [(int(begin), int(end)) for begin, end in answer["spans"]]
    kind = str(answer.get("kind"))
    reason = one_line(ValueError(str(answer["error"])))[:120] or kind
    if kind in _UNSET:  # it reads what it was not given, such as a list of tools
        reason += "; template_kwargs can set what it reads, as in { tools = [] }"
    raise TemplateError(reason, broken=kind in _BROKEN)


class _Process:
    """A process of ``template_process``, started at the first text and again after it was ended."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0

    def ask(self, request: bytes) -> dict[str, Any]:
        with self.lock:
            answer = status = None
            try:
                if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
                    self._start()
                answer = self._exchange(request)
            finally:
                if answer is None:  # a late answer would be read as that to the next request
                    status = self.close()
        if answer is not None:
            return answer
        if status == -getattr(signal, "SIGPROF", 0):
            return {"error": "it takes too long", "kind": "MemoryError"}
        return {"error": f"it ends its process, with status {status}", "kind": "MemoryError"}

    def _start(self) -> None:
        import jinja2
        import markupsafe

        self.close()
        paths = {str(Path(str(module.__file__)).parents[1]) for module in (jinja2, markupsafe)}
        script = str(Path(__file__).with_name("template_process.py"))
        try:
            self.process, self.owner = subprocess.Popen(
                [sys.executable, "-I", "-S", script, str(MEMORY), json.dumps(sorted(paths))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            ), os.getpid()  # fmt: skip
            ready = self._exchange(b'{"template": "", "now": "2000-01-01", "values": {}}') is not None
        except OSError:
            ready = False
        if not ready:
            raise BurnishError("the process that renders chat templates did not start: is there memory for it?")

    def _exchange(self, request: bytes) -> dict[str, Any] | None:
        """Return the answer; None if the process ended, or answers what it cannot answer."""
        assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None
        longest = 32 * len(request) + (1 << 26)
        try:
            self.process.stdin.write(request + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline(longest)
            answer = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        return answer if isinstance(answer, dict) else None

    def close(self) -> int | None:
        """End the process and return its status; None if there is none."""
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():
            return None
        process.kill()
        process.communicate()
        return process.returncode


_process = _Process()
atexit.register(_process.close)
