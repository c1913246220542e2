"""The process of a learner that is not the driver.

As in ``worker``, nothing that loads torch is imported before the process has its environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from burnish.backends.ray.worker import PolicyProcess, fetched

if TYPE_CHECKING:
    from burnish.backends.ray.group import LearnerGroup, Meeting
    from burnish.backends.ray.sharding import Shard
    from burnish.recipe.schema import Recipe
    from burnish.training.policy_loss import MicrobatchLoss
    from burnish.types import Microbatch


class LearnerProcess(PolicyProcess):
    """The work of a learner that is not the driver: the gradients of its share of each update.

    It has a whole policy (``add_gradients``), or a part of it and of the optimizer (``split`` and ``work``).
    """

    _group: LearnerGroup | None = None
    _shard: Shard | None = None
    _was_split = False

    def prepare(self, call: int, setup: Sequence[Any]) -> int:
        """Load the policy, anew if it was split for an earlier group. Return the process id."""
        if self._was_split:
            self._loaded = self._shard = None
            self._was_split = False
        return super().prepare(call, setup)

    def join(self, call: int, meeting: Meeting, rank: int) -> bool:
        """Join a group in place of an earlier one, with the policy loaded. Return whether the group is complete."""
        import ray

        from burnish.backends.ray.cluster import own_address
        from burnish.backends.ray.group import GroupBroken, LearnerGroup

        self._enter(call)
        assert self._loaded is not None
        cuda = any(one.is_cuda for one in self._loaded[0].trainable().values())
        self._leave()
        try:
            self._group = LearnerGroup(rank, meeting, own_address(ray), cuda=cuda)
        except GroupBroken:
            return False
        return True

    def add_gradients(
        self, call: int, setup: Sequence[Any], batches: Sequence[Microbatch], kl_coefficient: float
    ) -> list[MicrobatchLoss] | None:
        """Take the driver's weights, give it the gradient of these microbatches, and return their losses.

        Return None if another member of the group is gone. On an error the group is left, so that nobody waits.
        """
        from burnish.backends.ray.group import GroupBroken
        from burnish.recipe.algorithm import resolve_preset
        from burnish.training.kl_reference import KLTerm
        from burnish.training.policy_loss import PolicyLoss
        from burnish.training.step import add_gradients

        self._enter(call)
        policy, _ = self._policy(setup)
        if self._group is None:
            return None
        recipe: Recipe = fetched(setup).recipe
        kl = KLTerm(recipe.algorithm.kl, policy)
        kl.coefficient = kl_coefficient
        loss = PolicyLoss(resolve_preset(recipe.algorithm), recipe.algorithm, kl)
        parameters = list(policy.trainable().values())
        try:
            self._group.share_weights(parameters)
            losses = list(add_gradients(policy, loss, recipe.sampling.params, batches))
            self._group.add_up(parameters)
            return losses
        except GroupBroken:
            self._leave()
            return None
        except BaseException:
            self._leave()
            raise
        finally:
            for one in parameters:
                one.grad = None

    def split(self, call: int, setup: Sequence[Any]) -> bool:
        """Take the driver's weights, and keep this learner's part. Return whether no other is gone."""
        from typing import cast

        from burnish.backends.ray.sharding import Shard
        from burnish.policies.causal_lm import CausalPolicy

        self._enter(call)
        if self._group is None:
            return False
        self._was_split = True
        policy = cast(CausalPolicy, self._policy(setup)[0])
        self._loaded = None  # with its sampler
        try:
            self._group.share_weights(list(policy.trainable().values()))
            self._shard = Shard(policy, fetched(setup).recipe, self._group.size)
        except RuntimeError:
            self._leave()
            return False
        return True

    def work(self, call: int, name: str, arguments: Sequence[Any]) -> tuple[Any] | str:
        """Return a tuple of what a method of the part returns, or why another learner could not be reached.

        On an error the group is left, so that nobody waits.
        """
        import torch

        from burnish.errors import one_line

        self._enter(call)
        if self._group is None or self._shard is None:
            return "it has no part of the weights"
        try:
            return (getattr(self._shard, name)(*arguments),)
        except torch.OutOfMemoryError:
            self._leave()
            raise
        except RuntimeError as error:  # gloo's errors have no class of their own
            self._leave()
            return one_line(error)
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        self._shard = None
        if self._group is not None:
            self._group.leave()
        self._group = None
