"""A reward that was learnt: the score of a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from burnish.policies.reward_model import find_model_folder, load_reward_model
from burnish.rewards.registry import reward
from burnish.types import Completion

if TYPE_CHECKING:
    from burnish.policies.reward_model import RewardModel


def _check(*, path: str) -> None:
    find_model_folder(path)


@reward(check_options=_check)
def reward_model(completions: Sequence[Completion], *, path: str = "") -> list[float]:
    """Score of a reward model that `burnish reward-model` trained; any number, and only differences mean something.

    Texts are read by the reward model's own tokenizer, each prompt once for all of its completions, nothing padded.

    Fails by: being a model of a finite set of comparisons. A policy finds texts that no comparison spoke of and that score
    high for no good reason, the sooner the further it goes from where it began: keep a KL term, watch a metric that
    is not trained on, and look at samples. Lengths are the first thing to look at.

    Args:
        completions: N completions.
        path: a run folder of `burnish reward-model`, or a folder that holds its model.

    Returns:
        N rewards. Differences of two are log-odds that the first is preferred, as far as the model is calibrated
        (``calibration.json`` of its run).

    Raises:
        InputError: the folder holds no reward model, or a prompt is longer than the texts that it learnt from.

    Source: Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, section 3.5; Gao et al. 2022, arXiv 2210.10760
    (how optimising it fails).
    """
    return _loaded(str(find_model_folder(path).resolve())).score_texts(completions)


@lru_cache(maxsize=2)
def _loaded(folder: str) -> RewardModel:
    """Kept between steps: it is frozen, and a folder behind a resolved link does not change."""
    return load_reward_model(folder)
