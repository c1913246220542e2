"""The recipes of ``burnish sft``, ``burnish reward-model`` and ``burnish prefer``: as strict as that of ``train``, and with
the same keys where they mean the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from burnish.errors import InputError
from burnish.recipe import Job, OpenSection, RewardSection, Section, TaskSection
from burnish.recipe_file import read_data, validated
from burnish.rewards.registry import REWARDS
from burnish.supervised.sources import SOURCES
from burnish.tasks.registry import TASKS, check_task_options
from burnish.types import SamplingParams


class Data(OpenSection):
    """Where the rows come from; further keys are the source's options."""

    held_out_percent: int = Field(25, ge=1, le=99)
    """Share of the rows, by a hash of their prompts, that training never sees."""
    max_broken: float = Field(0.01, ge=0, lt=1)
    """Share of the rows that may be unusable; they are listed either way."""


class Batch(Section):
    examples_per_step: int = Field(16, ge=1)
    """Examples, pairs or, in online DPO, prompts of one update."""
    tokens_per_microbatch: int = Field(1024, ge=1)
    """Examples are packed into microbatches of at most so many tokens; a longer one has one to itself."""
    max_tokens: int = Field(512, ge=2)
    """Tokens of a prompt with its completion; what is longer is cut there."""


class HeldOut(Section):
    every: int = Field(0, ge=0)
    """Held-out measurement every so many steps, besides before and after training; 0 leaves that out."""
    prompts: int | None = Field(None, ge=2)
    """How many held-out prompts (units of the split); None takes all."""
    resamples: int = Field(1000, ge=100)
    """Bootstrap resamples behind each interval."""


class SFTRecipe(Job):
    """One run of ``burnish sft``."""

    kind: Literal["sft"]
    data: Data
    batch: Batch = Batch()
    evaluation: HeldOut = HeldOut()


class RewardModelSection(Section):
    centre: float = Field(0.0, ge=0)
    """Coefficient of (r_chosen + r_rejected)^2, which holds the scores' mean at zero."""


class RewardModelRecipe(Job):
    """One run of ``burnish reward-model``."""

    kind: Literal["reward_model"]
    data: Data
    reward_model: RewardModelSection = RewardModelSection()
    batch: Batch = Batch()
    evaluation: HeldOut = HeldOut()


class Preference(Section):
    use: Literal["dpo", "ipo", "kto", "online_dpo"] = "dpo"
    beta: float = Field(0.1, gt=0)
    """Strength of the pull towards the reference; the tau of IPO."""
    desirable_weight: float = Field(1.0, gt=0)
    undesirable_weight: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _weights_are_of_kto(self) -> Preference:
        if self.use != "kto" and (self.desirable_weight, self.undesirable_weight) != (1.0, 1.0):
            raise ValueError(
                f"desirable_weight and undesirable_weight belong to kto, not to {self.use}: leave them out"
            )
        return self


class OnlineSampling(Section):
    """What online DPO draws: of each prompt so many samples, of which the best and the worst make a pair."""

    samples_per_prompt: int = Field(2, ge=2)
    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(self.max_new_tokens, self.temperature, self.top_p, self.top_k)


class OnlineHeldOut(HeldOut):
    samples_per_prompt: int = Field(1, ge=1)
    bleu_tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a"


class PreferRecipe(Job):
    """One run of ``burnish prefer``: rows of preferences, or (online DPO) a task and rewards that judge fresh samples."""

    kind: Literal["prefer"]
    preference: Preference = Preference()
    data: Data | None = None
    task: TaskSection | None = None
    sampling: OnlineSampling | None = None
    reward: list[RewardSection] = Field(default_factory=list)
    batch: Batch = Batch()
    evaluation: OnlineHeldOut = OnlineHeldOut()

    @model_validator(mode="after")
    def _rows_or_samples(self) -> PreferRecipe:
        online = self.preference.use == "online_dpo"
        has = {"data": self.data is not None, "task": self.task is not None, "reward": bool(self.reward)}
        has["sampling"] = self.sampling is not None
        needed = ("task", "sampling", "reward") if online else ("data",)
        for name in needed:
            if not has[name]:
                raise ValueError(f"preference.use = '{self.preference.use}' needs a [{name}] table")
        for name, given in has.items():
            if given and name not in needed:
                reason = "samples its own pairs" if online else "learns from the rows of [data]"
                raise ValueError(f"preference.use = '{self.preference.use}' {reason}: leave out [{name}]")
        if not online and (self.evaluation.samples_per_prompt, self.evaluation.bleu_tokenize) != (1, "13a"):
            raise ValueError("evaluation.samples_per_prompt and bleu_tokenize belong to online_dpo: leave them out")
        return self


SupervisedRecipe = SFTRecipe | RewardModelRecipe | PreferRecipe
KINDS: Mapping[str, type[SFTRecipe] | type[RewardModelRecipe] | type[PreferRecipe]] = {
    "sft": SFTRecipe,
    "reward_model": RewardModelRecipe,
    "prefer": PreferRecipe,
}


def load_supervised(
    kind: str, source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> SupervisedRecipe:
    """Reads a recipe of a kind from a TOML file, a shipped recipe's name or a mapping.

    Raises:
        InputError: the file is missing or broken, of another verb, or cannot work.
    """
    data, where = read_data(source, overrides, kind=kind)
    recipe: SupervisedRecipe = validated(KINDS[kind], data, where)
    if recipe.policy.use != "causal_lm":
        raise InputError(f"{where}: policy.use = '{recipe.policy.use}': only a causal_lm is trained from rows of text")
    _check_names(recipe, where)
    return recipe


def _check_names(recipe: SupervisedRecipe, where: str) -> None:
    """What names refer to exists, and takes the options given."""
    if recipe.data is not None:
        try:
            factory = SOURCES.get(recipe.data.use)
            check_task_options(factory, recipe.data.options)
            # The source's own checks of its options, before anything is loaded.
            factory(**recipe.data.options)
        except InputError as error:
            raise InputError(f"{where}: data: {error}") from error
    if isinstance(recipe, PreferRecipe):
        for index, section in enumerate(recipe.reward):
            try:
                REWARDS.get(section.use).check_options(section.options)
            except InputError as error:
                raise InputError(f"{where}: reward.{index}: {error}") from error
        if recipe.task is not None:
            try:
                check_task_options(TASKS.get(recipe.task.use), recipe.task.options)
            except InputError as error:
                raise InputError(f"{where}: task: {error}") from error
