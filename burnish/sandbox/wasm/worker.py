"""Worker process of the layer ``wasm``: runs programs one after another, each in a fresh WebAssembly instance.

``layer.py`` starts this file with one argument of JSON and communicates over standard input and output, in frames of a
length and that many bytes of JSON. Each program has its own memory, open files, environment and output, which end with
it. It has no calls for sockets, processes or threads, and no folders but the three below.

This module runs in a Python without site-packages. It imports only the standard library, wasmtime and the sandbox.
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
"""Folders that a program sees: its own, the standard library's (read-only) and the one for its answers."""
ANSWERS_FILE = "answers"
_STACK = 16 << 20
_WASM_STACK = 1_900_000
"""Bytes. wasmtime refuses more than 2 MiB by default."""
_STUCK = 0.5
"""Seconds to wait for a stopped program, which may be in a call such as sleep, before this process exits."""
_NOT_PERMITTED = 63


def main() -> None:
    options = json.loads(sys.argv[1])
    # Standard output carries frames only: anything else that is printed goes to standard error.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.path.append(options["packages"])
    if "compile" in options:
        _compile(options["compile"], options["to"])
        return
    _limit(options["file_bytes"])
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    # The main thread's stack is too small on some systems.
    threading.stack_size(_STACK)
    threading.Thread(target=_serve, args=(options, jobs, out), daemon=True).start()
    while True:
        job = receive(sys.stdin.buffer)
        if job is None:
            # The parent has ended, so end the running program too.
            os._exit(0)
        jobs.put(job)


