"""Checks of one model type on one device, beyond those of ``burnish.benchmark.model_check``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import burnish
from bench.tiny_models import write_tiny_model
from burnish.benchmark.model_check import (
    PROMPTS,
    Measured,
    ModelCase,
    apart,
    make_learner,
    plain_transformers,
    within,
)
from burnish.generation.engine import make_sampler
from burnish.policies.pretrained import quiet_transformers
from burnish.recipe.schema import LoRA, Optimizer
from burnish.run.checkpoint import read_optimizer, write_optimizer
from burnish.training.optimizer import build_optimizer
from burnish.training.step import train_step
from burnish.types import SamplingParams

STEP_RATE = 1e-3
LORA_TARGETS: dict[str, Any] = {"mamba": ["in_proj", "x_proj"]}
"""For types whose layers peft cannot all adapt."""
OPTIONS: dict[str, dict[str, Any]] = {"gemma3_text": {"sliding_window": 128}}
"""A window longer than the texts, so that the type runs packed; mistral's is shorter."""


def build(kind: str, folder: Path) -> Path:
    """Write a random model of a type, every weight off its initial value and a number of bfloat16."""
    return write_tiny_model(kind, folder, **OPTIONS.get(kind, {}))


class GPUCase(ModelCase):
    """One type in one dtype on the device, with what transformers alone computes for it on the CPU in float32."""

    def __init__(self, source: Path, dtype: str, device: str) -> None:
        super().__init__(source, dtype, device, lora=LoRA(rank=4, targets=LORA_TARGETS.get(source.name, "all-linear")))

    def stepped(self, dtype: str, device: str) -> Tensor:
        """Return the log-probabilities [T] after a step of AdamW on the functional, by transformers and torch alone."""
        with plain_transformers(self.source, dtype, device) as model:
            (self.plain(model, self.completions).double() * self.weights).sum().backward()
            torch.optim.AdamW(model.parameters(), lr=STEP_RATE, weight_decay=0.0).step()
            with torch.no_grad():
                return self.plain(model, self.completions)

    @cached_property
    def expected_after_step(self) -> Tensor:
        return self.stepped(*self.reference)

    def check_sampler_against_policy(self, lora: bool = False) -> Measured:
        policy = self.adapted() if lora else self.policy
        groups = make_sampler(policy).sample(
            PROMPTS, samples_per_prompt=6, sampling=SamplingParams(24, top_k=200), seed=(5,)
        )
        sampled = [one for group in groups for one in group.completions]
        recorded = torch.tensor([logprob for one in sampled for logprob in one.sampler_logprobs])
        with torch.no_grad():
            trained = policy.logprobs(sampled, SamplingParams(24, top_k=200)).logprobs
        return within(apart(recorded, trained, self.dtype), self.dtype)

    def check_optimizer(self, folder: Path) -> Measured:
        """One step of AdamW; and a second, from a state that was saved and restored."""
        folder.mkdir(parents=True)
        policy = self.load()
        before = {name: weight.detach().clone() for name, weight in policy.trainable().items()}
        optimizer = build_optimizer(policy, Optimizer(learning_rate=STEP_RATE))
        self.functional(policy)
        optimizer.step()
        off, alone = (
            apart(one, self.expected_after_step, self.dtype)
            for one in (self.logprobs(policy), self.stepped(self.dtype, self.device))
        )
        moved = sum(int((weight != before[name]).sum()) for name, weight in policy.trainable().items())
        pushed = sum(int((weight.grad != 0).sum()) for weight in policy.trainable().values() if weight.grad is not None)
        write_optimizer(optimizer, policy.trainable(), folder)
        restored = build_optimizer(policy, Optimizer(learning_rate=STEP_RATE))
        read_optimizer(restored, policy.trainable(), folder)
        restored.step()
        shift = apart(self.expected_after_step, self.expected[0], "float32")
        note = f"the step moves them by {shift:.2g}; {moved / pushed:.1%} of the weights with a gradient moved"
        return within(off, self.dtype, alone=alone, note=note)

    def check_same_samples(self) -> Measured:
        runs = [
            make_sampler(self.policy).sample(PROMPTS, samples_per_prompt=32, sampling=SamplingParams(32), seed=(2,))
            for _ in range(2)
        ]
        texts = [[one.token_ids for group in groups for one in group.completions] for groups in runs]
        return within(
            sum(a != b for a, b in zip(*texts, strict=True)), self.dtype, tolerance=0.0, note="samples differ"
        )

    def check_same_weights(self) -> Measured:
        trained = []
        for _ in range(2):
            learner = make_learner(self.load(), prompts=PROMPTS, group=6, tokens=16)
            for _ in range(3):
                train_step(learner)
            trained.append(torch.cat([weight.detach().flatten() for weight in learner.policy.trainable().values()]))
        off = apart(trained[0].cpu(), trained[1].cpu(), "float32")
        return within(off, self.dtype, tolerance=0.0, note="the weights of two equal runs of 3 steps")

    def check_frequencies(self, draws: int) -> Measured:
        """Chi-square of first tokens among the 8 most probable, and of all, against transformers' softmax on the CPU."""
        ids = self.policy.encode_prompt(PROMPTS[0])
        with plain_transformers(self.source, *self.reference) as model, torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        scores = []
        for top_k in (8, 0):
            sampling = SamplingParams(1, top_k=top_k)
            groups = make_sampler(self.policy).sample(
                PROMPTS[:1], samples_per_prompt=draws, sampling=sampling, seed=(4,)
            )
            kept = logits.masked_fill(logits < logits.topk(top_k).values[-1], -math.inf) if top_k else logits
            counts = Counter(one.token_ids[0] for one in groups[0].completions)
            scores.append(surprise((kept.softmax(-1) * draws).tolist(), counts))
        return Measured(max(scores), max(scores) < 4, "4", note="(chi2 - df) / sqrt(2 df)")

    def check_greedy(self, tokens: int) -> Measured:
        groups = make_sampler(self.policy).sample(
            PROMPTS, samples_per_prompt=1, sampling=SamplingParams(tokens, top_k=1), seed=(0,)
        )
        differing = 0
        for group in groups:
            ids = torch.tensor([group.completions[0].prompt_ids], device=self.policy.device)
            options = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 1}
            with quiet_transformers():
                made = self.policy.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            differing += tuple(made[0, ids.shape[1] :].tolist()) != group.completions[0].token_ids
        return within(differing, self.dtype, tolerance=0.0, note=f"texts of {tokens} tokens differ")


def surprise(expected: Sequence[float], counts: Counter[int]) -> float:
    """How many standard deviations chi-square is above its mean; tokens expected fewer than 5 times count as one."""
    rare = [token for token, number in enumerate(expected) if number < 5]
    cells = [(counts[token], number) for token, number in enumerate(expected) if number >= 5]
    if (mass := sum(expected[token] for token in rare)) >= 5:
        cells.append((sum(counts[token] for token in rare), mass))
    chi2 = sum((seen - number) ** 2 / number for seen, number in cells)
    return (chi2 - (len(cells) - 1)) / math.sqrt(2 * (len(cells) - 1))


@burnish.reward(name="share_of_letters")
def share_of_letters(text: str) -> float:
    """The share of the characters that are letters of the English alphabet."""
    return sum(one.isascii() and one.isalpha() for one in text) / len(text) if text else 0.0
