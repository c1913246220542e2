"""Is a stated probability kept? Confidence against how often it was right."""

from __future__ import annotations

from typing import Any

import numpy as np

from burnish.evaluation.statistics import Array

BINS = 10


def reliability(confidence: Array, right: Array, *, bins: int = BINS) -> list[dict[str, Any]]:
    """The reliability table: confidences in equal bins from 1/2 to 1; bins without a comparison are left out.

    Args:
        confidence: [n] in [1/2, 1], the probability that a judge gives the side it takes.
        right: [n], 1 where that side was right, 0 where it was wrong, 1/2 for a tie.

    Returns:
        A row for each bin: low, high, pairs, confidence (mean) and accuracy.

    Source: Guo et al. 2017, arXiv 1706.04599, section 2.
    """
    places = _bins(confidence, bins)
    rows = []
    for place in range(bins):
        inside = places == place
        if inside.any():
            rows.append(
                {
                    "low": 0.5 + 0.5 * place / bins, "high": 0.5 + 0.5 * (place + 1) / bins, "pairs": int(inside.sum()),
                    "confidence": float(confidence[inside].mean()), "accuracy": float(right[inside].mean()),
                }
            )  # fmt: skip
    return rows


def calibration_error(confidence: Array, right: Array, *, bins: int = BINS) -> float:
    """Expected calibration error: the mean over comparisons of |accuracy - confidence| of their bins, in [0, 1].

    Fails by: being above 0 for a judge that is perfectly calibrated, the more the fewer comparisons there are; see
    ``error_by_chance``. And by being 0 for one that knows nothing and says so.

    Source: Guo et al. 2017, arXiv 1706.04599, equation 3.
    """
    places = _bins(confidence, bins)
    gaps = np.bincount(places, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def error_by_chance(confidence: Array, *, bins: int = BINS, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Mean and 95% quantile of the calibration error of a judge whose every confidence is kept exactly, by drawing what was
    right from the confidences themselves."""
    generator = np.random.default_rng(seed)
    found = [
        calibration_error(confidence, (generator.random(len(confidence)) < confidence).astype(np.float64), bins=bins)
        for _ in range(draws)
    ]
    return float(np.mean(found)), float(np.quantile(found, 0.95))


def calibration(confidence: Array, right: Array, *, seed: int = 0) -> dict[str, Any]:
    """All of the above as one record: error, by_chance, by_chance_95, pairs and table."""
    mean, high = error_by_chance(confidence, seed=seed)
    return {
        "error": calibration_error(confidence, right), "by_chance": mean, "by_chance_95": high,
        "pairs": len(confidence), "table": reliability(confidence, right),
    }  # fmt: skip


def _bins(confidence: Array, bins: int) -> np.ndarray[Any, Any]:
    places: np.ndarray[Any, Any] = np.clip(((confidence - 0.5) * 2 * bins).astype(int), 0, bins - 1)
    return places
