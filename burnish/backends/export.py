"""Export of a run's model to a plain folder: copied, merged, or as a GGUF file."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from burnish.catalogue.convert import resolve_model
from burnish.catalogue.portable import make_portable
from burnish.errors import InputError
from burnish.policies.causal_lm import CausalModel, CausalPolicy
from burnish.policies.loading import load_model
from burnish.policies.pretrained import stored_dtype
from burnish.policies.reward_model import HEAD
from burnish.protocols import Observer
from burnish.reports.model_card import model_card
from burnish.system.files import explained, new_folder
from burnish.system.paths import expanded

_GGUF_TYPES = {torch.float32: "f32", torch.float64: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
_COPIED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


def export_model(
    source: str,
    to: Path,
    *,
    merge: bool = False,
    gguf: bool = False,
    dtype: str | None = None,
    offline: bool = False,
    observer: Observer | None = None,
) -> Path:
    """Write a model to a folder that does not exist yet, with a model card if it is a run's. Return what was written.

    Args:
        source: a run folder, a model folder or a catalogue name.
        merge: whether an adapter is merged into its base.
        gguf: whether to write one GGUF file, an adapter merged, in place of a Hugging Face folder.
        dtype: of the weights: a torch type, or one of ``gguf_file.TYPES`` with ``gguf``; None keeps the model's own.

    Raises:
        InputError: the source is not a model, the folder exists, or the model cannot be written in this form.
    """
    run = expanded(source)
    folder = resolve_model(source, offline=offline, observer=observer)
    if not isinstance(folder, Path):
        raise InputError(f"'{source}' is a hub id: name a run folder, a model folder or a catalogue name to export")
    if to.exists():
        raise InputError(f"{to} exists already: choose another folder")
    folder, adapter = folder.resolve(), (folder / "adapter_config.json").is_file()
    if adapter and dtype is not None and not (merge or gguf):
        raise InputError("--dtype converts a whole model, and this is an adapter: add --merge, or leave --dtype out")
    name, written = expanded(source).absolute().name, to
    with explained(f"cannot write {to}"), new_folder(to) as temporary:
        if gguf:
            written = to / f"{name}.gguf"
            _write_gguf_file(folder, temporary / written.name, dtype, name, offline=offline)
        elif (adapter and merge) or dtype is not None:
            _write_converted(folder, temporary, dtype, offline=offline)
        else:
            for path in {path for pattern in _COPIED for path in folder.glob(pattern)}:
                shutil.copyfile(path, temporary / path.name)
            make_portable(temporary)
        if (run / "recipe.toml").is_file():
            (temporary / "README.md").write_text(model_card(run, model=temporary), encoding="utf-8")
    return written


def _load(folder: Path, *, offline: bool) -> CausalModel:
    model = load_model(folder, device="cpu", offline=offline)
    model.model.requires_grad_(False)
    return model


def _write_converted(folder: Path, to: Path, dtype: str | None, *, offline: bool) -> None:
    if dtype not in (None, "float32", "float64", "bfloat16", "float16"):
        raise InputError(f"--dtype {dtype}: must be float32, float64, bfloat16 or float16, or add --gguf")
    model = _load(folder, offline=offline)
    policy = CausalPolicy(model.model, model.tokenizer, like=model, start=lambda: model)
    policy.save_dtype = getattr(torch, dtype) if dtype else stored_dtype(folder)
    policy.save(to)
    if (folder / HEAD).is_file():
        shutil.copyfile(folder / HEAD, to / HEAD)


def _write_gguf_file(folder: Path, path: Path, dtype: str | None, name: str, *, offline: bool) -> None:
    from burnish.policies.gguf_file import write_gguf

    if (folder / HEAD).is_file():
        raise InputError("this is a reward model, and a GGUF file has no place for its head: export without --gguf")
    kind = dtype or _GGUF_TYPES[stored_dtype(folder) or torch.float32]
    model = _load(folder, offline=offline)
    write_gguf(model.model, model.tokenizer, path, kind, name=name, end_ids=model.end_ids)
