"""The driver's side of a cluster's samplers: shares of the prompts, weights, waiting, and processes that ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from burnish.backends.ray.weights import pack_weights
from burnish.backends.ray.worker import PolicySetup, Request, SampledShare, SamplerProcess
from burnish.errors import BurnishError, one_line
from burnish.protocols import Trainable
from burnish.recipe.backend import BackendSection
from burnish.types import Group, Prompt, SamplingParams

PAUSE = 0.2
"""Seconds between two questions whether a sampler is back."""

Report = Callable[[int, str], None]
"""Takes the step, and what happened in it."""


@dataclass(slots=True)
class _Actor:
    """A sampler, counted from 1, and the process that was last known to be it."""

    number: int
    handle: Any
    process: int = 0

    @property
    def name(self) -> str:
        return f"sampler {self.number} (process {self.process})" if self.process else f"sampler {self.number}"


@dataclass(slots=True)
class _Errand:
    """One call that a sampler has to answer until a deadline.

    Attributes:
        work: makes the call, given its number, and returns its reference.
        failures: what ended earlier tries.
    """

    actor: _Actor
    what: str
    work: Callable[[int], Any]
    deadline: float = 0.0
    failures: list[str] = field(default_factory=list)


class Samplers:
    """The sampler processes of a run, and the calls to them.

    A process that ends or does not answer in time is replaced, and its call is made again. All randomness is in the
    call, so the answer has the same bits.

    Args:
        ray: the module, connected to a cluster.
        threads: of each process.
        report: called with what happened to a process.
    """

    def __init__(self, ray: Any, backend: BackendSection, threads: int, report: Report, offline: bool) -> None:
        self._ray, self._backend, self._report = ray, backend, report
        options = {"num_cpus": threads, "num_gpus": backend.gpus, "max_restarts": -1, "max_task_retries": 0}
        kind = ray.remote(SamplerProcess).options(**options)
        environment = {"HF_HUB_OFFLINE": "1"} if offline else {}
        self._actors = [_Actor(number, kind.remote(threads, environment)) for number in range(1, backend.samplers + 1)]
        self._threads, self._calls = threads, 0
        self.load_seconds = 0.0
        """Seconds that the slowest sampler of each call took to load weights, since the last reading."""

    def __len__(self) -> int:
        return len(self._actors)

    def stop(self) -> None:
        """End the processes; a cluster that was there before the run stays."""
        for actor in self._actors:
            with suppress(Exception):  # the connection may be gone
                self._ray.kill(actor.handle)

    def put(self, value: Any) -> Any:
        """Put a value into the cluster's object store and return its reference."""
        try:
            return self._ray.put(value)
        except self._ray.exceptions.RayError as error:
            raise BurnishError(
                f"the cluster's object store did not take the weights: {one_line(error)[:300]}"
            ) from error

    def prepare(self, setup: Any) -> None:
        """Let every sampler load its policy. Raises what loading raised."""
        self.start()
        self._run([self._loading(actor, setup) for actor in self._actors])

    @staticmethod
    def _loading(actor: _Actor, setup: Any) -> _Errand:
        return _Errand(actor, "load the policy", lambda call: actor.handle.prepare.remote(call, [setup]))

    def sample(self, setup: Any, weights: Any, requests: Sequence[Request]) -> list[SampledShare]:
        """Return the shares of the first samplers, one request each, in order."""
        errands = [
            self._sampling(actor, setup, weights, request)
            for actor, request in zip(self._actors, requests, strict=False)
        ]
        shares = self._run(errands, step=requests[0].version + 1)
        self.load_seconds += max(share.load_seconds for share in shares)
        return shares

    @staticmethod
    def _sampling(actor: _Actor, setup: Any, weights: Any, request: Request) -> _Errand:
        def work(call: int) -> Any:
            return actor.handle.sample.remote(call, [setup], [weights], request)

        return _Errand(actor, f"sample {len(request.prompts)} prompts", work)

    def _run(self, errands: Sequence[_Errand], step: int = 0) -> list[Any]:
        """Make the calls, and return their answers in order."""
        answers: dict[int, Any] = {}
        waiting = {self._begin(errand): index for index, errand in enumerate(errands)}
        while waiting:
            next_deadline = min(errands[index].deadline for index in waiting.values())
            ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=max(0.0, next_deadline - time.monotonic()))
            if ready:
                errand = errands[index := waiting.pop(ready[0])]
                trouble = self._answer(ready[0], index, answers)
            else:
                late = min(waiting, key=lambda one: errands[waiting[one]].deadline)
                errand = errands[index := waiting.pop(late)]
                trouble = f"it gave no answer in {self._backend.time_limit:g} s"
                self._ray.kill(errand.actor.handle, no_restart=False)
            if trouble is None:
                if errand.failures:
                    self._tell(errand, step)
                continue
            errand.failures.append(trouble)
            self._replace(errand)
            waiting[self._begin(errand)] = index
        return [answers[index] for index in range(len(errands))]

    def _begin(self, errand: _Errand) -> Any:
        self._calls += 1
        errand.deadline = time.monotonic() + self._backend.time_limit
        return errand.work(self._calls)

    def _answer(self, reference: Any, index: int, answers: dict[int, Any]) -> str | None:
        """Keep the answer behind a reference, or return why there is none. Raises what the sampler raised."""
        exceptions = self._ray.exceptions
        try:
            answers[index] = self._ray.get(reference, timeout=self._backend.time_limit)
            return None
        except exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, BurnishError):
                raise cause from error
            raise BurnishError(f"a sampler failed: {type(cause).__name__}: {one_line(cause or error)[:500]}") from error
        except exceptions.RayError as error:
            return _reason(error)

    def _replace(self, errand: _Errand) -> None:
        """Wait until the sampler has a process again. Raises BurnishError if it has lost too many, or gets none."""
        actor, limit = errand.actor, self._backend.time_limit
        if len(errand.failures) > self._backend.restarts:
            raise BurnishError(
                f"{actor.name} was to {errand.what} and ended {len(errand.failures)} times in a row (backend.restarts = "
                f"{self._backend.restarts}): {errand.failures[-1]}"
            )
        deadline = time.monotonic() + limit
        while (left := deadline - time.monotonic()) > 0:
            try:
                self._ray.get(actor.handle.process.remote(), timeout=left)
                return
            except self._ray.exceptions.GetTimeoutError:
                break
            except self._ray.exceptions.ActorUnavailableError:
                time.sleep(PAUSE)
            except self._ray.exceptions.RayError as error:
                raise BurnishError(f"{actor.name} ended and cannot be replaced: {_reason(error)}") from error
        raise BurnishError(
            f"{actor.name} ended ({errand.failures[-1]}), and the cluster started no other process for it in {limit:g} s: "
            "it may have too few free CPUs or GPUs; raise backend.time_limit if it is slow"
        )

    def _tell(self, errand: _Errand, step: int) -> None:
        count = f", {len(errand.failures)} times" if len(errand.failures) > 1 else ""
        before = errand.actor.name
        errand.actor.process = int(
            self._ray.get(errand.actor.handle.process.remote(), timeout=self._backend.time_limit)
        )
        self._report(
            step,
            f"{before} was lost{count} before it could {errand.what}: {errand.failures[-1]}; process "
            f"{errand.actor.process} did it again, with the same seeds",
        )

    def start(self) -> list[int]:
        """Wait until every sampler has a process, and return their ids."""
        asked = [(actor, actor.handle.process.remote()) for actor in self._actors]
        deadline = time.monotonic() + self._backend.time_limit
        for actor, reference in asked:
            try:
                actor.process = int(self._ray.get(reference, timeout=max(0.0, deadline - time.monotonic())))
            except self._ray.exceptions.GetTimeoutError:
                has = self._ray.cluster_resources()
                raise BurnishError(
                    f"the cluster started no process for {actor.name} in {self._backend.time_limit:g} s: each of "
                    f"{len(self)} samplers needs {self._threads} CPUs and {self._backend.gpus:g} GPUs, and the cluster has "
                    f"{has.get('CPU', 0):g} and {has.get('GPU', 0):g} in all"
                ) from None
            except self._ray.exceptions.RayError as error:
                raise BurnishError(f"{actor.name} cannot be started: {_reason(error)}") from error
        return [actor.process for actor in self._actors]


