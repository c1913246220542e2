"""The layer ``wasm``: programs run by a Python inside WebAssembly, on Linux, macOS and Windows alike.

WebAssembly reaches nothing but its own memory and the calls that it is given, here those of WASI (files in folders that are
handed over, clocks, random numbers, output) without links. There are no sockets, processes or threads among them to be
refused. The programs run in processes of their own all the same (``worker``), as one that hangs in a call can be ended
only with its process; each is started once and runs many programs, every one in a fresh instance.
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
from pathlib import Path
from typing import IO, Any

from burnish.sandbox.folder import environment, own_folder
from burnish.sandbox.names import TITLES, WASM
from burnish.sandbox.program import FILE_BYTES
from burnish.sandbox.verdict import LOOK_EVERY, START_SECONDS, Limits, Status, Unavailable, Verdict, told_by
from burnish.sandbox.wasm import files as wasm_files
from burnish.sandbox.wasm.worker import ANSWERS, ANSWERS_FILE, HOME, receive, send

_PACKAGE = Path(__file__).resolve().parents[3]
_GRACE = 5.0
"""Seconds that a worker has beyond a program's own, to end the program itself."""
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
        # A call that this Python does not have.
        if getattr(error, "obj", None) is not os: print(name, "failed for another reason", error)
    except OSError as error:
        # A failure for any other reason proves nothing about the walls.
        if error.errno not in refusals: print(name, f"failed for another reason ({error})")
    else:
        print(name, "succeeded")
