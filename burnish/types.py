"""Data records of a training step, from prompts to scored completions.

Shape letters in the whole package: P prompts, G samples per prompt, N = P*G completions, T tokens, V vocabulary size,
K reward parts. Per-token tensors are flat, ``[T]``: the completions' tokens are concatenated, without padding. How a
policy arranges tokens for its forward pass is internal to the policy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

FinishReason = Literal["stop", "length"]
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        reasoning: the thoughts before an assistant's answer, for templates that write them apart (``reasoning_content``).
        learnt: whether fine-tuning learns this message, if it is the assistant's.
        extra: JSON of the keys that chat templates read of tools: an assistant's ``tool_calls``, a tool's ``name`` and
            ``tool_call_id``.
    """

    role: Role
    content: str
    reasoning: str = ""
    learnt: bool = True
    extra: str = ""

    @property
    def tools(self) -> dict[str, Any]:
        """The keys of ``extra``."""
        return dict(json.loads(self.extra)) if self.extra else {}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt: the initial state of a completion.

    Attributes:
        id: stable and unique within its task. Seeds and splits depend on the id, never on the position in a list.
        text: the text that the policy continues.
        reference: a correct answer, if the task has one: the first of several.
        metadata: additional data for rewards and reports; the step does not use it.
        messages: a conversation that the policy answers through its chat template; ``text`` is then its plain form,
            which rewards and reports use. If empty, the policy continues ``text``.
        alternatives: further correct answers.
        position: where its row is in the user's data ("line 7"), for messages.
    """

    id: str
    text: str
    reference: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    alternatives: tuple[str, ...] = ()
    position: str = field(default="", compare=False)

    @property
    def references(self) -> tuple[str, ...]:
        """All correct answers, the first one first; empty if there is none."""
        return () if self.reference is None else (self.reference, *self.alternatives)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Parameters of the sampling distribution, which is also the policy that is trained, and of where a text ends.

    Logits are divided by ``temperature``. Then only the ``top_k`` most probable tokens are kept (0: all), of these the
    smallest set whose probability reaches ``top_p`` (1.0: all), and of these the tokens at least ``min_p`` times as
    probable as the most probable one (0: all). The probabilities of the kept tokens are renormalised. If
    ``lagged_top_p`` is below 1, the kept tokens are instead the smallest set whose probability under the lagged policy,
    at the same temperature, reaches ``lagged_top_p``.

    A text ends with the model's end tokens, ``stop_token_ids``, or the token that completes one of the ``stop`` texts.
    None of these ends it within the first ``min_new_tokens``, where end tokens have probability 0. ``keep_stop`` keeps
    the text of a stop in the completion's text.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    lagged_top_p: float = 1.0
    min_p: float = 0.0
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    keep_stop: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer to a prompt: a trajectory.

    Attributes:
        token_ids: the sampled token ids; with ``finish_reason`` "stop", the last is an end token or completes a stop text.
        text: the decoded answer, without the end token, up to the stop text.
        sampler_logprobs: log-probability of each token, nats, under the sampling distribution at sampling time.
        finish_reason: "stop" (the policy ended the text) or "length" (truncated at ``max_new_tokens``).
        policy_version: number of updates of the weights before sampling.
        index: index among the prompt's G samples.
        sampler_log_masses: where the sampling distribution is truncated, the log of the probability that the full softmax
            gives to the kept tokens, for each token; else empty.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    sampler_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int = 0
    index: int = 0
    sampler_log_masses: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """The G completions of one prompt."""

    prompt: Prompt
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class TokenRewards:
    """Rewards of N completions, split by the granularity of their credit.

    Attributes:
        per_completion: [N], weighted sum of the parts whose credit is the whole completion.
        per_token: N arrays [|o_i|], weighted sum of the finer parts' reward increments at each token. Together with
            ``per_completion`` they sum to the total, except for the value that the finer parts give to empty text.
    """

    per_completion: np.ndarray
    per_token: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """Rewards of N completions.

    Attributes:
        total: [N], the return R(tau) that training maximises: the weighted sum of the parts, clipped, normalised and
            gated as configured.
        parts: name -> [N], each part as its function returned it; not-a-number where it does not apply.
        unnormalised: [N], the total without normalisation, comparable between steps; None if equal to the total.
        token_rewards: in training, the split by token; None if the credit of every part is the whole completion.
        passed: name -> [N], for each part with a gate, whether the completion reached its threshold.
        scheduled: names of the parts whose weight follows a schedule.
        logged: "<part>/<name>" -> the values of a metric that the part's function reported.
        counts: "<part>/<name>" -> a sum of what the part's function counted, such as tokens or errors.
    """

    total: np.ndarray
    parts: Mapping[str, np.ndarray]
    weights: Mapping[str, float]
    unnormalised: np.ndarray | None = None
    token_rewards: TokenRewards | None = None
    passed: Mapping[str, np.ndarray] = field(default_factory=dict)
    scheduled: tuple[str, ...] = ()
    logged: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Log-probabilities and entropies of given tokens under a policy.

    Attributes:
        logprobs: [T], nats, with gradient, under the distribution of the ``SamplingParams``.
        entropy: [T], nats, of that distribution before each token; with gradient only on request.
        log_mass: [T], with gradient, the log of the probability that the full softmax gives to the kept tokens; None if
            all are kept.
    """

    logprobs: Tensor
    entropy: Tensor
    log_mass: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Inputs of the loss for M completions. Tensors are flat over their tokens, [T].

    Attributes:
        weights: [T], weight of each token in the step's loss. The step's loss is the sum of ``sum(weights * loss)``
            over all microbatches, so the split into microbatches does not change it.
        sampler_logprobs: [T], as recorded by the sampler.
        reference_logprobs: [T], under the frozen reference; None without a KL term.
        old_logprobs: [T], under the policy before the step's first update; None if the step has one update.
        old_values: [T], the critic's values before the step's first update; None without a critic.
        returns: [T], the critic's targets; None without a critic.
    """

    completions: Sequence[Completion]
    advantages: Tensor
    weights: Tensor
    sampler_logprobs: Tensor
    reference_logprobs: Tensor | None
    old_logprobs: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None
