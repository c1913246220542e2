"""The recipes of ``burnish sft``, ``prefer`` and ``reward-model``: as strict as that of ``train``, with the same keys where
they mean the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from burnish.errors import InputError
from burnish.recipe.reading import read_recipe, validate
from burnish.recipe.schema import Job
from burnish.recipe.sections import MAX_SIZE, OpenSection, Section
from burnish.supervised.sources import SOURCES
from burnish.tasks.registry import check_task_options


class Data(OpenSection):
    """Where the rows come from; further keys are the source's options."""

    held_out_percent: int = Field(25, ge=1, le=99)
    """Share of the rows, by a hash of their prompts, that training never sees."""
    max_broken: float = Field(0.01, ge=0, lt=1)
    """Share of the rows that may be unusable; they are listed either way."""


class BatchSection(Section):
    examples_per_step: int = Field(16, ge=1, le=MAX_SIZE)
    """Texts or pairs of one update."""
    max_tokens: int = Field(512, ge=2, le=MAX_SIZE)
    """Tokens of a prompt with its completion; what is longer is cut there."""


class HeldOut(Section):
    every: int = Field(0, ge=0)
    """Held-out measurement every so many steps, besides before and after training; 0 leaves that out."""
    prompts: int | None = Field(None, ge=2)
    """How many held-out prompts (units of the split); None takes all."""
    resamples: int = Field(1000, ge=100, le=10**6)
    """Bootstrap resamples behind each interval."""


class SupervisedRecipe(Job):
    """What the recipes for rows of text have in common."""

    kind: str
    data: Data
    batch: BatchSection = BatchSection()
    evaluation: HeldOut = HeldOut()

    @model_validator(mode="after")
    def _language_model(self) -> SupervisedRecipe:
        if self.policy.use != "causal_lm":
            raise ValueError(f"policy.use = '{self.policy.use}': only a causal_lm is trained from rows of text")
        return self


class SFTRecipe(SupervisedRecipe):
    """One run of ``burnish sft``."""

    kind: Literal["sft"]


class Preference(Section):
    use: Literal["dpo", "ipo", "kto"] = "dpo"
    beta: float = Field(0.1, gt=0)
    """Strength of the pull towards the reference; the tau of IPO."""
    desirable_weight: float | None = Field(None, gt=0)
    """Of KTO's desirable answers; None means 1."""
    undesirable_weight: float | None = Field(None, gt=0)
    """Of its undesirable ones; None means 1."""

    @model_validator(mode="after")
    def _weights_are_of_kto(self) -> Preference:
        for name in ("desirable_weight", "undesirable_weight"):
            if self.use != "kto" and getattr(self, name) is not None:
                raise ValueError(f'{name} belongs to use = "kto": leave it out with "{self.use}"')
        return self


class PreferRecipe(SupervisedRecipe):
    """One run of ``burnish prefer``."""

    kind: Literal["prefer"]
    preference: Preference = Preference()

    @model_validator(mode="after")
    def _strangers(self) -> PreferRecipe:
        if self.preference.use == "kto" and self.batch.examples_per_step < 2:
            raise ValueError(
                'preference.use = "kto" measures from prompts with the answers to others, so batch.examples_per_step must '
                "be at least 2"
            )
        return self


class Scoring(Section):
    margin: float = Field(0.0, ge=0)
    """How much better the preferred answer shall score, for pairs that bring no margin of their own."""
    centre: float = Field(0.01, ge=0)
    """Pull of the scores' level towards zero, which comparisons leave open; 0 leaves it out."""
    head_learning_rate: float = Field(1e-3, gt=0)
    """Of the row of weights that makes the score, which begins at zero; ``optimizer.learning_rate`` is the backbone's."""


class RewardModelRecipe(SupervisedRecipe):
    """One run of ``burnish reward-model``."""

    kind: Literal["reward-model"]
    reward_model: Scoring = Scoring()


R = TypeVar("R", bound=SupervisedRecipe)


def load_supervised(
    model: type[R],
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    changes: Mapping[str, Any] | None = None,
) -> R:
    """Reads a recipe of a kind from a TOML file, a shipped recipe's name or a mapping.

    Raises:
        InputError: the file is missing or broken, of another verb, or cannot work.
    """
    data, where = read_recipe(source, overrides, changes=changes, kind=kind_of(model))
    recipe = validate(model, data, where)
    try:
        factory = SOURCES.get(recipe.data.use)
        check_task_options(factory, recipe.data.options)
        # The source's own checks of its options, before anything is loaded.
        factory(**recipe.data.options)
    except InputError as error:
        raise InputError(f"{where}: data: {error}") from error
    return recipe


def kind_of(model: type[SupervisedRecipe]) -> str:
    """What the ``kind`` of such recipes is, which is the verb's name too."""
    kind: str = model.model_fields["kind"].annotation.__args__[0]  # type: ignore[union-attr]
    return kind
