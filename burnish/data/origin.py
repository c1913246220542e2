"""The origin of rows: files, or a data set of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from glob import has_magic

from burnish.data.files import RawRow, file_format
from burnish.data.hub import hub_rows
from burnish.data.readers import read_files
from burnish.errors import InputError
from burnish.system.paths import expanded


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The options of a recipe that name rows.

    Args:
        path: a file, a pattern of files such as ``data/*.jsonl``, or a folder saved by the package ``datasets``.
        dataset: instead of files, the name of a data set of the hub, or the folder of one.
        config, side, revision: its configuration, its split, and its commit, tag or branch.
        held_out: its own held-out split, or the path of the held-out rows.
        format, delimiter: of the files, where their names do not say them.

    Raises:
        InputError: the options contradict each other.
    """

    path: str = ""
    dataset: str = ""
    config: str = ""
    side: str = "train"
    revision: str = ""
    held_out: str = ""
    format: str = ""
    delimiter: str = ""

    def __post_init__(self) -> None:
        if bool(self.path) == bool(self.dataset):
            raise InputError('name either path (a file, as in path = "prompts.jsonl") or dataset (of the hub)')
        if self.dataset:
            local = expanded(self.dataset).is_dir()
            if self.revision and local:
                raise InputError(
                    f"revision = '{self.revision}': '{self.dataset}' is a folder, which has no revisions; remove it"
                )
            for key in ("format", "delimiter"):
                if getattr(self, key):
                    raise InputError(f"{key} is for files named by path, not for a data set: remove it")
        else:
            for key in ("config", "revision"):
                if getattr(self, key):
                    raise InputError(f"{key} is for a data set of the hub, and path names files: remove it")
            path = expanded(self.path)
            if self.side != "train" and not (path / "dataset_dict.json").is_file():
                raise InputError(
                    f"side = '{self.side}': files have no splits; remove it, or name the files of this split"
                )
            if self.format or not (path.is_dir() or has_magic(self.path)):
                file_format(path, self.format)
        if self.held_out and self.held_out in (self.path, self.side if self.dataset else self.path):
            raise InputError(f"held_out = '{self.held_out}' is the training side: name another one")

    @property
    def name(self) -> str:
        """The file or the data set, for messages."""
        return self.dataset or str(expanded(self.path))

    def rows(self, *, held_out: bool = False, offline: bool = False) -> Iterator[RawRow]:
        """Yield the rows of the training side, or of the data's own held-out side."""
        if self.dataset:
            side = self.held_out if held_out else self.side
            return hub_rows(self.dataset, config=self.config, side=side, revision=self.revision, offline=offline)
        path = expanded(self.path)
        if not held_out:
            return read_files(path, self.format, delimiter=self.delimiter, side=self.side)
        if (path / "dataset_dict.json").is_file():
            return read_files(path, side=self.held_out)
        return read_files(expanded(self.held_out), self.format, delimiter=self.delimiter)
