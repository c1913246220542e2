"""Mixed precision: trained weights and their gradients in float32, products in bfloat16.

A bfloat16 number has 8 significant bits, so most updates of a small learning rate would round to no change at all. As in
arXiv 1710.03740 the weights stay in float32; each forward pass rounds them (``torch.autocast``), and norms, softmax and
the sums of the residual stream stay in float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from burnish.policies.kernels.products import has_onednn_linear

ATTRIBUTE = "burnish_compute_dtype"
"""Attribute of a model with mixed precision; copies of the model have it, too."""


def enable_mixed_precision(model: Any, dtype: torch.dtype) -> None:
    """Compute products in ``dtype`` from now on; trained weights of ``dtype`` become float32."""
    setattr(_inner(model), ATTRIBUTE, dtype)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == dtype:
            parameter.data = parameter.data.float()


def compute_dtype(model: Any) -> torch.dtype | None:
    """Return the type of a model's products with mixed precision, else None."""
    return getattr(_inner(model), ATTRIBUTE, None)


def compute_precision(model: Any) -> AbstractContextManager[Any]:
    """Return the context of a model's forward pass."""
    dtype = compute_dtype(model)
    return nullcontext() if dtype is None else torch.autocast(model.device.type, dtype)


def sampling_dtype(model: Any) -> torch.dtype:
    """Return the type of products while sampling.

    On the CPU float32 takes the place of bfloat16 where the processor has no such products, and with an adapter: rounding
    the weight that it is merged into would lose a small adapter altogether.
    """
    dtype: torch.dtype = compute_dtype(model) or model.dtype
    on_cpu = dtype == torch.bfloat16 and model.device.type == "cpu"
    return torch.float32 if on_cpu and (_has_adapter(model) or not has_onednn_linear(dtype)) else dtype


def sampling_precision(model: Any) -> AbstractContextManager[Any]:
    """Return the context of a forward pass that samples by the model itself."""
    exact = sampling_dtype(model) == model.dtype == torch.float32
    return nullcontext() if exact else compute_precision(model)


def to_compute_dtype(model: Any, tensor: Tensor) -> Tensor:
    """Return a tensor in the type of the model's products; differentiable."""
    dtype = compute_dtype(model)
    return tensor if dtype is None else tensor.to(dtype)


def _has_adapter(model: Any) -> bool:
    return hasattr(model, "peft_config")


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
