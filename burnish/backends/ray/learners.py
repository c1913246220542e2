"""The learners other than the driver, and the process group that they form with it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from burnish.backends.ray.actors import ActorLost, Actors, Report, Work
from burnish.backends.ray.cluster import own_address, process_environment
from burnish.backends.ray.group import GroupBroken, LearnerGroup, Meeting, listening_at, refuse_other_group
from burnish.backends.ray.learner_process import LearnerProcess
from burnish.backends.ray.placement import Reservation, learner_threads
from burnish.errors import BurnishError
from burnish.recipe.backend import BackendSection

LONGEST_MEETING = 300.0
"""Seconds in which learners that have loaded their policy must have found one another."""


class LearnerProcesses:
    """The learners other than the driver: their processes, the calls to them, and the group.

    Args:
        ray: the module, connected to a cluster.
        room: for the processes.
        report: called with what happened to a process, in the thread that waits for the learners.

    Attributes:
        group: the process group of all learners; None before ``form`` and after ``leave``.
    """

    def __init__(self, ray: Any, backend: BackendSection, room: Reservation, report: Report, offline: bool) -> None:
        self._ray, self._backend, self._report = ray, backend, report
        threads, environment = learner_threads(backend), process_environment(backend, offline)

        def make(number: int) -> Any:
            kind = ray.remote(LearnerProcess).options(**room.options("learner", number - 2))
            return kind.remote(threads, environment)

        self._actors = Actors(ray, "learner", backend.learners - 1, make, backend, first=2)
        self.group: LearnerGroup | None = None

    @property
    def size(self) -> int:
        """The number of learners, the driver included."""
        return len(self._actors) + 1

    def start(self, setup: Any) -> None:
        """Let every learner load its policy, whose setup is behind a reference.

        Raises BurnishError if this process has a group of its own already.
        """
        refuse_other_group()
        self._setup = setup
        self._actors.start()
        self._prepare()

    def _prepare(self) -> None:
        self._actors.everywhere("load the policy", lambda handle, call: handle.prepare.remote(call, [self._setup]))

    def form(self, step: int, *, cuda: bool) -> None:
        """Form the group anew, with whatever processes there are now. Raises GroupBroken."""
        self._prepare()  # processes that are new
        address, limit = own_address(self._ray), min(self._backend.time_limit, LONGEST_MEETING)
        with listening_at(address) as listening:
            meeting = Meeting(address, listening.getsockname()[1], self.size, limit)

            def join(rank: int) -> Future[Any]:
                work: Work = lambda handle, call: handle.join.remote(call, meeting, rank)  # noqa: E731
                return self.begin(rank, "join the other learners", work, step)

            calls = [join(rank) for rank in range(1, meeting.size)]
            try:
                self.group = LearnerGroup(0, meeting, address, cuda=cuda, listening=listening)
            finally:
                joined = self.answers(calls)
        if not all(joined):
            raise GroupBroken("not every learner could join")

    def begin(self, rank: int, what: str, work: Work, step: int) -> Future[Any]:
        """Begin a call to the learner of a rank, from 1, in which all learners take part."""
        return self._actors.begin(rank - 1, what, work, step, again=False)

    @staticmethod
    def answers(calls: Sequence[Future[Any]]) -> list[Any]:
        """Wait for all calls; return their answers, None of a process that was lost. Raises BurnishError of any."""
        answers, errors = [], []
        for call in calls:
            try:
                answers.append(call.result())
            except ActorLost:
                answers.append(None)
            except BurnishError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return answers

    def report_events(self) -> None:
        """Report what happened to processes since the last call."""
        for step, text in self._actors.pop_events():
            self._report(step, text)

    def pop_events(self) -> list[str]:
        """Return what happened to processes since the last call, without reporting it."""
        return [text for _, text in self._actors.pop_events()]

    def leave(self) -> None:
        """Leave the group, if there is one: another group is not ours to leave."""
        if self.group is not None:
            self.group.leave()
        self.group = None

    def stop(self) -> None:
        """End the processes, and leave the group."""
        self.leave()
        self._actors.stop()
