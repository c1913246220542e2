"""Interfaces between a training step and the objects it is given: policies, samplers, tasks, scorers and observers.

``training`` depends on these protocols and on no implementation; ``backends`` passes the implementations in. Shape
letters are those of ``burnish.types``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from burnish.types import Completion, Group, Prompt, SamplingParams, Scores, TokenStats

if TYPE_CHECKING:
    from torch import Tensor, nn


class LogprobModel(Protocol):
    """A model that scores completions without a gradient."""

    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> Tensor:
        """Return the log-probability of each token, [T], nats, without gradient; completion after completion.

        ``temperature`` divides the logits before the softmax over the whole vocabulary.
        """


class LanguageModel(LogprobModel, Protocol):
    """A model that also tokenizes text."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text, without special tokens."""

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids of a prompt, including the tokens that the model expects at the start of a text."""


@runtime_checkable
class Releasable(Protocol):
    """A frozen language model that loads its weights on demand and can drop them in between."""

    def release(self) -> None:
        """Free the weights; the next call that needs them loads them again."""


class HasReference(LanguageModel, Protocol):
    """A language model with a reference model: the KL reference, and the model that fluency is measured with."""

    @property
    def reference(self) -> LanguageModel:
        """The frozen reference model; for a trained policy, the policy before training."""


class ParameterOptimizer(Protocol):
    """The part of ``torch.optim.Optimizer`` that a step and a checkpoint use."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    @property
    def state(self) -> Any:
        """Parameter -> name -> tensor."""

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def step(self) -> Any: ...


class Trainable(Protocol):
    """A model whose weights an optimizer updates and a checkpoint stores."""

    @property
    def max_microbatch_tokens(self) -> int:
        """Number of tokens whose forward and backward pass fit into this machine's memory; constant between runs."""

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """Return the parameters that the optimizer updates, by stable names."""

    def save(self, folder: Path) -> None:
        """Write the weights (safetensors), and all files needed to load them, into an existing empty folder."""

    def load(self, folder: Path) -> None:
        """Load weights that ``save`` wrote, in place and bit for bit."""


@runtime_checkable
class SavesRounded(Protocol):
    """A model whose saved weights may have fewer bits than the trained ones."""

    @property
    def saves_rounded(self) -> bool:
        """Whether they have."""


class HasLogprobs(Protocol):
    """A model whose log-probabilities have a gradient."""

    def logprobs(
        self, completions: Sequence[Completion], sampling: SamplingParams, *, entropy_gradient: bool = False
    ) -> TokenStats:
        """Return log-probabilities and entropies, each [T], under the distribution that ``sampling`` defines.

        The log-probabilities have a gradient; the entropies do if ``entropy_gradient`` is set.
        """


class Policy(HasReference, HasLogprobs, Trainable, Protocol):
    """A trainable language model."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without the end-of-text token."""


@runtime_checkable
class CachesForward(Protocol):
    """A policy that can reuse results of the sampling forward pass in the training forward pass."""

    def start_forward_cache(self, memory_share: float = 1.0) -> None:
        """Start to store results while sampling, in at most this fraction of the device's memory."""

    def stop_forward_cache(self) -> None:
        """Stop storing and reusing results. Call this before the weights change."""


class ValueModel(Protocol):
    """A model of the expected return, V(s)."""

    def values(self, completions: Sequence[Completion]) -> Tensor:
        """Return V(s) before each token, [T], float64, with gradient."""

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """Return the parameters that the optimizer updates, by stable names; a checkpoint stores these alone."""


@runtime_checkable
class HasLaggedPolicy(Protocol):
    """A policy that masks its actions by an earlier copy of itself (NLPO; ``SamplingParams.lagged_top_p``)."""

    def update_lagged_policy(self) -> None:
        """Replace the lagged copy by the current weights."""


class Sampler(Protocol):
    """A sampling engine."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int,
        sampling: SamplingParams,
        seed: Sequence[int],
        policy_version: int = 0,
    ) -> list[Group]:
        """Return P groups of G completions.

        The random numbers of a completion depend on ``seed``, the prompt's id and the completion's index only.
        """


@runtime_checkable
class SamplesInParts(Protocol):
    """A sampler whose ``sample`` takes a ``limit`` of tokens, and which goes on with texts that one has interrupted."""

    def extend(
        self,
        completions: Sequence[Completion],
        *,
        numbers: Sequence[int],
        sampling: SamplingParams,
        seed: Sequence[int],
        limit: int | None = None,
    ) -> list[Completion]:
        """Return the completions with further tokens, at most ``limit``; ``numbers`` as in ``random_stream``."""


@runtime_checkable
class CopiesWeights(Protocol):
    """A sampler that does not share the policy's weights."""

    def copy_weights(self) -> None:
        """Copy the policy's weights, and sample from them from now on."""


@runtime_checkable
class HasMetrics(Protocol):
    """A sampler that reports on itself."""

    def pop_metrics(self) -> Mapping[str, float]:
        """Return metric -> value since the last call."""


class Task(Protocol):
    """A source of prompts. Both lists have a fixed order and no prompt in common."""

    def train(self) -> Sequence[Prompt]:
        """Return the training prompts."""

    def evaluation(self) -> Sequence[Prompt]:
        """Return the held-out prompts."""


class Scorer(Protocol):
    """A combined reward."""

    def score(
        self,
        completions: Sequence[Completion],
        *,
        step: int | None = None,
        flags: Sequence[tuple[str, ...]] | None = None,
    ) -> Scores:
        """Score N completions.

        Args:
            flags: each completion's flags, such as "truncated"; None where the completions were not screened.
            step: the training step, counted from 1. None scores for a held-out measurement: final weights and no
                normalisation, so that measurements are comparable.
        """


@runtime_checkable
class StatefulScorer(Protocol):
    """A scorer that normalises rewards by those of earlier steps."""

    state: dict[str, Any]
    """JSON-serialisable statistics of earlier steps; part of a checkpoint."""

    def update_state(self, scores: Scores) -> None:
        """Add a step's scores to the statistics; called at the end of the step."""


class Observer(Protocol):
    """A listener to a run's progress, such as a progress line or a tracker. Calls happen between the step's phases."""

    def message(self, text: str, *, level: str = "info") -> None:
        """Report one line of text; ``level`` is "info" or "warning"."""

    def start(self, *, name: str, steps: int, first_step: int) -> None:
        """Report that a run of ``steps`` steps begins, or resumes, at ``first_step``."""

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Report a finished step: its row of metrics.jsonl, and the seconds that the run still needs, ``time/left``."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """Report the progress of a long phase, such as an evaluation or a download."""

    def finish(self) -> None:
        """Report that the run is over."""
