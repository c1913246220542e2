"""The base classes of recipe sections, and the sections for small policies, rewards, optimizer and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from burnish.system.machine import spare_memory_share
from burnish.system.paths import expanded

MAX_SIZE = 1 << 20
"""Upper limit of sizes and counts; a larger number is a typing error that would exhaust memory or never end."""

Pair = Annotated[tuple[float, float], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
"""Two numbers, in a recipe a list."""


class Section(BaseModel):
    """A strict and frozen section: unknown keys and numbers written as text are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)


class OpenSection(Section):
    """A section whose other keys are options of the object that ``use`` names, checked against its signature."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

    use: str

    @property
    def options(self) -> dict[str, Any]:
        """The options of the object that ``use`` names."""
        return dict(self.model_extra or {})


class ChatSection(OpenSection):
    """An open section whose prompts or rows may be conversations, with settings of the model's chat template."""

    template: str | None = None
    """A file with an own chat template (Jinja). A text that names no file is an option: the text of a task's prompts."""
    template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template, such as ``enable_thinking``."""

    @property
    def template_file(self) -> str | None:
        """The file with an own chat template."""
        if self.template is None or "{" in self.template:
            return None
        path = expanded(self.template)
        return self.template if path.suffix in (".jinja", ".jinja2", ".j2") or path.is_file() else None

    @property
    def options(self) -> dict[str, Any]:
        text = self.template if self.template_file is None else None
        return super().options if text is None else {**super().options, "template": text}

    @field_validator("template_kwargs")
    @classmethod
    def _check_reserved(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if reserved := sorted(
            {"messages", "conversations", "chat_template", "add_generation_prompt"} & {*(value or {})}
        ):
            raise ValueError(f"'{reserved[0]}' is set for each conversation; remove it")
        return value


class LSTMShape(Section):
    """Shape of the built-in LSTM."""

    embedding: int = Field(64, ge=1, le=65536)
    hidden: int = Field(256, ge=1, le=65536)
    layers: int = Field(1, ge=1, le=1000)
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout during pretraining; sampling and reinforcement learning use none."""


class Pretrain(Section):
    """Maximum-likelihood training on the task's training texts, before the first step."""

    steps: int = Field(1000, ge=1, le=10**9)
    learning_rate: float = Field(3e-3, gt=0, le=1e6)
    windows: int = Field(32, ge=1, le=65536)
    """Windows of text per step."""
    length: int = Field(128, ge=1, le=MAX_SIZE)
    """Tokens per window."""


class Schedule(Section):
    """A factor that changes linearly from ``start`` at step 1 to ``end`` at step ``steps`` and then stays constant."""

    start: float = Field(ge=-1e6, le=1e6)
    end: float = Field(ge=-1e6, le=1e6)
    steps: int = Field(ge=2)

    def at(self, step: int | None) -> float:
        """Return the factor at a step, counted from 1; None means any step from ``steps`` on."""
        done = 1.0 if step is None else min(1.0, (step - 1) / (self.steps - 1))
        return (1 - done) * self.start + done * self.end


class RewardSection(OpenSection):
    """One ``[[reward]]`` table: a reward function, its weight, and how its values become part of the reward."""

    use: str
    weight: float = Field(1.0, ge=-1e12, le=1e12)
    name: str | None = None
    """The part's name in metrics; None uses ``use``."""
    clip: Pair | None = None
    """Lower and upper limit of the part."""
    gate: float | None = None
    """Threshold of the unclipped part, below which a completion gets no credit from the other parts."""
    normalise: Literal["group", "batch", "rank", "running"] | None = None
    """In training, standardise the part within its group, within the step or by all earlier steps, or replace it by its
    rank in the group."""
    schedule: Schedule | None = None
    """A factor of the weight that depends on the step."""
    credit: Literal["completion", "sentence", "token"] = "completion"
    """In training, what earns the part: the whole completion, or each sentence or token by how much it raises it."""
    max_errors: float = Field(default=0.0, ge=0, le=1)
    """Largest share of a step's completions on which the function may fail; the part does not apply to them."""
    time_limit: float | None = Field(default=None, gt=0)
    """Seconds that one call of the function may take; None for no limit."""

    @field_validator("clip")
    @classmethod
    def _check_order(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"clip = [{value[0]}, {value[1]}]: the first must be below the second")
        return value

    @property
    def part(self) -> str:
        """The part's name in metrics."""
        return self.name or self.use.rpartition(":")[2]

    @property
    def counts(self) -> bool:
        """Whether the part has a weight other than 0 at some step."""
        return self.weight != 0 and (self.schedule is None or self.schedule.start != 0 or self.schedule.end != 0)


