"""LoRA adapters: creation, restoring and merging, by peft."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from burnish.errors import InputError, one_line

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ALL_LINEAR = "all-linear"


def add_lora_adapter(model: Any, lora: Any, source: str | Path, seed: int) -> Any:
    """Return the model with a new LoRA adapter, whose initial effect is zero.

    "all-linear" leaves out layers that an adapter cannot train: those that share a weight, that peft refuses, or whose
    weight the model reads without calling the layer. Raises InputError if a key of policy.lora names such a layer.
    """
    from peft import LoraConfig, get_peft_model

    tied, uncalled = _tied_names(model), _uncalled_names(model)
    config: Any = LoraConfig(
        r=lora.rank, lora_alpha=2 * lora.rank if lora.alpha is None else lora.alpha, lora_dropout=0.0,
        target_modules=lora.targets, task_type="CAUSAL_LM", use_rslora=lora.rslora, use_dora=lora.dora,
        modules_to_save=lora.modules_to_save, target_parameters=lora.target_parameters,
    )  # fmt: skip
    if lora.targets == ALL_LINEAR:
        config.exclude_modules = _unsuitable_layers(model, config, tied, uncalled) or None
    with torch.random.fork_rng(devices=[]), _quiet_peft():
        torch.manual_seed(seed)
        try:
            adapted: Any = get_peft_model(model, config)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"policy.lora: {one_line(error)[:300]}; name other layers in policy.lora.targets"
            ) from error
    # If the source is an adapter itself, peft would name the adapter's base instead.
    adapted.peft_config["default"].base_model_name_or_path = str(source)
    _check_layers(adapted, lora, tied, uncalled)
    return adapted


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Silence advice on tied weights, unused patterns and missing keys, all of which are checked here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="peft")
        yield


def _check_layers(adapted: Any, lora: Any, tied: Mapping[int, list[str]], uncalled: set[str]) -> None:
    """Raise InputError unless each name in policy.lora is a layer that the adapter trains as merging does."""
    from peft.utils.other import ModulesToSaveWrapper

    config = adapted.peft_config["default"]
    adapter_names = {name: parameter for name, parameter, _ in _adapted_parameters(adapted)}
    saved = [_plain(name) for name, module in adapted.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    layers = [name.rpartition(".")[0] for name in adapter_names]
    # Names that peft itself replaces, for experts, are no longer in its config.
    targets = [] if lora.targets == ALL_LINEAR else [name for name in lora.targets if name in config.target_modules]
    for key, names, matches in (
        ("targets", targets, layers),
        ("target_parameters", lora.target_parameters or (), list(adapter_names)),
        ("modules_to_save", lora.modules_to_save or (), saved),
    ):
        for name in names:
            if not any(_ends_with(match, name) for match in matches):
                raise InputError(f"policy.lora.{key}: the model has nothing of the name '{name}'; correct or remove it")
    for name, parameter in adapter_names.items():
        layer = name.rpartition(".")[0]
        if others := [other for other in tied.get(id(parameter), ()) if other != name]:
            raise InputError(
                f"policy.lora.targets: '{layer}' shares its weight with '{others[0].rpartition('.')[0]}', and merging "
                f"the adapter would change both; remove '{layer.rpartition('.')[2]}' from the list (\"{ALL_LINEAR}\" "
                "leaves it out), or train a copy of it by policy.lora.modules_to_save"
            )
        if layer.rpartition(".")[2] in uncalled:
            raise InputError(
                f"policy.lora.targets: the model reads the weight of '{layer}' without calling the layer, so an adapter "
                f"would have no effect until it is merged; remove '{layer.rpartition('.')[2]}'"
            )


def merge_adapter(model: Any, folder: Path) -> Any:
    """Return the model with the adapter in a folder merged. Raises ValueError if the adapter fits in part only."""
    adapted = open_adapter(model, folder)
    with _quiet_peft():
        merged: Any = adapted.merge_and_unload()
    return merged


def open_adapter(model: Any, folder: Path) -> Any:
    """Return the model with the adapter in a folder. Raises ValueError if the adapter fits in part only."""
    from peft import PeftModel

    tied = _tied_names(model)
    with _quiet_peft():
        # peft prefers adapter_model.safetensors if the folder has it, so nothing is unpickled.
        adapted: Any = PeftModel.from_pretrained(model, folder)
    if adapted.peft_config["default"].is_prompt_learning:
        raise ValueError("it is a learned prompt and not a LoRA adapter: it cannot be merged")
    restore_adapter(adapted, folder)
    for name, parameter, owner in _adapted_parameters(adapted):
        if len(tied.get(id(parameter), ())) > 1:  # merging changes this layer only
            setattr(owner, name.rpartition(".")[2], nn.Parameter(parameter.detach().clone(), requires_grad=False))
    return adapted


def restore_adapter(adapted: Any, folder: Path) -> None:
    """Load an adapter's saved weights in place. Raises ValueError unless its file and the model have the same keys.

    peft itself renames keys of some architectures by rules for whole models, and loads what is left (Laguna).
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(folder / ADAPTER_WEIGHTS)
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if saved.keys() == expected.keys():
        for name, tensor in expected.items():
            if tensor.shape != saved[name].shape:
                shapes = f"{list(saved[name].shape)} instead of {list(tensor.shape)}"
                raise ValueError(f"its adapter belongs to another model: {name} has the shape {shapes}")
        for name, tensor in expected.items():  # a view of the parameter
            tensor.copy_(saved[name])
        return
    with _quiet_peft():
        loaded: Any = set_peft_model_state_dict(adapted, saved)
    missing = [key for key in loaded.missing_keys if "lora_" in key or ".modules_to_save." in key]
    for keys, what in ((missing, "lacks"), (loaded.unexpected_keys, "has too many")):
        if keys:
            raise ValueError(
                f"its adapter fits in part only: {ADAPTER_WEIGHTS} {what} weights, {len(keys)} in all, the first is "
                f"{_plain(keys[0])}: it belongs to another model, or to another version of its architecture"
            )


