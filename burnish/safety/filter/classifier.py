"""Classifier layer: the probability that a text is offensive, by small models, one for each language.

The English model is that of alt-profanity-check: a linear classifier of character n-grams, trained on comments of
Twitter and Wikipedia. Its package loads it with joblib, which runs code of the file: it is trusted as far as the
package is. The Chinese one is trained here (``chinese``).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from burnish.safety.filter import chinese
from burnish.system.optional_packages import needed
from burnish.text import mostly_han_or_kana

_LONGEST = 20_000
"""Characters of a text that are read, which bounds the time."""


def prepare_classifiers() -> None:
    """Load what is loaded at once. Raises what a broken installation raises, before a run begins."""
    _predict()(["ready"])
    chinese.prepare()


def toxicity_scores(text: str) -> dict[str, float]:
    """Return the probability of the category "toxicity". A text in two languages gets the greater one."""
    text = text[:_LONGEST]
    scores = [] if text.isascii() else [chinese.chinese_toxicity(text)]
    if not mostly_han_or_kana(text):
        scores.append(float(_predict()([text])[0]))
    return {"toxicity": max(scores)}


@lru_cache(maxsize=1)
def _predict() -> Any:
    return needed("profanity_check", "safety", "the filter's classifier").predict_prob
