"""Recomputation in the backward pass, instead of storing results: of elementwise results, or of whole layers.

Elementwise. Problem: between its linear layers, a language model multiplies tensors elementwise (an activated gate with
the up projection, a normalised state with the norm's weight). Autograd stores both factors and, for the linear layer
behind, their product as well; also the activation next to its input. Idea: attach to each elementwise result the
function and the inputs that it was computed from. Consumers then save the inputs, which are stored anyway, and
recompute the result by the same operations, so to the same bits. In a Llama this halves the memory per token.

Layers. Gradient checkpointing (arXiv 1604.06174): layers store their input only and run again in the backward pass.
Training takes about a third longer and needs a fraction of the activation memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from burnish.errors import InputError
from burnish.policies.kernels.attention import current_attention

Recomputation = tuple[Callable[..., Tensor], tuple[Tensor, ...]]
"""A function, and the tensors that it computes a result from."""

_MULTIPLICATIONS = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__}
_ACTIVATIONS = {torch.nn.functional.silu, torch.nn.functional.gelu, torch.nn.functional.relu}
CACHED_ELEMENTS = 3 << 15
"""Elements of a tensor in a block, 384 KB in float32."""
_ATTRIBUTE = "_burnish_again"
"""Attribute of a result tensor that holds its recomputation."""
MAX_FACTORS = 4
"""Longer chains of factors are stored: recomputing them for each factor would cost too much."""


def get_recomputation(result: Tensor) -> Recomputation | None:
    """Return how a result of ``apply_elementwise`` is recomputed; None if it or an input was modified in place."""
    function: Callable[..., Tensor]
    function, inputs, versions = getattr(result, _ATTRIBUTE, (identity, (), None))
    return (function, inputs) if versions == [one._version for one in (result, *inputs)] else None


def apply_elementwise(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Call ``func`` and, if a gradient is needed and the operation is supported, attach the result's recomputation.

    Supported are multiplications of two tensors, and SiLU, GELU and ReLU.
    """
    if not torch.is_grad_enabled():
        return func(*args, **options)
    if func in _ACTIVATIONS and len(args) == 1 and not options.get("inplace"):
        result = func(*args, **options)
        attach_recomputation(result, partial(func, **options), args)
        return result
    if func in _MULTIPLICATIONS and len(args) == 2 and not options and all(isinstance(one, Tensor) for one in args):
        factors = [get_recomputation(one) or (identity, (one,)) for one in args]
        (first, left), (second, right) = factors
        gate, activated, up = (left, args[0], args[1]) if second is identity else (right, args[1], args[0])
        if identity in (first, second) and _is_gate(first if second is identity else second, gate[0], up):
            result = _Gated.apply(gate[0], up, activated.detach())  # type: ignore[no-untyped-call]
            attach_recomputation(result, _gated, (gate[0], up))
        elif len(left) + len(right) > MAX_FACTORS or first is second is identity:
            result = func(*args)
            attach_recomputation(result, torch.mul, args)
        else:
            result = _Multiply.apply(*args, factors)  # type: ignore[no-untyped-call]
            attach_recomputation(result, partial(_multiply, first, second, len(left)), (*left, *right))
        return result
    return func(*args, **options)


def attach_recomputation(result: Tensor, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Let the consumers of a result recompute it from its inputs instead of storing it."""
    if result.requires_grad:
        setattr(result, _ATTRIBUTE, (function, tuple(inputs), [one._version for one in (result, *inputs)]))


def identity(one: Tensor) -> Tensor:
    return one


def _multiply(first: Callable[..., Tensor], second: Callable[..., Tensor], count: int, *inputs: Tensor) -> Tensor:
    """Return the first function of the first ``count`` factors times the second function of the others."""
    return first(*inputs[:count]) * second(*inputs[count:])


def _is_gate(function: Callable[..., Tensor], gate: Tensor, up: Tensor) -> bool:
    """Return whether ``function`` is SiLU, and its input a gate [..., T, d] of ``up``."""
    is_silu = isinstance(function, partial) and function.func is torch.nn.functional.silu
    return is_silu and gate.dim() > 1 and gate.numel() > 0 and (gate.shape, gate.dtype) == (up.shape, up.dtype)


def _blocks(tensor: Tensor) -> list[slice]:
    """Return rows of a tensor [T, d] that stay in the processor's cache through several passes."""
    rows = max(1, CACHED_ELEMENTS // tensor.shape[-1])
    return [slice(start, start + rows) for start in range(0, len(tensor), rows)]


@torch.no_grad()
def _gated(gate: Tensor, up: Tensor) -> Tensor:
    """Return SiLU(gate) * up."""
    gates, ups = gate.flatten(0, -2), up.flatten(0, -2)
    result = torch.empty_like(gates)
    for rows in _blocks(gates):
        torch.mul(torch.nn.functional.silu(gates[rows]), ups[rows], out=result[rows])
    return result.view(gate.shape)


class _Gated(torch.autograd.Function):
    """SiLU(gate) * up, which saves gate and up; ``activated`` is SiLU(gate)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activated: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return activated * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        gate, up = (one.flatten(0, -2) for one in ctx.saved_tensors)
        grads, shape = grad.flatten(0, -2), grad.shape
        gate_grad, up_grad = (torch.empty_like(grads) if need else None for need in ctx.needs_input_grad[:2])
        for rows in _blocks(grads):
            if up_grad is not None:
                torch.mul(grads[rows], torch.nn.functional.silu(gate[rows]), out=up_grad[rows])
            if gate_grad is not None:
                passed = grads[rows] * up[rows]
                torch.ops.aten.silu_backward.grad_input(passed, gate[rows], grad_input=gate_grad[rows])
        gate_grad, up_grad = (None if one is None else one.view(shape) for one in (gate_grad, up_grad))
        return gate_grad, up_grad, None


class _Multiply(torch.autograd.Function):
    """Elementwise product that saves the inputs of its factors instead of the factors."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor, factors: Sequence[Recomputation]) -> Tensor:
        (ctx.first, left), (ctx.second, right) = factors
        ctx.count, ctx.shapes = len(left), (one.shape, other.shape)
        ctx.save_for_backward(*left, *right)
        return one * other

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        inputs = ctx.saved_tensors
        one_grad = other_grad = None
        if ctx.needs_input_grad[0]:
            one_grad = (grad * ctx.second(*inputs[ctx.count :])).sum_to_size(ctx.shapes[0])
        if ctx.needs_input_grad[1]:
            other_grad = (grad * ctx.first(*inputs[: ctx.count])).sum_to_size(ctx.shapes[1])
        return one_grad, other_grad, None


def enable_gradient_checkpointing(model: Any) -> None:
    """Turn on gradient checkpointing for the layers of a model. Raises InputError if they do not support it."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(
            f"policy.gradient_checkpointing: {model.config.model_type} models do not support it; set it to false"
        )
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = _checkpointed  # type: ignore[assignment]
        # This flag of the layer itself enables checkpointing; its submodules keep theirs, so dropout stays off.
        layer.training = True


def _checkpointed(function: Callable[..., Any], *args: Any) -> Any:
    # The backward pass runs after use_attention() has ended.
    restore_attention = current_attention()

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), restore_attention()

    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)
