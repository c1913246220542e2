"""The work of one training step, read from a recipe: tokens, passes and updates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from burnish.errors import InputError

if TYPE_CHECKING:
    from burnish.recipe.schema import Recipe

READS_REFERENCE = frozenset({"perplexity"})
"""Built-in rewards that compute likelihoods under the frozen reference."""
PAIRED, WITH_CRITIC = frozenset({"online_dpo"}), frozenset({"ppo"})
"""Algorithms that need the reference, and those that train a critic; their presets cannot be read without torch."""
ENOUGH = 1152
"""Tokens of a microbatch, unless the recipe sets ``optimizer.tokens_per_microbatch``; one sample is never cut."""
PROMPT_TOKENS = 256
"""Assumed length of a prompt where neither the recipe nor the command sets one."""


@dataclass(frozen=True, slots=True)
class StepWork:
    """The work of one step: P prompts, G samples of each.

    Attributes:
        prompt_tokens: mean number of tokens of a prompt.
        answer_tokens: mean number of tokens of a sample.
        longest: number of tokens at which a sample is cut.
        microbatch: tokens of one forward and backward pass.
        updates: optimizer steps within the step.
        epochs: passes over the samples with gradient.
        reference: why a pass under the frozen reference is needed; "" if none is.
        critic: whether a critic of the policy's size is trained beside it.
        rank: of the adapter; None trains all weights.
        recomputes: whether the backward pass recomputes the layers (``policy.gradient_checkpointing``).
    """

    prompts: int
    samples: int
    prompt_tokens: float
    answer_tokens: float
    longest: int
    microbatch: int
    updates: int = 1
    epochs: int = 1
    reference: str = ""
    critic: bool = False
    rank: int | None = None
    recomputes: bool = False

    @property
    def rollouts(self) -> int:
        """Samples of a step, N = P * G."""
        return self.prompts * self.samples

    @property
    def models(self) -> int:
        """Models that are trained: the policy, and a critic."""
        return 2 if self.critic else 1

    @property
    def extra_passes(self) -> int:
        """Forward passes without gradient over all tokens, besides the reference's: old log-probabilities, values."""
        return int(self.updates > 1) + int(self.critic)

    def share(self, workers: int) -> tuple[int, int]:
        """Return the prompts and samples of the busiest of several workers; the samples of a prompt stay together."""
        prompts = math.ceil(self.prompts / workers)
        return prompts, prompts * self.samples


def read_work(recipe: Recipe, *, prompt_tokens: float | None = None, answer_tokens: float | None = None) -> StepWork:
    """Return the work of a recipe's step.

    Without ``prompt_tokens``, a prompt has ``task.max_prompt_tokens`` or ``PROMPT_TOKENS``; without ``answer_tokens``,
    every sample is as long as it may be. Raises InputError if a length cannot be, or the policy has no layers to count.
    """
    sampling, settings, policy = recipe.sampling, recipe.algorithm, recipe.policy
    if policy.use != "causal_lm":
        raise InputError(
            f'policy.use = "{policy.use}": burnish plan estimates language models; use a recipe with "causal_lm"'
        )
    longest = sampling.max_new_tokens
    prompt = float(recipe.task.max_prompt_tokens or PROMPT_TOKENS) if prompt_tokens is None else prompt_tokens
    answer = float(longest) if answer_tokens is None else answer_tokens
    for name, tokens, most in (("--prompt-tokens", prompt, math.inf), ("--answer-tokens", answer, longest)):
        if not 1 <= tokens <= most or not math.isfinite(tokens):
            limit = f"between 1 and sampling.max_new_tokens = {longest}" if most == longest else "at least 1"
            raise InputError(f"{name} {tokens:g}: must be {limit}")
    return StepWork(
        sampling.prompts_per_step, sampling.samples_per_prompt, prompt, answer, longest,
        max(recipe.optimizer.tokens_per_microbatch or ENOUGH, math.ceil(prompt) + longest),
        settings.epochs * settings.minibatches, settings.epochs, _reference(recipe), settings.use in WITH_CRITIC,
        policy.lora.rank if policy.lora else None, policy.gradient_checkpointing,
    )  # fmt: skip


def _reference(recipe: Recipe) -> str:
    """Return what needs the frozen reference in a step, or ""."""
    settings = recipe.algorithm
    reasons = [f"algorithm.kl.coefficient = {settings.kl.coefficient:g}"] * (settings.kl.coefficient > 0)
    reasons += [f"algorithm.use = {settings.use}"] * (settings.use in PAIRED)
    reasons += [f"reward {one.use}" for one in recipe.reward if one.use in READS_REFERENCE]
    return ", ".join(reasons)
