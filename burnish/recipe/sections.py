"""The base classes of recipe sections, and the sections for rewards, evaluation and guards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from burnish.registry import nearest
from burnish.system.paths import expanded
from burnish.types import SamplingParams

MAX_SIZE = 1 << 20
"""Upper limit of sizes and counts; a larger number is a typing error that would exhaust memory or never end."""

Pair = Annotated[tuple[float, float], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
"""Two numbers, in a recipe a list."""


class Section(BaseModel):
    """A strict and frozen section: unknown keys and numbers written as text are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class OpenSection(Section):
    """A section whose other keys are options of the object that ``use`` names, checked against its signature."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

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


class Schedule(Section):
    """A factor that changes linearly from ``start`` at step 1 to ``end`` at step ``steps`` and then stays constant."""

    start: float
    end: float
    steps: int = Field(ge=2)

    def at(self, step: int | None) -> float:
        """Return the factor at a step, counted from 1; None means any step from ``steps`` on."""
        done = 1.0 if step is None else min(1.0, (step - 1) / (self.steps - 1))
        return (1 - done) * self.start + done * self.end


class RewardSection(OpenSection):
    """One ``[[reward]]`` table: a reward function, its weight, and how its values become part of the reward."""

    use: str
    weight: float = 1.0
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


class MetricSection(OpenSection):
    """A reward that is measured on held-out completions but not trained on; other keys are its options."""

    use: str
    name: str | None = None
    """The name in the evaluation, after ``metric/``; None uses ``use``."""
    better: Literal["higher", "lower", "neither"] = "higher"

    @model_validator(mode="after")
    def _check_keys(self) -> MetricSection:
        for key in self.options:
            if key in ("weight", "clip", "gate", "normalise", "schedule", "credit"):
                raise ValueError(f"a metric is not trained on and takes no {key}; remove {key}")
        return self

    @property
    def part(self) -> str:
        """The metric's name in the evaluation, after ``metric/``."""
        return self.name or self.use.rpartition(":")[2]


class HeldOutSampling(Section):
    """How held-out completions are sampled; None is as in training."""

    temperature: float | None = Field(None, ge=0)
    """0 takes the likeliest token each time."""
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=MAX_SIZE)
    min_p: float | None = Field(None, ge=0, le=1)
    max_new_tokens: int | None = Field(None, ge=1, le=MAX_SIZE)

    @field_validator("temperature")
    @classmethod
    def _check_temperature(cls, value: float | None) -> float | None:
        if value is not None and 0 < value < 1e-6:
            raise ValueError("a temperature below 1e-6 would overflow; use 0")
        return value

    def params(self, training: SamplingParams) -> SamplingParams:
        """Return the parameters of training with those that are set here."""
        keys = self.model_dump(exclude_none=True)
        if keys.get("temperature") == 0:
            keys |= {"temperature": 1.0, "top_k": 1, "top_p": 1.0, "min_p": 0.0}
        return replace(training, lagged_top_p=1.0 if keys else training.lagged_top_p, **keys)


