"""What the step needs of a policy, a sampler, a task and a scorer: nothing more than these few methods.

``training.py`` sees these protocols and no implementation; ``backends`` joins the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from burnish.types import Completion, Group, Prompt, SamplingParams, Scores, TokenStats

if TYPE_CHECKING:
    from torch import Tensor, nn


class Frozen(Protocol):
    """Anything that can say how probable a given completion is."""

    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> Tensor:
        """Log-probabilities [T] of the completions' tokens under the whole softmax at a temperature; no gradient."""
        ...


class LanguageModel(Frozen, Protocol):
    """One that knows its own tokens, too."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text, without an end-of-text token."""
        ...

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt, with whatever the model begins a text with."""
        ...


@runtime_checkable
class Releasable(Protocol):
    """A frozen language model that can do without its weights until it is asked again."""

    def release(self) -> None: ...


class Judged(LanguageModel, Protocol):
    """A language model with one that its texts are judged by."""

    @property
    def reference(self) -> LanguageModel:
        """Frozen; of a trained policy, the policy that training started from."""
        ...


class Trainable(Protocol):
    """Weights that an optimizer moves and a checkpoint keeps."""

    @property
    def fitting_tokens(self) -> int:
        """Tokens whose forward and backward pass fit into this machine's memory; the same at each start."""
        ...

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The parameters that the optimizer moves, by stable names."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the weights (safetensors) and whatever is needed to load them again into an existing, empty folder."""
        ...

    def load(self, folder: Path) -> None:
        """Takes over the weights that ``save`` wrote, bit for bit."""
        ...


class Policy(Judged, Trainable, Protocol):
    """What is trained to write."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, without an end-of-text token."""
        ...

    def logprobs(
        self, completions: Sequence[Completion], sampling: SamplingParams, *, entropy_gradient: bool = False
    ) -> TokenStats:
        """Log-probabilities with gradient, and entropies, under the distribution that ``sampling`` describes.

        Entropies have a gradient only where ``entropy_gradient`` asks for it.
        """
        ...


@runtime_checkable
class Recording(Protocol):
    """A policy that can keep what sampling computes, so that the gradient need not compute it again."""

    def record(self, share: float = 1.0) -> None:
        """From now on, until ``forget``, in that part of the memory at most."""
        ...

    def forget(self) -> None: ...


class ValueModel(Protocol):
    """What says how much reward is still to come."""

    def values(self, completions: Sequence[Completion]) -> Tensor:
        """V(s) before each token of the completions, [T], float64, with gradient."""
        ...

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The parameters that its optimizer moves, by stable names; with them it can be made again from its start."""
        ...


@runtime_checkable
class Lagging(Protocol):
    """A policy that an earlier one of its own masks: ``sampling.nlpo_top_p``."""

    def keep_up(self) -> None:
        """Makes what it is now the earlier one."""
        ...


class Sampler(Protocol):
    """The engine that turns prompts into groups of completions."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int,
        sampling: SamplingParams,
        seed: Sequence[int],
        policy_version: int = 0,
    ) -> list[Group]:
        """P groups of G completions. The draw depends on ``seed``, the prompt's id and the sample's index alone."""
        ...


class Task(Protocol):
    """Where prompts come from. Both lists are in a fixed order, and no prompt is in both."""

    def train(self) -> Sequence[Prompt]: ...

    def evaluation(self) -> Sequence[Prompt]: ...


class Scorer(Protocol):
    """The combined reward."""

    def score(self, completions: Sequence[Completion], *, step: int | None = None) -> Scores:
        """Scores N completions: as training at a step (counted from 1) wants them, or, where it is None, as a held-out
        measurement does: with the weights of the last step and nothing normalised, so that two can be compared."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """A scorer that compares rewards with those of earlier steps. What it remembers is JSON, and belongs to a checkpoint."""

    memory: dict[str, Any]

    def remember(self, scores: Scores) -> None:
        """At the end of a step: takes in what it scored."""
        ...


class Observer(Protocol):
    """Somebody who watches a run: the progress line, a tracker. All calls are made between the step's phases."""

    def message(self, text: str, *, level: str = "info") -> None:
        """One line for the reader; ``level`` is "info" or "warning"."""
        ...

    def start(self, *, name: str, steps: int, first_step: int) -> None: ...

    def step(self, metrics: Mapping[str, Any]) -> None:
        """After each step, with the row that went to metrics.jsonl."""
        ...

    def progress(self, phase: str, done: int, total: int) -> None:
        """Within long phases (evaluation, a download): how far it is."""
        ...

    def finish(self) -> None: ...
