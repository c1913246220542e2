"""A run's data set: training and held-out examples from a source's rows, with a list of the unusable rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.data.rows import CONVERSATIONS, Rows, TrainingRow, rows_digest
from burnish.data.splits import own_sides, split_items
from burnish.errors import InputError
from burnish.supervised.encoding import Encoder, encode_rows
from burnish.supervised.objective import Example, Objective
from burnish.supervised.reading import refuse_broken
from burnish.supervised.recipe import SupervisedRecipe


@dataclass(frozen=True, slots=True)
class Dataset:
    """The training and held-out examples of a run."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    described: Mapping[str, Any]
    """The content of ``data.json``: counts, the unusable rows, and a digest of the usable ones."""


def build_dataset(rows: Rows, recipe: SupervisedRecipe, objective: Objective[Any], encoder: Encoder) -> Dataset:
    """Split the rows and encode them.

    Raises:
        InputError: a side of the split is empty or its labelled answers have only one label, the objective cannot learn
            from rows of this kind, or too many rows cannot be encoded.
    """
    sides = split_rows(rows.rows, recipe.data.held_out_percent, rows.held_out)
    encoded: list[tuple[Example, ...]] = []
    broken = list(rows.broken)
    positions = dict(zip(rows.rows, rows.positions, strict=False))
    for name, side in zip(("training", "held-out"), sides, strict=True):
        named = [positions.get(row, f"{name} usable row {number}") for number, row in enumerate(side, start=1)]
        results, unusable = encode_rows(side, lambda row: objective.examples(encoder, row), named)
        broken += unusable
        encoded.append(tuple(example for examples in results for example in examples))
    refuse_broken(broken, len(rows.rows) + len(rows.broken), recipe.data)
    train, held_out = encoded[0], select_units(encoded[1], recipe.evaluation.prompts)
    if not train or len({example.unit for example in held_out}) < 2:
        raise InputError("data: no training row or fewer than two held-out prompts can be used: add more rows")
    _refuse_one_label("training", train)
    _refuse_one_label("held-out", held_out)
    described = {
        "origin": rows.origin,
        "rows": len(rows.rows),
        "repeats": rows.repeats,
        "near_copies_of_held_out": len(rows.rows) - sum(map(len, sides)),
        "training_examples": len(train),
        "held_out_examples": len(held_out),
        "held_out_units": len({example.unit for example in held_out}),
        "cut_at_max_tokens": sum(text.cut for example in (*train, *held_out) for text in example.texts),
        "broken": [{"place": one.position, "reason": one.reason} for one in broken],
        "conversations": sum(isinstance(row, CONVERSATIONS) for row in rows.rows),
        "sha256": rows_digest(rows.rows),
    }
    if notes := encoder.notes(rows.rows):
        described["notes"] = notes
    return Dataset(train, held_out, described)


def split_rows(
    rows: Sequence[TrainingRow], percent: int, held_out: Sequence[bool] | None = None
) -> tuple[list[TrainingRow], list[TrainingRow]]:
    """Return the training and the held-out rows, by the data's own flags if it has them.

    Raises InputError without a training row, or with fewer than two held-out units, too few for an interval.
    """
    try:
        units = [row.unit for row in rows]
        if held_out is not None:
            return own_sides(rows, units, held_out)
        return split_items(rows, units, percent, least_held_out=2)
    except InputError as error:
        raise InputError(f"data.{error}") from error


def select_units(held_out: Sequence[Example], count: int | None) -> tuple[Example, ...]:
    """Return the examples of ``count`` units, chosen by digest because a source may list easy rows first."""
    # The first eight digits decide the side of the split, so the order starts at the ninth.
    kept = set(sorted({example.unit for example in held_out}, key=lambda unit: (unit[8:], unit))[:count])
    return tuple(example for example in held_out if example.unit in kept)


def _refuse_one_label(side: str, examples: Sequence[Example]) -> None:
    """Raise InputError if all labelled answers have one label: KTO compares the two."""
    labels = {example.desirable for example in examples}
    if labels in ({True}, {False}):
        label, other = ("true", "false") if True in labels else ("false", "true")
        raise InputError(
            f"data: all {len(examples)} {side} answers have the label {label}, and KTO compares both labels: add rows "
            f"with the label {other}" + (", or raise data.held_out_percent" if side == "held-out" else "")
        )
