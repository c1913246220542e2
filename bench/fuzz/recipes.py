"""Cases of recipes: every key with every odd value, as a file and as ``--set``, checked by a dry run or trained."""

from __future__ import annotations

from typing import Any

import tomli_w
from hypothesis import strategies as st

from bench.fuzz.case import Case, Command
from bench.fuzz.damage import Draw, damaged_bytes, damaged_value, near, texts, values
from bench.fuzz.runs import PLANTED
from bench.fuzz.samples import BASES, toml, writable
from bench.fuzz.stock import Stock

SIZES = (
    "steps=2", "sampling.prompts_per_step=1", "sampling.samples_per_prompt=2", "sampling.max_new_tokens=3",
    "evaluation.samples_per_prompt=2", "evaluation.resamples=100",
)  # fmt: skip
LARGEST = 5
"""Largest integer in a recipe that is trained: a recipe may ask for a million epochs, and gets them."""


def _setting(draw: Draw, recipe: dict[str, Any], largest: int | None) -> str:
    """Draw an argument of ``--set``."""
    changed, _ = damaged_value(draw, recipe, largest)
    table = draw(st.sampled_from(sorted(changed) or ["name"]) | texts())
    below = changed.get(table, 0)
    if isinstance(below, dict) and below and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(below)) | texts())
        value, name = draw(near(below.get(key, 0), largest) | values(largest)), f"{table}.{key}"
    else:
        value, name = draw(near(below, largest) | values(largest)), table
    if draw(st.integers(0, 4)) == 4:
        return f"{name}={draw(texts())}"
    # The value as TOML writes it in line.
    text = tomli_w.dumps({"x": writable(value)}) if value is not None else "x = 0"
    return f"{name}={text.partition('=')[2].strip()}" if text.startswith("x =") else f"{name}={value}"


def _argument(text: str) -> str:
    """Return a text as a command line can carry it."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


@st.composite
def cases(draw: Any, stock: Stock) -> Case:
    """Draw a recipe with changes, and a dry run of it; of some, a run of two steps."""
    base = draw(st.sampled_from(sorted(BASES)))
    trains = base in ("toy", "tiny") and draw(st.integers(0, 3)) == 3
    largest = LARGEST if trains else None
    recipe: Any = draw(st.sampled_from([BASES[base], stock.recipes[base]]))
    changes = []
    for _ in range(draw(st.integers(0, 3))):
        recipe, text = damaged_value(draw, recipe, largest)
        changes.append(text)
    if not trains and draw(st.integers(0, 7)) == 7:
        recipe = {**recipe, "reward": [{"use": "planted:run"}]} if isinstance(recipe, dict) else recipe
        changes.append("reward planted:run")
    recipe = recipe if isinstance(recipe, dict) else {"name": recipe}
    data = toml(recipe)
    if draw(st.integers(0, 9)) == 9:
        data, text = damaged_bytes(draw, data)
        changes.append(text)
    settings = [_argument(_setting(draw, stock.recipes[base], largest)) for _ in range(draw(st.integers(0, 2)))]
    changes += [f"--set {text}" for text in settings]
    options = [part for text in settings for part in ("--set", text)]
    verb = base if base not in ("toy", "tiny") else "train"
    if trains:
        options += [part for text in SIZES for part in ("--set", text)]
        command = Command((verb, "recipe.toml", "--quiet", "--run-dir", "run", *options))
    else:
        json = draw(st.sampled_from(([], ["--json"])))
        command = Command((verb, "recipe.toml", "--dry-run", *json, *options))
    planted = {} if trains else {"planted.py": PLANTED}  # a dry run imports nothing that a recipe names
    tree = {"recipe.toml": data, **planted, **stock.trees["data"], **(stock.trees["model"] if base != "toy" else {})}
    return Case("recipes", tree, (command,), tuple(changes))
