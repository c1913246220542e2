"""Actors of a cluster: calls with a limit of time, and new processes in place of those that ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from burnish.errors import BurnishError, one_line
from burnish.recipe.backend import BackendSection

PAUSE = 0.2
"""Seconds between two questions whether an actor is back."""
GLANCE = 1.0
"""Seconds after which a wait looks whether the actors were stopped."""

Report = Callable[[int, str], None]
"""Takes the step, and what happened in it."""
Work = Callable[[Any, int], Any]
"""Makes a call, given the actor's handle and the call's number, and returns its reference."""


@dataclass(slots=True)
class Actor:
    """One actor, counted from 1, the process that was last known to be it, and the thread that waits for it."""

    kind: str
    number: int
    handle: Any
    process: int = 0
    calls: int = 0
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    @property
    def name(self) -> str:
        return f"{self.kind} {self.number}" + (f" (process {self.process})" if self.process else "")


class ActorLost(Exception):
    """A process ended before it answered a call that may not be made again by itself; another is in its place."""


class Actors:
    """The processes of one kind in a run, and the calls to them.

    An actor answers its calls in order, one at a time, while the program goes on. A process that ends or does not answer
    in time is replaced, and its call is made again, so a call must have all that it needs, and give the same answer.

    Args:
        ray: the module, connected to a cluster.
        kind: what an actor is called in messages, such as "sampler".
        make: makes the handle of an actor, given its number.
        first: the first actor's number.
    """

    def __init__(
        self, ray: Any, kind: str, count: int, make: Callable[[int], Any], backend: BackendSection, *,
        first: int = 1,
    ) -> None:  # fmt: skip
        self._ray, self._kind, self._backend = ray, kind, backend
        self._actors = [Actor(kind, number, make(number)) for number in range(first, first + count)]
        self._stopped = False
        self._events: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._actors)

    def start(self) -> list[int]:
        """Wait until every actor has a process, and return their ids."""
        asked = [(actor, actor.handle.process.remote()) for actor in self._actors]
        deadline = time.monotonic() + self._backend.time_limit
        for actor, reference in asked:
            try:
                actor.process = int(self._ray.get(reference, timeout=max(0.0, deadline - time.monotonic())))
            except self._ray.exceptions.GetTimeoutError:
                raise BurnishError(
                    f"the cluster started no process for {actor.name} in {self._backend.time_limit:g} s; raise "
                    "backend.time_limit if its machines are slow"
                ) from None
            except self._ray.exceptions.RayError as error:
                raise BurnishError(f"{actor.name} cannot be started: {reason(error)}") from error
        return [actor.process for actor in self._actors]

    def stop(self) -> None:
        """End the processes, and the calls that nobody waits for any more."""
        self._stopped = True
        for actor in self._actors:
            with suppress(Exception):  # the connection may be gone
                self._ray.kill(actor.handle)
        for actor in self._actors:
            actor.thread.shutdown(cancel_futures=True)

    def begin(self, index: int, what: str, work: Work, step: int = 0, *, again: bool = True) -> Future[Any]:
        """Make a call to an actor, counted from 0, after those that it has already; return its answer to come.

        ``what`` it is to do is for messages: "load the policy". The answer raises BurnishError if there is none. A call
        that is not to be made ``again``, since other processes take part in it, raises ActorLost.
        """
        return self._actors[index].thread.submit(self._run, self._actors[index], what, work, step, again)

    def everywhere(self, what: str, work: Work, step: int = 0) -> list[Any]:
        """Make a call to every actor, and return their answers in order."""
        return self.answers([self.begin(index, what, work, step) for index in range(len(self))])

    @staticmethod
    def answers(calls: Sequence[Future[Any]]) -> list[Any]:
        """Wait for calls, and return their answers in order. Raises what the first that failed raised."""
        return [call.result() for call in calls]

    def pop_events(self) -> list[tuple[int, str]]:
        """Return what happened to processes since the last call: the step, and a sentence."""
        events, self._events = self._events, []
        return events

    def _run(self, actor: Actor, what: str, work: Work, step: int, again: bool) -> Any:
        failures: list[str] = []
        while True:
            actor.calls += 1
            answer, trouble = self._answer(actor, work(actor.handle, actor.calls))
            if trouble is None:
                if failures:
                    self._tell(actor, what, failures, step, "did it again")
                return answer
            failures.append(trouble)
            self._replace(actor, what, failures)
            if not again:
                self._tell(actor, what, failures, step, "is in its place, and all begin again")
                raise ActorLost(f"{actor.name} was lost")

    def _answer(self, actor: Actor, reference: Any) -> tuple[Any, str | None]:
        """Return the answer behind a reference, or why there is none. Raises what the actor raised."""
        exceptions, limit = self._ray.exceptions, self._backend.time_limit
        deadline = time.monotonic() + limit
        try:
            while not self._ray.wait([reference], timeout=min(GLANCE, max(0.0, deadline - time.monotonic())))[0]:
                if self._stopped:
                    raise BurnishError(f"{actor.name} was stopped")
                if time.monotonic() >= deadline:
                    self._ray.kill(actor.handle, no_restart=False)
                    return None, f"it gave no answer in {limit:g} s"
            return self._ray.get(reference, timeout=limit), None
        except exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, BurnishError):
                raise cause from error
            if isinstance(cause, exceptions.RayError):  # what it needed did not arrive: its machine's store may be full
                time.sleep(GLANCE)
                return None, reason(cause)
            raise BurnishError(
                f"a {self._kind} failed: {type(cause).__name__}: {one_line(cause or error)[:500]}"
            ) from error
        except exceptions.RayError as error:
            return None, reason(error)

    def _replace(self, actor: Actor, what: str, failures: Sequence[str]) -> None:
        """Wait until the actor has a process again. Raises BurnishError if it has lost too many, or gets none."""
        limit = self._backend.time_limit
        if len(failures) > self._backend.restarts:
            raise BurnishError(
                f"{actor.name} was to {what} and ended {len(failures)} times in a row (backend.restarts = "
                f"{self._backend.restarts}): {failures[-1]}"
            )
        deadline = time.monotonic() + limit
        while (left := deadline - time.monotonic()) > 0 and not self._stopped:
            try:
                self._ray.get(actor.handle.process.remote(), timeout=left)
                return
            except self._ray.exceptions.GetTimeoutError:
                break
            except self._ray.exceptions.ActorUnavailableError:
                time.sleep(PAUSE)
            except self._ray.exceptions.RayError as error:
                raise BurnishError(f"{actor.name} ended and cannot be replaced: {reason(error)}") from error
        raise BurnishError(
            f"{actor.name} ended ({failures[-1]}), and the cluster started no other process for it in {limit:g} s: "
            "it may have too few free CPUs or GPUs; raise backend.time_limit if it is slow"
        )

    def _tell(self, actor: Actor, what: str, failures: Sequence[str], step: int, then: str) -> None:
        count = f", {len(failures)} times" if len(failures) > 1 else ""
        before = actor.name
        actor.process = int(self._ray.get(actor.handle.process.remote(), timeout=self._backend.time_limit))
        text = f"{before} was lost{count} before it could {what}: {failures[-1]}; process {actor.process} {then}"
        self._events.append((step, text))


def reason(error: BaseException) -> str:
    """Return the first line of an error of Ray that says more than that something ended."""
    return f"{type(error).__name__}: {one_line(error)[:300]}"
