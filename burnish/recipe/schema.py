"""The recipe: everything a run depends on, in one TOML file.

Models first, then what names refer to; the file is read in ``recipe_file``. Whatever cannot work is refused here, before a
model is loaded, with the key's path, the value, what was expected and the nearest right spelling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import Field, field_validator, model_validator

from burnish.errors import InputError
from burnish.recipe.algorithm import Algorithm, check_algorithm, check_credit, check_normalised, resolved, scored_by
from burnish.recipe.reading import RECIPES as RECIPES
from burnish.recipe.reading import read_data, validated
from burnish.recipe.reading import shipped as shipped
from burnish.recipe.sections import (
    MOST,
    Evaluation,
    Guards,
    OpenSection,
    RewardSection,
    Section,
    check_rewards,
    guarded,
)
from burnish.types import SamplingParams


class LoRA(Section):
    """Low-rank adapters (arXiv 2106.09685) in place of full fine-tuning."""

    rank: int = Field(16, ge=1, le=65536)
    alpha: float | None = Field(None, gt=0)
    """Scale of the adapter's output is alpha / rank; None means 2 * rank."""
    targets: Literal["all-linear"] | list[str] = "all-linear"


class LSTMShape(Section):
    """Widths and depth of the built-in LSTM."""

    embedding: int = Field(64, ge=1, le=65536)
    hidden: int = Field(256, ge=1, le=65536)
    layers: int = Field(1, ge=1, le=1000)
    dropout: float = Field(0.0, ge=0, lt=1)
    """While it is pretrained; what is sampled and updated has none."""


class Pretrain(Section):
    """Maximum likelihood on the task's training texts, before the first step."""

    steps: int = Field(1000, ge=1, le=10**9)
    learning_rate: float = Field(3e-3, gt=0)
    windows: int = Field(32, ge=1, le=65536)
    """Windows of text in a step."""
    length: int = Field(128, ge=1, le=MOST)
    """Tokens in a window."""


_KEYS_OF = {
    "causal_lm": ("lora",),
    "tabular": (),
    "lstm": ("lstm", "vocabulary", "vocabulary_size", "weights", "pretrain"),
    "module": ("module", "scores", "options", "vocabulary", "vocabulary_size", "weights", "pretrain"),
}
"""policy.use -> the keys that are its own, all of them without a default."""


class PolicySection(Section):
    use: Literal["causal_lm", "lstm", "module", "tabular"] = "causal_lm"
    model: str = "smollm2-135m"
    lora: LoRA | None = None
    lstm: LSTMShape | None = None
    module: str | None = None
    """``module:object``: a torch module, or what makes one."""
    scores: Literal["logits", "probabilities", "logprobs"] | None = None
    """What the module returns."""
    options: dict[str, Any] | None = None
    """Keyword arguments of what makes the module."""
    vocabulary: str | None = None
    """character, byte, bpe, or a vocabulary.json; None is character."""
    vocabulary_size: int | None = Field(None, ge=257, le=MOST)
    weights: str | None = None
    """A folder with model.safetensors and vocabulary.json to start from."""
    pretrain: Pretrain | None = None
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gradient_checkpointing: bool = False
    """Layers run again in the backward pass instead of keeping what they computed: a third more time, far less memory."""

    @model_validator(mode="after")
    def _keys_belong_to_use(self) -> PolicySection:
        if self.use == "tabular" and self.lora is not None:
            raise ValueError("a tabular policy has no layers for LoRA: leave out policy.lora")
        for key in dict.fromkeys(key for keys in _KEYS_OF.values() for key in keys):
            if getattr(self, key) is not None and key not in _KEYS_OF[self.use]:
                owners = " or ".join(f'"{use}"' for use, keys in _KEYS_OF.items() if key in keys)
                raise ValueError(f'policy.{key} belongs to policy.use = {owners}: leave it out with "{self.use}"')
        if self.use == "module":
            if self.module is None or ":" not in self.module:
                raise ValueError(
                    'policy.use = "module" needs policy.module = "file:object", a torch module or its maker'
                )
            if self.scores is None:
                raise ValueError(
                    'policy.scores is missing: say whether the module returns "logits", "probabilities" (it ends in a '
                    'softmax) or "logprobs"'
                )
        if self.weights is not None and self.vocabulary is not None:
            raise ValueError("policy.weights brings its own vocabulary.json: leave out policy.vocabulary")
        if self.vocabulary_size is not None and self.vocabulary != "bpe":
            raise ValueError(
                'policy.vocabulary_size belongs to policy.vocabulary = "bpe": the others have their own size'
            )
        return self


