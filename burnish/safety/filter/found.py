"""Layer that learns from a red team: the probability that a text is like the unsafe answers that were found.

The rows are those that ``burnish redteam --export`` writes. A logistic regression on hashed words tells the answers to
attacks from refusals, answers to harmless prompts and the replies of the set ``chatterbot``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from burnish.errors import InputError
from burnish.system.optional_packages import needed
from burnish.system.parsing import json_of
from burnish.system.paths import expanded
from burnish.tasks.dialogue import LANGUAGES, conversations
from burnish.text import words

CATEGORY = "harm"
PIECE, LONGEST = 600, 20_000
"""Characters that are judged at a time, and the most of a text that are read."""
FEATURES = 1 << 16
STRENGTH = 10.0
FOLDS = 5
FALSE_ALARMS = 0.01
"""Share of the innocent texts above the threshold, each judged by a classifier that was trained without it."""
LEAST = 20
"""Answers to attacks that a file must have."""


class FoundClassifier:
    """Classifier of texts. Raises InputError if a package of the extra ``safety`` is missing."""

    def __init__(self, unsafe: Sequence[str], safe: Sequence[str]) -> None:
        text = needed("sklearn.feature_extraction.text", "safety", "the filter's layer 'found'")
        linear = needed("sklearn.linear_model", "safety", "the filter's layer 'found'")
        selection = needed("sklearn.model_selection", "safety", "the filter's layer 'found'")
        self._hashing = text.HashingVectorizer(n_features=FEATURES, analyzer=words, alternate_sign=False)
        features = self._hashing.transform([one[:PIECE] for one in chain(unsafe, safe)])
        labels = [True] * len(unsafe) + [False] * len(safe)
        self._model = linear.LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=1000)
        margins = selection.cross_val_predict(self._model, features, labels, cv=FOLDS, method="decision_function")
        innocent = sorted(map(float, margins[len(unsafe) :]))
        self._threshold = innocent[math.ceil((1 - FALSE_ALARMS) * len(innocent)) - 1]
        self._model.fit(features, labels)

    def scores(self, text: str) -> dict[str, float]:
        """Return the probability of the category "harm", 0.5 at the threshold: that of the text's worst piece."""
        pieces = [text[start : start + PIECE] for start in range(0, min(len(text), LONGEST), PIECE)]
        margin = float(self._model.decision_function(self._hashing.transform(pieces)).max())
        return {CATEGORY: 1 / (1 + math.exp(self._threshold - margin))}


def found_classifier(file: str) -> FoundClassifier:
    """Return the classifier that learned from a file. Raises InputError if the file is not of use."""
    unsafe, safe = read_found(expanded(file))
    replies = (
        turn
        for language in LANGUAGES
        for topic in conversations(language).values()
        for turns in topic
        for turn in turns[1:]
    )
    return FoundClassifier(unsafe, [*safe, *dict.fromkeys(replies)])


def read_found(path: Path) -> tuple[list[str], list[str]]:
    """Return the unsafe and the safe answers of a file, each once. Raises InputError if it cannot be used."""
    if path.exists() and not path.is_file():  # a pipe would wait, a device has no end
        raise InputError(f"found: '{path}' is not a file; `burnish redteam MODEL --export FILE` writes one")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(
            f"found: '{path}' cannot be read: {error.strerror}; `burnish redteam MODEL --export FILE` writes one"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"found: {path} is not UTF-8 text") from error
    unsafe: dict[str, None] = {}
    safe: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = _row(path, number, line)
            harmless = row.get("family") == "harmless"
            safe |= dict.fromkeys([row["chosen"], *([row["rejected"]] if harmless else [])])
            unsafe |= {} if harmless else {row["rejected"]: None}
    if len(unsafe) < LEAST or not safe:
        raise InputError(
            f"found: {path} has {len(unsafe)} different answers to attacks; at least {LEAST} are needed: raise --each or "
            "--search of `burnish redteam`"
        )
    return list(unsafe), [one for one in safe if one not in unsafe]


def _row(path: Path, number: int, line: str) -> dict[str, str]:
    try:
        row = json_of(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("prompt", "chosen", "rejected")):
        raise InputError(
            f"found: {path}: line {number}: must be a JSON object with the texts prompt, chosen and rejected, as "
            "`burnish redteam --export` writes"
        )
    return row
