"""Sections of a model card that depend on what a run folder holds: data, safety, known failures and limits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from burnish.catalogue import entries
from burnish.reports.run_data import RunData, read_objects
from burnish.reports.wording import decimals, difference_text, fixed, result, title

TASK_DATA: Mapping[str, str] = {
    "code": "human-eval", "dialogue": "chatterbot", "headlines": "lee-news", "news": "lee-news", "story": "fables",
    "translation": "hsk-sentences",
}  # fmt: skip
"""Task -> the catalogue's data set that it may use."""
_LIMITS = (
    "The figures hold for the held-out prompts above and say little about other prompts.",
    "Rewards are proxies: a model can raise them by ways that nobody wants, so read its texts before you use it.",
    "The model may write what is false, offensive or unsafe. A content filter and human review lower that risk and do "
    "not remove it.",
)


def card_sections(
    run: Path, files: RunData, evaluation: Mapping[str, Any], release: Mapping[str, Any] | None = None
) -> list[str]:
    """Return the sections that have something to report, and the limits."""
    record = _read(run / "release.json") if release is None else release
    try:
        released, failures = list(_released(record, files.steps_done)), list(_released_failures(record))
    except (AttributeError, KeyError, TypeError, ValueError):  # of another program, or damaged
        released, failures = ["release.json cannot be read."], []
    sections = {
        "Data": list(_data(files.recipe)), "Safety": [*_measured(evaluation), *released],
        "Known failures": [*_worse(evaluation), *failures, *_warnings(run)], "Limits": list(_LIMITS),
    }  # fmt: skip
    return [
        f"## {name}\n\n" + "\n".join(f"- {_one_line(line)}" for line in lines) + "\n"
        for name, lines in sections.items() if lines
    ]  # fmt: skip


def _data(recipe: Mapping[str, Any]) -> Iterator[str]:
    task, rows = (one if isinstance(one := recipe.get(key), Mapping) else {} for key in ("task", "data"))
    used = str(task.get("use") or rows.get("use") or "data")
    if name := TASK_DATA.get(used.partition("-")[0]):
        entry = entries.lookup(name)
        yield f"Task `{used}`, data `{name}` ({entry.package} {entry.version}). Licence: {entry.licence}."
    elif dataset := task.get("dataset") or rows.get("dataset"):
        yield f"Data set `{dataset}` of the hub; its licence is stated there."
    elif task.get("path") or rows.get("path"):
        yield "The user's own files; inputs.json of the run has their hashes. Their licence is not known to burnish."
    else:
        yield f"Task `{used}`."


def _measured(evaluation: Mapping[str, Any]) -> Iterator[str]:
    for key, row in evaluation.items():
        if "content_filter" in key or "toxicity" in key:
            yield f"{title(key)} on held-out prompts: {_change(row)}."


def _released(record: Mapping[str, Any], step: int) -> Iterator[str]:
    if not record:
        yield "The model was not released by burnish release: no person has approved its flagged texts."
        return
    if record.get("step", step) != step:
        yield f"The release is of the model after step {record['step']}: no person has approved the one after step {step}."
    flagged = record["flagged"]
    yield f"Flagged training samples judged by people: {flagged['total']}, of which {flagged['rejected']} were rejected."
    people = [f"{name} ({count})" for name, count in record["review"]["by_reviewer"].items() if count]
    yield f"Judgements by reviewer: {', '.join(people) or 'none'}. Released at {record['released_at']}."
    for kind, agreement in record["review"]["agreement"].items():
        if agreement and agreement["ac1"]["value"] is not None:
            low, high = agreement["ac1"]["interval"]
            yield (
                f"Agreement on {agreement['items']} items of kind {kind}: Gwet's AC1 {agreement['ac1']['value']:.2f} "
                f"[{low:.2f}, {high:.2f}], raw {agreement['raw']['value']:.2f}."
            )


def _worse(evaluation: Mapping[str, Any]) -> Iterator[str]:
    for key, row in evaluation.items():
        if result(row) == "worse":
            yield f"{title(key)} became worse: {_change(row)}."


def _change(row: Mapping[str, Any]) -> str:
    before, after = (fixed(row.get(key), decimals(row)) for key in ("before", "after"))
    return f"{before} before, {after} after, difference {difference_text(row)}"


def _released_failures(record: Mapping[str, Any]) -> Iterator[str]:
    if record.get("despite"):
        yield f"Released although {record['flagged']['rejected']} flagged texts were rejected: {record['despite']}"


def _warnings(run: Path) -> Iterator[str]:
    for text in dict.fromkeys(str(row.get("text")) for row in read_objects(run / "warnings.jsonl")):
        yield f"Warning of the run: {text}"


def _read(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        return {"damaged": True}
    return value if isinstance(value, Mapping) else {"damaged": True}


def _one_line(text: str) -> str:
    return " ".join(text.split())
