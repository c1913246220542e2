"""The sections of a recipe for held-out measurement and for the guards that read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from burnish.errors import InputError
from burnish.named_code import is_withheld
from burnish.recipe.sections import MAX_SIZE, OpenSection, RewardSection, Section
from burnish.registry import nearest
from burnish.types import SamplingParams

if TYPE_CHECKING:
    from burnish.rewards.votes import AnswerReading


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


ORIGIN = ("path", "dataset", "config", "side", "revision", "format", "delimiter", "held_out", "held_out_percent")
"""Options of the task "data" that say which rows are read."""


class HeldOutSet(OpenSection):
    """One ``[[evaluation.sets]]`` table: further held-out prompts. Other keys are options of its task.

    Options that it leaves out are those of ``[task]`` where that is the same task, but for the rows of ``path``.
    """

    use: str = "data"
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")
    """The name in the evaluation, after ``set/``."""
    prompts: int | None = Field(None, ge=2)
    """Number of its prompts; None uses all."""

    @model_validator(mode="after")
    def _check_split(self) -> HeldOutSet:
        for key in self.refused:
            if key in self.options:
                raise ValueError(f"{key} splits rows, but all rows of a set are held out; remove it")
        return self

    @property
    def refused(self) -> tuple[str, ...]:
        """Options of its task that split rows."""
        return ("held_out", "held_out_percent") if self.use == "data" else ()

    def task_options(self, task: OpenSection) -> dict[str, Any]:
        """Return the options of the set's task, some of which are those of the recipe's ``task``."""
        inherited = dict(task.options) if task.use == self.use else {}
        if self.use == "data":
            same = "dataset" in inherited and not {"path", "dataset"} & self.options.keys()
            kept = ("dataset", "config", "revision") if same else ()
            inherited = {key: value for key, value in inherited.items() if key not in ORIGIN or key in kept}
        return {**inherited, **self.options}


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
    pass_at: list[int] = Field([])
    """The k of ``pass@k``; [] with ``correct`` takes the powers of two up to ``samples_per_prompt``."""
    maj_at: list[int] = Field([])
    """The k of ``maj@k``, how often the commonest answer of k samples is right; [] computes none."""
    resamples: int = Field(1000, ge=100, le=10**6)
    """Bootstrap resamples per interval."""
    bleu_tokenize: Literal["auto", "13a", "intl", "zh", "char", "none"] = "auto"
    """sacrebleu's tokenizer for corpus BLEU; "auto" is "zh" for Chinese references and "13a" for most others."""
    metrics: list[MetricSection] = Field([])
    """Rewards that are measured but not trained on; a string is short for a table with that ``use``."""

    sets: list[HeldOutSet] = Field([])
    """Further held-out sets, measured beside the task's own held-out prompts."""

    @model_validator(mode="after")
    def _check_samples(self) -> Evaluation:
        if self.sampling.temperature == 0 and self.samples_per_prompt > 1:
            raise ValueError(
                f"sampling.temperature = 0 gives {self.samples_per_prompt} equal samples per prompt; set "
                "samples_per_prompt = 1"
            )
        for key, attempts in (("pass_at", self.pass_at), ("maj_at", self.maj_at)):
            if len(set(attempts)) < len(attempts):
                raise ValueError(f"{key} = {attempts}: name each k once")
            if attempts and self.correct is None:
                raise ValueError(f"{key} needs correct, the name of a reward that is 1 for a right answer")
            if unfit := [k for k in attempts if not 1 <= k <= self.samples_per_prompt]:
                raise ValueError(
                    f"{key}: k = {unfit[0]} needs as many samples of a prompt, but samples_per_prompt = "
                    f"{self.samples_per_prompt}"
                )
        return self

    @field_validator("sets")
    @classmethod
    def _check_sets(cls, value: list[HeldOutSet]) -> list[HeldOutSet]:
        _refuse_repeated("sets", [section.name for section in value])
        return value

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
        _refuse_repeated("metrics", [section.part for section in value])
        return value


def _refuse_repeated(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two {what} are called '{name}'; set name = ... in one of them")


def check_correct(evaluation: Evaluation, rewards: Sequence[RewardSection]) -> None:
    """Raise ValueError if ``evaluation.correct`` names neither a reward nor a metric."""
    known = [*(section.part for section in rewards), *(section.part for section in evaluation.metrics)]
    if (name := evaluation.correct) is not None and name not in known:
        raise ValueError(
            f"evaluation.correct = '{name}' is neither a reward nor a metric{nearest(name, known)}; known: "
            f"{', '.join(known)}"
        )


def answer_reading(evaluation: Evaluation, rewards: Sequence[RewardSection]) -> AnswerReading | None:
    """Return how answers are read for ``evaluation.maj_at``; None without that key.

    Raises InputError if the reward of ``evaluation.correct`` does not read answers.
    """
    from burnish.rewards.registry import REWARDS

    if not evaluation.maj_at:
        return None
    sections: list[RewardSection | MetricSection] = [*rewards, *evaluation.metrics]
    section = next(one for one in sections if one.part == evaluation.correct)
    if is_withheld(section.use):
        return None
    reading = REWARDS.get(section.use).answer_reading(section.options)
    if reading is None:
        raise InputError(
            f"evaluation.maj_at counts equal answers, but '{section.use}' does not declare which part of a text is its "
            "answer: pass read_answer to @burnish.reward, or name a reward in evaluation.correct that reads answers "
            "('exact', 'numeric', 'math', 'choice' or 'verifier', which evaluation.metrics may hold), or remove maj_at"
        )
    return reading


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
