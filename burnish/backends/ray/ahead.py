"""Sampling ahead of learning: the samples of later steps are begun before their weights are final."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from burnish.backends.ray.sampler import BegunExtension, BegunSampling, RemoteSampler
from burnish.errors import InputError, one_line
from burnish.generation.rows import unfinished
from burnish.run.folder import Checkpoint
from burnish.training.learner import Learner
from burnish.training.step import draw_prompts
from burnish.types import Completion, Group, Prompt, SamplingParams

IN_FLIGHT = "in_flight.json"
"""In a checkpoint: samples of later steps that were begun before it was saved."""


class AheadSampler:
    """A ``Sampler`` that begins the samples of the next steps, at most ``staleness``, with the weights of this step.

    Step t samples with the weights after step max(0, t - 1 - staleness), a function of t alone: which samples belong to
    which weights never depends on who is faster. A checkpoint waits for the samples in flight and holds them, so that a
    resumed run has the same bits. Held-out samples and refills are not begun ahead.

    With a ``segment``, texts of a later step are drawn that many tokens at a time, each part by newer weights, until the
    step before theirs, which draws the rest: a long text holds nobody up (partial rollouts; Kimi k1.5, 2025, 2.6.2).
    ``Completion.policy_version`` is then that of a text's first token.

    Args:
        prompts_of: the prompts of a step, counted from 1.
        seed: the recipe's.
        steps: the last step.
        done: the steps that are complete.
    """

    def __init__(
        self, sampler: RemoteSampler, staleness: int, prompts_of: Callable[[int], Sequence[Prompt]], *,
        seed: int, steps: int, done: Callable[[], int], segment: int | None = None,
    ) -> None:  # fmt: skip
        self._sampler, self._staleness, self._prompts_of = sampler, staleness, prompts_of
        self._segment = segment
        self._seed, self._steps, self._done = seed, steps, done
        self._begun: dict[int, BegunSampling | BegunExtension | list[Group]] = {}
        """The step -> its samples to come, or those that are there."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int,
        sampling: SamplingParams,
        seed: Sequence[int],
        policy_version: int = 0,
    ) -> list[Group]:
        """Return P groups of G completions, which for a step's own prompts may have been begun earlier."""
        step = policy_version + 1
        if tuple(seed) != (self._seed, step):
            return self._sampler.sample(
                prompts, samples_per_prompt=samples_per_prompt, sampling=sampling, seed=seed,
                policy_version=policy_version,
            )  # fmt: skip
        for old in [number for number in self._begun if number < step]:
            del self._begun[old]
        for later in range(step, min(step + self._staleness, self._steps) + 1):
            limit = self._segment if later > step + 1 else None
            if later not in self._begun:
                self._begun[later] = self._sampler.begin(
                    self._prompts_of(later), samples_per_prompt=samples_per_prompt, sampling=sampling,
                    seed=(self._seed, later), policy_version=policy_version, limit=limit,
                )  # fmt: skip
            elif self._interrupted(later, sampling):
                self._begun[later] = self._sampler.extend(
                    self._groups(later), sampling=sampling, seed=(self._seed, later), policy_version=policy_version,
                    limit=limit,
                )  # fmt: skip
        return self._groups(step)

    def _interrupted(self, step: int, sampling: SamplingParams) -> bool:
        """Return whether a begun step has unfinished texts; it waits only where there may be some."""
        if self._segment is None and not isinstance(
            self._begun[step], list
        ):  # a checkpoint's may be another run's parts
            return False
        return any(unfinished(one, sampling) for group in self._groups(step) for one in group.completions)

    def _groups(self, step: int) -> list[Group]:
        begun = self._begun[step]
        if not isinstance(begun, list):
            begun = self._begun[step] = self._sampler.groups(begun)
        return begun

    def pop_metrics(self) -> Mapping[str, float]:
        """Return how many later steps' samples were begun, and what the sampler reports."""
        return {**self._sampler.pop_metrics(), "steps_ahead": sum(step > self._done() for step in self._begun)}

    def state(self) -> dict[str, Any]:
        return {}

    def write(self, folder: Path) -> None:
        """Wait for the samples in flight, and write them."""
        steps = {step: self._groups(step) for step in sorted(self._begun) if step > self._done()}
        rows = {step: [list(map(_row, group.completions)) for group in groups] for step, groups in steps.items()}
        (folder / IN_FLIGHT).write_text(json.dumps(rows), encoding="utf-8")

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over the samples that a checkpoint holds; a run that did not sample ahead has none."""
        path = checkpoint.folder / IN_FLIGHT
        self._begun = {}
        if not path.is_file():
            return
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            read = {int(step): self._read(int(step), groups) for step, groups in rows.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path} does not have this run's samples in flight ({one_line(error)[:200]}); resume from an earlier "
                "checkpoint with --from-step"
            ) from error
        # Those of a run that was allowed to be further ahead are drawn again.
        self._begun = {
            step: groups for step, groups in read.items()
            if all(step - 1 - one.policy_version <= self._staleness for group in groups for one in group.completions)
        }  # fmt: skip

    def _read(self, step: int, groups: Sequence[Sequence[Mapping[str, Any]]]) -> list[Group]:
        """Return a step's groups. Raises ValueError or its like where they are not of this run."""
        read = [_group(prompt, rows) for prompt, rows in zip(self._prompts_of(step), groups, strict=True)]
        for completion in (one for group in read for one in group.completions):
            if not completion.token_ids or len(completion.token_ids) != len(completion.sampler_logprobs):
                raise ValueError(f"step {step}: a completion's tokens and log-probabilities are not as many")
            if not 0 <= completion.policy_version < step:
                raise ValueError(f"step {step}: samples of version {completion.policy_version}")
        return read


def sampled_ahead(sampler: RemoteSampler, learner: Learner) -> AheadSampler:
    """Return a sampler that works ahead of a learner, as far as its recipe's ``backend.max_staleness`` allows."""
    recipe = learner.recipe

    def prompts_of(step: int) -> Sequence[Prompt]:
        return draw_prompts(learner.prompts, recipe.sampling.prompts_per_step, recipe.seed, step)

    return AheadSampler(
        sampler, recipe.backend.max_staleness, prompts_of, seed=recipe.seed, steps=recipe.steps,
        done=lambda: learner.step, segment=recipe.backend.segment,
    )  # fmt: skip


def _row(completion: Completion) -> dict[str, Any]:
    """Return a completion as JSON, every float to the last bit, without its prompt."""
    return {each.name: getattr(completion, each.name) for each in fields(completion) if each.name != "prompt"}


def _group(prompt: Prompt, rows: Sequence[Mapping[str, Any]]) -> Group:
    def completion(row: Mapping[str, Any]) -> Completion:
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        return Completion(prompt, **values)

    return Group(prompt, tuple(map(completion, rows)))
