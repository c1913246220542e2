"""Records of a held-out measurement: one per completion and per true continuation, saved as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from burnish.errors import InputError
from burnish.types import Prompt


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
        sets: measurements of further held-out sets, by name.
    """

    samples: tuple[Sample, ...]
    truths: tuple[Truth, ...]
    weights: Mapping[str, float]
    metrics: Mapping[str, str] = field(default_factory=dict)
    correct: str | None = None
    attempts: tuple[int, ...] = ()
    majorities: tuple[int, ...] = ()
    sets: Mapping[str, Measurement] = field(default_factory=dict)

    def of_prompts(self, prompts: Sequence[Prompt]) -> Measurement:
        """Return the part that measures these prompts, without further sets."""
        keys = {(prompt.id, prompt.text, prompt.reference) for prompt in prompts}
        samples = tuple(one for one in self.samples if (one.prompt_id, one.prompt, one.reference) in keys)
        ids = {sample.prompt_id for sample in samples}
        truths = tuple(truth for truth in self.truths if truth.prompt_id in ids)
        return replace(self, samples=samples, truths=truths, sets={})

    def to_json(self) -> str:
        """Return JSON text from which ``from_json`` restores an equal measurement, every float to the last bit."""
        return json.dumps(_without_unused(asdict(self)), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Measurement:
        """Read the output of ``to_json``. Raises InputError if the text is not a measurement."""
        try:
            return cls._from_mapping(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(f"not a held-out measurement ({error}): evaluate again to write a new one") from error

    @classmethod
    def _from_mapping(cls, data: Mapping[str, Any]) -> Measurement:
        samples = tuple(
            Sample(**{**sample, "alternatives": tuple(sample.get("alternatives", ()))}) for sample in data["samples"]
        )
        truths = tuple(Truth(**truth) for truth in data["truths"])
        return cls(
            samples, truths, dict(data["weights"]), dict(data.get("metrics", {})), data.get("correct"),
            tuple(data.get("attempts", ())), tuple(data.get("majorities", ())),
            {name: cls._from_mapping(one) for name, one in data.get("sets", {}).items()},
        )  # fmt: skip


def _without_unused(data: dict[str, Any]) -> dict[str, Any]:
    """Leave out the keys of votes and sets where a recipe has none: the file is then that of earlier versions."""
    if not data["majorities"]:
        del data["majorities"]
        for sample in data["samples"]:
            del sample["vote"]
    for one in data["sets"].values():
        _without_unused(one)
    if not data["sets"]:
        del data["sets"]
    return data
