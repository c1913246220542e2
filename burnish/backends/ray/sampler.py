"""The driver's side of a cluster's samplers: shares of the prompts, and the weights that sample them."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from burnish.backends.ray.actors import GLANCE, Actors, Report, reason
from burnish.backends.ray.cluster import process_environment
from burnish.backends.ray.placement import Reservation, sampler_threads
from burnish.backends.ray.weights import pack_weights
from burnish.backends.ray.worker import Request, SampledShare, SamplerProcess
from burnish.errors import BurnishError, one_line
from burnish.generation.rows import unfinished
from burnish.protocols import Trainable
from burnish.recipe.backend import BackendSection
from burnish.types import Group, Prompt, SamplingParams

T = TypeVar("T")

Gather = Callable[[Callable[[Mapping[str, Tensor]], Any]], list[Any]]
"""Returns what a function makes of the trainable parameters, given to it in parts."""


class Samplers:
    """The sampler processes of a run. All randomness is in a call, so an answer has the same bits whoever gives it.

    Args:
        ray: the module, connected to a cluster.
        room: for the processes.
        report: called with what happened to a process, in the thread that asks for samples.
    """

    def __init__(self, ray: Any, backend: BackendSection, room: Reservation, report: Report, offline: bool) -> None:
        self._ray, self._backend, self._report = ray, backend, report
        runtime = {} if backend.python is None else {"runtime_env": {"py_executable": backend.python}}
        threads, environment = sampler_threads(backend), process_environment(backend, offline)

        def make(number: int) -> Any:
            kind = ray.remote(SamplerProcess).options(**room.options("sampler", number - 1), **runtime)
            return kind.remote(threads, environment)

        self._actors = Actors(ray, "sampler", backend.samplers, make, backend)

    def __len__(self) -> int:
        return len(self._actors)

    def stop(self) -> None:
        """End the processes; a cluster that was there before the run stays."""
        self._actors.stop()

    def put(self, value: Any, step: int = 0) -> Any:
        """Put a value into the cluster's object store, and return its reference.

        If the store and the disk that it spills to are full, wait until others have freed some of it. Raises
        BurnishError if that takes longer than ``backend.time_limit``.
        """
        exceptions, limit = self._ray.exceptions, self._backend.time_limit
        deadline, told = time.monotonic() + limit, False
        while True:
            try:
                return self._ray.put(value)
            except (exceptions.ObjectStoreFullError, exceptions.OutOfDiskError) as error:
                if time.monotonic() >= deadline:
                    raise BurnishError(
                        f"the cluster's object store has had no room for the weights in {limit:g} s, nor the disk that it "
                        "spills to: free some, or start the cluster with a larger --object-store-memory"
                    ) from error
                if not told:
                    self._report(step, f"store of the driver's machine is full ({reason(error)}): waiting for room")
                told = True
                time.sleep(GLANCE)
            except exceptions.RayError as error:
                raise BurnishError(
                    f"the cluster's object store did not take the weights: {one_line(error)[:300]}"
                ) from error

    def prepare(self, setup: Any) -> None:
        """Let every sampler load its policy. Raises what loading raised."""
        self._actors.start()
        self._actors.everywhere("load the policy", lambda handle, call: handle.prepare.remote(call, [setup]))

    def begin(self, setup: Any, weights: list[Any], requests: Sequence[Request], step: int) -> list[Future[Any]]:
        """Let the first samplers work on the requests, one each; return their shares to come, in order."""

        def begin(index: int, request: Request) -> Future[Any]:
            what = f"sample {len(request.prompts)} prompts"
            return self._actors.begin(
                index, what, lambda handle, call: handle.sample.remote(call, [setup], weights, request), step
            )

        return [begin(index, request) for index, request in enumerate(requests)]

    def shares(self, calls: Sequence[Future[Any]]) -> list[SampledShare]:
        """Wait for shares, and report what happened to samplers meanwhile."""
        try:
            return self._actors.answers(calls)
        finally:
            for step, text in self._actors.pop_events():
                self._report(step, text)


@dataclass(frozen=True, slots=True)
class BegunSampling:
    """Prompts that are being sampled, the calls that will answer, and the places of each call's prompts."""

    prompts: Sequence[Prompt]
    calls: Sequence[Future[Any]]
    places: Sequence[Sequence[int]]

    def groups(self, shares: Sequence[SampledShare]) -> list[Group]:
        """Return the groups of the prompts, in their order."""
        sampled = by_place(self.places, [share.groups for share in shares])
        return [with_prompt(sampled[place], prompt) for place, prompt in enumerate(self.prompts)]


@dataclass(frozen=True, slots=True)
class BegunExtension:
    """Groups with texts that are being gone on with, as ``BegunSampling``; places count all completions."""

    so_far: Sequence[Group]
    calls: Sequence[Future[Any]]
    places: Sequence[Sequence[int]]

    def groups(self, shares: Sequence[SampledShare]) -> list[Group]:
        """Return the groups with the texts as they are now."""
        longer = by_place(self.places, [share.completions for share in shares])
        place, groups = itertools.count(), []
        for group in self.so_far:
            some = [longer.get(next(place), one) for one in group.completions]
            groups.append(with_prompt(Group(group.prompt, tuple(some)), group.prompt))
        return groups


