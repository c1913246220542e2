"""A user's own rows of text: conversations, completions, texts, pairs or labelled answers."""

from __future__ import annotations

from collections.abc import Iterable
from glob import has_magic
from pathlib import Path

from burnish.data.files import FORMATS, RawRow, plain_suffix
from burnish.data.formats import RowFormat
from burnish.data.origin import Origin
from burnish.data.rows import BrokenRow, Rows, TrainingRow, with_families
from burnish.errors import InputError
from burnish.protocols import Observer
from burnish.system.paths import expanded


class DataRows:
    """Rows of files or of a data set of the hub, read as by the task ``data``. Near-copies of a prompt share a side.

    Args:
        path: a file of JSON, CSV, Parquet or Arrow, or a pattern such as "data/*.jsonl".
        format: "chat" (``messages``: a list of ``{"role", "content"}``), "completion" (``prompt``, ``completion``),
            "text" (``text``), "labelled" (``prompt``, ``completion``, ``label``: true or false) or
            "pairs" (``prompt``, ``chosen``, ``rejected`` and optionally ``margin``). If empty, a row has the format
            whose columns it has. Prompts and answers are text or messages.
        columns: the file's fields for these columns, such as ``{ prompt = "question" }``.
        dataset, config, side, revision: instead of ``path``, a data set of the hub.
        held_out: the data's own held-out side: a split of the data set, or a file like ``path``.
        file_format, delimiter: of the files, where their names do not say them.
        chat: whether prompts and answers that are plain text go through the model's chat template.
        system: a system message at the beginning of each conversation.

    Raises:
        InputError: an option is missing or unknown, or ``rows`` cannot read the data.
    """

    def __init__(
        self,
        *,
        path: str = "",
        format: str = "",
        columns: dict[str, str] | None = None,
        dataset: str = "",
        config: str = "",
        side: str = "train",
        revision: str = "",
        held_out: str = "",
        file_format: str = "",
        delimiter: str = "",
        chat: bool = False,
        system: str = "",
    ) -> None:
        if not path and not dataset:
            raise InputError('data.path is missing: name the file, as in path = "data.jsonl"')
        self.format = RowFormat(format, columns or {}, chat=chat, system=system)
        self.origin = Origin(
            path=path, dataset=dataset, config=config, side=side, revision=revision, held_out=held_out,
            format=file_format or _lines_if_unnamed(path), delimiter=delimiter,
        )  # fmt: skip

    def rows(self, *, held_out_percent: int = 25, offline: bool = False, observer: Observer | None = None) -> Rows:
        positions: dict[TrainingRow, str] = {}
        broken: list[BrokenRow] = []
        own: set[TrainingRow] = set()
        try:
            if self.origin.held_out:
                held = self.origin.rows(held_out=True, offline=offline)
                own = set(self._read(held, positions, broken, "held-out "))
            read = self._read(self.origin.rows(offline=offline), positions, broken, "")
        except InputError as error:
            raise InputError(f"data.{error}") from error
        repeats = len(read) - (len(positions) - len(own))
        rows = with_families(list(positions))
        flags = tuple(row in own for row in positions) if self.origin.held_out else None
        return Rows(rows, tuple(broken), repeats, self.origin.name, tuple(positions.values()), flags)

    def _read(
        self, raws: Iterable[RawRow], positions: dict[TrainingRow, str], broken: list[BrokenRow], side: str
    ) -> list[TrainingRow]:
        """Return the usable rows of a side; note the position of each row's first occurrence, and the others."""
        rows: list[TrainingRow] = []
        for raw in raws:
            try:
                if raw.values is None:
                    raise ValueError(raw.reason)
                rows.append(self.format.row(raw.values))
                positions.setdefault(rows[-1], side + raw.position)
            except ValueError as error:
                broken.append(BrokenRow(side + raw.position, str(error)))
        return rows


def _lines_if_unnamed(path: str) -> str:
    """Return the format of a file whose name does not say it: the source began as one of JSON lines."""
    unnamed = bool(path) and not (has_magic(path) or expanded(path).is_dir() or plain_suffix(Path(path)) in FORMATS)
    return "jsonl" if unnamed else ""
