"""The records that travel through a step: prompts in, scored completions out.

Shape letters, here and everywhere: P prompts, G samples per prompt, N = P*G completions, T tokens, V vocabulary,
K reward parts. Per-token tensors are flat, ``[T]``: the tokens of all completions one after the other and nothing
else, so that no algorithm ever sees padding. How a policy lays the tokens out to compute them is its own business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

FinishReason = Literal["stop", "length"]
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """The state a completion starts from.

    Attributes:
        id: stable and unique within its task; randomness and splits hang on it, never on a position in a list.
        text: what the policy continues.
        reference: a true answer, where the task has one.
        metadata: anything a reward or a reader may want to know; never used by the step itself.
        messages: the conversation so far, where the prompt goes through the model's chat template; the policy then
            answers these and ``text`` is what readers and rewards see of them. Empty: the policy continues ``text``.
    """

    id: str
    text: str
    reference: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The distribution that is sampled from, which is also the policy that is trained.

    Logits are divided by ``temperature``; then only the ``top_k`` most probable tokens are kept (0: all), then of these
    the smallest set whose probability reaches ``top_p`` (1.0: all); what is kept is renormalised. Where ``lagged_top_p`` is
    below 1, what is kept is the smallest set that reaches it under a lagged policy, at the same temperature, instead.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    lagged_top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Completion:
    """One trajectory: the sampled answer to a prompt.

    Attributes:
        prompt_ids: the prompt as the policy encoded it.
        token_ids: what was sampled, with the end-of-text token as its last where ``finish_reason`` is "stop".
        text: the decoded answer, without the end-of-text token.
        sampler_logprobs: one a token, nats, of the distribution really sampled from; recorded when it was sampled.
        finish_reason: "stop" (the policy ended it) or "length" (it was cut at ``max_new_tokens``).
        policy_version: the number of updates the sampling weights had seen.
        index: which of its prompt's G samples this is.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    sampler_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """All G completions of one prompt."""

    prompt: Prompt
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class TokenRewards:
    """N completions' rewards, dealt out: parts whose ``credit`` is finer than the completion, and the others.

    Attributes:
        whole: [N], what counts for the whole completion, the weighted sum of the other parts.
        gained: N arrays [|o_i|], what came with each token, of the finer parts together. With ``whole`` they add up to the
            total, less what these parts say of no text at all.
    """

    whole: np.ndarray
    gained: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """What the rewards said of N completions.

    Attributes:
        total: [N], what is trained on: R(tau), the weighted sum of the parts, clipped, normalised and gated as asked.
        parts: name -> [N], each part as its function returned it, before all that.
        weights: name -> the part's weight.
        plain: [N], the total without normalisation, which can be compared between steps; None: the same as the total.
        tokens: where some part's credit is finer than the completion, in training, which token earned what.
        passed: of each part with a gate, name -> [N], whether the completion reached it.
        scheduled: names of the parts whose weight follows a schedule.
    """

    total: np.ndarray
    parts: Mapping[str, np.ndarray]
    weights: Mapping[str, float]
    plain: np.ndarray | None = None
    tokens: TokenRewards | None = None
    passed: Mapping[str, np.ndarray] = field(default_factory=dict)
    scheduled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenStats:
    """What the policy says of tokens that were sampled earlier.

    Attributes:
        logprobs: [T], with gradient, under the distribution of the ``SamplingParams``.
        entropy: [T], nats, of that distribution at each token; without gradient.
    """

    logprobs: Tensor
    entropy: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """One microbatch, ready for the loss. All tensors are flat over its tokens, [T].

    Attributes:
        completions: the M completions whose tokens these are, in order.
        advantages: each token's advantage.
        weights: each token's share of the step's loss. The step's loss is the sum over all microbatches of
            ``sum(weights * loss)``, so a split into microbatches changes nothing.
        sampler_logprobs: as recorded when sampled.
        reference_logprobs: under the frozen reference; None where no KL term asks for them.
        old_logprobs: under the policy before the step's first update; None where there is only one.
        old_values, returns: what the critic expected before each token, and what it should have; None without a critic.
    """

    completions: Sequence[Completion]
    advantages: Tensor
    weights: Tensor
    sampler_logprobs: Tensor
    reference_logprobs: Tensor | None
    old_logprobs: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None
