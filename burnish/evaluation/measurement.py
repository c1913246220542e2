"""Records of a held-out measurement: one per completion and per true continuation, saved as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from burnish.errors import InputError


@dataclass(frozen=True, slots=True)
class Sample:
    """One held-out completion and its scores.

    Attributes:
        index: position among its prompt's samples.
        reward: R(tau).
        parts: name -> value before weighting.
        tokens: number of tokens, the end-of-text token included.
        nll: sum over the tokens of -log p under the reference policy, nats.
        metrics: name -> value of each metric that is measured but not trained on.
        alternatives: further correct answers beside ``reference``.
        vote: the index of the prompt's first sample with an equal answer; None without an answer, or if none was read.
    """

    prompt_id: str
    prompt: str
    reference: str | None
    index: int
    text: str
    reward: float
    parts: Mapping[str, float]
    tokens: int
    finish_reason: str
    nll: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    alternatives: Sequence[str] = ()
    vote: int | None = None


@dataclass(frozen=True, slots=True)
class Truth:
    """Likelihood of a prompt's true continuation under the measured policy: nll is a sum over its tokens, nats."""

    prompt_id: str
    nll: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything measured on the held-out prompts, number by number.

    Attributes:
        samples: P * G, the samples of a prompt next to each other.
        truths: one per prompt with a reference.
        weights: of the reward's parts.
        metrics: name -> which direction is better ("higher", "lower" or "neither") of the samples' further metrics.
        correct: the part or metric that is 1 for a right answer, or None.
        attempts: the k of pass@k.
        majorities: the k of maj@k.
    """

    samples: tuple[Sample, ...]
    truths: tuple[Truth, ...]
    weights: Mapping[str, float]
    metrics: Mapping[str, str] = field(default_factory=dict)
    correct: str | None = None
    attempts: tuple[int, ...] = ()
    majorities: tuple[int, ...] = ()

    def to_json(self) -> str:
        """Return JSON text from which ``from_json`` restores an equal measurement, every float to the last bit."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Measurement:
        """Read the output of ``to_json``. Raises InputError if the text is not a measurement."""
        try:
            data = json.loads(text)
            samples = tuple(
                Sample(**{**sample, "alternatives": tuple(sample.get("alternatives", ()))})
                for sample in data["samples"]
            )
            truths = tuple(Truth(**truth) for truth in data["truths"])
            return cls(
                samples, truths, dict(data["weights"]), dict(data.get("metrics", {})), data.get("correct"),
                tuple(data.get("attempts", ())), tuple(data.get("majorities", ())),
            )  # fmt: skip
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"not a held-out measurement ({error}): evaluate again to write a new one") from error
