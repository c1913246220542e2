"""From a source's rows to the two sides of a run, with everything that was left out written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.data.rows import Broken, Rows, digest, split
from burnish.errors import InputError
from burnish.protocols import Observer
from burnish.supervised.encoding import Encoder, each
from burnish.supervised.objective import Example, Objective
from burnish.supervised.recipe import Data, SupervisedRecipe
from burnish.supervised.sources import SOURCES


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a run learns from and what it is measured on.

    Attributes:
        described: the content of ``data.json``: counts, the rows left out, and a digest of all the others.
    """

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    described: Mapping[str, Any]


def read_rows(data: Data, *, offline: bool = False, observer: Observer | None = None) -> Rows:
    """The rows of a recipe's source.

    Raises:
        InputError: it cannot be read, has no usable row, or more broken ones than ``data.max_broken`` allows.
    """
    source = SOURCES.get(data.use)(**data.options)
    found = source.rows(held_out_percent=data.held_out_percent, offline=offline, observer=observer)
    _refuse_broken(found.broken, len(found.rows) + len(found.broken), data)
    if not found.rows:
        raise InputError(f"data: {found.origin or data.use} has no rows: nothing to learn from")
    return found


def dataset(rows: Rows, recipe: SupervisedRecipe, objective: Objective[Any], encoder: Encoder) -> Dataset:
    """Splits and encodes.

    Raises:
        InputError: a side of the split is empty or has judged answers of one label alone, the rows are of a kind that
            this objective cannot learn from, or too many cannot be encoded.
    """
    sides = split(rows.rows, recipe.data.held_out_percent)
    encoded: list[tuple[Example, ...]] = []
    broken = list(rows.broken)
    for name, side in zip(("training", "held-out"), sides, strict=True):
        found, unusable = each(side, lambda row: objective.examples(encoder, row))
        broken += [Broken(f"{name} {one.place}", one.reason) for one in unusable]
        encoded.append(tuple(example for examples in found for example in examples))
    _refuse_broken(broken, len(rows.rows) + len(rows.broken), recipe.data)
    train, held_out = encoded[0], chosen_units(encoded[1], recipe.evaluation.prompts)
    if not train or len({example.unit for example in held_out}) < 2:
        raise InputError("data: fewer than one training row or two held-out prompts can be used: give more rows")
    _refuse_one_label("training", train)
    _refuse_one_label("held-out", held_out)
    described = {
        "origin": rows.origin,
        "rows": len(rows.rows),
        "repeats": rows.repeats,
        "training_examples": len(train),
        "held_out_examples": len(held_out),
        "held_out_units": len({example.unit for example in held_out}),
        "cut_at_max_tokens": sum(text.cut for example in (*train, *held_out) for text in example.texts),
        "broken": [{"place": one.place, "reason": one.reason} for one in broken],
        "sha256": digest(*(repr(row) for row in rows.rows)),
    }
    return Dataset(train, held_out, described)


def chosen_units(held_out: Sequence[Example], count: int | None) -> tuple[Example, ...]:
    """The examples of ``count`` units, by the order of their digests: a source may be sorted, easy rows first."""
    # The first digits decide the side of the split; the others are free of it.
    units = sorted({example.unit for example in held_out}, key=lambda unit: (unit[8:], unit))[:count]
    kept = set(units)
    return tuple(example for example in held_out if example.unit in kept)


def _refuse_one_label(side: str, examples: Sequence[Example]) -> None:
    """What is desirable is learnt and measured against what is not, so that one without the other says nothing."""
    labels = {example.desirable for example in examples}
    if labels in ({True}, {False}):
        label, other = ("true", "false") if True in labels else ("false", "true")
        raise InputError(
            f"data: all {len(examples)} {side} answers have the label {label}, and KTO compares both kinds: give rows with "
            f"the label {other} too" + (", or raise data.held_out_percent" if side == "held-out" else "")
        )


def _refuse_broken(broken: Sequence[Broken], total: int, data: Data) -> None:
    if len(broken) > data.max_broken * total:
        first = broken[0]
        raise InputError(
            f"data: {len(broken)} of {total} rows cannot be used, the first is {first.place}: {first.reason}; mend them, "
            f"or raise data.max_broken (now {data.max_broken})"
        )
