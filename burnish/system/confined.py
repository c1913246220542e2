"""Folders that may come from somebody else: nothing in them leads out of them, or blocks whoever reads it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from burnish.errors import InputError


def refuse_escapes(folder: Path) -> None:
    """Raise InputError if a link in a folder leads out of it, or something in it is neither file, folder nor link.

    What a folder of a run has is read, appended to and replaced under its own name, so a link would let it reach a
    file of the user. The folder itself may be a link.
    """
    for text in escapes(folder):
        raise InputError(text)


def escapes(folder: Path) -> Iterator[str]:
    """Yield a sentence for each entry of a folder that ``refuse_escapes`` refuses."""
    root = folder.resolve()
    for parent, folders, names in os.walk(folder):
        for name in sorted([*folders, *names]):
            path = Path(parent) / name
            try:
                mode = path.lstat().st_mode
            except OSError:  # gone since it was listed
                continue
            if stat.S_ISLNK(mode):
                if not _target(path).is_relative_to(root):
                    yield (
                        f"{path} is a link that leads out of the run folder, to {os.readlink(path)}: replace it by what "
                        "it leads to if you trust that, or remove it"
                    )
            elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                yield f"{path} is neither a file nor a folder but a {kind_of_file(mode)}: remove it"


def _target(link: Path) -> Path:
    try:
        return link.resolve()
    except (OSError, RuntimeError):  # links that lead to one another
        return Path(os.devnull)


def kind_of_file(mode: int) -> str:
    """Return the name of what is neither a file, a folder nor a link, by its mode."""
    kinds = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
    return kinds.get(stat.S_IFMT(mode), "special file")


def leads_inside(name: str) -> bool:
    """Return whether a name that a file gives of another stays within the file's folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    return bool(name) and not path.is_absolute() and ".." not in path.parts and not re.match(r"[A-Za-z]:", name)
