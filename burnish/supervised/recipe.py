"""Recipes of ``burnish sft``, ``prefer`` and ``reward-model``, which share the keys of ``burnish train``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from burnish.errors import InputError
from burnish.named_code import is_withheld
from burnish.recipe.reading import read_recipe, validate
from burnish.recipe.schema import Job
from burnish.recipe.sections import MAX_SIZE, ChatSection, Section
from burnish.supervised.sources import SOURCES
from burnish.tasks.registry import check_task_options


class Data(ChatSection):
    """The source of the rows; all other keys are options of the source."""

    held_out_percent: int = Field(25, ge=1, le=99)
    """Percentage of the rows that are held out from training, by a hash of their prompts."""
    max_broken: float = Field(0.01, ge=0, lt=1)
    """Largest share of unusable rows to accept; data.json lists them."""


class BatchSection(Section):
    examples_per_step: int = Field(16, ge=1, le=MAX_SIZE)
    """Texts or pairs per update."""
    max_tokens: int = Field(512, ge=2, le=MAX_SIZE)
    """Limit on the tokens of a prompt plus its completion; longer texts are cut."""


class HeldOut(Section):
    every: int = Field(0, ge=0)
    """Steps between held-out measurements; 0 measures only before and after training."""
    prompts: int | None = Field(None, ge=2)
    """Number of held-out prompts (units of the split) to measure; None measures all."""
    resamples: int = Field(1000, ge=100, le=10**6)
    """Bootstrap resamples per interval."""


class SupervisedRecipe(Job):
    """Base class of the recipes for training on rows of text."""

    kind: str
    data: Data
    batch: BatchSection = BatchSection()
    evaluation: HeldOut = HeldOut()

    @model_validator(mode="after")
    def _language_model(self) -> SupervisedRecipe:
        if self.policy.use != "causal_lm":
            raise ValueError(f"policy.use = '{self.policy.use}': only a causal_lm can be trained on rows of text")
        return self


class SFTRecipe(SupervisedRecipe):
    kind: Literal["sft"]


PREFERENCE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "simpo": {"beta": 2.0, "margin": 1.0, "length_normalised": True},
    "orpo": {"supervised_weight": 1.0, "length_normalised": True},
    "cpo": {"supervised_weight": 1.0},
}
"""Objective -> its defaults where they differ from those of the section."""
PREFERENCE_KEYS: Mapping[str, tuple[str, ...]] = {
    "label_smoothing": ("dpo", "cpo", "simpo"),
    "margin": ("simpo",),
    "supervised_weight": ("dpo", "ipo", "simpo", "orpo", "cpo"),
    "length_normalised": ("dpo", "ipo", "cpo", "simpo", "orpo"),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
}
"""Key -> the objectives that it belongs to."""


class Preference(Section):
    use: Literal["dpo", "ipo", "kto", "simpo", "orpo", "cpo"] = "dpo"
    beta: float = Field(0.1, gt=0)
    """Strength of the pull towards the reference; tau in IPO, the weight of the preference term in ORPO."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Probability that a label is wrong."""
    margin: float = Field(0.0, ge=0)
    """SimPO's gamma: the margin of implicit rewards at which the loss is log 2."""
    supervised_weight: float = Field(0.0, ge=0)
    """Weight of the preferred answer's mean negative log-likelihood per token."""
    length_normalised: bool = False
    """Whether an answer's likelihood is the mean over its tokens instead of the sum."""
    desirable_weight: float | None = Field(None, gt=0)
    """KTO's weight of desirable answers; None means 1."""
    undesirable_weight: float | None = Field(None, gt=0)
    """KTO's weight of undesirable answers; None means 1."""

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, value: Any) -> Any:
        own = PREFERENCE_DEFAULTS.get(str(value.get("use")), {}) if isinstance(value, Mapping) else {}
        return {**own, **value} if own else value

    @model_validator(mode="after")
    def _check_keys(self) -> Preference:
        for name, objectives in PREFERENCE_KEYS.items():
            if self.use not in objectives and getattr(self, name):
                listed = " or ".join(f'"{one}"' for one in objectives)
                raise ValueError(f'{name} belongs to use = {listed}: leave it out with "{self.use}"')
        if self.use in ("simpo", "orpo") and not self.length_normalised:
            raise ValueError(f'"{self.use}" compares means over tokens: leave length_normalised out')
        return self


class PreferRecipe(SupervisedRecipe):
    kind: Literal["prefer"]
    preference: Preference = Preference()

    @model_validator(mode="after")
    def _kto_needs_two_examples(self) -> PreferRecipe:
        if self.preference.use == "kto" and self.batch.examples_per_step < 2:
            raise ValueError(
                'preference.use = "kto" pairs each prompt with the answer to another one, so batch.examples_per_step '
                "must be at least 2"
            )
        return self


class Scoring(Section):
    margin: float = Field(0.0, ge=0)
    """How much higher the preferred answer should score, for pairs whose row has no margin."""
    centre: float = Field(0.01, ge=0)
    """Strength of the pull of the scores towards zero: comparisons do not fix their level. 0 turns it off."""
    head_learning_rate: float = Field(1e-3, gt=0)
    """Learning rate of the score head, which starts at zero; ``optimizer.learning_rate`` is that of the backbone."""


class RewardModelRecipe(SupervisedRecipe):
    kind: Literal["reward-model"]
    reward_model: Scoring = Scoring()


R = TypeVar("R", bound=SupervisedRecipe)


def load_supervised(
    model: type[R], source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *,
    changes: Mapping[str, Any] | None = None,
) -> R:  # fmt: skip
    """Load a recipe from a TOML file, a built-in recipe's name or a mapping.

    Raises InputError if the file is missing or broken, is for another command, or has invalid settings.
    """
    data, where = read_recipe(source, overrides, changes=changes, kind=recipe_kind(model))
    recipe = validate(model, data, where)
    if is_withheld(recipe.data.use):
        return recipe
    try:
        factory = SOURCES.get(recipe.data.use)
        check_task_options(factory, recipe.data.options)
        # The source checks its options before anything is loaded.
        factory(**recipe.data.options)
    except InputError as error:
        raise InputError(f"{where}: data: {error}") from error
    return recipe


def recipe_kind(model: type[SupervisedRecipe]) -> str:
    """Return the ``kind`` of these recipes, which is also the name of the command."""
    kind: str = model.model_fields["kind"].annotation.__args__[0]  # type: ignore[union-attr]
    return kind
