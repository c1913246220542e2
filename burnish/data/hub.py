"""Rows out of a data set of the Hugging Face hub, by its own library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from burnish.data.files import Row
from burnish.errors import InputError, one_line
from burnish.system.optional_packages import needed

_OFFLINE = "offline, only what was fetched before is there"


def rows(name: str, *, config: str, side: str, revision: str, offline: bool) -> Iterator[Row]:
    """The rows of a data set; code that comes with one is not run.

    Args:
        name: of the data set, as "owner/name".
        config: of several that it has; "" where there is one.
        side: which of its splits.
        revision: a commit, tag or branch; "" takes the newest, which may be another tomorrow.
        offline: whether nothing is asked of the hub; what was fetched before is found.

    Raises:
        InputError: the package ``datasets`` is missing, or it cannot bring this data set.
    """
    library = needed("datasets", "hub", f"dataset = '{name}'")
    try:
        with _quiet(library), _as_said(library, offline):
            builder = library.load_dataset_builder(name, config or None, revision=revision or None)
            _check(builder, revision)
            builder.download_and_prepare()
            found: Iterable[Mapping[str, Any]] = builder.as_dataset(split=side)
    except Exception as error:  # the package raises what its many parts raise
        reason = one_line(error)[:200].rstrip(".")
        hint = _OFFLINE if offline else "check its name, config, side and revision"
        raise InputError(f"dataset = '{name}': {type(error).__name__}: {reason}; {hint}") from error
    for number, values in enumerate(found, start=1):
        yield Row(f"row {number}", dict(values))


def _check(builder: Any, revision: str) -> None:
    """The library takes what it fetched last where the hub has no answer, of whatever revision that is."""
    if revision and "packaged_modules.cache" in type(builder).__module__ and builder.hash != revision:
        raise LookupError(f"no revision '{revision}' can be had; what is kept here is {builder.hash}")


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Without bars of progress between this program's own lines."""
    shown = not library.utils.are_progress_bars_disabled()
    library.utils.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            library.utils.enable_progress_bars()


@contextmanager
def _as_said(library: Any, offline: bool) -> Iterator[None]:
    """The packages read their environment when they are imported: afterwards, only their constants can say it."""
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
