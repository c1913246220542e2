"""Training a module from nothing by maximum likelihood, so that there is a language to reinforce.

Text is one stream, each text after the token that begins it and before the one that ends it. A batch is B windows of
T tokens: even ones from where a text begins, as every prompt does, odd ones from anywhere. Which, is a function of seed
and step alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from burnish.errors import BurnishError, InputError
from burnish.policies.module import ModulePolicy
from burnish.policies.vocabulary import Vocabulary

if TYPE_CHECKING:
    from burnish.protocols import Observer

STREAM = 3
"""Mixed into the seed, so that windows share no random numbers with prompts and samples."""


class Settings(Protocol):
    """What ``[policy] pretrain`` says."""

    @property
    def steps(self) -> int: ...

    @property
    def learning_rate(self) -> float: ...

    @property
    def windows(self) -> int: ...

    @property
    def length(self) -> int: ...


def pretrain(
    policy: ModulePolicy, texts: Sequence[str], settings: Settings, *, seed: int, observer: Observer | None = None
) -> list[float]:
    """Trains by AdamW with a rate that rises over the first twentieth of the steps and then falls to zero like a cosine.

    The module's dropout is on meanwhile, and off again afterwards. The policy's reference is the trained module.

    Args:
        texts: whole training texts.
        seed: of the windows and of dropout.
        observer: told "pretraining", steps done, steps in all.
    Returns:
        Each step's loss, nats a token.
    Raises:
        InputError: there is less text than a window.
        BurnishError: the loss is not finite.
    """
    stream, starts = token_stream(policy.vocabulary, texts)
    if len(stream) < 2:
        raise InputError("pretraining: the task has no training text: give its prompts references, or leave it out")
    length = min(settings.length, len(stream) - 1)
    parameters = list(policy.trainable().values())
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.01)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy.module.train()
        try:
            for step in range(settings.steps):
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * rate(step, settings.steps)
                window = windows(stream, starts, settings.windows, length, (seed, STREAM, step)).to(policy.device)
                optimizer.zero_grad(set_to_none=True)
                loss = mean_nll(policy, window)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                losses.append(float(loss.detach()))
                if not math.isfinite(losses[-1]):
                    raise BurnishError(
                        f"pretraining step {step + 1}: the loss is {losses[-1]}: lower policy.pretrain.learning_rate"
                    )
                optimizer.step()
                if observer is not None and ((step + 1) % 10 == 0 or step + 1 == settings.steps):
                    observer.progress("pretraining", step + 1, settings.steps)
        finally:
            policy.module.eval()
            optimizer.zero_grad(set_to_none=True)
    policy.reset_reference()
    return losses


def mean_nll(policy: ModulePolicy, window: Tensor) -> Tensor:
    """Mean of -log p of each token of a window [B, T+1] given those before it in the window; a scalar, nats."""
    logprobs = policy.logits(window[:, :-1]).log_softmax(-1)
    return -logprobs.gather(-1, window[:, 1:, None]).mean()


def token_stream(vocabulary: Vocabulary, texts: Sequence[str]) -> tuple[Tensor, list[int]]:
    """All texts as one row of token ids [S], and where each begins. One token both ends a text and begins the next where
    the vocabulary has the same for both."""
    begin = [] if vocabulary.begin is None else [vocabulary.begin]
    end = sorted(vocabulary.ends)[:1]
    ids: list[int] = []
    starts = []
    for text in texts:
        tokens = vocabulary.encode(text)
        if ids[-1:] == begin and begin:
            ids.pop()
        starts.append(len(ids))
        ids += [*begin, *tokens]
        if list(tokens[-1:]) != end:
            ids += end
    return torch.tensor(ids, dtype=torch.long), starts


def windows(stream: Tensor, starts: Sequence[int], count: int, length: int, seed: Sequence[int]) -> Tensor:
    """[count, length + 1] token ids."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(list(seed))))
    last = len(stream) - length - 1
    anywhere = random.integers(0, last + 1, count)
    beginning = np.minimum(np.asarray(starts)[random.integers(0, len(starts), count)], last)
    chosen = np.where(np.arange(count) % 2 == 0, beginning, anywhere)
    return torch.stack([stream[start : start + length + 1] for start in chosen.tolist()])


def rate(step: int, steps: int) -> float:
    """Share of the learning rate at a step, counted from 0: linear warm-up, then half a cosine to zero."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
