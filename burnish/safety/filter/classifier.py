"""Classifier layer: the probability that an English text is offensive, by a small model inside a package.

The model is that of alt-profanity-check: a linear classifier of character n-grams, trained on comments of Twitter and
Wikipedia. Its package loads it with joblib, which runs code of the file: it is trusted as far as the package is.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from burnish.system.optional_packages import needed
from burnish.text import mostly_han_or_kana

_LONGEST = 20_000
"""Characters of a text that are read, which bounds the time."""


def toxicity_scores(text: str) -> dict[str, float]:
    """Return the probability of the category "toxicity"; nothing for a text that is mostly Chinese or Japanese."""
    if mostly_han_or_kana(text[:_LONGEST]):
        return {}
    return {"toxicity": float(_predict()([text[:_LONGEST]])[0])}


@lru_cache(maxsize=1)
def _predict() -> Any:
    return needed("profanity_check", "safety", "the filter's classifier").predict_prob
