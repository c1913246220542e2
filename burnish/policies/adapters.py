"""LoRA adapters: creation, restoring and merging, by peft."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from burnish.errors import InputError, one_line
from burnish.policies.adapter_layers import LayerUse

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ALL_LINEAR = "all-linear"


def add_lora_adapter(model: Any, lora: Any, source: str | Path, seed: int) -> Any:
    """Return a model with a new LoRA adapter, whose initial effect is zero, on the weights of a model without one.

    "all-linear" leaves out layers on which an adapter acts otherwise than merged, and those that peft refuses or does
    not restore. Raises InputError if a key of policy.lora names such a layer.
    """
    every = lora.targets == ALL_LINEAR
    options: dict[str, Any] = {
        "r": lora.rank, "lora_alpha": 2 * lora.rank if lora.alpha is None else lora.alpha, "lora_dropout": 0.0,
        "target_modules": lora.targets, "task_type": "CAUSAL_LM", "use_rslora": lora.rslora, "use_dora": lora.dora,
        "modules_to_save": lora.modules_to_save, "target_parameters": lora.target_parameters,
    }  # fmt: skip
    use = LayerUse(model)
    left_out = _refused_layers(model, options) if every else {}
    while True:
        adapted = _adapt(share_weights(model), options, seed, left_out)
        faults = _find_faults(adapted, use)
        new = {name.rpartition(".")[0]: fault for name, fault in faults.items()}
        if not every or not new.keys() - left_out:
            break
        left_out |= new
        # peft has no key that excludes a parameter, so those that it adds for experts are listed.
        options |= _listed_parameters(adapted, faults)
    _check_layers(adapted, lora, faults)
    # If the source is an adapter itself, peft would name the adapter's base instead.
    adapted.peft_config["default"].base_model_name_or_path = str(source)
    return adapted


def share_weights(model: Any) -> Any:
    """Return a copy of a model with the same weights in memory, frozen."""
    return copy.deepcopy(model, {id(one): nn.Parameter(one.detach(), False) for one in model.parameters()})


def _adapt(model: Any, options: Mapping[str, Any], seed: int, left_out: Mapping[str, str]) -> Any:
    from peft import LoraConfig, get_peft_model

    config: Any = LoraConfig(**options)
    config.exclude_modules = _shortest_names(model, left_out) or None
    with torch.random.fork_rng(devices=[]), _quiet_peft():
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except (ValueError, TypeError) as error:
            reasons = "; ".join(f"'{name}' {fault}" for name, fault in list(left_out.items())[:1])
            raise InputError(
                f"policy.lora: {one_line(error)[:300]}; {reasons or 'name other layers in policy.lora.targets'}"
            ) from error


def _find_faults(adapted: Any, use: LayerUse) -> dict[str, str]:
    """Return why adapters are wrong, by the names of their parameters."""
    faults, keys = {}, {}
    for name, _, wrapper, key in _adapted_parameters(adapted):
        keys[key] = name
        if fault := use.find_fault(name, wrapper):
            faults[name] = fault
    for key in _lost_keys(adapted):
        name = keys.get(key.partition(".lora_")[0], _plain(key).replace(".modules_to_save.default", ""))
        faults.setdefault(name, "would be lost by peft, which renames its weights when it loads an adapter")
    return faults


def _lost_keys(adapted: Any) -> list[str]:
    """Return the names of weights that peft does not restore from what it saves, in place."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    current = get_peft_model_state_dict(adapted, save_embedding_layers=False)  # views of the parameters
    saved = {name: tensor.clone() for name, tensor in current.items()}
    with _quiet_peft():
        try:
            loaded: Any = set_peft_model_state_dict(adapted, saved)
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                f"policy.lora: peft cannot read its own adapter of this model: {one_line(error)[:300]}; "
                "name other layers in policy.lora.targets"
            ) from error
    lost = [key for key in loaded.missing_keys if "lora_" in key or ".modules_to_save." in key]
    for name, tensor in current.items():
        if not torch.equal(tensor, saved[name]):
            tensor.copy_(saved[name])
            lost.append(name)
    return lost


