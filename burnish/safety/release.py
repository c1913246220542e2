"""Release of a run's model: refused while flagged texts are open, and recorded with who approved what."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from burnish.errors import InputError
from burnish.reports.model_card import CARD, model_card
from burnish.reports.run_data import read_run
from burnish.safety.review.session import SAMPLES, flagged_counts, samples_digest
from burnish.safety.review.store import APPROVE, REJECT, TEXT, Judgement, ReviewStore
from burnish.safety.review.summary import summarise
from burnish.system.files import explained, write_json, write_text

RECORD = "release.json"


def release_run(
    run: Path, store: ReviewStore, *, despite: str = "", clock: Callable[[], float] = time.time
) -> Mapping[str, Any]:
    """Write release.json and the model card of a reviewed run; return the record.

    Args:
        despite: the reason to release a model although texts were rejected; it is recorded.

    Raises:
        InputError: samples are not queued, flagged texts wait for a judgement, texts were rejected and no reason is
            given, or the run has no model.
    """
    if not (run / SAMPLES).is_file() or store.setting("samples", "") != samples_digest(run):
        raise InputError(f"{run} has samples that were not queued for people: run burnish review {run}")
    total, waiting = flagged_counts(store)
    if waiting:
        raise InputError(f"{waiting} of {total} flagged texts wait for a judgement: open burnish review {run}")
    texts = [_flagged_text(judgements) for judgements in _by_item(store).values()]
    rejected = sum(one["rejected"] for one in texts)
    if rejected and not despite.strip():
        raise InputError(
            f"{rejected} of {total} flagged texts were rejected: train on what was judged (burnish review --labels FILE), "
            "or give the reason to release the model all the same with --despite REASON"
        )
    record = {
        "run": run.resolve().name, "released_at": _time(clock()), "burnish": version("burnish"),
        "step": read_run(run).steps_done, "model": _files(run / "model"),
        "samples_sha256": samples_digest(run), "flagged": {"total": total, "rejected": rejected},
        "despite": despite.strip() or None, "texts": texts, "review": summarise(store),
    }  # fmt: skip
    with explained(f"cannot write {run / RECORD}"):
        card = model_card(run, release=record)
        write_json(run / RECORD, record)
        write_text(run / CARD, card)
    return record


def _by_item(store: ReviewStore) -> dict[int, list[Judgement]]:
    grouped: dict[int, list[Judgement]] = defaultdict(list)
    for one in store.judgements():
        if one.item.kind == TEXT:
            grouped[one.item.id].append(one)
    return grouped


def _flagged_text(judgements: list[Judgement]) -> dict[str, Any]:
    """Return what was judged and by whom; the text itself only by its hash."""
    item = judgements[0].item
    return {
        "sha256": hashlib.sha256(item.texts[0].encode("utf-8", "surrogatepass")).hexdigest(),
        "step": item.details.get("step"), "prompt_id": item.details.get("prompt_id"),
        "flags": item.details.get("flags", []),
        "rejected": any(one.answer.label == REJECT for one in judgements),
        "verdicts": [
            {"reviewer": one.reviewer, "approved": one.answer.label == APPROVE, "at": _time(one.created_at)}
            for one in judgements
        ],
    }  # fmt: skip


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    if not folder.is_dir():
        raise InputError(f"{folder.parent} has no model: finish its training first")
    files = {}
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {"sha256": digest, "bytes": path.stat().st_size}
    return files


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
