"""What a checkpoint of ``train`` holds of a learner besides what every run keeps: baselines, critic, anchor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from burnish.errors import InputError
from burnish.protocols import StatefulScorer
from burnish.run.folder import Checkpoint
from burnish.training.critic import Critic
from burnish.training.kl_reference import Anchor
from burnish.training.step import Learner
from burnish.training.trainer import readable, restore_optimizer, write_optimizer
from burnish.training.trainer import restore as restore_weights
from burnish.training.trainer import write_learner as write_weights

ANCHOR = "anchor.safetensors"
"""The weights that the KL term pulls towards, in a checkpoint."""

CRITIC = "critic"
"""Folder of PPO's critic and its optimizer, in a checkpoint."""


def state_of(learner: Learner) -> dict[str, Any]:
    """What a checkpoint keeps besides tensors and the step."""
    state: dict[str, Any] = {"baseline": learner.baseline, "kl_coefficient": learner.kl_coefficient}
    if learner.prompt_baselines:
        state["prompt_baselines"] = learner.prompt_baselines
    if isinstance(learner.scorer, StatefulScorer) and learner.scorer.state:
        state["scorer"] = learner.scorer.state
    return state


def write_learner(learner: Learner, folder: Path) -> None:
    """Fills a checkpoint folder: what every run's holds, ``critic/`` and ``anchor.safetensors`` where there is one."""
    write_weights(learner, folder)
    if learner.critic is not None:
        model, place = learner.critic.model, folder / CRITIC
        place.mkdir()
        weights = {name: parameter.detach().contiguous() for name, parameter in model.trainable().items()}
        save_file(weights, place / "model.safetensors")
        write_optimizer(learner.critic.optimizer, model.trainable(), place)
    if learner.anchor is not None:
        save_file({name: value.contiguous() for name, value in learner.anchor.weights.items()}, folder / ANCHOR)


def restore(learner: Learner, checkpoint: Checkpoint) -> None:
    """Gives the learner everything that the checkpoint holds of it.

    Raises:
        InputError: the checkpoint is damaged or belongs to another recipe.
    """
    state = checkpoint.state
    with readable(checkpoint.folder):
        baseline = float(state["baseline"])
        # A run of before there was a coefficient that moves has none.
        coefficient = float(state.get("kl_coefficient", learner.kl_coefficient))
        by_prompt = {name: float(value) for name, value in state.get("prompt_baselines", {}).items()}
        reset = learner.recipe.algorithm.kl.reset_every
        anchor = load_file(checkpoint.folder / ANCHOR) if reset is not None and checkpoint.step >= reset else None
        if isinstance(learner.scorer, StatefulScorer) and learner.scorer.state:
            learner.scorer.state = state["scorer"]
        if learner.critic is not None:
            _restore_critic(learner.critic, checkpoint.folder / CRITIC)
        restore_weights(learner, checkpoint)
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
