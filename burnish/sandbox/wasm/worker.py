"""The process in which programs of the layer ``wasm`` run, one after another, each in a fresh WebAssembly instance.

``layer.py`` starts it as a file, with one argument of JSON, and speaks to it over standard input and output:
frames of a length and that many bytes of JSON. What a program has is made for it and dropped with it: memory, files that
are open, environment and output. It has no call for sockets, processes or threads, and no folder but those it is given.

Only the standard library and wasmtime are imported here: this runs in a bare Python.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

LENGTH = struct.Struct(">I")
HOME, LIBRARY, ANSWERS = "/program", "/usr/local/lib", "/answers"
"""The folders that a program sees: its own, the standard library's (read-only), and the one for what it answers."""
ANSWERS_FILE = "answers"
_STACK = 16 << 20
_WASM_STACK = 1_900_000
"""Bytes; wasmtime takes no more than 2 MiB of its own accord."""
_STUCK = 0.5
"""Seconds after which a program is no longer waited for that has been stopped, and is in a call such as sleep."""
_NOT_PERMITTED = 63


def main() -> None:
    asked = json.loads(sys.argv[1])
    # Nothing but answers goes out over standard output, whatever else prints.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.path.append(asked["packages"])
    if "compile" in asked:
        _compile(asked["compile"], asked["to"])
        return
    _limit(asked["file_bytes"])
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    # A thread for its stack: a main thread's is small on some systems.
    threading.stack_size(_STACK)
    threading.Thread(target=_serve, args=(asked, jobs, out), daemon=True).start()
    while True:
        job = receive(sys.stdin.buffer)
        if job is None:
            # Whoever asks is gone, and a program that still runs goes too.
            os._exit(0)
        jobs.put(job)


