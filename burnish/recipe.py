"""The recipe: everything a run depends on, in one TOML file.

Models first, then what names refer to; the file is read in ``recipe_file``. Whatever cannot work is refused here, before a
model is loaded, with the key's path, the value, what was expected and the nearest right spelling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from burnish.errors import InputError
from burnish.recipe_file import RECIPES as RECIPES
from burnish.recipe_file import read_data, validated
from burnish.recipe_file import shipped as shipped
from burnish.registry import nearest
from burnish.types import SamplingParams


class Section(BaseModel):
    """Strict and frozen: no unknown keys, no silent conversion from text to numbers, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class OpenSection(Section):
    """A section whose further keys are the options of what ``use`` names; they are checked against its signature."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    use: str

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to what ``use`` names."""
        return dict(self.model_extra or {})


class LoRA(Section):
    """Low-rank adapters (arXiv 2106.09685) in place of full fine-tuning."""

    rank: int = Field(16, ge=1)
    alpha: float | None = Field(None, gt=0)
    """Scale of the adapter's output is alpha / rank; None means 2 * rank."""
    targets: Literal["all-linear"] | list[str] = "all-linear"


class PolicySection(Section):
    use: Literal["causal_lm", "tabular"] = "causal_lm"
    model: str = "smollm2-135m"
    lora: LoRA | None = None
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gradient_checkpointing: bool = False
    """Layers run again in the backward pass instead of keeping what they computed: a third more time, far less memory."""

    @model_validator(mode="after")
    def _tabular_has_no_adapter(self) -> PolicySection:
        if self.use == "tabular" and self.lora is not None:
            raise ValueError("a tabular policy has no layers for LoRA: leave out policy.lora")
        return self


class TaskSection(OpenSection):
    use: str = "news"


class Sampling(Section):
    prompts_per_step: int = Field(4, ge=1)
    samples_per_prompt: int = Field(8, ge=1)
    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(self.max_new_tokens, self.temperature, self.top_p, self.top_k)


class KL(Section):
    """The pull towards the reference. See ``burnish.algorithms.kl`` for what each pairing's gradient really is."""

    coefficient: float = Field(0.0, ge=0)
    estimator: Literal["k1", "k2", "k3"] = "k3"
    where: Literal["loss", "reward"] = "loss"

    @model_validator(mode="after")
    def _no_useless_gradient(self) -> KL:
        if self.coefficient > 0 and self.where == "loss" and self.estimator == "k1":
            raise ValueError(
                'estimator = "k1" with where = "loss" has a gradient whose mean is zero, so it pulls nowhere: '
                'use "k2" or "k3" in the loss, or where = "reward"'
            )
        return self


class Algorithm(Section):
    use: str = "grpo"
    kl: KL = KL()
    aggregation: Literal["sequence_sum", "sequence_mean", "token_mean", "constant_length"] | None = None
    """How token losses become one number; None is what the preset's paper does."""


class RewardSection(OpenSection):
    use: str
    weight: float = 1.0
    name: str | None = None
    """The part's name in metrics; ``use`` where it is left out."""

    @property
    def part(self) -> str:
        return self.name or self.use.rpartition(":")[2]


