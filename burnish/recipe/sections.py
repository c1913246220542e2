"""What every section of a recipe is; those of a reward, of what is measured, and of what is watched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from burnish.registry import nearest

MOST = 1 << 20
"""Of what a step or a text can have: a slip of the finger beyond it would fill the memory, or never end."""


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


class Schedule(Section):
    """A factor that goes in a straight line from ``start`` at step 1 to ``end`` at step ``steps``, and stays there."""

    start: float
    end: float
    steps: int = Field(ge=2)

    def at(self, step: int | None) -> float:
        """The factor of a step (counted from 1); None is any step from ``steps`` on."""
        done = 1.0 if step is None else min(1.0, (step - 1) / (self.steps - 1))
        return (1 - done) * self.start + done * self.end


class RewardSection(OpenSection):
    use: str
    weight: float = 1.0
    name: str | None = None
    """The part's name in metrics; ``use`` where it is left out."""
    clip: tuple[float, float] | None = None
    """What is below the first or above the second counts as that."""
    gate: float | None = None
    """A completion for which this part, unclipped, is below it gets no credit from the other parts."""
    normalise: Literal["group", "batch", "rank", "running"] | None = None
    """In training, less the mean and divided by the standard deviation of the prompt's or of the step's completions, or of
    all earlier steps'; or the rank among the prompt's."""
    schedule: Schedule | None = None
    """The weight's factor, step by step."""
    credit: Literal["completion", "sentence", "token"] = "completion"
    """What earns the part, in training: the whole, or each sentence or token what the part grew by with it."""

    @field_validator("clip", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("clip")
    @classmethod
    def _low_below_high(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"clip = [{value[0]}, {value[1]}]: the first must be below the second")
        return value

    @property
    def part(self) -> str:
        return self.name or self.use.rpartition(":")[2]

    @property
    def counts(self) -> bool:
        """Whether the part has a weight at some step."""
        return self.weight != 0 and (self.schedule is None or self.schedule.start != 0 or self.schedule.end != 0)


def check_rewards(sections: Sequence[RewardSection], samples: int, prompts: int, steps: int) -> None:
    """Refuses parts that cannot work together.

    Args:
        samples: G, completions of a prompt.
        prompts: P, of a step.
        steps: of the run.

    Raises:
        ValueError: two of one name, no weight, a gate with nothing to hold back, nothing to normalise among, or a schedule
            longer than the run.
    """
    parts = [section.part for section in sections]
    if not any(section.counts for section in sections):
        raise ValueError("every reward has weight 0, so there is nothing to learn: give one a weight")
    for section in sections:
        part = section.part
        if parts.count(part) > 1:
            raise ValueError(f"two rewards are called '{part}': give one of them a name of its own with name = ...")
        if section.gate is not None and not any(other.counts for other in sections if other is not section):
            raise ValueError(
                f"reward '{part}': gate = {section.gate} holds back the other parts' credit, and no other part has a "
                "weight: add one, or leave gate out"
            )
        compared = {"group": samples, "rank": samples, "batch": samples * prompts}.get(section.normalise or "")
        if compared is not None and compared < 2:
            raise ValueError(
                f"reward '{part}': normalise = \"{section.normalise}\" compares completions, and there is one: "
                "sampling.samples_per_prompt must be at least 2"
            )
        if section.credit != "completion":
            _check_credit(section, sections)
        if section.schedule and section.schedule.steps > steps:
            raise ValueError(
                f"reward '{part}': schedule.steps = {section.schedule.steps} ends after the run's {steps} steps, but a "
                "held-out measurement has the last weight: make it at most the run's steps"
            )


def _check_credit(section: RewardSection, sections: Sequence[RewardSection]) -> None:
    where = f"reward '{section.part}': credit = \"{section.credit}\""
    if section.normalise:
        raise ValueError(
            f'{where}: normalise = "{section.normalise}" compares whole completions: leave one of the two out (a preset '
            "such as grpo divides by the spread of what tokens earn)"
        )
    if gates := [other.part for other in sections if other.gate is not None]:
        raise ValueError(
            f"{where}: the gate of '{gates[0]}' decides over whole completions, when their tokens' credit is long given: "
            "leave one of the two out"
        )


class MetricSection(OpenSection):
    """A reward that is measured on held-out completions and not trained on; further keys are its options."""

    use: str
    name: str | None = None
    """Its name in the evaluation, after ``metric/``; ``use`` where it is left out."""
    better: Literal["higher", "lower", "neither"] = "higher"

    @model_validator(mode="after")
    def _is_not_trained_on(self) -> MetricSection:
        for key in self.options:
            if key in ("weight", "clip", "gate", "normalise", "schedule", "credit"):
                raise ValueError(f"a metric is not trained on, so it has no {key}: leave it out")
        return self

    @property
    def part(self) -> str:
        return self.name or self.use.rpartition(":")[2]


class Evaluation(Section):
    every: int = Field(0, ge=0)
    """Held-out reward every so many steps, besides before and after training; 0 leaves that out."""
    prompts: int | None = Field(None, ge=1)
    """How many held-out prompts; None takes all."""
    samples_per_prompt: int = Field(1, ge=1, le=MOST)
    resamples: int = Field(1000, ge=100, le=10**6)
    """Bootstrap resamples behind each interval."""
    bleu_tokenize: Literal["auto", "13a", "intl", "zh", "char", "none"] = "auto"
    """sacrebleu's tokenizer for corpus BLEU; "auto" looks at the references: "zh" for Chinese, "13a" for most others."""
    metrics: list[MetricSection] = []
    """Rewards that are measured and not trained on; a text stands for a table with that ``use``."""

    @field_validator("metrics", mode="before")
    @classmethod
    def _from_names(cls, value: Any) -> Any:
        return (
            [{"use": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value
        )

    @field_validator("metrics")
    @classmethod
    def _one_of_a_name(cls, value: list[MetricSection]) -> list[MetricSection]:
        names = [section.part for section in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two metrics are called '{name}': give one of them a name of its own with name = ...")
        return value


HELD_OUT = ("perplexity", "truth_perplexity", "bleu", "chrf", "distinct_1", "distinct_2")
"""What every held-out evaluation measures, and a guard may watch."""


class Guards(Section):
    diversity_drop: float = Field(0.1, gt=0, lt=1)
    """Warn where the reward has risen while distinct-2 has fallen by more than this share of where it began."""
    length_drift: float = Field(0.5, ge=0)
    """Warn where the reward has risen while the mean length has become 1 + this times as long, or as short; 0: never."""
    metrics: list[str] | None = None
    """What may not get worse while the reward rises; None is every one of evaluation.metrics that has a direction."""
    metric_drop: float = Field(0.0, ge=0, lt=1)
    """How much worse, as a share of where it began; besides that it must be worse beyond chance."""
    window: int = Field(5, ge=1)
    """Steps averaged at either end of a comparison of steps."""
    stop: bool = False
    """Whether an alarm ends the run and gives it the best model from before the alarm."""


def guarded(guards: Guards, rewards: Sequence[RewardSection], evaluation: Evaluation) -> tuple[str, ...]:
    """The guards' keys in a held-out evaluation: ``metric/<name>``, ``reward/<part>`` of weight 0, or one of ``HELD_OUT``.

    Raises:
        ValueError: a guard that nothing measures, that has no better way, or that the policy is trained on; or a stop
            without measurements that could say which model was the best.
    """
    if guards.stop and evaluation.every == 0:
        raise ValueError(
            "guards.stop = true keeps the model that was best on held-out prompts before the alarm, and nothing is measured "
            "on the way: set evaluation.every"
        )
    ways = {section.part: section.better for section in evaluation.metrics}
    parts = {section.part: section.counts for section in rewards}
    if guards.metrics is None:
        watched = (f"reward/{part}" for part, counts in parts.items() if not counts)
        return (*(f"metric/{name}" for name, way in ways.items() if way != "neither"), *watched)
    found = []
    for name in guards.metrics:
        if name in ways:
            if ways[name] == "neither":
                raise ValueError(
                    f"guards.metrics: '{name}' is better neither way, so it cannot get worse: give it a better"
                )
            found.append(f"metric/{name}")
        elif name in parts:
            if parts[name]:
                raise ValueError(
                    f"guards.metrics: the policy is trained on '{name}', so that it rises proves nothing: name one of "
                    "evaluation.metrics, or a reward of weight 0"
                )
            found.append(f"reward/{name}")
        elif name in HELD_OUT:
            found.append(name)
        else:
            known = [*ways, *(part for part, counts in parts.items() if not counts), *HELD_OUT]
            raise ValueError(
                f"guards.metrics: nothing measures '{name}'{nearest(name, known)}; known: {', '.join(known)}"
            )
    return tuple(found)
