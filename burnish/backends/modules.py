"""Policies that are built rather than loaded: the built-in LSTM, and a user's torch or Keras module.

The run folder keeps the initial policy as ``start/``, since a resumed run needs the same frozen reference.
"""

from __future__ import annotations

import copy
import inspect
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from burnish.backends.prompts import prepared_task, task_errors
from burnish.errors import BurnishError, InputError, one_line
from burnish.evaluation.held_out import continuation
from burnish.generation.modules import ModuleSampler
from burnish.policies.lstm import LSTM
from burnish.policies.module import WEIGHTS, ModulePolicy, is_keras
from burnish.policies.pretraining import pretrain
from burnish.policies.vocabulary import FILE, KINDS, Vocabulary, build_vocabulary, read_vocabulary
from burnish.protocols import Observer
from burnish.recipe.schema import PolicySection, Recipe
from burnish.recipe.sections import LSTMShape
from burnish.registry import import_object, nearest
from burnish.run.folder import START
from burnish.system.files import explained, new_folder
from burnish.system.machine import resolve_device
from burnish.system.paths import expanded
from burnish.types import Prompt


def build_module_policy(
    section: PolicySection,
    seed: int,
    *,
    texts: Callable[[], Sequence[str]],
    folder: Path | None = None,
    observer: Observer | None = None,
) -> tuple[ModulePolicy, ModuleSampler]:
    """Build the initial policy, pretrained if the recipe asks for it, and its sampler; or load it from the run folder.

    ``texts`` returns the task's training texts; it is called for a vocabulary and for pretraining only. Raises
    InputError if the module, its weights, its vocabulary or the texts cannot be used, and BurnishError if pretraining
    or writing fails.
    """
    kept = folder / START if folder else None
    made = kept is not None and kept.is_dir()
    source = kept if made else expanded(section.weights) if section.weights else None
    vocabulary = _vocabulary(section, source, texts)
    with seeded(seed):
        module = _module(section, vocabulary, source)
    name = section.module or section.use
    policy = ModulePolicy(module, vocabulary, scores=section.scores or "logits", name=name)
    if source is not None:
        policy.load(source)
        policy.reset_reference()
    if section.pretrain is not None and not made:
        if observer is not None:
            observer.message(f"pretraining {name} for {section.pretrain.steps} steps on the task's training texts")
        losses = pretrain(policy, texts(), **section.pretrain.model_dump(), seed=seed, observer=observer)
        if observer is not None:
            last = losses[-max(1, len(losses) // 20) :]
            observer.message(f"pretrained: {sum(last) / len(last):.3f} nats per token")
    if kept is not None and not made:
        with explained(f"cannot save {kept}"), new_folder(kept) as temporary:
            policy.save(temporary)
    return policy, ModuleSampler(policy)


def training_texts(recipe: Recipe, prompts: Sequence[Prompt], *, offline: bool = False) -> list[str]:
    """Return texts for pretraining: the task's ``texts()``, or each training prompt with its reference."""
    task: Any = prepared_task(recipe, offline=offline)
    if not hasattr(task, "texts"):
        return [prompt.text + continuation(prompt.text, prompt.reference or "") for prompt in prompts]
    with task_errors(recipe.task.use):
        return list(task.texts())


def load_trained(section: PolicySection, folder: Path) -> ModulePolicy:
    """Load a trained policy from a run or from another folder that ``ModulePolicy.save`` wrote."""
    chosen = section.model_copy(update={"weights": str(folder), "vocabulary": None, "pretrain": None})
    return build_module_policy(chosen, 0, texts=lambda: [])[0]


def _vocabulary(section: PolicySection, source: Path | None, texts: Callable[[], Sequence[str]]) -> Vocabulary:
    if source is not None:
        return read_vocabulary(source / FILE)
    kind = section.vocabulary or KINDS[0]
    if kind in KINDS:
        return build_vocabulary(kind, texts(), section.vocabulary_size)
    path = expanded(kind)
    if not path.is_file():
        raise InputError(
            f"policy.vocabulary = '{kind}'{nearest(kind, KINDS)}: write {', '.join(KINDS)}, or the path of a {FILE}"
        )
    return read_vocabulary(path)


def _module(section: PolicySection, vocabulary: Vocabulary, source: Path | None) -> nn.Module:
    """Return the module with its initial weights, on its device."""
    device = resolve_device(section.device)
    dtype: torch.dtype = getattr(torch, section.dtype)
    if section.use == "lstm":
        shape = section.lstm or (LSTMShape() if source is None else saved_shape(source))
        return LSTM(vocabulary.size, **shape.model_dump()).to(device=device, dtype=dtype)
    assert section.module is not None
    module = _made(section.module, section.options or {}, vocabulary.size)
    if not is_keras(module):
        return module.to(device=device, dtype=dtype)
    if dtype != torch.float32:
        raise InputError(
            f'policy.dtype = "{section.dtype}": a Keras model sets its own dtype: remove the key, and set it in the '
            "layers"
        )
    return module


def _made(path: str, options: dict[str, Any], vocabulary_size: int) -> nn.Module:
    """Return the module at ``module:object``, or that of the callable there, which may take ``vocabulary_size``."""
    # Unless the user has chosen one: a Keras model is a torch module only with this backend.
    os.environ.setdefault("KERAS_BACKEND", "torch")
    entry = import_object(path, "module")
    if isinstance(entry, nn.Module):
        if options:
            raise InputError(
                f"module '{path}' is an object and takes no policy.options: name a function that returns it"
            )
        # A run must not change a module-level object, which a later run may use.
        return copy.deepcopy(entry)
    if not callable(entry):
        raise InputError(f"module '{path}' is neither a torch module nor a function that returns one: {_kind(entry)}")
    parameters = inspect.signature(entry).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in options:
        if key not in parameters and not takes_any:
            raise InputError(
                f"policy.options.{key}: '{path}' has no such argument{nearest(key, parameters)}; it has "
                f"{', '.join(parameters) or 'none'}"
            )
    size = {"vocabulary_size": vocabulary_size} if "vocabulary_size" in parameters else {}
    try:
        module = entry(**{**size, **options})
    except BurnishError:
        raise
    except Exception as error:
        raise InputError(f"module '{path}' raised {type(error).__name__}: {one_line(error)[:200]}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"module '{path}' does not return a torch module: {_kind(module)}")
    return module


def _kind(entry: object) -> str:
    if is_keras(entry):
        return "a Keras model of another backend; set KERAS_BACKEND=torch before Keras is imported"
    return f"it is a {type(entry).__name__}"


def saved_shape(folder: Path) -> LSTMShape:
    """Return the sizes of a saved LSTM, from its weights. Raises InputError if the folder holds none."""
    try:
        tensors = load_file(folder / WEIGHTS)
        embedding = tensors["embedding.weight"].shape[1]
        hidden = tensors["recurrent.weight_hh_l0"].shape[1]
    except Exception as error:  # safetensors has an error of its own kind
        reason = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise InputError(f"{folder} does not hold an LSTM ({reason})") from error
    layers = sum(name.startswith("recurrent.weight_hh_l") for name in tensors)
    return LSTMShape(embedding=embedding, hidden=hidden, layers=layers)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the random generators of torch, numpy and Python (which Keras uses), and restore their state afterwards."""
    plain, old = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(old)
