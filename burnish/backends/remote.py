"""The choice of where a run samples: in its own process, or through samplers that the recipe's backend starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from burnish.backends.chat import chat_settings
from burnish.backends.preflight import check_backend_package, check_backend_trust
from burnish.protocols import Observer
from burnish.recipe.backend import BackendSection
from burnish.recipe.schema import Recipe
from burnish.run.folder import Run
from burnish.training.learner import Learner

if TYPE_CHECKING:
    from burnish.backends.ray.learners import LearnerProcesses
    from burnish.backends.ray.sampler import Gather
    from burnish.policies.causal_lm import CausalPolicy

Attach = Callable[[Learner], None]
"""Gives a learner the samplers of the backend."""


@contextmanager
def started_backend(recipe: Recipe, run: Run, observer: Observer, *, offline: bool = False) -> Iterator[Attach]:
    """Start what the recipe's backend needs, and stop it at the end. Yield what gives a learner its samplers.

    Raises InputError or BurnishError if it cannot be started.
    """
    check_backend_trust(recipe.backend)
    check_backend_package(recipe)
    if recipe.backend.use == "local":
        yield lambda learner: None
        return
    from burnish.backends.local import build_language_model
    from burnish.backends.ray.ahead import sampled_ahead
    from burnish.backends.ray.cluster import connected
    from burnish.backends.ray.learners import LearnerProcesses
    from burnish.backends.ray.placement import Reservation, learner_threads, sampler_threads
    from burnish.backends.ray.sampler import RemoteSampler, Samplers
    from burnish.backends.ray.scorers import Scorers
    from burnish.backends.ray.worker import PolicySetup
    from burnish.rewards.combine import Combination

    def report(step: int, text: str) -> None:
        run.append("warnings.jsonl", [{"step": step, "kind": text.split()[0], "text": text}])
        observer.message(text, level="warning")

    backend = recipe.backend
    threads = sampler_threads(backend)
    with connected(backend) as ray, ExitStack() as stack:
        room = Reservation(ray, backend)
        stack.callback(room.release)
        samplers = Samplers(ray, backend, room, report, offline)
        stack.callback(samplers.stop)
        processes = None
        if backend.learners > 1:
            processes = LearnerProcesses(ray, backend, room, report, offline)
            stack.callback(processes.stop)
        scorers = None
        if backend.scorers:
            scorers = Scorers(ray, backend, room, report, offline)
            stack.callback(scorers.stop)

        def attach(learner: Learner) -> None:
            chat = chat_settings(recipe.task, run.folder) if recipe.policy.use == "causal_lm" else None
            folder, paths = str(run.folder.absolute()), (os.getcwd(), *filter(None, sys.path))
            setup = samplers.put(PolicySetup(recipe, chat, folder, run.began, offline, paths))
            gather = None
            if processes is not None:
                load = partial(build_language_model, recipe.policy, recipe.seed, offline=offline, chat=chat)
                gather = _attach_learners(processes, learner, setup, load)
            sampler = RemoteSampler(samplers, learner.policy, setup, gather)
            learner.sampler = sampler if not backend.max_staleness else sampled_ahead(sampler, learner)
            own_threads = recipe.threads is None and backend.address is None
            if processes is not None and own_threads:  # the other learners' cores are of this machine
                torch.set_num_threads(learner_threads(backend))
            for combination in (learner.scorer, learner.metrics):
                if scorers is not None and isinstance(combination, Combination):
                    scorers.attach(combination, setup)
            observer.message(_summary(backend, threads))

        yield attach


def _attach_learners(
    processes: LearnerProcesses, learner: Learner, setup: Any, load: Callable[[], CausalPolicy]
) -> Gather | None:
    """Let processes learn with this one, as the recipe has it; return what gives a sampler weights that are in parts.

    ``setup`` is the reference of a PolicySetup, ``load`` loads the policy as it was before training.
    """
    backend = learner.recipe.backend
    if backend.shard:
        from burnish.backends.ray.sharded import ShardedLearners  # slow: torch's FSDP

        split = ShardedLearners(processes, load, backend.restarts)
        split.attach(learner, setup)
        return split.gather
    from burnish.backends.ray.gradients import SharedGradients

    SharedGradients(processes, backend.restarts).attach(learner, setup)
    return None


def _summary(backend: BackendSection, threads: int) -> str:
    """Return the processes of a run in words."""
    count = f"{backend.samplers} samplers" if backend.samplers > 1 else "one sampler"
    parts = " with a part of the policy each" if backend.shard else ""
    learners = f", {backend.learners} learners{parts}" if backend.learners > 1 else ""
    scoring = f", {backend.scorers} scorer{'s' if backend.scorers > 1 else ''}" if backend.scorers else ""
    return f"Ray: {count} with {threads} thread{'s' if threads > 1 else ''} each{learners}{scoring}"
