"""Rows from a data set of the Hugging Face hub, read by the package ``datasets``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from burnish.data.files import RawRow
from burnish.errors import InputError, one_line
from burnish.system.optional_packages import needed
from burnish.system.reads import record_source, recorded_reads

_OFFLINE = "offline, only data sets fetched before can be read"


def hub_rows(name: str, *, config: str, side: str, revision: str, offline: bool) -> Iterator[RawRow]:
    """Yield the rows of one split of the data set "owner/name". Code that comes with it is not run.

    An empty ``config`` is for a data set with only one; an empty ``revision`` (commit, tag or branch) is the newest.
    Raises InputError if the package ``datasets`` is missing, or cannot load this data set.
    """
    library = needed("datasets", "hub", f"dataset = '{name}'")
    try:
        with _quiet(library), _offline_mode(library, offline), recorded_reads(None):
            builder = library.load_dataset_builder(name, config or None, revision=revision or None)
            _check(builder, revision)
            builder.download_and_prepare()
            records: Iterable[Mapping[str, Any]] = builder.as_dataset(split=side)
    except Exception as error:  # errors of all its dependencies
        reason = one_line(error)[:200].rstrip(".")
        hint = _OFFLINE if offline else "check its name, config, side and revision"
        raise InputError(f"dataset = '{name}': {type(error).__name__}: {reason}; {hint}") from error
    record_source(f"dataset '{name}'", str(getattr(records, "_fingerprint", builder.hash)))
    for number, values in enumerate(records, start=1):
        yield RawRow(f"row {number}", dict(values))


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
