"""Shape checks of arguments: a wrong shape raises here, where broadcasting would silently compute something else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def check_rank(name: str, tensor: Tensor, layout: str, least: int) -> None:
    """Raise ValueError if a tensor has fewer than ``least`` dimensions; ``layout`` names its shape: "[..., P, G]"."""
    if tensor.dim() < least:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {layout}")


def check_shape(name: str, tensor: Tensor, expected: Sequence[int | None], layout: str) -> None:
    """Raise ValueError if a tensor does not have the expected shape, in which None stands for any size."""
    shape = tensor.shape
    if len(shape) != len(expected) or any(
        want is not None and size != want for size, want in zip(shape, expected, strict=True)
    ):
        sizes = ", ".join("any" if want is None else str(want) for want in expected)
        raise ValueError(f"{name} has shape {list(shape)}, expected {layout} = [{sizes}]")


def check_flat(**tensors: Tensor) -> None:
    """Raise ValueError unless all tensors are flat and of one length."""
    check_shape(*next(iter(tensors.items())), (None,), "a flat tensor")
    check_equal_shapes(**tensors)


def check_equal_shapes(**tensors: Tensor) -> None:
    """Raise ValueError unless all tensors have the shape of the first."""
    first, *others = tensors.items()
    for name, tensor in others:
        check_shape(name, tensor, first[1].shape, f"the shape of {first[0]}")


def check_baseline(baseline: float | Tensor, rewards: Tensor) -> None:
    """Raise ValueError unless the baseline is one number or [P, 1] for rewards [..., P, G]."""
    if not isinstance(baseline, int | float) and baseline.dim() > 0:
        check_shape("baseline", baseline, (rewards.shape[-2], 1), "[P, 1]")
