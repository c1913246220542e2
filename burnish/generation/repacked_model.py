"""Copy of a model for fast sampling: the same parameters, with linear weights reordered for small batches.

A decoding step multiplies a few dozen rows with every weight. On a CPU, oneDNN does that up to twice as fast with
reordered weights; reordering all of them takes a fraction of a second after each update. Adapters are merged into them,
so a LoRA policy samples as fast as its base model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from burnish.policies.kernels.forward_cache import ForwardCache, LayerOutputs
from burnish.policies.kernels.fused_layer import PROJECTIONS, FusedDecoderLayer, is_supported
from burnish.policies.kernels.mixed_precision import compute_dtype, sampling_dtype
from burnish.policies.kernels.packing import unwrap_peft
from burnish.policies.kernels.products import has_onednn_linear

ROWS = 64
"""Number of input rows that the reordering optimises for; other numbers work, too."""

WeightSource = Callable[[], tuple[Tensor, Tensor | None]]
"""Returns the current weight [out, in] and bias [out]."""


class RepackedLinear(nn.Module):
    """Linear layer with a reordered weight, which it has between ``repack`` and ``release``.

    Args:
        sources: of the weight; several layers with a common input are concatenated along their outputs.
        dtype: of the product; the output has the input's dtype.
    """

    def __init__(self, sources: Sequence[WeightSource], dtype: torch.dtype) -> None:
        super().__init__()
        self.sources = sources
        self.dtype = dtype
        self.weight: Any = None
        self.outputs: list[LayerOutputs] = []
        """Storage for the output of each source, if the forward cache is on."""
        self.bias: Tensor | None = None

    def repack(self) -> None:
        """Reorder the current weights."""
        weights, biases = zip(*(source() for source in self.sources), strict=True)
        weight = weights[0].detach() if len(weights) == 1 else torch.cat([weight.detach() for weight in weights])
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(self.dtype).contiguous(), ROWS)
        self.bias = None
        if any(bias is not None for bias in biases):
            parts = [
                weight.new_zeros(len(weight)) if bias is None else bias.detach()
                for weight, bias in zip(weights, biases, strict=True)
            ]
            self.bias = torch.cat(parts).to(self.dtype)

    def release(self) -> None:
        """Free the reordered weight."""
        self.weight = self.bias = None
        self.outputs = []

    def forward(self, rows: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(rows.to(self.dtype), self.weight, self.bias, "none", [], "")
        begin = 0
        for part in self.outputs:
            part.add(output[..., begin : begin + part.width])
            begin += part.width
        return output.to(rows.dtype)


class RepackedModel:
    """Copy of a model that samples with the current weights of the trained model.

    Args:
        model: a transformers or peft model. It is not changed; the copy shares its parameters.
        dtype: of the products: float32, or bfloat16 for speed at the price of a small sampler mismatch. None is the
            type of training, or float32 on a processor that has no bfloat16 products.
    """

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        trained = unwrap_peft(model)
        self.dtype = dtype or sampling_dtype(trained)
        self._layers: dict[RepackedLinear, list[nn.Module]] = {}
        """Each repacked layer with the trained modules that it replaces."""
        self._head = trained.get_output_embeddings()
        self.model = trained
        on_cpu = trained.device.type == "cpu"
        repacks = on_cpu and self.dtype in (torch.float32, torch.bfloat16) and has_onednn_linear(self.dtype)
        self._casts: list[tuple[Tensor, Tensor]] = []
        """Parameters of the trained model, and their copies of another type."""
        stream = None
        if compute_dtype(trained) is not None or self.dtype != trained.dtype:
            stream = torch.float32 if on_cpu else self.dtype
        shared = {id(tensor): tensor for tensor in [*trained.parameters(), *trained.buffers()]}
        if stream is not None:
            self._casts = _casts(trained, stream)
            shared |= {id(tensor): copied for tensor, copied in self._casts}
        if not repacks and not self._casts:
            return
        self.model = copy.deepcopy(trained, shared)
        if repacks:
            self._repack_all(trained)
        used = {id(parameter) for parameter in self.model.parameters()}
        self._casts = [cast for cast in self._casts if id(cast[1]) in used]

    def _repack_all(self, trained: Any) -> None:
        done: tuple[str, ...] = ()
        for name, module in list(trained.named_modules()):
            if name.startswith(done):
                continue
            fused = self._fuse(name, module)
            if fused is not None:
                self._replace(name, fused)
                done += (name + ".",)
            elif _weight_source(module) is not None:
                self._replace(name, self._repack(module))
            if _weight_source(module) is not None or _is_adapter(module):
                done += (name + ".",)  # do not repack an adapter's base layer a second time

    def _repack(self, *modules: nn.Module) -> RepackedLinear:
        sources = [source for module in modules if (source := _weight_source(module)) is not None]
        layer = RepackedLinear(sources, self.dtype)
        self._layers[layer] = list(modules)
        return layer

    def _fuse(self, name: str, module: nn.Module) -> FusedDecoderLayer | None:
        """Return a fused layer for a supported decoder layer, else None."""
        if not is_supported(module):
            return None
        parts = [module.get_submodule(part) for part in PROJECTIONS]
        if any(_weight_source(part) is None for part in parts):
            return None
        query, key, value, out, gate, up, down = parts
        products = [self._repack(query, key, value), self._repack(out), self._repack(gate, up), self._repack(down)]
        return FusedDecoderLayer(self.model.get_submodule(name), products)

    def _replace(self, name: str, layer: nn.Module) -> None:
        parent, _, own = name.rpartition(".")
        setattr(self.model.get_submodule(parent), own, layer)

    @contextmanager
    def repacked(self, forward_cache: ForwardCache | None = None) -> Iterator[Any]:
        """Repack the current weights and provide the model; free the repacked weights at the end.

        The forward cache stores the outputs of the linear layers, except the head's.
        """
        for tensor, copied in self._casts:
            copied.data.copy_(tensor.detach())
        for layer, modules in self._layers.items():
            layer.repack()
            if forward_cache is not None and self._head not in modules:
                outputs = [_outputs(module, forward_cache) for module in modules]
                layer.outputs = [] if None in outputs else [part for part in outputs if part is not None]
        try:
            yield self.model
        finally:
            for layer in self._layers:
                layer.release()


def _casts(model: Any, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Return each parameter of another floating-point type with an empty copy in ``dtype``."""
    names = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    wide = {part for name in names for part in getattr(model, name, None) or ()}
    return [
        (one, nn.Parameter(torch.empty_like(one, dtype=dtype), requires_grad=False))
        for name, one in model.named_parameters()
        if one.is_floating_point() and one.dtype != dtype and not wide & set(name.split("."))
    ]