class TaskSection(OpenSection):
    use: str = "news"


class Sampling(Section):
    prompts_per_step: int = Field(4, ge=1, le=MOST)
    samples_per_prompt: int = Field(8, ge=1, le=MOST)
    max_new_tokens: int = Field(64, ge=1, le=MOST)
    temperature: float = Field(1.0, ge=1e-6)
    """Below a millionth, logits divided by it leave the floats."""
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=MOST)
    nlpo_top_p: float = Field(1.0, gt=0, le=1)
    """NLPO (arXiv 2210.01241): only tokens of a lagged policy's top-p set are drawn; 1 leaves that out."""
    nlpo_every: int = Field(10, ge=1)
    """Steps after which the lagged policy catches up."""

    @model_validator(mode="after")
    def _one_mask(self) -> Sampling:
        if self.nlpo_top_p < 1 and (self.top_p < 1 or self.top_k > 0):
            raise ValueError(
                "nlpo_top_p cuts by the lagged policy and top_p or top_k by the policy itself; together they may leave no "
                "token at all: choose one"
            )
        return self

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(self.max_new_tokens, self.temperature, self.top_p, self.top_k, self.nlpo_top_p)


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
    reuse_sampling: bool = True
    """Whether products that sampling made are kept for training, or made again."""
    reuse_memory: float = Field(0.0125, gt=0, le=0.5)
    """The part of the machine's memory that they may take, those that save most for their room first."""

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


class Checkpoint(Section):
    every: int = Field(10, ge=1)
    keep: int = Field(2, ge=1)


class Job(Section):
    """What the recipes of all verbs that train have. Every default is written out in the run folder's ``recipe.toml``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    seed: int = Field(0, ge=0)
    steps: int = Field(25, ge=1, le=10**9)
    threads: int | None = Field(None, ge=1, le=1024)
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

    @property
    def guarded(self) -> tuple[str, ...]:
        """What may not get worse while the reward rises: keys of a held-out evaluation."""
        return guarded(self.guards, self.reward, self.evaluation)

    @model_validator(mode="after")
    def _rewards_can_work(self) -> Recipe:
        check_rewards(self.reward, self.sampling.samples_per_prompt, self.sampling.prompts_per_step, self.steps)
        guarded(self.guards, self.reward, self.evaluation)
        return self

    def resolved(self) -> Recipe:
        """The recipe with what its algorithm's paper does written out, for a run that shall come to the same years later."""
        rewards = scored_by(self.algorithm, self.reward)
        return self.model_copy(update={"algorithm": resolved(self.algorithm), "reward": rewards})


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
    from burnish.rewards.registry import METRIC, REWARDS, TABLE
    from burnish.tasks.registry import TASKS, check_task_options

    try:
        check_algorithm(recipe.algorithm, recipe.sampling.prompts_per_step, recipe.sampling.samples_per_prompt)
        check_normalised(recipe.algorithm, recipe.reward)
        check_credit(recipe.algorithm, recipe.reward)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if recipe.sampling.nlpo_top_p < 1 and recipe.policy.use == "causal_lm":
        raise InputError(
            f"{where}: sampling.nlpo_top_p: for a causal_lm a second model would have to run beside the engine for every "
            'token, which is not built: use policy.use = "lstm", "module" or "tabular", or sampling.top_p'
        )
    for key, sections, beside in (
        ("reward", recipe.reward, TABLE),
        ("evaluation.metrics", recipe.evaluation.metrics, METRIC),
    ):
        for index, section in enumerate(sections):
            try:
                function = REWARDS.get(section.use)
                function.check_options(section.options, beside)
                function.check_credit(getattr(section, "credit", "completion"))
            except InputError as error:
                raise InputError(f"{where}: {key}.{index}: {error}") from error
    try:
        check_task_options(TASKS.get(recipe.task.use), recipe.task.options)
    except InputError as error:
        raise InputError(f"{where}: task: {error}") from error
    if recipe.policy.use == "tabular" and recipe.task.use != "toy" and ":" not in recipe.task.use:
        raise InputError(
            f"{where}: policy.use = \"tabular\" knows four characters only, not the texts of task '{recipe.task.use}': "
            'use the task "toy", or a language model'
        )
