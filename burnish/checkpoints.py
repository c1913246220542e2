"""What a checkpoint holds of a learner: weights, optimizer, critic, anchor; written, and taken up again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from burnish.anchor import Anchor
from burnish.critic import Critic
from burnish.errors import InputError
from burnish.protocols import Policy, ValueModel
from burnish.run import Checkpoint
from burnish.training import Learner

ANCHOR = "anchor.safetensors"
"""The weights that the KL term pulls towards, in a checkpoint."""

CRITIC = "critic"
"""Folder of PPO's critic and its optimizer, in a checkpoint."""


def write_learner(learner: Learner, folder: Path) -> None:
    """Fills a checkpoint folder: ``model/``, ``optimizer.safetensors`` and, where there is one, ``anchor.safetensors``."""
    learner.policy.save(folder / "model")
    write_optimizer(learner.optimizer, learner.policy.trainable(), folder)
    if learner.critic is not None:
        model, place = learner.critic.model, folder / CRITIC
        place.mkdir()
        weights = {name: parameter.detach().contiguous() for name, parameter in model.trainable().items()}
        save_file(weights, place / "model.safetensors")
        write_optimizer(learner.critic.optimizer, model.trainable(), place)
    if learner.anchor is not None:
        save_file({name: value.contiguous() for name, value in learner.anchor.weights.items()}, folder / ANCHOR)


def restore(learner: Learner, checkpoint: Checkpoint) -> None:
    """Gives the learner the checkpoint's weights, optimizer state and position.

    Raises:
        InputError: the checkpoint is damaged or belongs to another recipe.
    """
    state = checkpoint.state
    try:
        baseline = float(state["baseline"])
        # A run of before there was a coefficient that moves has none.
        coefficient = float(state.get("kl_coefficient", learner.kl_coefficient))
        by_prompt = {name: float(value) for name, value in state.get("prompt_baselines", {}).items()}
        learner.policy.load(checkpoint.folder / "model")
        restore_optimizer(learner.optimizer, learner.policy.trainable(), checkpoint.folder)
        if learner.critic is not None:
            _restore_critic(learner.critic, checkpoint.folder / CRITIC)
        reset = learner.recipe.algorithm.kl.reset_every
        anchor = load_file(checkpoint.folder / ANCHOR) if reset is not None and checkpoint.step >= reset else None
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{checkpoint.folder} cannot be read ({error}); delete it to go on from an older checkpoint"
        ) from error
    learner.step = checkpoint.step
    learner.baseline = baseline
    learner.prompt_baselines = by_prompt
    learner.kl_coefficient = coefficient
    learner.anchor = None
    if anchor is not None:
        places_of = learner.policy.trainable()
        kept = {name: value.to(places_of[name].device) for name, value in anchor.items()}
        learner.anchor = Anchor(learner.policy, kept)


def _restore_critic(critic: Critic, folder: Path) -> None:
    trainable = critic.model.trainable()
    saved = load_file(folder / "model.safetensors")
    if {name: weight.shape for name, weight in saved.items()} != {
        name: weight.shape for name, weight in trainable.items()
    }:
        raise InputError(f"{folder} holds the critic of another policy: another recipe's folder")
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(saved[name])
    restore_optimizer(critic.optimizer, trainable, folder)


def write_optimizer(optimizer: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter], folder: Path) -> None:
    """Writes the optimizer's state into ``optimizer.safetensors``, by the names of the parameters."""
    tensors = {}
    for name, parameter in trainable.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = torch.as_tensor(value).contiguous()
    save_file(tensors, folder / "optimizer.safetensors")


def restore_optimizer(optimizer: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter], folder: Path) -> None:
    """Takes over what ``write_optimizer`` wrote. Raises InputError where it is of other parameters."""
    for key, value in load_file(folder / "optimizer.safetensors").items():
        kind, _, name = key.partition("/")
        if name not in trainable:
            raise InputError(f"{folder}: optimizer state of '{name}', which this policy does not have")
        parameter = trainable[name]
        # The step counter of AdamW stays on the CPU; the moments lie where their parameter does.
        optimizer.state[parameter][kind] = value if kind == "step" else value.to(parameter.device)


def optimizer_for(policy: Policy | ValueModel, settings: Any) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) over the trainable parameters."""
    return torch.optim.AdamW(
        list(policy.trainable().values()),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        # One pass over the moments instead of a dozen, and no temporary copies.
        fused=True,
    )
