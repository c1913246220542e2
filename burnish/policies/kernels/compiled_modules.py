"""Norms, gates, rotations and adapters of a training pass, forward and backward, by fewer passes over memory.

Problem: next to its products, a layer of a Llama reads and writes each state some forty times, in the backward pass
most of all.

Idea: one compiled loop (``loops``) for each norm, gate and rotation, and another for its gradients; one operation for a
layer with its adapter (``adapted_linear``). For the time of a pass, the modules of
known classes get a forward pass of their own; models are not changed. As in ``recompute``, the linear layer behind a
norm or gate saves what its input is computed from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from burnish.policies.kernels.adapted_linear import adapted_forward
from burnish.policies.kernels.attention import IMPLEMENTATION, dispatch_attention
from burnish.policies.kernels.forward_cache import Lookup
from burnish.policies.kernels.fused_layer import SUPPORTED_LAYERS
from burnish.policies.kernels.loops import check_loop, fits_rotation, load_loops
from burnish.policies.kernels.recompute import attach_recomputation


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _names(suffix: str) -> list[str]:
    kinds = [(kind, name.removesuffix("DecoderLayer")) for kind, name in SUPPORTED_LAYERS.items()]
    return [f"transformers.models.{kind}.modeling_{kind}.{name}{suffix}" for kind, name in kinds]


_NORMS, _MLPS, _ATTENTIONS = _names("RMSNorm"), _names("MLP"), _names("Attention")


@contextmanager
def compiled_modules(model: Any, lookup: Lookup | None = None) -> Iterator[None]:
    """Run the norms, gates, rotations and adapters of known layers faster, within ``use_attention``.

    Outputs that ``lookup`` returns (``forward_cache``) are not computed again.
    """
    replaced = []
    if model.dtype == torch.float32 and model.device.type == "cpu" and load_loops() is not None:
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False) and module.training:
                break  # the layers run again after this context
            if (forward := _forward(module, lookup)) is not None and "forward" not in vars(module):
                replaced.append((module, forward))
        else:
            for module, forward in replaced:
                module.forward = forward
    try:
        yield
    finally:
        for module, _ in replaced:
            vars(module).pop("forward", None)


def _forward(module: Any, lookup: Lookup | None) -> Any:
    """Return the faster forward pass, or None for another module."""
    name = _class_name(module)
    if name in _NORMS and module.weight.dtype == torch.float32:
        return partial(_norm, module)
    if name in _MLPS and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation"):
        return partial(_mlp, module)
    if (
        name in _ATTENTIONS
        and getattr(module, "sliding_window", None) is None
        and (
            module.config._attn_implementation == IMPLEMENTATION  # a copy by peft has a config of its own
        )
    ):
        return partial(_attention, module)
    return adapted_forward(module, lookup)


def _norm(module: Any, states: Tensor) -> Tensor:
    # The weight is looked up when it is used: of a model that is split (FSDP), it is gathered just before.
    return rms_norm(states, module.weight, module.variance_epsilon)


def _mlp(module: Any, states: Tensor) -> Tensor:
    output: Tensor = module.down_proj(gate(module.gate_proj(states), module.up_proj(states)))
    return output


def _attention(
    module: Any, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
) -> tuple[Tensor, None]:
    query, key, value = (
        projection(hidden_states)[0].view(hidden_states.shape[1], -1, module.head_dim)
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )  # [T, H, D], [T, K, D]
    query, key = (rotate(heads, *position_embeddings).transpose(0, 1) for heads in (query, key))
    queries = query.view(len(key), -1, *query.shape[1:])
    attended = dispatch_attention(queries, key, value.transpose(0, 1), float(module.scaling))  # [T, K, g, D]
    return module.o_proj(attended.flatten(1).unsqueeze(0)), None


def rms_norm(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return the states [..., T, d] divided by their root mean square, times a weight [d] (arXiv 1910.07467, eq. 4)."""
    check_loop(weight.shape == states.shape[-1:], states, weight)
    normed: Tensor = _RmsNorm.apply(states, weight, epsilon)  # type: ignore[no-untyped-call]
    attach_recomputation(normed, partial(_normed, epsilon=epsilon), (states, weight))
    return normed


def gate(gates: Tensor, ups: Tensor) -> Tensor:
    """Return SiLU(gates) * ups for tensors [..., T, d] (SwiGLU, arXiv 2002.05202)."""
    check_loop(gates.shape == ups.shape, gates, ups)
    gated: Tensor = _Gate.apply(gates, ups)  # type: ignore[no-untyped-call]
    attach_recomputation(gated, _gated, (gates, ups))
    return gated


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Return heads [T, H, D] rotated by their positions (arXiv 2104.09864), whose cosines and sines are [1, T, D]."""
    check_loop(fits_rotation(heads, cosines, sines), heads, cosines, sines)
    rotated: Tensor = _Rotate.apply(heads, cosines.contiguous(), sines.contiguous())  # type: ignore[no-untyped-call]
    return rotated


@torch.no_grad()
def _normed(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    states = states.contiguous()
    normed = torch.empty_like(states)
    load_loops().rms_norm(
        states.numel() // states.shape[-1], states, states.shape[-1], weight.contiguous(), normed, epsilon
    )
    return normed


@torch.no_grad()
def _gated(gates: Tensor, ups: Tensor) -> Tensor:
    gates, ups = gates.contiguous(), ups.contiguous()
    gated, width = torch.empty_like(gates), gates.shape[-1]
    load_loops().gate(gates.numel() // width, gates, width, ups, width, gated, width)
    return gated


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(states, weight)
        ctx.epsilon = epsilon
        return _normed(states, weight, epsilon)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        loops = load_loops()
        states, weight = (tensor.contiguous() for tensor in ctx.saved_tensors)
        rows, width = states.numel() // states.shape[-1], states.shape[-1]
        chunks = -(-rows // loops.CHUNK)
        sums = states.new_zeros(chunks, width) if ctx.needs_input_grad[1] else None
        states_grad = torch.empty_like(states)
        loops.rms_norm_grads(chunks, rows, width, grad.contiguous(), states, weight, states_grad, sums, ctx.epsilon)
        return states_grad, None if sums is None else sums.sum(0), None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, ups: Tensor) -> Tensor:
        ctx.save_for_backward(gates, ups)
        return _gated(gates, ups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gates, ups = (tensor.contiguous() for tensor in ctx.saved_tensors)
        gates_grad, ups_grad, width = torch.empty_like(gates), torch.empty_like(ups), gates.shape[-1]
        load_loops().gate_grads(gates.numel() // width, grad.contiguous(), gates, ups, gates_grad, ups_grad, width)
        return gates_grad, ups_grad


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return _rotated(heads, cosines, sines, backward=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _rotated(grad, *ctx.saved_tensors, backward=True), None, None


def _rotated(heads: Tensor, cosines: Tensor, sines: Tensor, *, backward: bool) -> Tensor:
    heads = heads.contiguous()
    rotated, stride = torch.empty_like(heads), heads.stride(0)
    load_loops().rotate(*heads.shape, heads, stride, rotated, stride, cosines, sines, backward)
    return rotated
