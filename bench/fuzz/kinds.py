"""The kinds of input that are fuzzed, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hypothesis import strategies as st

from bench.fuzz import data, models, recipes, rewards, runs
from bench.fuzz.case import Case
from bench.fuzz.stock import Stock

KINDS: Mapping[str, Callable[[Stock], st.SearchStrategy[Case]]] = {
    "recipes": recipes.cases, "models": models.cases, "runs": runs.cases, "data": data.cases, "rewards": rewards.cases,
}  # fmt: skip
"""Name -> the strategy that draws its cases from a stock."""
