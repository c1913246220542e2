"""Calibration of a judge: its confidence against how often it is right."""

from __future__ import annotations

from typing import Any

import numpy as np

from burnish.evaluation.statistics import Array

BINS = 10
DRAWS = 1000


def reliability(confidence: Array, right: Array) -> list[dict[str, Any]]:
    """Return the reliability table, one row for each bin from 1/2 to 1 that is not empty.

    Args:
        confidence: [n] in [1/2, 1], the probability that the judge assigns to the side it prefers.
        right: [n], 1 if that side was right, 0 if it was wrong, 1/2 for a tie.

    Source: Guo et al. 2017, arXiv 1706.04599, section 2.
    """
    assigned = _bins(confidence)
    rows = []
    for index in range(BINS):
        inside = assigned == index
        if inside.any():
            rows.append(
                {
                    "low": 0.5 + 0.5 * index / BINS, "high": 0.5 + 0.5 * (index + 1) / BINS, "pairs": int(inside.sum()),
                    "confidence": float(confidence[inside].mean()), "accuracy": float(right[inside].mean()),
                }
            )  # fmt: skip
    return rows


def calibration_error(confidence: Array, right: Array) -> float:
    """Return the expected calibration error in [0, 1]: the mean of |accuracy - confidence| of each comparison's bin.

    Fails by: being above 0 for a perfectly calibrated judge, especially with few comparisons (see ``error_by_chance``),
    and by being 0 for a judge that always answers 1/2.

    Source: Guo et al. 2017, arXiv 1706.04599, equation 3.
    """
    gaps = np.bincount(_bins(confidence), weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def error_by_chance(confidence: Array, *, seed: int = 0) -> tuple[float, float]:
    """Return the mean and 95% quantile of the calibration error of a perfectly calibrated judge with these confidences.

    The outcomes are drawn from the confidences, ``DRAWS`` times.
    """
    generator = np.random.default_rng(seed)
    errors = [
        calibration_error(confidence, (generator.random(len(confidence)) < confidence).astype(np.float64))
        for _ in range(DRAWS)
    ]
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))


def calibration(confidence: Array, right: Array, *, seed: int = 0) -> dict[str, Any]:
    """Return the content of ``calibration.json``: error, by_chance, by_chance_95, pairs and table."""
    mean, high = error_by_chance(confidence, seed=seed)
    return {
        "error": calibration_error(confidence, right), "by_chance": mean, "by_chance_95": high,
        "pairs": len(confidence), "table": reliability(confidence, right),
    }  # fmt: skip


def _bins(confidence: Array) -> np.ndarray[Any, Any]:
    assigned: np.ndarray[Any, Any] = np.clip(((confidence - 0.5) * 2 * BINS).astype(int), 0, BINS - 1)
    return assigned
