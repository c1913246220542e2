"""Layer ``wasm``: runs programs in Python inside WebAssembly, on Linux, macOS and Windows.

WebAssembly code can use only its own memory and the functions that it imports. Here these are WASI's, except links:
files in given folders, clocks, random numbers and output. None of them creates sockets, processes or threads. Programs
still run in separate processes (``worker``), since a program that hangs in a call can be ended only with its process.
Each process runs many programs, each in a fresh instance.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from burnish.sandbox.folder import program_environment, temporary_folder
from burnish.sandbox.names import TITLES, WASM
from burnish.sandbox.program import FILE_BYTES
from burnish.sandbox.verdict import (
    FOLDER_CHECK_SECONDS,
    START_SECONDS,
    Limits,
    Unavailable,
    Verdict,
    last_line,
    status_from_exit_code,
)  # fmt: skip
from burnish.sandbox.wasm import files as wasm_files
from burnish.sandbox.wasm.worker import ANSWERS, ANSWERS_FILE, HOME, LENGTH, receive, send

_PACKAGE = Path(__file__).resolve().parents[3]
_GRACE = 5.0
"""Seconds beyond a program's time limit in which its worker must end it."""
_CODE = """
for text in {texts!r}:
    exec(compile(text, "sandbox", "exec"))
do_job({home!r}, {answers!r})
"""

_ATTACKS = """
import errno, os, socket
refusals = {errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENOTCAPABLE, errno.ENOTSUP}
here = HERE
def linked():
    os.symlink(here, "link")
    open("link").close()
def spawned():
    os.posix_spawn(here, [here], {})
attacks = {
    "reading a file outside": lambda: open(here).close(),
    "reading /etc/passwd": lambda: open("/etc/passwd").close(),
    "reading by a way up": lambda: open("../" * 20 + here.lstrip("/")).close(),
    "listing /": lambda: os.listdir("/"),
    "writing outside": lambda: open("/tmp/burnish-breach", "w").close(),
    "writing to the library": lambda: open(os.__file__.partition(".zip")[0] + ".zip", "r+b").close(),
    "following a link out": linked,
    "opening a socket": lambda: socket.socket(),
    "starting a process": spawned,
    "forking": lambda: os.fork(),
    "signalling the parent": lambda: os.kill(os.getppid(), 0),
}
for name, attack in attacks.items():
    try:
        attack()
    except AttributeError as error:
        # This Python does not have the call.
        if getattr(error, "obj", None) is not os: print(name, "failed for another reason", error)
    except OSError as error:
        # Any other failure proves nothing about the confinement.
        if error.errno not in refusals: print(name, f"failed for another reason ({error})")
    else:
        print(name, "succeeded")
print("tried")
"""


