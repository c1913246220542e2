"""Stand-ins for observers, samplers, scorers, optimizers and language models, and small recipes and learners."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish.api import Result, train
from burnish.backends.local import build
from burnish.policies.tabular import TablePolicy
from burnish.policies.value_models import TableValueModel
from burnish.recipe.algorithm import critic_settings, resolve_preset
from burnish.recipe.schema import RECIPES, Recipe, load_recipe
from burnish.training.critic import Critic
from burnish.training.learner import Learner
from burnish.types import Completion, Group, Prompt, SamplingParams, Scores, TokenRewards

# Observers ----------------------------------------------------------------------------------------------------------


class RecordingObserver:
    """An observer that keeps every call, in order: ``("message", level, text)``, ``("progress", phase, done, total)``,
    ``("start", name)``, ``("step", step)`` and ``("finish",)``."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def message(self, text: str, *, level: str = "info") -> None:
        self.calls.append(("message", level, text))

    def start(self, *, name: str, steps: int, first_step: int) -> None:
        self.calls.append(("start", name))

    def step(self, metrics: Mapping[str, Any]) -> None:
        self.calls.append(("step", metrics["step"]))

    def progress(self, phase: str, done: int, total: int) -> None:
        self.calls.append(("progress", phase, done, total))

    def finish(self) -> None:
        self.calls.append(("finish",))

    @property
    def messages(self) -> list[tuple[str, str]]:
        """Level and text of each message."""
        return [call[1:] for call in self.calls if call[0] == "message"]

    @property
    def texts(self) -> list[str]:
        """Messages without their level."""
        return [text for _, text in self.messages]

    @property
    def warnings(self) -> list[str]:
        return [text for level, text in self.messages if level == "warning"]

    @property
    def phases(self) -> list[tuple[str, int, int]]:
        """Phase, done and total of each report of progress."""
        return [call[1:] for call in self.calls if call[0] == "progress"]


class InterruptingObserver(RecordingObserver):
    """An observer that presses Ctrl-C after a step."""

    def __init__(self, after_step: int) -> None:
        super().__init__()
        self.after_step = after_step

    def step(self, metrics: Mapping[str, Any]) -> None:
        super().step(metrics)
        if metrics["step"] == self.after_step:
            raise KeyboardInterrupt


# Samplers and scorers -----------------------------------------------------------------------------------------------