class Optimizer(Section):
    """AdamW (arXiv 1711.05101) and its learning rate over the run."""

    learning_rate: float = Field(1e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "linear"] = "constant"
    """After the warm-up: hold the learning rate, or let it fall linearly to zero at the last step."""
    tokens_per_microbatch: int | None = Field(None, ge=1)
    """Tokens in one backward pass, each prompt counted once; None takes what makes products fast and fits into memory."""

    @field_validator("betas", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("betas")
    @classmethod
    def _below_one(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("each beta must be at least 0 and below 1")
        return value


class Evaluation(Section):
    every: int = Field(0, ge=0)
    """Held-out reward every so many steps, besides before and after training; 0 leaves that out."""
    prompts: int | None = Field(None, ge=1)
    """How many held-out prompts; None takes all."""
    samples_per_prompt: int = Field(1, ge=1)
    resamples: int = Field(1000, ge=100)
    """Bootstrap resamples behind each interval."""
    bleu_tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a"
    """sacrebleu's tokenizer for corpus BLEU; "zh" for Chinese."""


class Checkpoint(Section):
    every: int = Field(10, ge=1)
    keep: int = Field(2, ge=1)


class Guards(Section):
    diversity_drop: float = Field(0.1, gt=0, lt=1)
    """Warn where the reward has risen while distinct-2 has fallen by more than this share of where it began."""
    window: int = Field(5, ge=1)
    """Steps averaged at either end of that comparison."""


class Job(Section):
    """What the recipes of all verbs that train have. Every default is written out in the run folder's ``recipe.toml``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0)
    steps: int = Field(25, ge=1)
    threads: int | None = Field(None, ge=1)
    """CPU threads; None takes what torch chooses. The same bits need the same number."""
    policy: PolicySection = PolicySection()
    optimizer: Optimizer = Optimizer()
    checkpoint: Checkpoint = Checkpoint()

    def toml(self) -> str:
        """The recipe with every default written out; reading it gives the same recipe."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


class Recipe(Job):
    """One run of ``burnish train``."""

    task: TaskSection = TaskSection()
    sampling: Sampling = Sampling()
    algorithm: Algorithm = Algorithm()
    reward: list[RewardSection] = Field(min_length=1)
    evaluation: Evaluation = Evaluation()
    guards: Guards = Guards()

    @model_validator(mode="after")
    def _parts_have_own_names(self) -> Recipe:
        parts = [section.part for section in self.reward]
        for part in parts:
            if parts.count(part) > 1:
                raise ValueError(f"two rewards are called '{part}': give one of them a name of its own with name = ...")
        if not any(section.weight != 0 for section in self.reward):
            raise ValueError("every reward has weight 0, so there is nothing to learn: give one a weight")
        return self


def _without_none(value: Any) -> Any:
    # TOML has no null: a key that is None is left out, which means the same.
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


def load_recipe(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, changes: Mapping[str, Any] | None = None
) -> Recipe:
    """Reads a recipe from a TOML file, a shipped recipe's name or a mapping.

    Args:
        changes: top-level keys to set.
        overrides: ``section.key=value`` texts, applied in order after that.

    Raises:
        InputError: the file is missing or broken, or the recipe cannot work.
    """
    data, where = read_data(source, overrides, changes=changes)
    recipe = validated(Recipe, data, where)
    check_names(recipe, where)
    return recipe


def check_names(recipe: Recipe, where: str = "recipe") -> None:
    """Refuses names that lead nowhere and options that their targets do not take; loads no model and no data."""
    from burnish.algorithms.presets import PRESETS
    from burnish.rewards.registry import REWARDS
    from burnish.tasks.registry import TASKS, check_task_options

    if recipe.algorithm.use not in PRESETS:
        name = recipe.algorithm.use
        raise InputError(
            f"{where}: algorithm.use = '{name}'{nearest(name, PRESETS)}: known algorithms are {', '.join(PRESETS)}"
        )
    preset = PRESETS[recipe.algorithm.use]
    if preset.needs_group and recipe.sampling.samples_per_prompt < 2:
        raise InputError(
            f"{where}: algorithm.use = '{recipe.algorithm.use}' compares the samples of one prompt, "
            "so sampling.samples_per_prompt must be at least 2"
        )
    for index, section in enumerate(recipe.reward):
        try:
            REWARDS.get(section.use).check_options(section.options)
        except InputError as error:
            raise InputError(f"{where}: reward.{index}: {error}") from error
    try:
        check_task_options(TASKS.get(recipe.task.use), recipe.task.options)
    except InputError as error:
        raise InputError(f"{where}: task: {error}") from error
    if recipe.policy.use == "tabular" and recipe.task.use != "toy" and ":" not in recipe.task.use:
        raise InputError(
            f"{where}: policy.use = \"tabular\" knows four characters only, not the texts of task '{recipe.task.use}': "
            'use the task "toy", or a language model'
        )