def _tied_names(model: Any) -> dict[int, list[str]]:
    """Return the names of each parameter that has several, by the parameter's id."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {key: several for key, several in names.items() if len(several) > 1}


@torch.no_grad()
def _uncalled_names(model: Any) -> set[str]:
    """Return the last names of modules with weights of which a forward pass calls none."""
    layers = {name: module for name, module in model.named_modules() if any(True for _ in module.parameters(False))}
    called: set[nn.Module] = set()
    hooks = [module.register_forward_pre_hook(lambda module, _: called.add(module)) for module in layers.values()]
    try:
        size = model.get_input_embeddings().weight.shape[0]
        model(input_ids=(torch.arange(4, device=model.device) % size)[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    by_name: dict[str, list[bool]] = {}
    for name, module in layers.items():
        by_name.setdefault(name.rpartition(".")[2], []).append(module in called)
    return {name for name, calls in by_name.items() if not any(calls)}


def _unsuitable_layers(model: Any, config: Any, tied: Mapping[int, list[str]], uncalled: set[str]) -> list[str]:
    """Return the linear layers that "all-linear" would adapt, and whose adapter is refused or wrong, by name."""
    from peft.tuners.lora import LoraModel
    from transformers.pytorch_utils import Conv1D

    check_supported: Any = LoraModel._check_target_module_compatiblity
    unsuitable = []
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Linear | Conv1D) and module is not model.get_output_embeddings():
            try:
                check_supported(None, config, model, last)
                refused = False
            except ValueError:
                refused = True
            if refused or last in uncalled:
                unsuitable.append(last)
            elif any(id(parameter) in tied for parameter in module.parameters()):
                unsuitable.append(name)
    return sorted(set(unsuitable))


def _adapted_parameters(adapted: Any) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """Yield the name, the base parameter and its module of everything with an adapter; not modules_to_save."""
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer):
            base: Any = module.get_base_layer()
            own = module.parameter_name if isinstance(module, ParamWrapper) else "weight"
            yield f"{_plain(name).replace('.base_layer', '')}.{own}", getattr(base, own), base


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.")


def _ends_with(name: str, ending: str) -> bool:
    return f".{name}".endswith(f".{ending}")
