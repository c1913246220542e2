"""The driver's side of a cluster's learners: an update's microbatches shared out, and the gradient added up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from torch import nn

from burnish.backends.ray.group import GroupBroken
from burnish.backends.ray.learners import LearnerProcesses
from burnish.backends.ray.shares import bare_batch, share_out
from burnish.errors import BurnishError
from burnish.training.learner import Learner
from burnish.training.policy_loss import MicrobatchLoss
from burnish.training.step import add_gradients
from burnish.types import Microbatch


class SharedGradients:
    """Adds the gradients of an update's microbatches, each computed by one of several learners, the driver among them.

    The others have weights and nothing else of the run: before an update they take the driver's, and what they computed
    is added to the driver's gradient. So one that is lost costs the work of an update, which all begin again.

    Args:
        restarts: how often in a row the learners may lose one another.
    """

    def __init__(self, processes: LearnerProcesses, restarts: int) -> None:
        self._processes, self._restarts = processes, restarts
        self._seconds = 0.0

    def attach(self, learner: Learner, setup: Any) -> None:
        """Let every learner load its policy, whose setup is behind a reference, and work for this one."""
        self._learner, self._setup = learner, setup
        self._processes.start(setup)
        learner.add_gradients = self

    def __call__(self, batches: Sequence[Microbatch]) -> list[MicrobatchLoss]:
        """Add the gradients to the policy's parameters; return the losses in the microbatches' order.

        Raises BurnishError if the learners lose one another more than ``restarts`` times in a row.
        """
        failures = 0
        while True:
            try:
                if self._processes.group is None:
                    cuda = any(one.is_cuda for one in self._learner.policy.trainable().values())
                    self._processes.form(self._learner.step + 1, cuda=cuda)
                return self._attempt(batches)
            except GroupBroken as error:
                self._processes.leave()
                failures += 1
                if failures > self._restarts:
                    raise BurnishError(
                        f"the learners lost one another {failures} times in a row (backend.restarts = "
                        f"{self._restarts}): {error}"
                    ) from error
            except BaseException:  # nobody shall wait for this process
                self._processes.leave()
                raise
            finally:
                self._processes.report_events()
            self._learner.optimizer.zero_grad(set_to_none=True)

    def pop_metrics(self) -> Mapping[str, float]:
        """Return the seconds since the last call in which the driver exchanged weights and gradients, or waited."""
        seconds, self._seconds = self._seconds, 0.0
        return {"time/exchange": seconds}

    def _attempt(self, batches: Sequence[Microbatch]) -> list[MicrobatchLoss]:
        """Share the microbatches out and add up. Raises GroupBroken; the gradients are then of no use."""
        processes, group = self._processes, self._processes.group
        assert group is not None
        learner, shares = self._learner, share_out(batches, processes.size)
        parameters = list(learner.policy.trainable().values())
        coefficient = learner.kl.coefficient

        def ask(rank: int, share: Sequence[int]) -> Future[Any]:
            bare = [bare_batch(batches[index]) for index in share]
            return processes.begin(
                rank, f"compute the gradients of {len(bare)} microbatches",
                lambda handle, call: handle.add_gradients.remote(call, [self._setup], bare, coefficient),
                learner.step + 1,
            )  # fmt: skip

        calls = [ask(rank, share) for rank, share in enumerate(shares[1:], 1)]
        try:
            self._timed(group.share_weights, parameters)
            own = [batches[index] for index in shares[0]]
            losses = [list(add_gradients(learner.policy, learner.policy_loss, learner.recipe.sampling.params, own))]
            self._timed(group.add_up, parameters)
        except BaseException:
            processes.leave()  # so that the others do not wait
            processes.answers(calls)
            raise
        losses += processes.answers(calls)
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
