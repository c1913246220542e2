"""The driver's side of a policy that is split among learners: each call is made by all learners at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from burnish.backends.ray.actors import Work
from burnish.backends.ray.group import GroupBroken
from burnish.backends.ray.learners import LearnerProcesses
from burnish.backends.ray.sampler import bare_prompt, split_evenly
from burnish.backends.ray.sharding import Shard
from burnish.backends.ray.shares import bare_batch, deal
from burnish.errors import BurnishError, InputError, StateLost, one_line
from burnish.policies.causal_lm import CausalPolicy
from burnish.run.checkpoint import load_exact_weights
from burnish.run.folder import Checkpoint
from burnish.run.shards import SHARDS
from burnish.training.learner import Learner
from burnish.training.policy_loss import MicrobatchLoss
from burnish.types import Completion, Microbatch, SamplingParams, TokenStats

T = TypeVar("T")


class ShardedLearners:
    """A policy and its optimizer in parts: what a step, a sampler and a checkpoint ask of them is asked of all learners.

    Every call is one of ``Shard``, made here and in the other learners' processes. A learner that is lost takes a part
    of the weights and moments with it, so all parts are given up, and StateLost says that a checkpoint has to be loaded.

    Args:
        load: loads the policy as it was before training.
        restarts: how often in a row one step may end by a loss.
    """

    def __init__(self, processes: LearnerProcesses, load: Callable[[], CausalPolicy], restarts: int) -> None:
        self._processes, self._load, self._restarts = processes, load, restarts
        self._losses: list[int] = []
        """The steps that ended by a loss."""
        self._shard: Shard | None = None
        self._was_split = False

    def attach(self, learner: Learner, setup: Any) -> None:
        """Split a learner's policy and optimizer among all learners; the policy's setup is behind a reference."""
        if learner.critics:
            raise InputError("backend.shard: a critic is not split among learners yet; use an algorithm without one")
        self._learner, self._setup = learner, setup
        self._policy = cast(CausalPolicy, learner.policy)
        self._policy.share_forward(self._evaluate)
        self._processes.start(setup)
        self._split(None)
        learner.optimizer = SplitOptimizer(self)
        learner.split = learner.add_gradients = self

    @property
    def shard(self) -> Shard:
        """The driver's part. Raises StateLost where it was given up."""
        if self._shard is None:
            raise StateLost("a learner was lost, and its part of the weights with it")
        return self._shard

    def __call__(self, batches: Sequence[Microbatch]) -> list[MicrobatchLoss]:
        """Compute the gradient of an update's microbatches; return the losses in their order."""
        dealt = deal(batches, self._processes.size)
        coefficient = self._learner.kl.coefficient
        answers = self.together(
            f"compute the gradients of {len(dealt[0])} microbatches", "add_gradients",
            [([bare_batch(batch) for _, batch in part], coefficient) for part in dealt],
        )  # fmt: skip
        pairs = (pair for part, losses in zip(dealt, answers, strict=True) for pair in zip(part, losses, strict=True))
        found = {index: loss for (index, _), loss in pairs}
        return [found[index] for index in range(len(batches))]

    def clip_gradient(self, limit: float | None) -> float:
        """Clip the gradient to a norm and return its norm before."""
        return float(self.together("clip the gradient", "clip_gradient", [(limit,)] * self._processes.size)[0])

    def update(self, rate: float) -> None:
        """Make an optimizer step with this learning rate."""
        self.together("update the weights", "update", [(rate,)] * self._processes.size)

    def gather(self, use: Callable[[Mapping[str, Tensor]], T]) -> list[T]:
        """Return what ``use`` makes of the whole trainable weights, which it gets in parts, name -> tensor."""
        return cast(
            "list[T]",
            self.together(
                "send weights", "gather", [()] * self._processes.size,
                own=lambda shard: [use(part) for part in shard.gathered()],
            )[0],
        )  # fmt: skip

    def broken_weight(self) -> str | None:
        """Return the name of a weight that is not finite, if there is one."""
        answers = self.together("check the weights", "broken_weight", [()] * self._processes.size)
        return next((name for name in answers if name is not None), None)

    def held(self) -> list[tuple[int, int]]:
        """Return how many numbers each learner has of the weights, and of the moments."""
        return self.together("count its weights", "held", [()] * self._processes.size)

    def written(self, folder: Path) -> Iterator[None]:
        """Write all parts to ``shards/``, and the whole model to ``model/``; yield between."""
        shards = (folder / SHARDS).absolute()
        shards.mkdir()
        self.together("save its part of the checkpoint", "save", [(str(shards),)] * self._processes.size)
        yield
        weights: dict[str, Tensor] = {}
        self.gather(weights.update)
        self._policy.save(folder / "model", weights)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint, of any number of learners, or of a run whose policy was not split."""
        folder = checkpoint.folder.absolute()
        split = (folder / SHARDS).is_dir()
        if self._shard is None or not split:
            self._split(None if split else folder)
        source = str(folder / SHARDS if split else folder)
        self.together("load its part of the checkpoint", "load", [(source,)] * self._processes.size)

    def together(
        self, what: str, name: str, arguments: Sequence[tuple[Any, ...]], *, own: Callable[[Shard], Any] | None = None
    ) -> list[Any]:
        """Let every learner call a method of its part, with its own arguments; return the answers.

        ``own`` is what the driver does instead. Raises StateLost if a learner is lost, and what a call raised.
        """
        shard, processes = self.shard, self._processes

        def ask(rank: int) -> Future[Any]:
            return processes.begin(
                rank, what, lambda handle, call: handle.work.remote(call, name, arguments[rank]),
                self._learner.step + 1,
            )  # fmt: skip

        with self._learner.interrupts.holding():  # the others would wait
            calls = [ask(rank) for rank in range(1, processes.size)]
            try:
                mine = getattr(shard, name)(*arguments[0]) if own is None else own(shard)
            except BaseException as error:
                self._give_up()  # so that the others do not wait
                answers = processes.answers(calls)
                if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
                    raise self._lost(answers, one_line(error)) from error
                raise
            answers = processes.answers(calls)
            if not all(isinstance(answer, tuple) for answer in answers):
                raise self._lost(answers, "")
            return [mine, *(answer for (answer,) in answers)]

    def _lost(self, answers: Sequence[Any], reason: str) -> BurnishError:
        """Give up all parts; return the error that says why, which ends the run if it recurs."""
        self._give_up()
        said = self._processes.pop_events()
        broken = [reason, *(answer for answer in answers if isinstance(answer, str))]
        text = "; ".join(said) or f"the learners lost one another: {next(filter(None, broken), '')[:300]}"
        self._losses.append(self._learner.step)
        count = self._losses.count(self._learner.step)
        if count > self._restarts:
            return BurnishError(f"{text}; {count} times in this step (backend.restarts = {self._restarts})")
        return StateLost(text)

    def _give_up(self) -> None:
        self._shard = None
        self._processes.leave()

    def _split(self, weights: Path | None) -> None:
        """Form the group anew and let each learner keep its part of the weights.

        They are those of a checkpoint's folder, or those that the policy is loaded with. Raises StateLost if a learner
        is lost meanwhile.
        """
        processes, policy, step = self._processes, self._policy, self._learner.step + 1
        if self._was_split:
            self._give_up()
            policy.replace_model(self._load().model)
        if weights is not None:
            load_exact_weights(policy, weights)
        self._was_split = True
        try:
            processes.form(step, cuda=policy.device.type == "cuda")
            assert processes.group is not None
            work: Work = lambda handle, call: handle.split.remote(call, [self._setup])  # noqa: E731
            calls = [
                processes.begin(rank, "keep its part of the weights", work, step) for rank in range(1, processes.size)
            ]
            processes.group.share_weights(list(policy.trainable().values()))
            self._shard = Shard(policy, self._learner.recipe, processes.size)
        except (GroupBroken, RuntimeError) as error:
            raise self._lost([], one_line(error)) from error
        except BaseException:
            self._give_up()
            raise
        if not all(processes.answers(calls)):
            raise self._lost([], "a learner could not take part")

    def _evaluate(self, completions: Sequence[Completion], sampling: SamplingParams, adapter: bool) -> TokenStats:
        """Return the statistics of completions, of which each learner computes a share."""
        bare = [replace(one, prompt=bare_prompt(one.prompt)) for one in completions]
        shares = split_evenly(bare, self._processes.size)
        full = [*shares, *[bare[:1]] * (self._processes.size - len(shares))]
        answers = self.together(
            f"compute the log-probabilities of {len(bare)} completions", "evaluate",
            [(list(share), sampling, adapter) for share in full],
        )  # fmt: skip
        parts = cast("list[TokenStats]", answers[: len(shares)])
        masses = [part.log_mass for part in parts if part.log_mass is not None]
        return TokenStats(
            torch.cat([part.logprobs for part in parts]), torch.cat([part.entropy for part in parts]),
            torch.cat(masses) if masses else None,
        )  # fmt: skip


class SplitOptimizer:
    """The optimizer of all learners: the driver's part, whose steps the others make with it."""

    def __init__(self, learners: ShardedLearners) -> None:
        self._learners = learners

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._learners.shard.optimizer.param_groups

    @property
    def state(self) -> Any:
        return self._learners.shard.optimizer.state

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the driver's gradient; the others forget theirs before they compute another."""
        self._learners.shard.optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        self._learners.update(self.param_groups[0]["lr"])
