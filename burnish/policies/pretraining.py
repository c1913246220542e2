"""Maximum-likelihood pretraining of a module from scratch, so that there is a language to reinforce.

The texts are concatenated to one stream, each between the vocabulary's begin and end tokens. A batch is B windows of T
tokens: those with an even index start with a text, as prompts do, the others anywhere, chosen by seed and step alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from burnish.errors import BurnishError, InputError
from burnish.policies.module import ModulePolicy
from burnish.policies.vocabulary import Vocabulary

if TYPE_CHECKING:
    from burnish.protocols import Observer

STREAM = 3
"""Mixed into the seed, so that windows, prompts and samples have independent random numbers."""


def pretrain(
    policy: ModulePolicy,
    texts: Sequence[str],
    *,
    steps: int,
    learning_rate: float,
    windows: int,
    length: int,
    seed: int,
    observer: Observer | None = None,
) -> list[float]:
    """Train with AdamW, a linear warm-up over a twentieth of the steps, and a cosine decay to 0; return the losses.

    The module's dropout is on during pretraining. Afterwards the trained module is the policy's reference.

    Args:
        texts: complete training texts.
        windows, length: windows per batch, tokens per window.
        seed: of the windows and of dropout.
        observer: receives the progress of the phase "pretraining".
    Returns:
        The loss of each step, nats per token.

    Raises InputError if the texts are shorter than a window, BurnishError if the loss is not finite.
    """
    stream, starts = token_stream(policy.vocabulary, texts)
    if len(stream) < 2:
        raise InputError(
            "pretraining: the task has no training text; give its prompts references, or remove policy.pretrain"
        )
    length = min(length, len(stream) - 1)
    parameters = list(policy.trainable().values())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy.module.train()
        try:
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * learning_rate_factor(step, steps)
                window = sample_windows(stream, starts, windows, length, (seed, STREAM, step)).to(policy.device)
                optimizer.zero_grad(set_to_none=True)
                logprobs = policy.logits(window[:, :-1]).log_softmax(-1)
                loss = -logprobs.gather(-1, window[:, 1:, None]).mean()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                losses.append(float(loss.detach()))
                if not math.isfinite(losses[-1]):
                    raise BurnishError(
                        f"pretraining step {step + 1}: the loss is {losses[-1]}: lower policy.pretrain.learning_rate"
                    )
                optimizer.step()
                if observer is not None and ((step + 1) % 10 == 0 or step + 1 == steps):
                    observer.progress("pretraining", step + 1, steps)
        finally:
            policy.module.eval()
            optimizer.zero_grad(set_to_none=True)
    policy.reset_reference()
    return losses


def token_stream(vocabulary: Vocabulary, texts: Sequence[str]) -> tuple[Tensor, list[int]]:
    """Return all texts as one sequence of token ids [S], and the index where each text begins.

    If the begin and end tokens are the same, one token ends a text and begins the next.
    """
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


def sample_windows(stream: Tensor, starts: Sequence[int], count: int, length: int, seed: Sequence[int]) -> Tensor:
    """Return windows of the stream, [count, length + 1] token ids."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(list(seed))))
    last = len(stream) - length - 1
    random_starts = random.integers(0, last + 1, count)
    text_starts = np.minimum(np.asarray(starts)[random.integers(0, len(starts), count)], last)
    chosen = np.where(np.arange(count) % 2 == 0, text_starts, random_starts)
    return torch.stack([stream[start : start + length + 1] for start in chosen.tolist()])


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the fraction of the learning rate at a step (from 0): linear warm-up, then half a cosine to 0."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