print("tried")
"""


class Workers:
    """The processes in which programs run: as many as run at once, kept for the next ones."""

    layer = WASM

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        self._all: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._files = wasm_files.files()
        try:
            first = self._started()
        except _Unloadable:
            wasm_files.discard(self._files)
            self._files = wasm_files.files()
            first = self._started()
        self._idle.append(first)

    def run(self, work: Mapping[str, Any], limits: Limits, answers: bool) -> tuple[Verdict, bytes]:
        try:
            return self._run(self._taken(), work, limits, answers)
        except _Gone:
            return self._run(self._started(), work, limits, answers)

    def _run(self, worker: _Worker, work: Mapping[str, Any], limits: Limits, answers: bool) -> tuple[Verdict, bytes]:
        try:
            found = worker.run(work, limits, answers)
        except BaseException:
            self._drop(worker)
            raise
        if worker.alive():
            with self._lock:
                self._idle.append(worker)
        else:
            self._drop(worker)
        return found

    def alive(self) -> bool:
        return self._owner == os.getpid() and not self._closed and self._files.module.is_file()

    def close(self) -> None:
        # A copy of this process has workers that are not its own.
        own = self._owner == os.getpid()
        with self._lock if own else contextlib.nullcontext():
            self._closed = True
            workers, self._all, self._idle = self._all, set(), []
        for worker in workers:
            worker.close(kill=own)

    def _taken(self) -> _Worker:
        while True:
            with self._lock:
                if not self._idle:
                    break
                worker = self._idle.pop()
            if worker.alive():
                return worker
            self._drop(worker)
        return self._started()

    def _started(self) -> _Worker:
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
    """The compiled file is there and cannot be used."""


class _Gone(Unavailable):
    """A process had ended before it was asked."""


class _Worker:
    """One process, which runs one program at a time."""

    def __init__(self, files: wasm_files.Files) -> None:
        self._overdue = self._leaving = False
        inside = f"{ANSWERS}/{ANSWERS_FILE}"
        here = Path(__file__).parent
        texts = [path.read_text(encoding="utf-8") for path in (here.parent / "program.py", here / "guest.py")]
        asked = {
            "module": str(files.module), "library": str(files.library), "packages": files.packages,
            "package": str(_PACKAGE), "file_bytes": FILE_BYTES, "environment": environment(HOME),
            "code": _CODE.format(texts=texts, home=HOME, answers=inside),
        }  # fmt: skip
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = wasm_files.worker(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)
        except BaseException:
            self._errors.close()
            raise

    def begin(self) -> None:
        """Waits for it to be ready, and tries its walls.

        Raises:
            Unavailable: it cannot run programs, or they can reach what they should not.
        """
        said = self._heard(START_SECONDS)
        if said is None:
            self._process.wait()
            self._errors.seek(0)
            last = (self._errors.read().decode("utf-8", "backslashreplace").strip().splitlines() or [""])[-1]
            raise Unavailable(last or "Python ended before it began")
        if "refused" in said:
            raise _Unloadable(said["refused"])
        source = _ATTACKS.replace("HERE", repr(str(Path(__file__).resolve())), 1)
        verdict, _ = self.run({"source": source, "name": "attacks"}, Limits(seconds=START_SECONDS), answers=False)
        *holes, last = verdict.stdout.splitlines() or [""]
        if verdict.status != "ok" or last != "tried":
            raise Unavailable(f"a program could not be started: {verdict.reason or 'it said nothing'}")
        if holes:
            raise Unavailable(f"the walls do not hold: {', '.join(holes)}")

    def run(self, work: Mapping[str, Any], limits: Limits, answers: bool) -> tuple[Verdict, bytes]:
        """As ``layers.Walls.run``; afterwards the process may have ended."""
        with own_folder() as folder:
            places = {name: os.path.join(folder, name) for name in ("home", "answers", "stdin")}
            os.mkdir(places["home"], 0o700)
            os.mkdir(places["answers"], 0o700)
            with open(places["stdin"], "w", encoding="utf-8") as file:
                json.dump(dict(work), file)
            job = {
                **places, "seconds": limits.seconds, "memory": limits.memory << 20, "output": limits.output,
                "look_every": LOOK_EVERY,
            }  # fmt: skip
            try:
                said = self._asked(job, limits.seconds + _GRACE)
            except BaseException:
                # Before its folder goes.
                self._process.kill()
                self._process.wait()
                raise
            verdict = self._verdict(said, limits)
            heard = _answers(os.path.join(places["answers"], ANSWERS_FILE), limits.output) if answers else b""
        if len(heard) > limits.output and verdict.status in ("ok", "error"):
            verdict = Verdict(
                "killed", f"wrote more than {limits.output} bytes on answers", verdict.stdout, verdict.stderr,
                verdict.seconds, verdict.memory, verdict.layer,
            )  # fmt: skip
        return verdict, heard

    def alive(self) -> bool:
        return not self._leaving and self._process.poll() is None

    def close(self, *, kill: bool) -> None:
        """Lets go of it, and ends it where it is this process's own."""
        if kill:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):
                _stream(stream).close()

    def _asked(self, job: object, seconds: float) -> dict[str, Any] | None:
        try:
            send(_stream(self._process.stdin), job)
        except OSError as error:
            raise _Gone("the process that runs programs is gone") from error
        said = self._heard(seconds)
        if said is None or said.get("leaving"):
            self._leaving = True
            self._process.wait()
        return said

    def _heard(self, seconds: float) -> dict[str, Any] | None:
        """What it says; None where it ended, or was ended for saying nothing in that time."""
        late = threading.Timer(seconds, self._late)
        late.daemon = True
        late.start()
        try:
            return receive(_stream(self._process.stdout))
        finally:
            late.cancel()

    def _late(self) -> None:
        self._overdue = True
        self._process.kill()

    def _verdict(self, said: dict[str, Any] | None, limits: Limits) -> Verdict:
        layer = TITLES[WASM]
        if said is None:
            if self._overdue:
                return Verdict("timeout", f"ran longer than {limits.seconds:g} s", layer=layer)
            return Verdict("killed", "the process that ran it ended", layer=layer)
        if "refused" in said:
            return Verdict("refused", f"{layer}: {said['refused']}")
        status, reason = _ended(said)
        stdout, stderr = (
            base64.b64decode(said[name]).decode("utf-8", "backslashreplace") for name in ("stdout", "stderr")
        )
        memory = None if said["memory"] is None else round(said["memory"] / (1 << 20), 1)
        return Verdict(status, reason, stdout, stderr, said["seconds"], memory, layer)


def _ended(said: Mapping[str, Any]) -> tuple[Status, str]:
    if said["cut"]:
        status, reason = said["cut"]
        return status, reason
    return told_by(said["status"]) if "status" in said else ("killed", f"by WebAssembly: {said['trap']}")


def _answers(path: str, most: int) -> bytes:
    """What a program answered, to a byte more than it may."""
    try:
        with open(path, "rb") as file:
            return file.read(most + 1)
    except OSError:
        return b""


def _stream(stream: IO[bytes] | None) -> Any:
    assert stream is not None
    return stream
