"""Choice of the layers on which an adapter acts as its merged weight does, by watching a forward pass."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from burnish.policies.kernels.layout_probe import probe_tolerance

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class LayerUse(TorchFunctionMode):
    """How a model uses its parameters in a forward pass of four tokens.

    Args:
        model: a model without adapters.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._running: list[nn.Module] = []
        self._owners: dict[int, list[tuple[str, nn.Module]]] = {}
        """The names of each parameter with the modules that have it, by the parameter's id."""
        self._inside: set[str] = set()
        """Patterns of the names of parameters that are read while their module runs."""
        self._outside: set[str] = set()
        """Names of parameters that are read at another time."""
        self._calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        """Arguments of layers whose class has a forward pass of its own."""
        for prefix, module in model.named_modules(remove_duplicate=False):
            for name, parameter in module.named_parameters(recurse=False):
                self._owners.setdefault(id(parameter), []).append((f"{prefix}.{name}", module))
        self._shared = {
            name: [other for other, _ in owners if other != name]
            for owners in self._owners.values()
            for name, _ in owners
        }
        self._watch(model)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if next(_tensors([result]), None) is not None:  # a shape or a type is not a read
            for tensor in _tensors([*args, *(kwargs or {}).values()]):
                for name, owner in self._owners.get(id(tensor), ()):
                    if owner in self._running:
                        self._inside.add(NUMBER.sub("*", name))
                    elif not any(other in self._running for _, other in self._owners[id(tensor)]):
                        self._outside.add(name)
        return result

    @torch.no_grad()
    def _watch(self, model: Any) -> None:
        names = {module: name.rpartition(".")[0] for owners in self._owners.values() for name, module in owners}

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._running.append(module)
            if type(module).forward not in _plain_forwards():
                self._calls[names[module]] = (args, kwargs)

        def end(module: nn.Module, args: Any, output: Any) -> None:
            self._running.remove(module)

        hooks: list[Any] = [module.register_forward_pre_hook(begin, with_kwargs=True) for module in names]
        hooks += [module.register_forward_hook(end, always_call=True) for module in names]
        try:
            size = model.get_input_embeddings().weight.shape[0]
            with self:
                model(input_ids=(torch.arange(4, device=model.device) % size)[None], use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()

    def find_fault(self, name: str, wrapper: Any) -> str:
        """Return why the adapter of a parameter acts otherwise than merged, or "" if it does not.

        Args:
            wrapper: peft's module in place of the layer.
        """
        if others := self._shared[name]:
            return f"shares its weight with '{others[0].rpartition('.')[0]}', and merging the adapter would change both"
        if name in self._outside:
            return "has a weight that the model reads without calling the layer, so an adapter acts only when merged"
        if NUMBER.sub("*", name) not in self._inside:  # one expert may get no token, but not all of them
            return "is not called, so an adapter has no effect"
        call = self._calls.get(name.rpartition(".")[0])
        if call is not None and not hasattr(wrapper, "parameter_name") and not _acts_as_merged(wrapper, *call):
            return "does more than multiply by its weight, so an adapter acts otherwise than merged"
        return ""


def _plain_forwards() -> tuple[Any, ...]:
    from transformers.pytorch_utils import Conv1D

    return nn.Linear.forward, Conv1D.forward, nn.Embedding.forward, nn.Conv1d.forward, nn.Conv2d.forward


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


@torch.no_grad()
def _acts_as_merged(wrapper: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an adapter, given an effect for the moment, adds to a layer's output what merging it adds."""
    generator = torch.Generator().manual_seed(0)
    before = [(parameter, parameter.data) for parameter in wrapper.parameters()]
    try:
        for parameter, data in before:
            if parameter.requires_grad:
                parameter.data = data + torch.randn(data.shape, generator=generator).to(data) * 0.05
        output = wrapper(*args, **kwargs)
        wrapper.merge(safe_merge=True)  # puts another tensor in place of the weight's
        merged = wrapper.get_base_layer()(*args, **kwargs)
    except Exception:  # a layer may fail in any way with the adapter's arithmetic
        return False
    finally:
        for parameter, data in before:
            parameter.data = data
        wrapper.merged_adapters.clear()
    if not isinstance(merged, Tensor) or output.shape != merged.shape:
        return False
    return float((output - merged).abs().max()) <= probe_tolerance(merged)
