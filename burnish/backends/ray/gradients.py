"""The driver's side of a cluster's learners: an update's microbatches shared out, and the gradient added up."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from torch import nn

from burnish.backends.ray.actors import ActorLost, Actors, Report, Work
from burnish.backends.ray.cluster import own_address, process_environment
from burnish.backends.ray.group import GroupBroken, LearnerGroup, Meeting, listening_at, refuse_other_group
from burnish.backends.ray.placement import Reservation, learner_threads
from burnish.backends.ray.sampler import bare_prompt
from burnish.backends.ray.worker import LearnerProcess
from burnish.errors import BurnishError
from burnish.recipe.backend import BackendSection
from burnish.training.learner import Learner
from burnish.training.policy_loss import MicrobatchLoss
from burnish.training.step import add_gradients
from burnish.types import Microbatch

LONGEST_MEETING = 300.0
"""Seconds in which learners that have loaded their policy must have found one another."""


class SharedGradients:
    """Adds the gradients of an update's microbatches, each computed by one of several learners, the driver among them.

    The others have weights and nothing else of the run: before an update they take the driver's, and what they computed
    is added to the driver's gradient. So one that is lost costs the work of an update, which all begin again.

    Args:
        ray: the module, connected to a cluster.
        room: for the learners other than the driver.
        report: called with what happened to a process, in the thread that asks for gradients.
    """

    def __init__(self, ray: Any, backend: BackendSection, room: Reservation, report: Report, offline: bool) -> None:
        self._ray, self._backend, self._report = ray, backend, report
        threads, environment = learner_threads(backend), process_environment(backend, offline)

        def make(number: int) -> Any:
            kind = ray.remote(LearnerProcess).options(**room.options("learner", number - 2))
            return kind.remote(threads, environment)

        self._actors = Actors(ray, "learner", backend.learners - 1, make, backend, first=2)
        self._group: LearnerGroup | None = None
        self._seconds = 0.0

    def stop(self) -> None:
        """End the processes, and leave the group."""
        self._leave()
        self._actors.stop()

    def attach(self, learner: Learner, setup: Any) -> None:
        """Let every learner load its policy, whose setup is behind a reference, and work for this one.

        Raises BurnishError if this process has a group of its own already.
        """
        refuse_other_group()
        self._learner, self._setup = learner, setup
        self._actors.start()
        self._prepare()
        learner.add_gradients = self

    def __call__(self, batches: Sequence[Microbatch]) -> list[MicrobatchLoss]:
        """Add the gradients to the policy's parameters; return the losses in the microbatches' order.

        Raises BurnishError if the learners lose one another more than ``backend.restarts`` times in a row.
        """
        failures = 0
        while True:
            try:
                if self._group is None:
                    self._form()
                return self._attempt(batches)
            except GroupBroken as error:
                self._leave()
                failures += 1
                if failures > self._backend.restarts:
                    raise BurnishError(
                        f"the learners lost one another {failures} times in a row (backend.restarts = "
                        f"{self._backend.restarts}): {error}"
                    ) from error
            except BaseException:  # nobody shall wait for this process
                self._leave()
                raise
            finally:
                for step, text in self._actors.pop_events():
                    self._report(step, text)
            self._learner.optimizer.zero_grad(set_to_none=True)

    def pop_metrics(self) -> Mapping[str, float]:
        """Return the seconds since the last call in which the driver exchanged weights and gradients, or waited."""
        seconds, self._seconds = self._seconds, 0.0
        return {"time/exchange": seconds}

    def _prepare(self) -> None:
        self._actors.everywhere("load the policy", lambda handle, call: handle.prepare.remote(call, [self._setup]))

    def _form(self) -> None:
        """Make the group anew. Raises GroupBroken."""
        self._prepare()  # processes that are new
        address, limit = own_address(self._ray), min(self._backend.time_limit, LONGEST_MEETING)
        with listening_at(address) as listening:
            meeting = Meeting(address, listening.getsockname()[1], len(self._actors) + 1, limit)

            def join(rank: int) -> Future[Any]:
                return self._begin(
                    rank, "join the other learners", lambda handle, call: handle.join.remote(call, meeting, rank)
                )

            calls = [join(rank) for rank in range(1, meeting.size)]
            cuda = any(one.is_cuda for one in self._learner.policy.trainable().values())
            try:
                self._group = LearnerGroup(0, meeting, address, cuda=cuda, listening=listening)
            finally:
                joined = self._answers(calls)
        if not all(joined):
            raise GroupBroken("not every learner could join")

    def _attempt(self, batches: Sequence[Microbatch]) -> list[MicrobatchLoss]:
        """Share the microbatches out and add up. Raises GroupBroken; the gradients are then of no use."""
        assert self._group is not None
        learner, shares = self._learner, share_out(batches, len(self._actors) + 1)
        parameters = list(learner.policy.trainable().values())
        coefficient = learner.kl.coefficient

        def ask(rank: int, share: Sequence[int]) -> Future[Any]:
            bare = [_bare(batches[index]) for index in share]
            return self._begin(
                rank, f"compute the gradients of {len(bare)} microbatches",
                lambda handle, call: handle.add_gradients.remote(call, [self._setup], bare, coefficient),
            )  # fmt: skip

        calls = [ask(rank, share) for rank, share in enumerate(shares[1:], 1)]
        try:
            self._timed(self._group.share_weights, parameters)
            own = [batches[index] for index in shares[0]]
            losses = [list(add_gradients(learner.policy, learner.policy_loss, learner.recipe.sampling.params, own))]
            self._timed(self._group.add_up, parameters)
        except BaseException:
            self._leave()  # so that the others do not wait
            self._answers(calls)
            raise
        losses += self._answers(calls)
        if None in losses:
            raise GroupBroken("a learner could not reach the others")
        found = {
            index: loss
            for share, part in zip(shares, losses, strict=True)
            for index, loss in zip(share, part, strict=True)
        }
        return [found[index] for index in range(len(batches))]

    def _timed(self, exchange: Callable[[Sequence[nn.Parameter]], None], parameters: Sequence[nn.Parameter]) -> None:
        begin = time.perf_counter()
        exchange(parameters)
        self._seconds += time.perf_counter() - begin

    def _begin(self, rank: int, what: str, work: Work) -> Future[Any]:
        return self._actors.begin(rank - 1, what, work, self._learner.step + 1, again=False)

    @staticmethod
    def _answers(calls: Sequence[Future[Any]]) -> list[Any]:
        """Wait for all calls; return their answers, None of a process that was lost. Raises BurnishError of any."""
        answers = []
        for call in calls:
            try:
                answers.append(call.result())
            except ActorLost:
                answers.append(None)
        return answers

    def _leave(self) -> None:
        if self._group is not None:  # another group is not ours to leave
            self._group.leave()
        self._group = None


def share_out(batches: Sequence[Microbatch], parts: int) -> list[list[int]]:
    """Return the indices of each part's microbatches, in order: the largest go first, each to the part with least."""
    sizes = [_tokens(batch) for batch in batches]
    shares: list[list[int]] = [[] for _ in range(parts)]
    filled = [0] * parts
    for index in sorted(range(len(batches)), key=lambda index: -sizes[index]):
        least = filled.index(min(filled))
        shares[least].append(index)
        filled[least] += sizes[index]
    return [sorted(share) for share in shares]


def _tokens(batch: Microbatch) -> int:
    """Return the tokens of a microbatch; neighbours' common prompt counts once, as it is computed once."""
    prompts = itertools.groupby(completion.prompt_ids for completion in batch.completions)
    return sum(len(one.token_ids) for one in batch.completions) + sum(len(ids) for ids, _ in prompts)


def _bare(batch: Microbatch) -> Microbatch:
    """Return a microbatch without what only rewards and reports read."""
    return replace(batch, completions=[replace(one, prompt=bare_prompt(one.prompt)) for one in batch.completions])
