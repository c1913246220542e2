"""One learner's part of a policy that torch's ``fully_shard`` (FSDP2) has split among all learners.

Weights, gradients and AdamW's moments are split by rows. Each decoder layer is gathered for the time of its own forward
and backward pass; embedding, last norm and head, which may share weights, are gathered together. Every learner makes the
same calls in the same order, with microbatches of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from burnish.errors import BurnishError
from burnish.policies.causal_lm import CausalPolicy
from burnish.policies.kernels.packing import get_backbone
from burnish.recipe.algorithm import resolve_preset
from burnish.recipe.schema import Recipe
from burnish.run.shards import read_shards, write_shards
from burnish.training.kl_reference import KLTerm
from burnish.training.optimizer import build_optimizer, clip_gradient, set_learning_rate
from burnish.training.policy_loss import MicrobatchLoss, PolicyLoss
from burnish.training.step import add_gradients
from burnish.types import Completion, Microbatch, SamplingParams, TokenStats

PART_BYTES = 128 << 20
"""Gathered weights are passed on in parts of about so many bytes."""


class Shard:
    """What one learner has of the policy and of the optimizer, and its work on them.

    Args:
        policy: with the weights of all learners, of which this one keeps its rows.
    """

    def __init__(self, policy: CausalPolicy, recipe: Recipe, size: int) -> None:
        self.policy, self.recipe = policy, recipe
        policy.frozen_base = None  # whose weights would stay in memory
        _ = policy.max_microbatch_tokens  # measured by a forward pass of the whole model
        self._root = _split(policy.model, size)
        self.optimizer = build_optimizer(policy, recipe.optimizer)
        self._kl = KLTerm(recipe.algorithm.kl, policy)
        self._loss = PolicyLoss(resolve_preset(recipe.algorithm), recipe.algorithm, self._kl)

    def add_gradients(self, batches: Sequence[Microbatch], kl_coefficient: float) -> list[MicrobatchLoss]:
        """Compute the gradient of all learners' microbatches, of which each gives as many; return the losses of these."""
        self.optimizer.zero_grad()
        self._kl.coefficient = kl_coefficient
        return list(add_gradients(self, self._loss, self.recipe.sampling.params, batches))

    def clip_gradient(self, limit: float | None) -> float:
        """Clip the whole gradient to a norm and return its norm before."""
        return clip_gradient(self.policy.trainable().values(), limit)

    def update(self, rate: float) -> None:
        """Make an optimizer step with this learning rate."""
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def logprobs(
        self, completions: Sequence[Completion], sampling: SamplingParams, *, entropy_gradient: bool = False
    ) -> TokenStats:
        """Return log-probabilities with gradient and entropies, [T] each; each learner has as many calls."""
        return TokenStats(*self._root(lambda: self.policy.own_stats(completions, sampling, entropy_gradient)))

    @torch.no_grad()
    def evaluate(self, completions: Sequence[Completion], sampling: SamplingParams, adapter: bool) -> TokenStats:
        """Return the same without gradient, with the policy's adapter on or off."""
        with nullcontext() if adapter else self.policy.model.disable_adapter():
            return self.logprobs(completions, sampling)

    def gathered(self) -> Iterator[dict[str, Tensor]]:
        """Yield the whole trainable parameters in parts, name -> tensor on the CPU. Raises no error on the way."""
        part: dict[str, Tensor] = {}
        for name, parameter in self.policy.trainable().items():
            part[name] = whole(parameter).cpu()
            if sum(one.nbytes for one in part.values()) >= PART_BYTES:
                yield part
                part = {}
        if part:
            yield part

    def save(self, folder: str) -> None:
        """Write this learner's part of a checkpoint. Raises BurnishError if it does not see the folder."""
        if not Path(folder).is_dir():
            raise BurnishError(
                f"{folder}: a learner on another machine does not see this folder: put the run on a file system that all "
                "machines share (--run-dir)"
            )
        write_shards(Path(folder), self.optimizer, self.policy.trainable())

    def load(self, folder: str) -> None:
        """Read this learner's part of a checkpoint that any number of learners wrote."""
        self.optimizer.state.clear()
        read_shards(Path(folder), self.optimizer, self.policy.trainable(), alone=False)

    def gather(self) -> None:
        """Take part in another learner's ``gathered``."""
        for _ in self.gathered():
            pass

    def broken_weight(self) -> str | None:
        """Return the name of the first weight that is not finite in this learner's part."""
        for name, parameter in self.policy.trainable().items():
            if not bool(local_part(parameter).isfinite().all()):
                return name
        return None

    def held(self) -> tuple[int, int]:
        """Return how many numbers this learner has of the weights, and of the moments."""
        moments = [one for state in self.optimizer.state.values() for key, one in state.items() if key != "step"]
        weights = self.policy.model.parameters()
        return tuple(sum(local_part(one).numel() for one in some) for some in (weights, moments))  # type: ignore[return-value]


class _Root(nn.Module):
    """A model as FSDP's outermost module: its own weights are gathered while ``compute`` uses them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], TokenStats]) -> tuple[Tensor, Tensor, Tensor | None]:
        stats = compute()
        return stats.logprobs, stats.entropy, stats.log_mass


def _split(model: Any, size: int) -> nn.Module:
    """Split a model's parameters among the learners of this process's group; return what runs it.

    Raises BurnishError if weights that modules share have come apart.
    """
    before = sum(1 for _ in model.parameters())
    mesh = init_device_mesh(model.device.type, (size,))
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    root = _Root(model)
    fully_shard(root, mesh=mesh, reshard_after_forward=True)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # a loss has weights of its own, which count all learners' tokens
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
    if (after := sum(1 for _ in model.parameters())) != before:
        raise BurnishError(
            f"backend.shard: {type(model).__name__} had {before} parameters and has {after} once it is split, so some "
            "that its modules share have come apart: set backend.shard = false"
        )
    return root


def decoder_layers(model: Any) -> list[nn.Module]:
    """Return the decoder layers of a language model: the list of modules with most parameters."""
    lists = [one for one in get_backbone(model).modules() if isinstance(one, nn.ModuleList)]
    return list(max(lists, key=lambda one: sum(each.numel() for each in one.parameters()), default=()))


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the rows of all learners, which all have to ask for it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: Tensor) -> Tensor:
    """Return the rows of a tensor that this learner has."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