class Evaluation(Section):
    """Held-out measurement."""

    every: int = Field(0, ge=0)
    """Steps between measurements during training; 0 measures only before and after."""
    prompts: int | None = Field(None, ge=1)
    """Number of held-out prompts; None uses all."""
    samples_per_prompt: int = Field(1, ge=1, le=MAX_SIZE)
    sampling: HeldOutSampling = HeldOutSampling()
    correct: str | None = None
    """A reward or metric of the recipe that is 1 for a right answer, of which ``pass@k`` and ``avg@n`` are computed."""
    pass_at: list[int] = []
    """The k of ``pass@k``; [] with ``correct`` takes the powers of two up to ``samples_per_prompt``."""
    resamples: int = Field(1000, ge=100, le=10**6)
    """Bootstrap resamples per interval."""
    bleu_tokenize: Literal["auto", "13a", "intl", "zh", "char", "none"] = "auto"
    """sacrebleu's tokenizer for corpus BLEU; "auto" is "zh" for Chinese references and "13a" for most others."""
    metrics: list[MetricSection] = []
    """Rewards that are measured but not trained on; a string is short for a table with that ``use``."""

    @model_validator(mode="after")
    def _check_samples(self) -> Evaluation:
        if self.sampling.temperature == 0 and self.samples_per_prompt > 1:
            raise ValueError(
                f"sampling.temperature = 0 gives {self.samples_per_prompt} equal samples per prompt; set "
                "samples_per_prompt = 1"
            )
        if self.pass_at and self.correct is None:
            raise ValueError("pass_at needs correct, the name of a reward that is 1 for a right answer")
        if unfit := [k for k in self.pass_at if not 1 <= k <= self.samples_per_prompt]:
            raise ValueError(
                f"pass_at: k = {unfit[0]} needs as many samples of a prompt, but samples_per_prompt = "
                f"{self.samples_per_prompt}"
            )
        return self

    @property
    def attempts(self) -> tuple[int, ...]:
        """The k of ``pass@k``, () without ``correct``."""
        if self.correct is None:
            return ()
        powers = [2**power for power in range(self.samples_per_prompt.bit_length())]
        return tuple(self.pass_at or [k for k in powers if k <= self.samples_per_prompt])

    @field_validator("metrics", mode="before")
    @classmethod
    def _tables_from_names(cls, value: Any) -> Any:
        tables = isinstance(value, list)
        return [{"use": item} if isinstance(item, str) else item for item in value] if tables else value

    @field_validator("metrics")
    @classmethod
    def _check_names(cls, value: list[MetricSection]) -> list[MetricSection]:
        names = [section.part for section in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two metrics are called '{name}'; set name = ... in one of them")
        return value


HELD_OUT = ("perplexity", "truth_perplexity", "bleu", "chrf", "distinct_1", "distinct_2")
"""The metrics of every held-out evaluation, any of which a guard may watch."""


class Guards(Section):
    """Warnings that the reward rises while the text gets worse."""

    diversity_drop: float = Field(0.1, gt=0, lt=1)
    """Warn if the reward has risen and distinct-2 has fallen by more than this share of its first value."""
    length_drift: float = Field(0.5, ge=0)
    """Warn if the reward has risen and the mean length has changed by a factor of more than 1 + this; 0 never warns."""
    metrics: list[str] | None = None
    """Metrics that must not get worse while the reward rises; None watches every evaluation metric with a direction."""
    metric_drop: float = Field(0.0, ge=0, lt=1)
    """Tolerated loss of such a metric, as a share of its first value; a smaller or insignificant loss never warns."""
    truncated: float = Field(0.5, ge=0, le=1)
    """Warn if more than this share of the samples was cut at the limit of tokens; 1 never warns."""
    window: int = Field(5, ge=1)
    """Steps averaged at the start and at the end when steps are compared."""
    stop: bool = False
    """Whether a warning ends the run and restores the best earlier model."""


def check_correct(evaluation: Evaluation, rewards: Sequence[RewardSection]) -> None:
    """Raise ValueError if ``evaluation.correct`` names neither a reward nor a metric."""
    known = [*(section.part for section in rewards), *(section.part for section in evaluation.metrics)]
    if (name := evaluation.correct) is not None and name not in known:
        raise ValueError(
            f"evaluation.correct = '{name}' is neither a reward nor a metric{nearest(name, known)}; known: "
            f"{', '.join(known)}"
        )


def guarded_metrics(guards: Guards, rewards: Sequence[RewardSection], evaluation: Evaluation) -> tuple[str, ...]:
    """Return the guarded keys of a held-out evaluation: ``metric/<name>``, ``reward/<part>`` or one of ``HELD_OUT``.

    Raises ValueError if a guarded metric is not measured, has no direction or is trained on, or if ``stop`` is set
    without measurements that tell which model was the best.
    """
    if guards.stop and evaluation.every == 0:
        raise ValueError(
            "guards.stop = true restores the model that was best on held-out prompts, but nothing is measured during "
            "training; set evaluation.every"
        )
    directions = {section.part: section.better for section in evaluation.metrics}
    parts = {section.part: section.counts for section in rewards}
    if guards.metrics is None:
        watched = (f"reward/{part}" for part, counts in parts.items() if not counts)
        return (*(f"metric/{name}" for name, better in directions.items() if better != "neither"), *watched)
    keys = []
    for name in guards.metrics:
        if name in directions:
            if directions[name] == "neither":
                raise ValueError(
                    f"guards.metrics: '{name}' has better = \"neither\", so it cannot get worse; set better to "
                    '"higher" or "lower"'
                )
            keys.append(f"metric/{name}")
        elif name in parts:
            if parts[name]:
                raise ValueError(
                    f"guards.metrics: the policy is trained on '{name}', so a rise proves nothing; name one of "
                    "evaluation.metrics or a reward of weight 0"
                )
            keys.append(f"reward/{name}")
        elif name in HELD_OUT:
            keys.append(name)
        else:
            known = [*directions, *(part for part, counts in parts.items() if not counts), *HELD_OUT]
            raise ValueError(
                f"guards.metrics: '{name}' is not measured{nearest(name, known)}; known: {', '.join(known)}"
            )
    return tuple(keys)


LORA_LEARNING_RATE = 1e-4
"""Default with LoRA, whose few weights start at zero: with 1e-5 they hardly move in tens of steps."""


class Optimizer(Section):
    """AdamW (arXiv 1711.05101) and its learning-rate schedule."""

    learning_rate: float = Field(1e-5, gt=0)
    """1e-5 by default, with LoRA ``LORA_LEARNING_RATE``."""
    betas: Pair = (0.9, 0.999)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "linear"] = "constant"
    """After the warm-up, keep the learning rate or decay it linearly to zero at the last step."""
    tokens_per_microbatch: int | None = Field(None, ge=1)
    """Tokens per backward pass, each prompt counted once; None chooses a size that is fast and fits into memory."""
    reuse_sampling: bool = True
    """Whether training reuses matrix products of sampling instead of recomputing them."""
    reuse_memory: float = Field(0.0125, gt=0, le=0.5)
    """Share of the machine's memory for these products; those that save the most time per byte are kept first."""

    @field_validator("betas")
    @classmethod
    def _check_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("each beta must be at least 0 and below 1")
        return value


class CheckpointSection(Section):
    """When checkpoints are written, and how many are kept."""

    every: int = Field(10, ge=1)
    keep: int = Field(2, ge=1)
    keep_best: str | None = None
    """A held-out metric such as ``held_out/reward``: the checkpoint of its best measured step is kept."""
