"""A copy of a model that samples fast: the same parameters, its products with weights laid out for small batches.

A decoding step multiplies a few dozen rows with every weight. On a CPU oneDNN does that up to twice as fast with weights
that were reordered once; reordering all of them takes a fraction of a second, after each update. Adapters are merged into
the reordered weights, so that a LoRA policy samples as fast as its base.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from burnish.policies.kernels.forward_cache import CachedOutputs, ForwardCache
from burnish.policies.kernels.fused_layer import PRODUCTS, FusedDecoderLayer, known
from burnish.policies.kernels.linear import has_onednn_linear
from burnish.policies.kernels.packing import unwrap_peft

ROWS = 64
"""Rows that a reordered weight is meant for; other numbers work as well."""


Source = Callable[[], tuple[Tensor, Tensor | None]]
"""A weight [out, in] and a bias as they are now."""


class RepackedLinear(nn.Module):
    """x W' + b with a weight that ``pack`` has reordered; holds nothing until then.

    Args:
        sources: one, or several whose outputs come side by side.
        dtype: of the product's inputs; its result has the input's.
    """

    def __init__(self, sources: Sequence[Source], dtype: torch.dtype) -> None:
        super().__init__()
        self.sources = sources
        self.dtype = dtype
        self.packed: Any = None
        self.results: list[CachedOutputs] = []
        """Take what is computed, each its source's part, where somebody wants it again."""
        self.offset: Tensor | None = None

    def pack(self) -> None:
        weights, biases = zip(*(source() for source in self.sources), strict=True)
        weight = weights[0].detach() if len(weights) == 1 else torch.cat([weight.detach() for weight in weights])
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(self.dtype).contiguous(), ROWS)
        self.offset = None
        if any(bias is not None for bias in biases):
            parts = [
                weight.new_zeros(len(weight)) if bias is None else bias.detach()
                for weight, bias in zip(weights, biases, strict=True)
            ]
            self.offset = torch.cat(parts).to(self.dtype)

    def release(self) -> None:
        self.packed = self.offset = None
        self.results = []

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows.to(self.dtype), self.packed, self.offset, "none", [], ""
        )
        if self.results:
            begin = 0
            for results in self.results:
                results.add(found[..., begin : begin + results.width])
                begin += results.width
        return found.to(rows.dtype)


class RepackedModel:
    """A model to sample from, whose weights are those of the trained model at each ``ready``.

    Args:
        model: plain or peft; shares its parameters, is not changed.
        dtype: of the products: float32, or bfloat16 for speed at the price of a small mismatch.
    """

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        trained = unwrap_peft(model)
        self.kind = dtype or trained.dtype
        self._layers: dict[RepackedLinear, list[nn.Module]] = {}
        """Each with the trained modules whose products it makes."""
        self._head = trained.get_output_embeddings()
        if (
            trained.device.type != "cpu"
            or self.kind not in (torch.float32, torch.bfloat16)
            or not has_onednn_linear(self.kind)
        ):
            self.model = trained
            return
        shared = {id(tensor): tensor for tensor in [*trained.parameters(), *trained.buffers()]}
        self.model = copy.deepcopy(trained, shared)
        done: tuple[str, ...] = ()
        for name, module in list(trained.named_modules()):
            if name.startswith(done):
                continue
            fused = self._fused(name, module)
            if fused is not None:
                self._put(name, fused)
                done += (name + ".",)
            elif _source(module) is not None:
                self._put(name, self._packed(module))
            if _source(module) is not None or _adapter(module):
                done += (name + ".",)  # the base of an adapter is packed with it, or runs as it is

    def _packed(self, *modules: nn.Module) -> RepackedLinear:
        sources = [source for module in modules if (source := _source(module)) is not None]
        layer = RepackedLinear(sources, self.kind)
        self._layers[layer] = list(modules)
        return layer

    def _fused(self, name: str, module: nn.Module) -> FusedDecoderLayer | None:
        """A decoder layer in few operations, where it is of a kind that is known."""
        if not known(module):
            return None
        parts = [module.get_submodule(part) for part in PRODUCTS]
        if any(_source(part) is None for part in parts):
            return None
        query, key, value, out, gate, up, down = parts
        products = [self._packed(query, key, value), self._packed(out), self._packed(gate, up), self._packed(down)]
        return FusedDecoderLayer(self.model.get_submodule(name), products)

    def _put(self, name: str, layer: nn.Module) -> None:
        parent, _, own = name.rpartition(".")
        setattr(self.model.get_submodule(parent), own, layer)

    @contextmanager
    def ready(self, recorded: ForwardCache | None = None) -> Iterator[Any]:
        """The model, its products laid out from the weights as they are now; let go of at the end.

        Args:
            recorded: takes the results of its products, but for the head's.
        """
        for layer, modules in self._layers.items():
            layer.pack()
            if recorded is not None and self._head not in modules:
                found = [_results(module, recorded) for module in modules]
                layer.results = [] if None in found else [results for results in found if results is not None]
        try:
            yield self.model
        finally:
            for layer in self._layers:
                layer.release()


def _source(module: nn.Module) -> Source | None:
    """How to get a module's weight [out, in] and bias, where it is a product with a weight and nothing more."""
    from transformers.pytorch_utils import Conv1D

    if type(module) is nn.Linear:
        return lambda: (module.weight, module.bias)
    if type(module) is Conv1D:
        return lambda: (module.weight.T, module.bias)
    return _merged(module) if _adapter(module) else None


def _adapter(module: nn.Module) -> bool:
    return type(module).__module__.startswith("peft.")


def _results(module: Any, recorded: ForwardCache) -> CachedOutputs | None:
    """Where the results of a module's product go, which training finds by the weight that it multiplies with."""
    base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    if type(base) is not nn.Linear or base.weight.dtype != torch.float32:
        return None  # transformers' Conv1D multiplies by another function
    if base is module:
        return recorded.results(module.weight)
    pairs = [
        (module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name])
        for name in module.active_adapters
    ]

    def adapters(rows: Tensor) -> Tensor:
        added = [rows @ inward.T @ outward.T * scale for inward, outward, scale in pairs]
        return torch.stack(added).sum(0) if len(added) > 1 else added[0]

    parts = [part for inward, outward, _ in pairs for part in (inward, outward)]
    return recorded.results(base.weight, adapters, parts)


def _merged(module: Any) -> Source | None:
    """Weight and bias of an adapted product with its adapters added."""
    from peft.tuners.lora import Linear

    named = module.active_adapters if isinstance(module, Linear) else ()
    if not named or any(module.lora_bias.get(name) or name in module.lora_variant for name in named):
        return None  # another kind of adapter, or one that does more than add a product (DoRA)

    def merged() -> tuple[Tensor, Tensor | None]:
        base: Any = module.get_base_layer()
        weight: Tensor = base.weight
        for adapter in module.active_adapters:
            weight = weight + module.get_delta_weight(adapter)
        return (weight.T if module.fan_in_fan_out else weight), base.bias

    return merged
