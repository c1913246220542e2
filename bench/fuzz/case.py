"""Cases: a folder of files, the commands that run in it, and what may come of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Pipe:
    """A named pipe, which nobody writes to."""


Content = bytes | Link | Pipe
Tree = Mapping[str, Content]
"""Relative path -> what is there. Folders follow from their files."""


@dataclass(frozen=True)
class Command:
    """A command line of burnish, without its name, and what it gets as standard input.

    ``equals`` names the output of an undamaged folder that the command must repeat if it succeeds, "" if it need not.
    """

    arguments: tuple[str, ...]
    stdin: bytes = b""
    equals: str = ""


@dataclass(frozen=True)
class Case:
    """One case of a kind: files, commands, and the changes in words."""

    kind: str
    tree: Tree
    commands: tuple[Command, ...]
    changes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"{self.kind}: {'; '.join(self.changes)}"

    @property
    def digest(self) -> str:
        """A name for the content; equal cases have equal ones."""
        content = hashlib.sha256(repr(self.commands).encode("utf-8", "surrogatepass"))
        for name, what in sorted(self.tree.items()):
            content.update(
                f"{name}\0{what if isinstance(what, Link | Pipe) else len(what)}\0".encode("utf-8", "replace")
            )
            content.update(what if isinstance(what, bytes) else b"")
        return content.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Write the case so that ``load_case`` reads it back."""
        folder.mkdir(parents=True, exist_ok=True)
        write_tree(self.tree, folder / "work")
        commands = [
            {"arguments": one.arguments, "stdin": one.stdin.decode("latin-1"), "equals": one.equals}
            for one in self.commands
        ]
        record = {"kind": self.kind, "changes": self.changes, "commands": commands}
        (folder / "case.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def load_case(folder: Path) -> Case:
    """Read a case that was saved."""
    record = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    commands = tuple(
        Command(tuple(one["arguments"]), one["stdin"].encode("latin-1"), one["equals"]) for one in record["commands"]
    )
    return Case(record["kind"], read_tree(folder / "work"), commands, tuple(record["changes"]))


def read_tree(folder: Path) -> dict[str, Content]:
    """Read a folder into memory."""
    found: dict[str, Content] = {}
    for parent, folders, names in os.walk(folder):
        for name in sorted([*folders, *names]):
            path = Path(parent) / name
            key = path.relative_to(folder).as_posix()
            if path.is_symlink():
                found[key] = Link(os.readlink(path))
            elif path.is_fifo():
                found[key] = Pipe()
            elif path.is_file():
                found[key] = path.read_bytes()
    return found


def write_tree(tree: Tree, folder: Path) -> None:
    """Write the files of a tree; of two that exclude each other, a file and one below it, the first one stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, what in tree.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(what, Link):
                path.symlink_to(what.target)
            elif isinstance(what, Pipe):
                os.mkfifo(path)
            else:
                path.write_bytes(what)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue


def placed(tree: Tree, folder: str) -> dict[str, Content]:
    """Return a tree as it is below a folder."""
    return {f"{folder}/{name}": what for name, what in tree.items()}