def receive(stream: BinaryIO) -> dict[str, Any] | None:
    """Return the next frame, or None if the stream ends, even within a frame."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    body = stream.read(length)
    if len(body) < length:
        return None
    message: dict[str, Any] = json.loads(body)
    return message


def send(stream: BinaryIO, message: object) -> None:
    """Write a frame."""
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
    """Limit the size of each file, except on Windows. Writes beyond it fail inside the program."""
    if os.name != "posix":
        return
    import resource

    for resource_id, size in ((resource.RLIMIT_FSIZE, file_bytes), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(resource_id)
        soft = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.setrlimit(resource_id, (soft, hard))


def _serve(options: dict[str, Any], jobs: queue.Queue[dict[str, Any]], out: BinaryIO) -> None:
    try:
        sys.path.append(options["package"])
        from burnish.sandbox.folder import exceeded_limit

        python = CompiledPython(options["module"], options["library"], options["code"], options["environment"])
    except BaseException as error:
        send(out, {"refused": f"{type(error).__name__}: {error}".splitlines()[0]})
        os._exit(1)
    send(out, {"ready": True})
    while True:
        try:
            ProgramRun(python, jobs.get(), out, exceeded_limit).complete()
        except BaseException:
            # The program gets no report: the parent sees that this process has ended.
            traceback.print_exc()
            os._exit(1)


class CompiledPython:
    """Compiled Python module, of which each program gets a fresh instance."""

    def __init__(self, module: str, library: str, code: str, environment: dict[str, str]) -> None:
        import wasmtime

        self.library, self.code, self.environment = library, code, environment
        self.engine = wasmtime.Engine(_config())
        self.module = wasmtime.Module.deserialize_file(self.engine, module)
        linker = wasmtime.Linker(self.engine)
        linker.define_wasi()
        i32 = wasmtime.ValType.i32()
        # The binary's only import outside WASI. It always fails.
        linker.define_func("host", "call", wasmtime.FuncType([i32] * 4, [i32]), lambda *_: -1)
        # No links: no path within a folder can then lead out of it, however wasmtime treats links. (wasmtime 49.0.0 on
        # macOS follows a link when renaming one whose name ends in a slash: GHSA-m9f7-9w4p-gv38.)
        linker.allow_shadowing = True
        for name, arguments in (("path_symlink", 5), ("path_link", 7)):
            linker.define_func(
                "wasi_snapshot_preview1", name, wasmtime.FuncType([i32] * arguments, [i32]), lambda *_: _NOT_PERMITTED
            )
        # WASI's own function rejects exit statuses of 126 and above.
        linker.define_func("wasi_snapshot_preview1", "proc_exit", wasmtime.FuncType([i32], []), _proc_exit)
        self.ready = linker.instantiate_pre(self.module)


class ProgramExit(Exception):
    """A program exited with a status."""


def _proc_exit(status: int) -> None:
    raise ProgramExit(status & 0xFF)


class ProgramRun:
    """Run of one program, from its start to its report."""

    def __init__(
        self, python: CompiledPython, job: dict[str, Any], out: BinaryIO, exceeded_limit: Callable[[str], str | None]
    ) -> None:
        self.python, self.job, self.out, self.exceeded_limit = python, job, out, exceeded_limit
        self.output = {"stdout": bytearray(), "stderr": bytearray()}
        self.result: dict[str, Any] = {}
        self.cut: tuple[str, str] | None = None
        self.ended = False
        self.done, self.wake, self.lock = threading.Event(), threading.Event(), threading.Lock()
        self.memory: int | None = None
        self.started = time.monotonic()

    def complete(self) -> None:
        """Run the program to its end and send the report."""
        monitor = threading.Thread(target=self._monitor, daemon=True)
        monitor.start()
        try:
            self.result = self._run()
        finally:
            with self.lock:
                self.ended = True
            self.done.set()
            self.wake.set()
            # Otherwise its interrupt could stop the next program.
            monitor.join()
        self._report()

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
        except ProgramExit as end:
            return {"status": end.args[0]}
        except wasmtime.Trap as trap:
            code = trap.trap_code
            return {"trap": "trap" if code is None else code.name.lower().replace("_", " ")}
        except wasmtime.WasmtimeError as error:
            return {"trap": str(error).splitlines()[0]}
        finally:
            # Closes the program's files, without which Windows cannot remove them.
            store.close()

    def _wasi(self) -> Any:
        import wasmtime

        wasi = wasmtime.WasiConfig()
        wasi.argv = ["python", "-c", self.python.code]
        wasi.env = list(self.python.environment.items())
        # ``do_job`` reads the job from standard input, so the program finds only its own input there.
        wasi.stdin_file = self.job["stdin"]
        wasi.stdout_custom = lambda chunk: self._collect("stdout", chunk)
        wasi.stderr_custom = lambda chunk: self._collect("stderr", chunk)
        wasi.preopen_dir(self.python.library, LIBRARY, False)
        wasi.preopen_dir(self.job["home"], HOME, True)
        wasi.preopen_dir(self.job["answers"], ANSWERS, True)
        return wasi

    def _collect(self, name: str, chunk: bytes) -> None:
        output, limit = self.output[name], self.job["output"]
        room = limit - len(output)
        output += chunk[:room]
        if len(chunk) > room:
            self._stop("killed", f"wrote more than {limit} bytes on {name}")

    def _stop(self, status: str, reason: str) -> None:
        with self.lock:
            if self.cut is None and not self.ended:
                self.cut = status, reason
                self.python.engine.increment_epoch()
        self.wake.set()

    def _monitor(self) -> None:
        """Stop the program if it breaks a limit. If it does not stop, report and end this process."""
        seconds = self.job["seconds"]
        while not self.wake.wait(max(0.0, min(self.job["check_seconds"], self.started + seconds - time.monotonic()))):
            if time.monotonic() - self.started >= seconds:
                self._stop("timeout", f"ran longer than {seconds:g} s")
            else:
                reason = self._exceeded_limit()
                if reason:
                    self._stop("killed", reason)
        if not self.done.wait(_STUCK):
            with self.lock:
                if not self.ended:
                    self._report(leaving=True)
                    os._exit(0)

    def _exceeded_limit(self) -> str | None:
        try:
            size = os.stat(os.path.join(self.job["answers"], ANSWERS_FILE)).st_size
        except OSError:
            size = 0
        if size > self.job["output"]:
            return f"wrote more than {self.job['output']} bytes on answers"
        return self.exceeded_limit(self.job["home"]) or self.exceeded_limit(self.job["answers"])

    def _report(self, *, leaving: bool = False) -> None:
        output = {name: base64.b64encode(written).decode() for name, written in self.output.items()}
        seconds = round(time.monotonic() - self.started, 3)
        report = {"cut": self.cut, "seconds": seconds, "memory": self.memory, "leaving": leaving}
        send(self.out, {**self.result, **output, **report})


if __name__ == "__main__":
    main()
