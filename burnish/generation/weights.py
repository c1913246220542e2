"""A copy of a model that samples fast: the same parameters, its products with weights laid out for small batches.

A decoding step multiplies a few dozen rows with every weight. On a CPU oneDNN does that up to twice as fast with weights
that were reordered once; reordering all of them takes a fraction of a second, after each update. Adapters are merged into
the reordered weights, so that a LoRA policy samples as fast as its base.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from burnish.policies.layout import inner
from burnish.policies.products import can_multiply
from burnish.policies.recorded import Recorded, Results

ROWS = 64
"""Rows that a reordered weight is meant for; other numbers work as well."""


class PackedLinear(nn.Module):
    """x W' + b with a weight that ``pack`` has reordered; holds nothing until then.

    Args:
        source: gives weight [out, in] and bias as they are now.
        dtype: of the product's inputs; its result has the input's.
    """

    def __init__(self, source: Callable[[], tuple[Tensor, Tensor | None]], dtype: torch.dtype) -> None:
        super().__init__()
        self.source = source
        self.dtype = dtype
        self.packed: Any = None
        self.results: Results | None = None
        """Takes what is computed, where somebody wants it again."""
        self.offset: Tensor | None = None

    def pack(self) -> None:
        weight, bias = self.source()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(self.dtype).contiguous(), ROWS)
        self.offset = None if bias is None else bias.detach().to(self.dtype)

    def release(self) -> None:
        self.packed = self.offset = self.results = None

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows.to(self.dtype), self.packed, self.offset, "none", [], ""
        )
        if self.results is not None:
            self.results.add(found)
        return found.to(rows.dtype)


class SamplingCopy:
    """A model to sample from, whose weights are those of the trained model at each ``ready``.

    Args:
        model: plain or peft; shares its parameters, is not changed.
        dtype: of the products: float32, or bfloat16 for speed at the price of a small mismatch.
    """

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        trained = inner(model)
        kind = dtype or trained.dtype
        self._layers: dict[PackedLinear, nn.Module] = {}
        self._head = trained.get_output_embeddings()
        if trained.device.type != "cpu" or kind not in (torch.float32, torch.bfloat16) or not can_multiply():
            self.model = trained
            return
        shared = {id(tensor): tensor for tensor in [*trained.parameters(), *trained.buffers()]}
        self.model = copy.deepcopy(trained, shared)
        for name, module in list(trained.named_modules()):
            source = _source(module)
            if source is not None and not _inside_another(name, trained):
                layer = PackedLinear(source, kind)
                self._layers[layer] = module
                parent, _, own = name.rpartition(".")
                setattr(self.model.get_submodule(parent), own, layer)

    @contextmanager
    def ready(self, recorded: Recorded | None = None) -> Iterator[Any]:
        """The model, its products laid out from the weights as they are now; let go of at the end.

        Args:
            recorded: takes the results of its products, but for the head's.
        """
        for layer, module in self._layers.items():
            layer.pack()
            layer.results = None if recorded is None or module is self._head else _results(module, recorded)
        try:
            yield self.model
        finally:
            for layer in self._layers:
                layer.release()


def _inside_another(name: str, model: Any) -> bool:
    """Whether a module lies within one that is packed as a whole, as the base of an adapter does."""
    parts = name.split(".")
    return any(_source(model.get_submodule(".".join(parts[:depth]))) is not None for depth in range(1, len(parts)))


def _source(module: nn.Module) -> Callable[[], tuple[Tensor, Tensor | None]] | None:
    """How to get a module's weight [out, in] and bias, where it is a product with a weight and nothing more."""
    from transformers.pytorch_utils import Conv1D

    if type(module) is nn.Linear:
        return lambda: (module.weight, module.bias)
    if type(module) is Conv1D:
        return lambda: (module.weight.T, module.bias)
    if type(module).__module__.startswith("peft."):
        return _merged(module)
    return None


def _results(module: Any, recorded: Recorded) -> Results | None:
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


def _merged(module: Any) -> Callable[[], tuple[Tensor, Tensor | None]] | None:
    """Weight and bias of an adapted product with its adapters added."""
    from peft.tuners.lora import Linear

    if not isinstance(module, Linear) or getattr(module, "lora_bias", {}).get(module.active_adapters[0]):
        return None

    def merged() -> tuple[Tensor, Tensor | None]:
        base: Any = module.get_base_layer()
        weight: Tensor = base.weight
        for adapter in module.active_adapters:
            weight = weight + module.get_delta_weight(adapter)
        return (weight.T if module.fan_in_fan_out else weight), base.bias

    return merged
