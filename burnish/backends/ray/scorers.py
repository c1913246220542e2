"""The driver's side of a cluster's scorers: parts of a reward, computed by other processes at the same time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

from burnish.backends.ray.actors import Actors, Report
from burnish.backends.ray.cluster import process_environment
from burnish.backends.ray.placement import Reservation
from burnish.backends.ray.sampler import split_evenly
from burnish.backends.ray.worker import ScoredShare, ScoreRequest, ScorerProcess
from burnish.errors import InputError, one_line
from burnish.recipe.backend import BackendSection
from burnish.rewards.combine import Combination
from burnish.rewards.forms import Context
from burnish.rewards.part import Outcome, Part, PartValues
from burnish.types import Completion


class Scorers:
    """The scorer processes of a run.

    A function that takes one completion at a time, and a batch reward of burnish's own, is asked by several scorers, each
    about a share; prompts stay whole. Another batch reward may compare all that it is given, so one scorer asks it
    about everything. Parts that need the reference policy stay with the driver.

    Args:
        ray: the module, connected to a cluster.
        room: for the processes.
        report: called with what happened to a process, in the thread that asks for scores.
    """

    def __init__(self, ray: Any, backend: BackendSection, room: Reservation, report: Report, offline: bool) -> None:
        self._ray, self._report = ray, report
        threads, environment = backend.cpus or 1, process_environment(backend, offline)

        def make(number: int) -> Any:
            kind = ray.remote(ScorerProcess).options(**room.options("scorer", number - 1))
            return kind.remote(threads, environment, number)

        self._actors = Actors(ray, "scorer", backend.scorers, make, backend)
        self._parts: dict[int, tuple[Part, Any]] = {}
        self._next = itertools.count()

    def stop(self) -> None:
        """End the processes."""
        self._actors.stop()

    def attach(self, combination: Combination, setup: Any) -> None:
        """Let a combination's parts be computed here; ``setup`` is the reference of a PolicySetup.

        Raises InputError if a function cannot be sent to another process.
        """
        self._setup = setup
        self._actors.start()
        for part in combination.parts:
            if _goes(part):
                self._parts[id(part)] = part, self._sent(part)
        combination.begin = self._begin

    def _sent(self, part: Part) -> Any:
        bare = replace(part, schedule=None)
        try:
            return self._ray.put(bare)
        except Exception as error:  # whatever pickling raises
            raise InputError(
                f"reward '{part.name}' cannot be sent to scorers ({one_line(error)[:200]}): define it in a module and name "
                "it as module:function, or set backend.scorers = 0"
            ) from error

    def _begin(self, part: Part, completions: Sequence[Completion], context: Context) -> Callable[[], PartValues]:
        """Begin to score, and return what waits for the values."""
        if id(part) not in self._parts or not completions:
            return partial(part.values, completions, context)
        _, reference = self._parts[id(part)]
        number, step = id(part), context.step or 0

        def ask(indices: Sequence[int]) -> Future[Any]:
            flags = None if context.flags is None else [context.flags[index] for index in indices]
            share = ScoreRequest([completions[index] for index in indices], flags, context.step)
            return self._actors.begin(
                next(self._next) % len(self._actors), f"score {len(indices)} completions by reward '{part.name}'",
                lambda handle, call: handle.score.remote(call, [self._setup], number, [reference], share), step,
            )  # fmt: skip

        calls = [ask(indices) for indices in shares(part, completions, len(self._actors))]

        def finish() -> PartValues:
            outcomes: list[Outcome] = []
            try:
                verdicts: list[ScoredShare] = self._actors.answers(calls)
            finally:
                for step, text in self._actors.pop_events():
                    self._report(step, text)
            for verdict in verdicts:
                for counted, name, value in verdict.notes:
                    (context.count if counted else context.log)(name, value)
                outcomes += verdict.outcomes
            return part.split(part.settled(outcomes, context), completions)

        return finish


def shares(part: Part, completions: Sequence[Completion], count: int) -> list[list[int]]:
    """Return the indices of the completions that each scorer is asked about: at most ``count`` shares, in order."""
    function = part.function
    if function.batch and not function.function.__module__.startswith("burnish."):
        return [list(range(len(completions)))]
    groups = [
        list(run) for _, run in itertools.groupby(range(len(completions)), lambda index: completions[index].prompt.id)
    ]
    return [[index for group in share for index in group] for share in split_evenly(groups, count)]


def _goes(part: Part) -> bool:
    """Whether a part can be computed without the driver's models."""
    return "reference_policy" not in part.function.arguments