class FixedSampler:
    """A sampler that returns the same groups at every call, whatever the prompts are."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = list(groups)

    def sample(self, prompts: Sequence[Prompt], **options: Any) -> list[Group]:
        return self.groups


class TextSampler:
    """A sampler that writes given texts: ``texts[prompt.id][sample]``, one token per character and token 0 as the end.

    A prompt's token ids are always (7, 7). The seed and the number of prompts of each call are kept.
    """

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        self.texts = texts
        self.seeds: list[Sequence[int]] = []
        self.batches: list[int] = []

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int,
        sampling: SamplingParams,
        seed: Sequence[int],
        policy_version: int = 0,
    ) -> list[Group]:
        self.seeds.append(seed)
        self.batches.append(len(prompts))
        return [
            Group(prompt, tuple(self._completion(prompt, index) for index in range(samples_per_prompt)))
            for prompt in prompts
        ]

    def _completion(self, prompt: Prompt, index: int) -> Completion:
        text = self.texts[prompt.id][index]
        tokens = (*map(ord, text), 0)
        return Completion(prompt, (7, 7), tokens, text, (0.0,) * len(tokens), "stop", 0, index)


class FixedScorer:
    """A scorer that returns the same rewards at every call, whatever the completions are.

    Args:
        rewards: one per completion.
        per_token: of each completion, one reward per token, which are added to ``rewards``.
    """

    def __init__(self, rewards: Sequence[float], per_token: Sequence[Sequence[float]] | None = None) -> None:
        self.total, self.token_rewards = np.array(rewards, dtype=float), None
        if per_token is not None:
            self.token_rewards = TokenRewards(self.total, tuple(np.array(row) for row in per_token))
            self.total = self.total + [sum(row) for row in per_token]

    def score(self, completions: Sequence[Completion], *, step: int | None = None, flags: Any = None) -> Scores:
        return Scores(self.total, {"fixed": self.total}, {"fixed": 1.0}, token_rewards=self.token_rewards)


class FunctionScorer:
    """A scorer that applies a function to each completion."""

    def __init__(self, function: Callable[[Completion], float]) -> None:
        self.function = function

    def score(self, completions: Sequence[Completion], *, step: int | None = None, flags: Any = None) -> Scores:
        total = np.array([self.function(completion) for completion in completions], dtype=float)
        return Scores(total, {"function": total}, {"function": 1.0})


class RecordingOptimizer(torch.optim.Optimizer):
    """An optimizer that keeps the gradient of each parameter, by name, and changes nothing."""

    def __init__(self, policy: Any) -> None:
        self.names = list(policy.trainable())
        super().__init__(list(policy.trainable().values()), {"lr": 0.0})
        self.gradient: dict[str, torch.Tensor] = {}

    def step(self, closure: Any = None) -> None:
        for name, parameter in zip(self.names, self.param_groups[0]["params"], strict=True):
            self.gradient[name] = parameter.grad.clone()


# Language models ----------------------------------------------------------------------------------------------------


class CharacterModel:
    """A language model whose tokens are characters. A space has one negative log-likelihood, any other character
    another. The reference is the model itself unless one is given. Scored completions are kept."""

    def __init__(self, space: float = 1.0, other: float = 2.0, reference: CharacterModel | None = None) -> None:
        self.space, self.other = space, other
        self.reference = reference or self
        self.scored: list[Completion] = []

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> torch.Tensor:
        self.scored.extend(completions)
        tokens = [token for completion in completions for token in completion.token_ids]
        return -torch.tensor([self.space if token == ord(" ") else self.other for token in tokens], dtype=torch.float64)


class TokenValueModel:
    """A language model whose token t has log-probability -t in every context. A word is a token: its length."""

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(len(word) for word in text.split())

    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> torch.Tensor:
        return -torch.tensor([float(token) for completion in completions for token in completion.token_ids])


# Recipes and learners -----------------------------------------------------------------------------------------------


def toy_recipe(*overrides: str, **sections: Any) -> Recipe:
    """Return the shipped recipe ``toy`` with whole top-level keys replaced and then ``section.key=value`` applied."""
    return load_recipe("toy", overrides, changes=sections)


def toy_learner(*overrides: str, rewards: Sequence[float] | None = None, **sections: Any) -> Learner:
    """Return the learner of ``toy_recipe(...)``, before its first step; with fixed rewards if some are given."""
    learner, _ = build(toy_recipe(*overrides, **sections))
    if rewards is not None:
        learner.scorer = FixedScorer(rewards)
    return learner


def uniform_learner(recipe: Recipe, groups: Sequence[Group], rewards: Sequence[float]) -> Learner:
    """Return a learner whose policy is the uniform table [5, 4], with fixed groups and rewards and plain SGD.

    The step sets the learning rate. An algorithm with a critic gets a table of values, all 0, and SGD for it.
    """
    policy = TablePolicy(torch.zeros(5, 4, dtype=torch.float64))
    preset = resolve_preset(recipe.algorithm)
    critic = None
    if preset.critic:
        values = TableValueModel(policy)
        critic = Critic(values, torch.optim.SGD(values.trainable().values(), lr=1.0), critic_settings(recipe.algorithm))
    optimizer = torch.optim.SGD(policy.trainable().values(), lr=1.0)
    sampler, scorer = FixedSampler(groups), FixedScorer(rewards)
    return Learner(recipe, policy, sampler, scorer, [Prompt("p", "")], preset, optimizer, critic=critic)


SUBJECTS = [
    f"{name} {place}"
    for name in ("Anna", "Ben", "Carl", "Dora", "Emil", "Fritz", "Greta", "Hugo", "Ida", "Jan")
    for place in ("in town", "at home", "on the way", "at sea", "outside")
]
"""Fifty short prompts for supervised runs."""


def write_lines(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def supervised_recipe(kind: str, model: Path, path: str, *, format: str, **changes: Any) -> dict[str, Any]:
    """Return a six-step recipe that learns from a JSON lines file.

    Args:
        kind: "sft", "prefer" or "reward-model".
        format: what a row is: "completion", "pairs" or "labelled".
        changes: top-level keys to set.
    """
    return {
        "kind": kind, "name": "small", "steps": 6, "policy": {"model": str(model)},
        "data": {"use": "jsonl", "path": path, "format": format},
        "batch": {"examples_per_step": 8, "max_tokens": 64}, "optimizer": {"learning_rate": 3e-3},
        "evaluation": {"resamples": 200}, **changes,
    }  # fmt: skip


def train_toy(folder: Path, *overrides: str, **options: Any) -> Result:
    """Train the toy recipe with a few samples per step."""
    small = [
        "sampling.prompts_per_step=2", "sampling.samples_per_prompt=4", "evaluation.samples_per_prompt=2",
        "evaluation.resamples=100",
    ]  # fmt: skip
    observer = options.pop("observer", RecordingObserver())
    return train(RECIPES / "toy.toml", overrides=[*small, *overrides], run_dir=folder, observer=observer, **options)