class WorkerPool:
    """Pool of worker processes: as many as programs have run at once, kept for later programs."""

    layer = WASM

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        self._all: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._files = wasm_files.prepare_files()
        try:
            first = self._start_worker()
        except _Unloadable:
            with contextlib.suppress(OSError):
                self._files.module.unlink()  # so that it is compiled again
            self._files = wasm_files.prepare_files()
            first = self._start_worker()
        self._idle.append(first)

    def run(self, request: Mapping[str, Any], limits: Limits, answers: bool) -> tuple[Verdict, bytes]:
        try:
            return self._run(self._take_worker(), request, limits, answers)
        except _WorkerGone:
            return self._run(self._start_worker(), request, limits, answers)

    def _run(self, worker: _Worker, request: Mapping[str, Any], limits: Limits, answers: bool) -> tuple[Verdict, bytes]:
        try:
            outcome = worker.run(request, limits, answers)
        except BaseException:
            self._drop(worker)
            raise
        if worker.alive():
            with self._lock:
                self._idle.append(worker)
        else:
            self._drop(worker)
        return outcome

    def alive(self) -> bool:
        return self._owner == os.getpid() and not self._closed and self._files.module.is_file()

    def close(self) -> None:
        # A forked child must not kill its parent's workers.
        own = self._owner == os.getpid()
        with self._lock if own else contextlib.nullcontext():
            self._closed = True
            workers, self._all, self._idle = self._all, set(), []
        for worker in workers:
            worker.close(kill=own)

    def _take_worker(self) -> _Worker:
        while True:
            with self._lock:
                if not self._idle:
                    break
                worker = self._idle.pop()
            if worker.alive():
                return worker
            self._drop(worker)
        return self._start_worker()

    def _start_worker(self) -> _Worker:
        worker = _Worker(self._files)
        with self._lock:
            if self._closed:
                worker.close(kill=True)
                raise Unavailable("the sandbox has been closed")
            self._all.add(worker)
        try:
            worker.begin()
        except BaseException:
            self._drop(worker)
            raise
        return worker

    def _drop(self, worker: _Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.close(kill=True)


class _Unloadable(Unavailable):
    """The compiled file exists but cannot be loaded."""


class _WorkerGone(Unavailable):
    """A worker had ended before it received a job."""


class _Worker:
    """One worker process, which runs one program at a time."""

    def __init__(self, files: wasm_files.RuntimeFiles) -> None:
        self._overdue = self._leaving = False
        answers = f"{ANSWERS}/{ANSWERS_FILE}"
        here = Path(__file__).parent
        texts = [path.read_text(encoding="utf-8") for path in (here.parent / "program.py", here / "guest.py")]
        options = {
            "module": str(files.module), "library": str(files.library), "packages": files.packages,
            "package": str(_PACKAGE), "file_bytes": FILE_BYTES, "environment": program_environment(HOME),
            "code": _CODE.format(texts=texts, home=HOME, answers=answers),
        }  # fmt: skip
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = wasm_files.start_worker(
                options, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
            )
        except BaseException:
            self._errors.close()
            raise

    def begin(self) -> None:
        """Wait until the worker is ready and attack its confinement. Raises Unavailable unless every attack fails."""
        reply = self._receive(START_SECONDS)
        if reply is None:
            self._process.wait()
            raise Unavailable(last_line(self._errors) or "Python ended while it was starting")
        if "refused" in reply:
            raise _Unloadable(reply["refused"])
        source = _ATTACKS.replace("HERE", repr(str(Path(__file__).resolve())), 1)
        verdict, _ = self.run({"source": source, "name": "attacks"}, Limits(seconds=START_SECONDS), answers=False)
        *leaks, last = verdict.stdout.splitlines() or [""]
        if verdict.status != "ok" or last != "tried":
            raise Unavailable(f"a program could not be started: {verdict.reason or 'it printed nothing'}")
        if leaks:
            raise Unavailable(f"the confinement leaks: {', '.join(leaks)}")

    def run(self, request: Mapping[str, Any], limits: Limits, answers: bool) -> tuple[Verdict, bytes]:
        """Run a program, as ``layers.Runner.run`` does. The worker may have ended afterwards."""
        with temporary_folder() as folder:
            paths = {name: os.path.join(folder, name) for name in ("home", "answers", "stdin")}
            os.mkdir(paths["home"], 0o700)
            os.mkdir(paths["answers"], 0o700)
            text = request.get("stdin") or ""
            code = json.dumps({name: value for name, value in request.items() if name != "stdin"}).encode()
            with open(paths["stdin"], "wb") as file:
                file.write(LENGTH.pack(len(code)) + code + text.encode())
            job = {
                **paths, "seconds": limits.seconds, "memory": limits.memory << 20, "output": limits.output,
                "check_seconds": FOLDER_CHECK_SECONDS,
            }  # fmt: skip
            try:
                reply = self._exchange(job, limits.seconds + _GRACE)
            except BaseException:
                # The worker must end before its folder is removed.
                self._process.kill()
                self._process.wait()
                raise
            verdict = self._verdict(reply, limits)
            answered = _read_answers(os.path.join(paths["answers"], ANSWERS_FILE), limits.output) if answers else b""
        if len(answered) > limits.output and verdict.status in ("ok", "error"):
            verdict = replace(verdict, status="killed", reason=f"wrote more than {limits.output} bytes on answers")
        return verdict, answered

    def alive(self) -> bool:
        return not self._leaving and self._process.poll() is None

    def close(self, *, kill: bool) -> None:
        """Close the streams to the worker; kill it if it belongs to this process."""
        if kill:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):
                _stream(stream).close()

    def _exchange(self, job: object, seconds: float) -> dict[str, Any] | None:
        try:
            send(_stream(self._process.stdin), job)
        except OSError as error:
            raise _WorkerGone("the process that runs programs has ended") from error
        reply = self._receive(seconds)
        if reply is None or reply.get("leaving"):
            self._leaving = True
            self._process.wait()
        return reply

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        """Return the worker's next message, or None if it ended or was killed for taking longer than ``seconds``."""
        timer = threading.Timer(seconds, self._kill_overdue)
        timer.daemon = True
        timer.start()
        try:
            return receive(_stream(self._process.stdout))
        finally:
            timer.cancel()

    def _kill_overdue(self) -> None:
        self._overdue = True
        self._process.kill()

    def _verdict(self, reply: dict[str, Any] | None, limits: Limits) -> Verdict:
        layer = TITLES[WASM]
        if reply is None:
            if self._overdue:
                return Verdict("timeout", f"ran longer than {limits.seconds:g} s", layer=layer)
            return Verdict("killed", "the process that ran it ended", layer=layer)
        if "refused" in reply:
            return Verdict("refused", f"{layer}: {reply['refused']}")
        if reply["cut"]:
            status, reason = reply["cut"]
        elif "status" in reply:
            status, reason = status_from_exit_code(reply["status"])
        else:
            status, reason = "killed", f"by WebAssembly: {reply['trap']}"
        stdout, stderr = (
            base64.b64decode(reply[name]).decode("utf-8", "backslashreplace") for name in ("stdout", "stderr")
        )
        memory = None if reply["memory"] is None else round(reply["memory"] / (1 << 20), 1)
        return Verdict(status, reason, stdout, stderr, reply["seconds"], memory, layer)


def _read_answers(path: str, limit: int) -> bytes:
    """Return a program's answers, at most one byte over the limit."""
    try:
        with open(path, "rb") as file:
            return file.read(limit + 1)
    except OSError:
        return b""


def _stream(stream: IO[bytes] | None) -> Any:
    assert stream is not None
    return stream