def receive(stream: BinaryIO) -> dict[str, Any] | None:
    """The next frame; None at the end of the stream, be it within a frame."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    body = stream.read(length)
    if len(body) < length:
        return None
    found: dict[str, Any] = json.loads(body)
    return found


def send(stream: BinaryIO, message: object) -> None:
    """Writes a frame."""
    body = json.dumps(message).encode()
    stream.write(LENGTH.pack(len(body)) + body)
    stream.flush()


def _config() -> Any:
    import wasmtime

    config = wasmtime.Config()
    config.epoch_interruption = True
    config.max_wasm_stack = _WASM_STACK
    return config


def _compile(binary: str, to: str) -> None:
    import wasmtime

    with open(binary, "rb") as file:
        module = wasmtime.Module(wasmtime.Engine(_config()), file.read())
    with open(to, "wb") as file:
        file.write(module.serialize())
        file.flush()
        os.fsync(file.fileno())


def _limit(file_bytes: int) -> None:
    """Holds each file to a size where the system can (not on Windows); a write beyond it then fails inside."""
    if os.name != "posix":
        return
    import resource

    for which, size in ((resource.RLIMIT_FSIZE, file_bytes), (resource.RLIMIT_CORE, 0)):
        _, most = resource.getrlimit(which)
        top = size if most == resource.RLIM_INFINITY else min(size, most)
        resource.setrlimit(which, (top, most))


def _serve(asked: dict[str, Any], jobs: queue.Queue[dict[str, Any]], out: BinaryIO) -> None:
    try:
        sys.path.append(asked["package"])
        from burnish.sandbox.folder import overfull

        python = Python(asked["module"], asked["library"], asked["code"], asked["environment"])
    except BaseException as error:
        send(out, {"refused": f"{type(error).__name__}: {error}".splitlines()[0]})
        os._exit(1)
    send(out, {"ready": True})
    while True:
        try:
            Run(python, jobs.get(), out, overfull).end()
        except BaseException:
            # Nothing is said of that program; what asks hears that this process is gone.
            traceback.print_exc()
            os._exit(1)


class Python:
    """The compiled Python, of which every program gets an instance."""

    def __init__(self, module: str, library: str, code: str, environment: dict[str, str]) -> None:
        import wasmtime

        self.library, self.code, self.environment = library, code, environment
        self.engine = wasmtime.Engine(_config())
        self.module = wasmtime.Module.deserialize_file(self.engine, module)
        linker = wasmtime.Linker(self.engine)
        linker.define_wasi()
        number = wasmtime.ValType.i32()
        # The binary's one call that is not WASI's: nobody is there.
        linker.define_func("host", "call", wasmtime.FuncType([number] * 4, [number]), lambda *_: -1)
        # No links: a path within a folder then never leads out of it, whatever wasmtime makes of links. (In wasmtime 49.0.0
        # on macOS, renaming one whose name ends in a slash followed it: GHSA-m9f7-9w4p-gv38.)
        linker.allow_shadowing = True
        for name, arguments in (("path_symlink", 5), ("path_link", 7)):
            kinds = [number] * arguments
            linker.define_func(
                "wasi_snapshot_preview1", name, wasmtime.FuncType(kinds, [number]), lambda *_: _NOT_PERMITTED
            )
        # WASI's own takes no status of 126 or more.
        linker.define_func("wasi_snapshot_preview1", "proc_exit", wasmtime.FuncType([number], []), _leave)
        self.ready = linker.instantiate_pre(self.module)


class Left(Exception):
    """A program ended itself with a status."""


def _leave(status: int) -> None:
    raise Left(status & 0xFF)


class Run:
    """One program, from its start to what is said of it."""

    def __init__(
        self, python: Python, job: dict[str, Any], out: BinaryIO, overfull: Callable[[str], str | None]
    ) -> None:
        self.python, self.job, self.out, self.overfull = python, job, out, overfull
        self.heard = {"stdout": bytearray(), "stderr": bytearray()}
        self.how: dict[str, Any] = {}
        self.cut: tuple[str, str] | None = None
        self.ended = False
        self.done, self.wake, self.lock = threading.Event(), threading.Event(), threading.Lock()
        self.memory: int | None = None
        self.begun = time.monotonic()

    def end(self) -> None:
        """Runs it and says how it ended."""
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        try:
            self.how = self._run()
        finally:
            with self.lock:
                self.ended = True
            self.done.set()
            self.wake.set()
            # Its stop must not reach the next program.
            watcher.join()
        self._say()

    def _run(self) -> dict[str, Any]:
        import wasmtime

        store = wasmtime.Store(self.python.engine)
        try:
            store.set_limits(memory_size=self.job["memory"])
            store.set_epoch_deadline(1)
            store.set_wasi(self._wasi())
            try:
                exports: Any = self.python.ready.instantiate(store).exports(store)
            except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
                return {"refused": str(error).splitlines()[0]}
            try:
                return {"status": exports["run"](store) & 0xFF}
            finally:
                self.memory = exports["memory"].data_len(store)
        except Left as end:
            return {"status": end.args[0]}
        except wasmtime.Trap as trap:
            code = trap.trap_code
            return {"trap": "trap" if code is None else code.name.lower().replace("_", " ")}
        except wasmtime.WasmtimeError as error:
            return {"trap": str(error).splitlines()[0]}
        finally:
            # Its files are closed with it, which Windows wants before they are removed.
            store.close()

    def _wasi(self) -> Any:
        import wasmtime

        wasi = wasmtime.WasiConfig()
        wasi.argv = ["python", "-c", self.python.code]
        wasi.env = list(self.python.environment.items())
        # The job comes in as the program's standard input, which is at its end when the program begins.
        wasi.stdin_file = self.job["stdin"]
        wasi.stdout_custom = lambda piece: self._hear("stdout", piece)
        wasi.stderr_custom = lambda piece: self._hear("stderr", piece)
        wasi.preopen_dir(self.python.library, LIBRARY, False)
        wasi.preopen_dir(self.job["home"], HOME, True)
        wasi.preopen_dir(self.job["answers"], ANSWERS, True)
        return wasi

    def _hear(self, name: str, piece: bytes) -> None:
        heard, most = self.heard[name], self.job["output"]
        room = most - len(heard)
        heard += piece[:room]
        if len(piece) > room:
            self._stop("killed", f"wrote more than {most} bytes on {name}")

    def _stop(self, status: str, reason: str) -> None:
        with self.lock:
            if self.cut is None and not self.ended:
                self.cut = status, reason
                self.python.engine.increment_epoch()
        self.wake.set()

    def _watch(self) -> None:
        """Stops the program where it breaks a limit, and this process where the program cannot be stopped otherwise."""
        seconds = self.job["seconds"]
        while not self.wake.wait(max(0.0, min(self.job["look_every"], self.begun + seconds - time.monotonic()))):
            if time.monotonic() - self.begun >= seconds:
                self._stop("timeout", f"ran longer than {seconds:g} s")
            else:
                reason = self._overfull()
                if reason:
                    self._stop("killed", reason)
        if not self.done.wait(_STUCK):
            with self.lock:
                if not self.ended:
                    self._say(leaving=True)
                    os._exit(0)

    def _overfull(self) -> str | None:
        try:
            size = os.stat(os.path.join(self.job["answers"], ANSWERS_FILE)).st_size
        except OSError:
            size = 0
        if size > self.job["output"]:
            return f"wrote more than {self.job['output']} bytes on answers"
        return self.overfull(self.job["home"]) or self.overfull(self.job["answers"])

    def _say(self, *, leaving: bool = False) -> None:
        written = {name: base64.b64encode(heard).decode() for name, heard in self.heard.items()}
        seconds = round(time.monotonic() - self.begun, 3)
        said = {**self.how, **written, "cut": self.cut, "seconds": seconds, "memory": self.memory, "leaving": leaving}
        send(self.out, said)


if __name__ == "__main__":
    main()