class RemoteSampler:
    """A ``Sampler`` that shares the prompts out among the samplers of a cluster.

    Before the first call for a policy version, the learner's trainable parameters go into the object store, once.
    ``setup`` is the reference of a PolicySetup. ``gather`` gives a function the parameters, name -> tensor, in one or
    several parts.
    """

    def __init__(self, samplers: Samplers, policy: Trainable, setup: Any, gather: Gather | None = None) -> None:
        self._samplers, self._setup = samplers, setup
        self._gather: Gather = gather or (lambda use: [use(policy.trainable())])
        self._weights: list[Any] = []
        self._version: int | None = None
        self._seconds = 0.0
        self._load_seconds = 0.0
        """Of the slowest sampler of each call."""
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
        begun = self.begin(
            prompts, samples_per_prompt=samples_per_prompt, sampling=sampling, seed=seed, policy_version=policy_version
        )
        return self.groups(begun)

    def begin(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int,
        sampling: SamplingParams,
        seed: Sequence[int],
        policy_version: int,
        limit: int | None = None,
    ) -> BegunSampling:
        """Let samplers begin with the weights of this moment, after what they have begun already.

        ``limit`` leaves texts unfinished after so many tokens, for ``extend``.
        """
        # The random numbers of a prompt that occurs again depend on how often it was there: these stay together.
        ids = list(dict.fromkeys(prompt.id for prompt in prompts))
        shares = [set(share) for share in split_evenly(ids, len(self._samplers))]
        places = [[place for place, prompt in enumerate(prompts) if prompt.id in share] for share in shares]
        requests = [
            Request(
                tuple(bare_prompt(prompts[place]) for place in share), samples_per_prompt, sampling, tuple(seed),
                policy_version, limit,
            )
            for share in places
        ]  # fmt: skip
        return BegunSampling(prompts, self._ask(requests, policy_version), places)

    def extend(
        self,
        groups: Sequence[Group],
        *,
        sampling: SamplingParams,
        seed: Sequence[int],
        policy_version: int,
        limit: int | None = None,
    ) -> BegunExtension:
        """Let samplers go on with the unfinished texts of groups, with the weights of this moment."""
        every = [one for group in groups for one in group.completions]
        numbers = stream_numbers(groups)
        left = [place for place, one in enumerate(every) if unfinished(one, sampling)]
        places = split_evenly(left, len(self._samplers))
        requests = [
            Request(
                (), 0, sampling, tuple(seed), policy_version, limit,
                tuple(replace(every[place], prompt=bare_prompt(every[place].prompt)) for place in share),
                tuple(numbers[place] for place in share),
            )
            for share in places
        ]  # fmt: skip
        return BegunExtension(groups, self._ask(requests, policy_version), places)

    def _ask(self, requests: Sequence[Request], version: int) -> list[Future[Any]]:
        self._send_weights(version)
        return self._samplers.begin(self._setup, self._weights, requests, version + 1)

    def groups(self, begun: BegunSampling | BegunExtension) -> list[Group]:
        """Wait for what was begun, and return its groups."""
        shares = self._samplers.shares(begun.calls)
        self._load_seconds += max((share.load_seconds for share in shares), default=0.0)
        return begun.groups(shares)

    def pop_metrics(self) -> Mapping[str, float]:
        """Return the seconds that weights took since the last call; they are part of ``time/generate``."""
        seconds = self._seconds + self._load_seconds
        self._seconds = self._load_seconds = 0.0
        return {"time/weights": seconds}

    def _send_weights(self, version: int) -> None:
        if version == self._version:
            return
        begin = time.perf_counter()
        self._weights, self._version = [], None  # the store may free the last ones before it takes these
        self._weights = self._gather(lambda part: self._samplers.put(pack_weights(part), version + 1))
        self._version = version
        self._seconds += time.perf_counter() - begin


def split_evenly(prompts: Sequence[T], parts: int) -> list[Sequence[T]]:
    """Return at most ``parts`` consecutive shares, none empty, whose sizes differ by at most one."""
    size, more = divmod(len(prompts), parts)
    ends = [size * (part + 1) + min(part + 1, more) for part in range(parts)]
    shares = [prompts[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    return [share for share in shares if share]


def bare_prompt(prompt: Prompt) -> Prompt:
    """Return a prompt without what only rewards and reports read, which may be of the user's own types."""
    return replace(prompt, reference=None, metadata={}, alternatives=(), position="")


def with_prompt(group: Group, prompt: Prompt) -> Group:
    """Return a group whose prompt was sent without what only the driver reads."""
    return Group(prompt, tuple(replace(completion, prompt=prompt) for completion in group.completions))


def by_place(places: Sequence[Sequence[int]], shares: Sequence[Sequence[T]]) -> dict[int, T]:
    """Return place -> value, of the values of each share."""
    return {
        place: one for some, share in zip(places, shares, strict=True) for place, one in zip(some, share, strict=True)
    }


def stream_numbers(groups: Sequence[Group]) -> list[int]:
    """Return the number of each completion's random numbers (``random_stream``): a prompt may occur again."""
    seen: Counter[str] = Counter()
    numbers = []
    for group in groups:
        numbers += [seen[group.prompt.id] + one.index for one in group.completions]
        seen[group.prompt.id] += len(group.completions)
    return numbers