def check_rewards(sections: Sequence[RewardSection], samples: int, prompts: int, steps: int) -> None:
    """Check that the rewards can work together, with G samples per prompt and P prompts per step.

    Raises ValueError if two parts have one name, every weight is 0, a gate has no other part, a normalisation has
    nothing to compare, or a schedule is longer than the run.
    """
    parts = [section.part for section in sections]
    if not any(section.counts for section in sections):
        raise ValueError("every reward has weight 0, so there is nothing to learn; give at least one a weight")
    for index, section in enumerate(sections):
        key = f"reward.{index}"
        if parts.count(section.part) > 1:
            raise ValueError(f"{key}: two rewards are called '{section.part}'; set name = ... in one of them")
        if section.part in ("mean", "std"):
            raise ValueError(f"{key}: reward/{section.part} is a metric of every step; set name = ... to another name")
        if section.gate is not None and not any(other.counts for other in sections if other is not section):
            raise ValueError(
                f"{key}: gate = {section.gate} controls the credit of the other parts, but no other part has a "
                "weight; add one or remove gate"
            )
        compared = {"group": samples, "rank": samples, "batch": samples * prompts}.get(section.normalise or "")
        if compared is not None and compared < 2:
            raise ValueError(
                f'{key}: normalise = "{section.normalise}" compares completions, but there is only one; '
                "sampling.samples_per_prompt must be at least 2"
            )
        if section.credit != "completion":
            _check_token_credit(key, section, sections)
        if section.schedule and section.schedule.steps > steps:
            raise ValueError(
                f"{key}: schedule.steps = {section.schedule.steps} ends after the run's {steps} steps, but "
                f"held-out measurements use the final weight; use at most {steps}"
            )


def _check_token_credit(key: str, section: RewardSection, sections: Sequence[RewardSection]) -> None:
    if section.normalise:
        raise ValueError(
            f'{key}: normalise = "{section.normalise}" compares whole completions, so it cannot be combined with '
            f'credit = "{section.credit}"; remove one of the two (presets such as grpo already divide by the spread)'
        )
    if gates := [other.part for other in sections if other.gate is not None]:
        raise ValueError(
            f"{key}: the gate of '{gates[0]}' judges whole completions, so it cannot be combined with credit = "
            f'"{section.credit}"; remove one of the two'
        )


LORA_LEARNING_RATE = 1e-4
"""Default with LoRA, whose few weights start at zero: with 1e-5 they hardly move in tens of steps."""


class Optimizer(Section):
    """AdamW (arXiv 1711.05101) and its learning-rate schedule."""

    learning_rate: float = Field(1e-5, gt=0, le=1e6)
    """1e-5 by default, with LoRA ``LORA_LEARNING_RATE``."""
    betas: Pair = (0.9, 0.999)
    epsilon: float = Field(1e-8, gt=0, le=1e6)
    weight_decay: float = Field(0.0, ge=0, le=1e6)
    max_grad_norm: float | None = Field(1.0, gt=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "linear"] = "constant"
    """After the warm-up, keep the learning rate or decay it linearly to zero at the last step."""
    tokens_per_microbatch: int | None = Field(None, ge=1)
    """Tokens per backward pass, each prompt counted once; None chooses a size that is fast and fits into memory."""
    reuse_sampling: bool = True
    """Whether training reuses matrix products of sampling instead of recomputing them."""
    reuse_memory: float | None = Field(None, gt=0, le=0.5)
    """Share of the machine's memory for these products; those that save the most time per byte are kept the longest.

    None takes what is free when the run starts, and the run's recipe names it (``spare_memory_share``)."""

    @field_validator("betas")
    @classmethod
    def _check_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("each beta must be at least 0 and below 1")
        return value

    @model_validator(mode="after")
    def _check_decay(self) -> Optimizer:
        if self.learning_rate * self.weight_decay > 1:
            raise ValueError(
                f"weight_decay = {self.weight_decay:g} times learning_rate = {self.learning_rate:g} is above 1, so each "
                "step would turn the weights round; lower one of them"
            )
        return self

    def resolved(self) -> Optimizer:
        """Return the section with the share of memory that this machine spares now."""
        return self.model_copy(update={"reuse_memory": self.reuse_memory or spare_memory_share()})


class CheckpointSection(Section):
    """When checkpoints are written, and how many are kept."""

    every: int = Field(10, ge=1)
    keep: int = Field(2, ge=1)
    keep_best: str | None = None
    """A held-out metric such as ``held_out/reward``: the checkpoint of its best measured step is kept."""
