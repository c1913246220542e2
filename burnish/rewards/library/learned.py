"""The reward of a trained reward model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from burnish.rewards.registry import reward
from burnish.types import Completion

if TYPE_CHECKING:
    from burnish.policies.reward_model import RewardModel


def _check(*, path: str) -> None:
    from burnish.policies.reward_model import find_model_folder  # slow: it loads torch

    find_model_folder(path)


@reward(check_options=_check)
def reward_model(completions: Sequence[Completion], *, path: str = "") -> list[float]:
    """Score of a reward model trained by `burnish reward-model`; unbounded, and only differences are meaningful.

    The reward model's own tokenizer reads the texts. Each prompt is processed once for all its completions, unpadded.

    Fails by: being a model of finitely many comparisons. A policy finds texts unlike any of them that score high for no
    good reason, the sooner the further it moves from its start: keep a KL term, watch a metric that is not trained on,
    and read samples. Check their lengths first.

    The difference of two rewards is the log-odds that the first is preferred, as far as the model is calibrated
    (``calibration.json`` of its run). ``path`` is a run folder of `burnish reward-model`, or the folder of its model.

    Source: Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, section 3.5; Gao et al. 2022, arXiv 2210.10760
    (how its optimisation fails).
    """
    from burnish.policies.reward_model import find_model_folder

    return _loaded(str(find_model_folder(path).resolve())).score_texts(completions)


@lru_cache(maxsize=2)
def _loaded(folder: str) -> RewardModel:
    """Return the model, cached between steps: it is frozen, and so is the folder behind a resolved link."""
    from burnish.policies.reward_model import load_reward_model

    return load_reward_model(folder)
