"""Processes of a cluster: samplers and learners, which have their own copy of the policy, and scorers.

Nothing that loads torch is imported before the process has its environment: threads read how they wait only once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

    from burnish.backends.ray.weights import WeightBlock
    from burnish.policies.chat_template import ChatSettings
    from burnish.protocols import Policy, Sampler
    from burnish.recipe.schema import Recipe
    from burnish.rewards.part import Part
    from burnish.types import Completion, Group, Prompt, SamplingParams

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
    "KMP_BLOCKTIME": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Of every sampler: threads that spin would hold cores that another process needs (docs/lessons.md)."""
PACKAGES = ("site-packages", "dist-packages")
"""Names of the folders with an environment's packages."""


@dataclass(frozen=True, slots=True)
class PolicySetup:
    """What a sampler needs to load the policy that the learner trains.

    Attributes:
        folder: the run folder, which has a policy's initial weights and the template's copy.
        began: when the run began: the date that chat templates write.
        paths: the driver's module search path, for modules of the user's own.
    """

    recipe: Recipe
    chat: ChatSettings | None
    folder: str
    began: datetime | None
    offline: bool
    paths: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Request:
    """A sampler's share of the prompts of one call of ``Sampler.sample``, or of texts to go on with, and how.

    Attributes:
        version: of the weights.
        limit: tokens after which a text is left as it is; None for no limit.
        completions, numbers: what to go on with, as ``SamplesInParts.extend`` takes it; there are no prompts then.
    """

    prompts: tuple[Prompt, ...]
    samples_per_prompt: int
    sampling: SamplingParams
    seed: tuple[int, ...]
    version: int
    limit: int | None = None
    completions: tuple[Completion, ...] = ()
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SampledShare:
    """A sampler's answer: the groups, or the completions it went on with, and the seconds to load new weights."""

    groups: tuple[Group, ...]
    load_seconds: float
    completions: tuple[Completion, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Completions that a part of the reward is asked about, and what its context has."""

    completions: Sequence[Completion]
    flags: Sequence[tuple[str, ...]] | None
    step: int | None


Note = tuple[bool, str, float]
"""What a reward logged: whether it is a count, the name and the value."""


@dataclass(frozen=True, slots=True)
class ScoredShare:
    """A scorer's answer: what the reward says of each completion, and what it logged, in order."""

    outcomes: list[Any]
    notes: list[Note]


class NumberedProcess:
    """A process for one run. Every call has a number, and one that is older than the last is refused.

    A new process in place of one that ended has nothing: it loads what a call names and it does not have yet.
    """

    samples = False
    """Whether it draws with the recipe's engine."""

    def __init__(self, threads: int, environment: Mapping[str, str]) -> None:
        os.environ.update({**ENVIRONMENT, "OMP_NUM_THREADS": str(threads), **environment})
        self._threads = threads
        self._call = 0

    def process(self) -> int:
        """Return the process id."""
        return os.getpid()

    def _enter(self, call: int) -> None:
        if call < self._call:
            raise RuntimeError(f"call {call} came after call {self._call}, and is refused")
        self._call = call


class PolicyProcess(NumberedProcess):
    """A process with a policy."""

    def __init__(self, threads: int, environment: Mapping[str, str]) -> None:
        super().__init__(threads, environment)
        import burnish.generation.engine  # noqa: F401  (slow: while the driver loads its own)

        self._loaded: tuple[Policy, Sampler] | None = None

    def prepare(self, call: int, setup: Sequence[Any]) -> int:
        """Load the policy, whose setup is behind a reference in a list. Return the process id."""
        self._enter(call)
        self._policy(setup)
        return os.getpid()

    def _policy(self, setup: Sequence[Any]) -> tuple[Policy, Sampler]:
        if self._loaded is None:
            self._loaded = _load_policy(fetched(setup), self._threads, self.samples)
        return self._loaded


class SamplerProcess(PolicyProcess):
    """The work of a sampler."""

    samples = True
    _version: int | None = None
    """Of the weights that it has."""

    def sample(self, call: int, setup: Sequence[Any], weights: Sequence[Any], request: Request) -> SampledShare:
        """Sample a share with the weights of its version. References come in lists, so that Ray leaves them to us."""
        from burnish.backends.ray.weights import load_parts
        from burnish.protocols import CopiesWeights, SamplesInParts

        self._enter(call)
        policy, sampler = self._policy(setup)
        begin = time.perf_counter()
        if self._version != request.version:
            self._version = None
            blocks: Iterator[WeightBlock] = (fetched([reference]) for reference in weights)
            load_parts(blocks, policy.trainable())
            if isinstance(sampler, CopiesWeights):
                sampler.copy_weights()
            self._version = request.version
        seconds = time.perf_counter() - begin
        limit = {} if request.limit is None else {"limit": request.limit}
        if request.completions:
            assert isinstance(sampler, SamplesInParts)
            done = sampler.extend(
                request.completions, numbers=request.numbers, sampling=request.sampling, seed=request.seed, **limit
            )
            return SampledShare((), seconds, tuple(done))
        groups = sampler.sample(
            request.prompts, samples_per_prompt=request.samples_per_prompt, sampling=request.sampling,
            seed=request.seed, policy_version=request.version, **limit,
        )  # fmt: skip
        return SampledShare(tuple(groups), seconds)


class ScorerProcess(NumberedProcess):
    """The work of a scorer: what a reward says of a share of the completions."""

    def __init__(self, threads: int, environment: Mapping[str, str], number: int) -> None:
        super().__init__(threads, environment)
        self._number = number
        self._parts: dict[int, Part] = {}

    def score(
        self, call: int, setup: Sequence[Any], number: int, part: Sequence[Any], share: ScoreRequest
    ) -> ScoredShare:
        """Score a share by a part of this number; setup and part are behind references in lists."""
        self._enter(call)
        if number not in self._parts:
            self._settle_in(fetched(setup))
            self._parts[number] = fetched(part)
        from burnish.rewards.calling import printing_to
        from burnish.rewards.forms import Context

        notes: list[Note] = []
        context = Context(
            None, share.flags, share.step, lambda name, value: notes.append((False, name, value)),
            lambda name, value: notes.append((True, name, value)),
        )  # fmt: skip
        folder = Path(fetched(setup).folder)
        with printing_to(folder, f"rewards.scorer-{self._number}.log") if folder.is_dir() else nullcontext():
            return ScoredShare(self._parts[number].evaluate(share.completions, context), notes)

    def _settle_in(self, setup: PolicySetup) -> None:
        """Find modules and files as the driver does."""
        import torch

        torch.set_num_threads(self._threads)
        sys.path += [path for path in setup.paths if path not in sys.path]
        with suppress(OSError):  # another machine may not have it
            os.chdir(setup.paths[0])


def fetched(reference: Sequence[Any]) -> Any:
    """Return the value behind a reference in a list."""
    import ray

    return ray.get(reference[0])


def _load_policy(setup: PolicySetup, threads: int, samples: bool) -> tuple[Policy, Sampler]:
    """Load the policy as the driver did, and its sampler: the recipe's where the process samples."""
    import torch

    from burnish.backends.local import build_language_model, build_policy
    from burnish.backends.modules import build_module_policy
    from burnish.policies.chat_template import fixed_time
    from burnish.system.machine import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads)
    recipe = setup.recipe
    # Another environment has packages of its own, and must not find those that it lacks in the driver's.
    paths = [path for path in setup.paths if recipe.backend.python is None or Path(path).name not in PACKAGES]
    sys.path += [path for path in paths if path not in sys.path]
    fixed_time(setup.began).__enter__()  # for as long as the process lives
    if recipe.policy.use in ("lstm", "module"):
        return build_module_policy(recipe.policy, recipe.seed, texts=list, folder=Path(setup.folder))
    if samples and recipe.backend.engine == "vllm":
        from burnish.generation.vllm import VLLMSampler

        # vLLM has the device; the copy of the policy that its weights come from is in main memory.
        section = recipe.policy.model_copy(update={"device": "cpu"})
        model = build_language_model(section, recipe.seed, offline=setup.offline, chat=setup.chat)
        return model, VLLMSampler(model, gpus=recipe.backend.gpus)
    return build_policy(recipe.policy, recipe.seed, offline=setup.offline, chat=setup.chat)