class RemoteSampler:
    """A ``Sampler`` that shares the prompts out among the samplers of a cluster.

    Before the first call for a policy version, the learner's trainable parameters go into the object store, once.
    """

    def __init__(self, samplers: Samplers, policy: Trainable, setup: PolicySetup) -> None:
        self._samplers, self._policy = samplers, policy
        self._setup = samplers.put(setup)
        self._weights: Any = None
        self._version: int | None = None
        self._seconds = 0.0
        samplers.prepare(self._setup)

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int,
        sampling: SamplingParams,
        seed: Sequence[int],
        policy_version: int = 0,
    ) -> list[Group]:
        """Return P groups of G completions, as a sampler in this process would."""
        self._send_weights(policy_version)
        requests = [
            Request(tuple(map(_bare, share)), samples_per_prompt, sampling, tuple(seed), policy_version)
            for share in split_evenly(prompts, len(self._samplers))
        ]
        shares = self._samplers.sample(self._setup, self._weights, requests)
        groups = [group for share in shares for group in share.groups]
        return [_with_prompt(group, prompt) for group, prompt in zip(groups, prompts, strict=True)]

    def pop_metrics(self) -> Mapping[str, float]:
        """Return the seconds that weights took since the last call; they are part of ``time/generate``."""
        seconds = self._seconds + self._samplers.load_seconds
        self._seconds = self._samplers.load_seconds = 0.0
        return {"time/weights": seconds}

    def _send_weights(self, version: int) -> None:
        if version == self._version:
            return
        begin = time.perf_counter()
        self._weights = None  # the store may free the last ones before it takes these
        self._weights = self._samplers.put(pack_weights(self._policy.trainable()))
        self._version = version
        self._seconds += time.perf_counter() - begin


def split_evenly(prompts: Sequence[Prompt], parts: int) -> list[Sequence[Prompt]]:
    """Return at most ``parts`` consecutive shares, none empty, whose sizes differ by at most one."""
    size, more = divmod(len(prompts), parts)
    ends = [size * (part + 1) + min(part + 1, more) for part in range(parts)]
    shares = [prompts[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    return [share for share in shares if share]


def _bare(prompt: Prompt) -> Prompt:
    """Return a prompt without what only rewards and reports read, which may be of the user's own types."""
    return replace(prompt, reference=None, metadata={}, alternatives=(), position="")


def _with_prompt(group: Group, prompt: Prompt) -> Group:
    return Group(prompt, tuple(replace(completion, prompt=prompt) for completion in group.completions))


def _reason(error: BaseException) -> str:
    """Return the first line of an error of Ray that says more than that something ended."""
    return f"{type(error).__name__}: {one_line(error)[:300]}"