def _refused_layers(model: Any, options: Mapping[str, Any]) -> dict[str, str]:
    """Return the linear layers that "all-linear" means and peft refuses."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    config, check_supported = LoraConfig(**options), cast("Any", LoraModel._check_target_module_compatiblity)
    refused = {}
    for name in _linear_layers(model):
        try:
            check_supported(None, config, model, name.rpartition(".")[2])
        except ValueError as error:
            refused[name] = f"is refused by peft: {one_line(error)[:200]}"
    return refused


def _linear_layers(model: Any) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]


def _shortest_names(model: Any, layers: Collection[str]) -> list[str]:
    """Return the shortest ends of names by which peft excludes these linear layers and no others."""
    others = [name for name in _linear_layers(model) if name not in layers]
    ends = set()
    for layer in layers:
        parts = layer.split(".")
        candidates = (".".join(parts[start:]) for start in reversed(range(len(parts))))
        ends.add(next(end for end in candidates if not any(_ends_with(other, end) for other in others)))
    return sorted(ends)


def _listed_parameters(adapted: Any, faults: Mapping[str, str]) -> dict[str, Any]:
    """Return the options of peft that adapt the same parameters without those that have a fault."""
    from peft.tuners.lora.layer import ParamWrapper

    config = adapted.peft_config["default"]
    names = [name for name, _, wrapper, _ in _adapted_parameters(adapted) if isinstance(wrapper, ParamWrapper)]
    if not faults.keys() & set(names):
        return {}
    return {
        "target_modules": sorted(config.target_modules), "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "target_parameters": [name for name in names if name not in faults],
    }  # fmt: skip


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Silence advice on tied weights, unused patterns and missing keys, all of which are checked here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="peft")
        yield


def _check_layers(adapted: Any, lora: Any, faults: Mapping[str, str]) -> None:
    """Raise InputError unless each name in policy.lora is a layer that the adapter trains as merging does."""
    from peft.utils.other import ModulesToSaveWrapper

    config = adapted.peft_config["default"]
    names = [name for name, _, _, _ in _adapted_parameters(adapted)]
    saved = [_plain(name) for name, module in adapted.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    layers = [name.rpartition(".")[0] for name in names]
    # Names that peft itself replaces, for experts, are no longer in its config.
    targets = [] if lora.targets == ALL_LINEAR else [name for name in lora.targets if name in config.target_modules]
    for key, endings, matches in (
        ("targets", targets, layers),
        ("target_parameters", lora.target_parameters or (), names),
        ("modules_to_save", lora.modules_to_save or (), saved),
    ):
        for ending in endings:
            if not any(_ends_with(match, ending) for match in matches):
                raise InputError(
                    f"policy.lora.{key}: the model has nothing of the name '{ending}'; correct or remove it"
                )
    for name, fault in faults.items():
        layer = name.rpartition(".")[0]
        named = any(_ends_with(name, ending) for ending in lora.target_parameters or ())
        copied = any(layer.startswith(module) for module in saved)
        key = "target_parameters" if named else "modules_to_save" if copied else "targets"
        raise InputError(
            f"policy.lora.{key}: '{layer}' {fault}; remove '{layer.rpartition('.')[2]}' from the list "
            f'("{ALL_LINEAR}" leaves it out), or train a copy of it by policy.lora.modules_to_save'
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

    with _quiet_peft():
        try:
            # peft prefers adapter_model.safetensors if the folder has it, so nothing is unpickled.
            adapted: Any = PeftModel.from_pretrained(model, folder)
        except Exception as error:
            raise ValueError(
                f"its adapter_config.json (target_modules, bias, ...) or its {ADAPTER_WEIGHTS} does not fit the base model: "
                f"{one_line(error)[:200]}"
            ) from error
    restore_adapter(adapted, folder)
    for name, parameter, wrapper, _ in _adapted_parameters(adapted):  # merging changes this layer only
        setattr(wrapper.get_base_layer(), name.rpartition(".")[2], nn.Parameter(parameter.detach().clone(), False))
    return adapted


def restore_adapter(adapted: Any, folder: Path) -> None:
    """Load an adapter's saved weights in place. Raises ValueError unless its file and the model have the same keys.

    peft itself renames keys of some architectures by rules for whole models, and loads what is left (Laguna).
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(folder / ADAPTER_WEIGHTS)
    for name, tensor in saved.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{ADAPTER_WEIGHTS}: the weight '{_plain(name)}' has values that are not finite")
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


def _adapted_parameters(adapted: Any) -> Iterator[tuple[str, nn.Parameter, Any, str]]:
    """Yield the name, the base parameter, and peft's module with its name, of each adapter; not modules_to_save."""
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    for key, wrapper in adapted.named_modules():
        if isinstance(wrapper, LoraLayer):
            own = wrapper.parameter_name if isinstance(wrapper, ParamWrapper) else "weight"
            name = f"{_plain(key).replace('.base_layer', '')}.{own}"
            yield name, cast("nn.Parameter", getattr(wrapper.get_base_layer(), own)), wrapper, key


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.")


def _ends_with(name: str, ending: str) -> bool:
    return f".{name}".endswith(f".{ending}")
