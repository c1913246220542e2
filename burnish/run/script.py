"""The script that gave a run rewards in Python: how to name it, and how to get the rewards back from it.

Functions are not stored in a run folder. To resume such a run, its script is executed again up to its call of
``burnish.train``, which registers the functions and goes no further.
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from burnish.errors import InputError
from burnish.registry import Registry

_executing = False
_supervised = False
"""Whether this process has trained by another verb, which a script that is executed for its rewards would repeat."""


class Collected(BaseException):
    """Raised by ``burnish.train`` in a script that is executed for its rewards."""


def stop_if_collecting() -> None:
    """Raise Collected if a script is being executed for its rewards."""
    if _executing:
        raise Collected


def note_supervised(verb: str) -> None:
    """Note a call of ``burnish.sft`` or a verb like it. Raises InputError in a script that is executed for its rewards."""
    global _supervised
    if _executing:
        raise InputError(
            f"it calls burnish.{verb} before burnish.train, which would train again: name a script with the rewards and "
            "burnish.train alone, or call burnish.train(resume=...) in Python after the definitions of the rewards"
        )
    _supervised = True


def resume_command(folder: Path, verb: str, used: Iterable[tuple[Registry[object], str]]) -> str:
    """Return the command that resumes a run; with the running script, if only that registers a name which is used.

    A script that called ``burnish.sft`` or a verb like it before would train again, and is not named.
    """
    command = f"burnish {verb} --resume {shlex.quote(str(folder))}"
    if all(registry.is_lasting(name) for registry, name in used):
        return command
    if not _supervised and (script := _running_script()):
        return f"{command} --script {shlex.quote(script)}"
    return f'burnish.train(resume="{folder}"), in Python, after the definitions of its rewards'


def collect_rewards(command: str) -> None:
    """Execute a script, with its arguments, up to its ``burnish.train``; "-m package.module" names a module.

    Raises InputError if the script cannot be read, raises an exception, or does not call ``burnish.train``.
    """
    global _executing
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"--script {command!r}: {error}") from error
    if not words:
        raise InputError("--script is empty: name the script that began the run, with its arguments")
    module, path = _module(words)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise InputError(f"--script {command!r} cannot be read: {error}") from error
    arguments = words[2:] if words[0] == "-m" else words[1:]
    kept = sys.argv
    sys.argv = [str(path), *arguments]
    # It stays the main module: what is compared with the run's record is found there.
    sys.modules["__main__"] = module
    if words[0] != "-m":
        sys.path.insert(0, str(path.parent))
    _executing = True
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except Collected:
        return
    except InputError as error:
        raise InputError(f"--script {command!r}: {error}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"--script {command!r} raised {type(error).__name__}: {error}") from error
    finally:
        _executing = False
        sys.argv = kept
    raise InputError(f"--script {command!r} does not call burnish.train: name the script that began the run")


def _module(words: list[str]) -> tuple[ModuleType, Path]:
    """Return a main module without content, and the path of its code."""
    module = ModuleType("__main__")
    path = Path(words[0]).absolute()
    if words[0] == "-m":
        sys.path.insert(0, str(Path.cwd()))
        try:
            spec = importlib.util.find_spec(words[1])
        except (ImportError, IndexError, ValueError):
            spec = None
        if spec is None or not spec.origin:
            raise InputError(f"--script '{shlex.join(words)}': there is no such module")
        module.__spec__, module.__package__, path = spec, spec.parent, Path(spec.origin)
    module.__file__ = str(path)
    return module, path


def _running_script() -> str:
    """Return the script that is running, with its arguments; "" in an interpreter or a notebook."""
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if not path or hasattr(sys, "ps1") or "ipykernel" in sys.modules:
        return ""
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        name = spec.parent if spec.name.endswith(".__main__") and spec.parent else spec.name
        return shlex.join(["-m", name, *sys.argv[1:]])
    file = Path(path).absolute()
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return shlex.join([str(shown), *sys.argv[1:]])
