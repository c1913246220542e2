"""Rows from a data set of the Hugging Face hub, read by the package ``datasets``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
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
    An empty ``config`` is for a data set with only one; an empty ``revision`` (commit, tag or branch) is the newest.
    Raises InputError if the package ``datasets`` is missing, or cannot load this data set.
    """
    library = needed("datasets", "hub", f"dataset = '{name}'")
    record = home() / "hub" / f"{digest(name, config)}.json"
    try:
        with _quiet(library), _offline_mode(library, offline), recorded_reads(None):
            files = _fetched(record, side, revision) if offline else None
            if files is None:
                builder = library.load_dataset_builder(name, config or None, revision=revision or None)
                _check(builder, revision)
                files = _text_files(library, builder, side)
                if files is not None and not expanded(name).is_dir():
                    _note(record, files, side, revision)
            if files is None:
                builder.download_and_prepare()
                records: Iterable[Mapping[str, Any]] = builder.as_dataset(split=side)
    except Exception as error:  # errors of all its dependencies
        reason = one_line(error)[:200].rstrip(".")
        hint = _OFFLINE if offline else "check its name, config, side and revision"
        raise InputError(f"dataset = '{name}': {type(error).__name__}: {reason}; {hint}") from error
    if files is not None:
        record_source(f"dataset '{name}'", files["commit"])
        for path in files["paths"]:
            yield from read_file(Path(path), files["format"], delimiter=files["delimiter"])
        return
    record_source(f"dataset '{name}'", str(getattr(records, "_fingerprint", builder.hash)))
    for number, values in enumerate(records, start=1):
        yield RawRow(f"row {number}", dict(values))


def _text_files(library: Any, builder: Any, side: str) -> dict[str, Any] | None:
    """Return the commit, format and downloaded files of a split of JSON or CSV; None for other data sets."""
    format = type(builder).__module__.rpartition(".")[2]
    files = builder.config.data_files or {}
    if format not in ("json", "csv") or "packaged_modules" not in type(builder).__module__ or side not in files:
        return None
    paths = library.DownloadManager(dataset_name=builder.dataset_name).download([str(one) for one in files[side]])
    delimiter = str(getattr(builder.config, "sep", "") or "")
    return {"commit": str(builder.hash), "format": format, "delimiter": delimiter, "paths": [str(one) for one in paths]}


def _note(record: Path, files: Mapping[str, Any], side: str, revision: str) -> None:
    """Record the files of a split under its revision and commit, so that they are found offline."""
    known = _known(record)
    for key in {revision, files["commit"]}:
        known.setdefault(key, {})[side] = files
    with suppress(OSError):  # a cache that cannot be written only matters offline
        record.parent.mkdir(parents=True, exist_ok=True)
        write_text(record, json.dumps(known))


def _known(record: Path) -> dict[str, Any]:
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _fetched(record: Path, side: str, revision: str) -> dict[str, Any] | None:
    """Return the files of a split that was fetched before; None if none was. Raises LookupError for another revision."""
    known = _known(record)
    if known and revision not in known:
        commits = sorted({files["commit"] for splits in known.values() for files in splits.values()})
        raise LookupError(f"revision '{revision}' is not available; the local copy is {', '.join(commits)}")
    files: dict[str, Any] | None = known.get(revision, {}).get(side)
    return files if files is not None and all(Path(path).is_file() for path in files["paths"]) else None


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
