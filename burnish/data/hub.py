"""Rows from a data set of the Hugging Face hub, read by the package ``datasets``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from burnish.data.files import RawRow
from burnish.data.readers import read_file
from burnish.data.splits import digest
from burnish.errors import InputError, one_line
from burnish.system.files import write_text
from burnish.system.optional_packages import needed
from burnish.system.paths import expanded, home
from burnish.system.reads import record_source, recorded_reads

_OFFLINE = "offline, only data sets fetched before can be read"


def hub_rows(name: str, *, config: str, side: str, revision: str, offline: bool) -> Iterator[RawRow]:
    """Yield the rows of one split of the data set "owner/name". Code that comes with it is not run.

    Files of JSON and CSV are read as files of the user's own, since the package would turn text into numbers and dates.
    ``side`` may be slices of splits, such as "train[:10%]" or "train[:100]+test".
    An empty ``config`` is for a data set with only one; an empty ``revision`` (commit, tag or branch) is the newest.
    Raises InputError if the package ``datasets`` is missing, or cannot load this data set.
    """
    library = needed("datasets", "hub", f"dataset = '{name}'")
    record = home() / "hub" / f"{digest(name, config)}.json"
    try:
        with _quiet(library), _offline_mode(library, offline), recorded_reads(None):
            slices = library.ReadInstruction.from_spec(side)
            names = list(dict.fromkeys(part.partition("[")[0].strip() for part in side.split("+")))
            files = _fetched(record, names, revision) if offline else None
            if files is None:
                builder = library.load_dataset_builder(name, config or None, revision=revision or None)
                _check(builder, revision)
                files = _text_files(library, builder, names)
                if files is not None and not expanded(name).is_dir():
                    _note(record, files, revision)
            if files is None:
                builder.download_and_prepare()
                records: Iterable[Mapping[str, Any]] = builder.as_dataset(split=side)
    except Exception as error:  # errors of all its dependencies
        reason = one_line(error)[:200].rstrip(".")
        hint = _OFFLINE if offline else "check its name, config, side and revision"
        raise InputError(f"dataset = '{name}': {type(error).__name__}: {reason}; {hint}") from error
    if files is not None:
        record_source(f"dataset '{name}'", files[names[0]]["commit"])
        if side in files:
            yield from _file_rows(files[side])
            return
        counts = {split: sum(1 for _ in _file_rows(files[split])) for split in names}
        try:
            parts = slices.to_absolute(counts)
        except (ValueError, AssertionError) as error:
            raise InputError(f"side = '{side}': {one_line(error)[:200]}") from error
        for part in parts:
            yield from islice(_file_rows(files[part.splitname]), part.from_, part.to)
        return
    record_source(f"dataset '{name}'", str(getattr(records, "_fingerprint", builder.hash)))
    for number, values in enumerate(records, start=1):
        yield RawRow(f"row {number}", dict(values))


def _file_rows(files: Mapping[str, Any]) -> Iterator[RawRow]:
    for path in files["paths"]:
        yield from read_file(Path(path), files["format"], delimiter=files["delimiter"])


def _text_files(library: Any, builder: Any, names: Sequence[str]) -> dict[str, Any] | None:
    """Return split -> commit, format and downloaded files of data of JSON or CSV; None for other data sets."""
    format = type(builder).__module__.rpartition(".")[2]
    files = builder.config.data_files or {}
    packaged = "packaged_modules" in type(builder).__module__
    if format not in ("json", "csv") or not packaged or not all(name in files for name in names):
        return None
    downloads = library.DownloadManager(dataset_name=builder.dataset_name)
    kind = {
        "commit": str(builder.hash), "format": format, "delimiter": str(getattr(builder.config, "sep", "") or ""),
    }  # fmt: skip
    return {
        name: kind | {"paths": [str(one) for one in downloads.download([str(one) for one in files[name]])]}
        for name in names
    }


def _note(record: Path, files: Mapping[str, Any], revision: str) -> None:
    """Record the files of each split under its revision and commit, so that they are found offline."""
    known = _known(record)
    for split, one in files.items():
        for key in {revision, one["commit"]}:
            known.setdefault(key, {})[split] = one
    with suppress(OSError):  # a cache that cannot be written only matters offline
        record.parent.mkdir(parents=True, exist_ok=True)
        write_text(record, json.dumps(known))


def _known(record: Path) -> dict[str, Any]:
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _fetched(record: Path, names: Sequence[str], revision: str) -> dict[str, Any] | None:
    """Return the files of splits that were fetched before; None if one was not.

    Raises LookupError for another revision.
    """
    known = _known(record)
    if known and revision not in known:
        commits = sorted({files["commit"] for splits in known.values() for files in splits.values()})
        raise LookupError(f"revision '{revision}' is not available; the local copy is {', '.join(commits)}")
    splits = known.get(revision, {})
    if not all(name in splits and all(Path(path).is_file() for path in splits[name]["paths"]) for name in names):
        return None
    return {name: splits[name] for name in names}


def _check(builder: Any, revision: str) -> None:
    """Refuse another revision: without an answer from the hub, the library takes the data set it fetched last."""
    if revision and "packaged_modules.cache" in type(builder).__module__ and builder.hash != revision:
        raise LookupError(f"revision '{revision}' is not available; the local copy is {builder.hash}")


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Hide the library's progress bars, which would appear between the lines of this program."""
    shown = not library.utils.are_progress_bars_disabled()
    library.utils.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            library.utils.enable_progress_bars()


@contextmanager
def _offline_mode(library: Any, offline: bool) -> Iterator[None]:
    """Set the packages' offline constants: they read their environment variables only on import."""
    if not offline:
        yield
        return
    from huggingface_hub import constants

    before = library.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    library.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        library.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
