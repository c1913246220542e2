"""The driver's side of a cluster's samplers: shares of the prompts, and the weights that sample them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from burnish.backends.ray.actors import Actors, Report
from burnish.backends.ray.cluster import process_environment
from burnish.backends.ray.weights import pack_weights
from burnish.backends.ray.worker import Request, SampledShare, SamplerProcess
from burnish.errors import BurnishError, one_line
from burnish.protocols import Trainable
from burnish.recipe.backend import BackendSection
from burnish.types import Group, Prompt, SamplingParams

T = TypeVar("T")


class Samplers:
    """The sampler processes of a run. All randomness is in a call, so an answer has the same bits whoever gives it.

    Args:
        ray: the module, connected to a cluster.
        threads: of each process.
        report: called with what happened to a process, in the thread that asks for samples.
    """

    def __init__(self, ray: Any, backend: BackendSection, threads: int, report: Report, offline: bool) -> None:
        self._ray, self._report = ray, report
        options: dict[str, Any] = {"num_cpus": threads, "num_gpus": backend.gpus}
        if backend.python is not None:
            options["runtime_env"] = {"py_executable": backend.python}
        kind = ray.remote(SamplerProcess).options(max_restarts=-1, max_task_retries=0, **options)
        environment = process_environment(backend, offline)
        needs = f"{threads} CPUs and {backend.gpus:g} GPUs"
        self._actors = Actors(
            ray, "sampler", needs, backend.samplers, lambda number: kind.remote(threads, environment), backend
        )

    def __len__(self) -> int:
        return len(self._actors)

    def stop(self) -> None:
        """End the processes; a cluster that was there before the run stays."""
        self._actors.stop()

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
        self._actors.start()
        self._actors.everywhere("load the policy", lambda handle, call: handle.prepare.remote(call, [setup]))

    def begin(self, setup: Any, weights: Any, requests: Sequence[Request], step: int) -> list[Future[Any]]:
        """Let the first samplers work on the requests, one each; return their shares to come, in order."""

        def begin(index: int, request: Request) -> Future[Any]:
            what = f"sample {len(request.prompts)} prompts"
            return self._actors.begin(
                index, what, lambda handle, call: handle.sample.remote(call, [setup], [weights], request), step
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
    """Prompts that are being sampled, the calls that will answer, and the version of the weights."""

    prompts: Sequence[Prompt]
    calls: Sequence[Future[Any]]
    version: int


class RemoteSampler:
    """A ``Sampler`` that shares the prompts out among the samplers of a cluster.

    Before the first call for a policy version, the learner's trainable parameters go into the object store, once.
    ``setup`` is the reference of a PolicySetup.
    """

    def __init__(self, samplers: Samplers, policy: Trainable, setup: Any) -> None:
        self._samplers, self._policy, self._setup = samplers, policy, setup
        self._weights: Any = None
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
    ) -> BegunSampling:
        """Let samplers begin with the weights of this moment, after what they have begun already."""
        self._send_weights(policy_version)
        requests = [
            Request(tuple(map(bare_prompt, share)), samples_per_prompt, sampling, tuple(seed), policy_version)
            for share in split_evenly(prompts, len(self._samplers))
        ]
        calls = self._samplers.begin(self._setup, self._weights, requests, policy_version + 1)
        return BegunSampling(prompts, calls, policy_version)

    def groups(self, begun: BegunSampling) -> list[Group]:
        """Wait for what was begun, and return its groups."""
        shares = self._samplers.shares(begun.calls)
        self._load_seconds += max(share.load_seconds for share in shares)
        groups = [group for share in shares for group in share.groups]
        return [with_prompt(group, prompt) for group, prompt in zip(groups, begun.prompts, strict=True)]

    def pop_metrics(self) -> Mapping[str, float]:
        """Return the seconds that weights took since the last call; they are part of ``time/generate``."""
        seconds = self._seconds + self._load_seconds
        self._seconds = self._load_seconds = 0.0
        return {"time/weights": seconds}

    def _send_weights(self, version: int) -> None:
        if version == self._version:
            return
        begin = time.perf_counter()
        self._weights = None  # the store may free the last ones before it takes these
        self._weights = self._samplers.put(pack_weights(self._policy.trainable()))
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
