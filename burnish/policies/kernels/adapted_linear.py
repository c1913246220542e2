"""A linear layer and its LoRA adapter (arXiv 2106.09685) as one differentiable operation.

Problem: an adapter of small rank costs few multiplications, but as operations of its own it reads and writes tensors of
the layer's whole output six times, and its part is computed twice where the sampler has stored the output of the merged
weight.

Idea: the output is the stored one, or the layer's with the adapter's part added in place; the backward pass needs only
the projection to the rank besides the layer's input.

T tokens, rank r.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from burnish.policies.kernels.forward_cache import Lookup
from burnish.policies.kernels.linear import current_packed, inputs_grad, multiply
from burnish.policies.kernels.recompute import get_recomputation, identity


def adapted_forward(module: Any, lookup: Lookup | None) -> Callable[[Tensor], Tensor] | None:
    """Return the forward pass of a layer of peft as one operation, or None for another module.

    It is a LoRA layer on the CPU in float32 with one active adapter that adds its product and does nothing more.
    """
    if not type(module).__module__.startswith("peft.tuners.lora."):
        return None
    from peft.tuners.lora import Linear

    if type(module) is not Linear or module.disable_adapters or module.merged or len(module.active_adapters) != 1:
        return None
    (name,), base = module.active_adapters, module.get_base_layer()
    plain = name in module.lora_A and not module.lora_bias.get(name) and name not in module.lora_variant
    if not plain or type(base) is not nn.Linear or module.fan_in_fan_out or base.weight.requires_grad:
        return None
    inward, outward = module.lora_A[name], module.lora_B[name]
    if not isinstance(module.lora_dropout[name], nn.Identity) or (base.bias is not None and base.bias.requires_grad):
        return None
    if any(
        one.dtype != torch.float32 or one.device.type != "cpu" for one in (base.weight, inward.weight, outward.weight)
    ):
        return None
    return partial(_adapted, base, inward, outward, float(module.scaling[name]), lookup)


def _adapted(base: nn.Linear, inward: Any, outward: Any, scale: float, lookup: Lookup | None, rows: Tensor) -> Tensor:
    # The weights are looked up when they are used: of a model that is split (FSDP), they are gathered just before.
    output = None if lookup is None or rows.dim() < 2 else lookup(base.weight, None)
    adapted: Tensor = _AdaptedLinear.apply(  # type: ignore[no-untyped-call]
        rows, base.weight, base.bias, inward.weight, outward.weight, scale, output
    )
    return adapted


class _AdaptedLinear(torch.autograd.Function):
    """y = x W^T + b + s (x A^T) B^T for a frozen weight W [out, in], A [r, in], B [out, r] and a scale s."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, inward: Tensor, outward: Tensor, scale: float,
        output: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Return y [..., out] for rows [..., in]; ``output`` is y, flattened to [T, out], if it is known already."""
        ctx.recompute, parts = get_recomputation(rows) or (identity, (rows,))
        flat = rows.flatten(0, -2)
        inner = torch.mm(flat, inward.t())
        ctx.save_for_backward(weight, inward, outward, inner, *parts)
        ctx.shape, ctx.scale, ctx.packed = rows.shape, scale, current_packed()
        if output is None:
            output = multiply(flat, weight, bias, packed=ctx.packed).addmm_(inner, outward.t(), alpha=scale)
        shaped: Tensor = torch.ops.aten._unsafe_view(output, (*rows.shape[:-1], weight.shape[0]))
        return shaped

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, Tensor | None, None, None]:
        weight, inward, outward, inner, *parts = ctx.saved_tensors
        flat = grad.flatten(0, -2).contiguous()
        inner_grad = torch.mm(flat, outward).mul_(ctx.scale)
        rows_grad = inward_grad = outward_grad = None
        if ctx.needs_input_grad[0]:
            rows_grad = inputs_grad(flat, weight, packed=ctx.packed).addmm_(inner_grad, inward).view(ctx.shape)
        if ctx.needs_input_grad[3]:
            inward_grad = torch.mm(inner_grad.t(), ctx.recompute(*parts).flatten(0, -2))
        if ctx.needs_input_grad[4]:
            outward_grad = torch.mm(flat.t(), inner).mul_(ctx.scale)
        return rows_grad, None, None, inward_grad, outward_grad, None, None