def _weight_source(module: nn.Module) -> WeightSource | None:
    """Return the source of a module's weight and bias, or None if it is more than a linear layer."""
    from transformers.pytorch_utils import Conv1D

    if type(module) is nn.Linear:
        return lambda: (module.weight, module.bias)
    if type(module) is Conv1D:
        return lambda: (module.weight.T, module.bias)
    return _merged_source(module) if _is_adapter(module) else None


def _is_adapter(module: nn.Module) -> bool:
    return type(module).__module__.startswith("peft.")


def _outputs(module: Any, forward_cache: ForwardCache) -> LayerOutputs | None:
    """Return where the training pass looks up the outputs of a module, or None if it cannot."""
    base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    if type(base) is not nn.Linear or base.weight.dtype != torch.float32:
        return None  # transformers' Conv1D does not call torch.nn.functional.linear
    if base is module:
        return forward_cache.layer_outputs(module.weight)
    pairs = [
        (module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name])
        for name in module.active_adapters
    ]

    def adapters(rows: Tensor) -> Tensor:
        added = [rows @ inward.T @ outward.T * scale for inward, outward, scale in pairs]
        return torch.stack(added).sum(0) if len(added) > 1 else added[0]

    parts = [part for inward, outward, _ in pairs for part in (inward, outward)]
    return forward_cache.layer_outputs(base.weight, adapters, parts)


def _merged_source(module: Any) -> WeightSource | None:
    """Return the source of a LoRA layer's merged weight and bias, or None for other adapters."""
    from peft.tuners.lora import Linear

    named = module.active_adapters if isinstance(module, Linear) else ()
    if not named or any(module.lora_bias.get(name) or name in module.lora_variant for name in named):
        return None  # not LoRA, or a variant that does more than add a product (DoRA)

    def merged() -> tuple[Tensor, Tensor | None]:
        base: Any = module.get_base_layer()
        weight: Tensor = base.weight
        for adapter in module.active_adapters:
            weight = weight + module.get_delta_weight(adapter)
        return (weight.T if module.fan_in_fan_out else weight), base.bias

    return merged
