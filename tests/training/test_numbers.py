"""Numbers at the ends of their range: bounds at the door, and checks before an update and before a checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import burnish.training.reinforcement
from burnish.algorithms.reward_shaping import RunningMoments, standardise, standardise_by_moments
from burnish.errors import BurnishError, InputError
from burnish.policies.sampling_distribution import draw
from burnish.reports.wording import decimals, difference_text, fixed
from burnish.rewards.combine import Combination
from burnish.rewards.given import register_given
from burnish.rewards.part import LARGEST, LARGEST_WEIGHT, Part
from burnish.rewards.registry import reward_function
from burnish.system.files import json_text
from burnish.training.critic import explained_variance
from burnish.training.metrics import reward_metrics
from burnish.training.step import train_step
from tests.fakes import toy_learner, toy_recipe, train_toy
from tests.rewards.completions import answer

TINY = 5e-324
SMALL = ["algorithm.use=reinforce", "sampling.prompts_per_step=1", "sampling.samples_per_prompt=4"]


@pytest.mark.parametrize("by", [None, "group", "batch", "rank", "running"])
def test_no_sum_of_parts_overflows(by: Any) -> None:
    """Each part is at the largest value and weight; over a hundred steps for the running moments."""
    signs = {"a": 1.0, "b": -1.0, "c": 1.0}

    def function(sign: float) -> Any:
        return reward_function("f", lambda text: sign * LARGEST * float(text))

    parts = [Part(name, function(sign), sign * LARGEST_WEIGHT, normalise=by) for name, sign in signs.items()]
    combination = Combination(parts)
    completions = [answer(text) for text in ("1", "-1", "0", "0.5")]
    for step in range(1, 101):
        scores = combination.score(completions, step=step)
        assert np.isfinite(scores.total).all()
        assert all(map(math.isfinite, reward_metrics(scores).values()))
        combination.update_state(scores)
    assert all(math.isfinite(number) for numbers in combination.state.values() for number in numbers)


def test_a_weight_beyond_the_bound_is_refused() -> None:
    with pytest.raises(InputError, match=r"weight = 1\d+\.0: must be from -1e\+12 to 1e\+12"):
        Combination([Part("a", reward_function("a", lambda text: 1.0), 1e13)])


def test_a_weight_that_is_no_float_is_refused_at_both_doors() -> None:
    for weight in (10**400, "1", math.nan):
        with pytest.raises(InputError, match=r"weight = .*must be a finite number"):
            Combination([Part("a", reward_function("a", lambda text: 1.0), weight)])
        with pytest.raises(InputError, match="must be a finite number"):
            register_given({"bleu": weight})


@pytest.mark.parametrize(
    "override",
    [
        "reward.0.weight=-1e300", "algorithm.kl.coefficient=1e300", "algorithm.entropy=1e300", "algorithm.length_cost=1e300",
        "algorithm.overlong.weight=1e300", "optimizer.learning_rate=1e300", "optimizer.weight_decay=1e300",
        "optimizer.epsilon=1e300", "algorithm.importance.limit=1e300",
    ],
)  # fmt: skip
def test_the_recipe_has_bounds(override: str) -> None:
    with pytest.raises(InputError, match=rf"{override.partition('=')[0]} = .*: must be at (most|least)"):
        toy_recipe(override)


def test_a_decay_that_would_turn_weights_round_is_refused() -> None:
    toy_recipe("optimizer.weight_decay=10.0", "optimizer.learning_rate=0.1")
    with pytest.raises(InputError, match=r"weight_decay = 11 times learning_rate = 0\.1 is above 1"):
        toy_recipe("optimizer.weight_decay=11.0", "optimizer.learning_rate=0.1")


@pytest.mark.parametrize("value", [1e35, -1e80, math.nan, math.inf])
def test_an_advantage_that_cannot_be_trained_on_is_named_with_its_row(value: float) -> None:
    learner = toy_learner(*SMALL, rewards=[1.0, 0.0, 2.0, value])
    before = learner.policy.parameter.detach().clone()
    with pytest.raises(BurnishError, match=r"^step 1: the advantage of prompt 'toy/train/\d+', sample 4 \(.*unchanged"):
        train_step(learner)
    assert torch.equal(learner.policy.parameter.detach(), before) and learner.step == 0


def test_a_loss_that_is_not_finite_names_the_row_of_the_largest_advantage() -> None:
    # Finite advantages whose squares overflow in the norm of the gradient of a table in float32.
    learner = toy_learner(*SMALL, rewards=[0.0, 1e29, 0.0, 0.0])
    learner.policy.parameter.data = learner.policy.parameter.data.float()
    with pytest.raises(
        BurnishError, match=r"the gradient norm is inf.*the largest advantage is on prompt .*, sample 2"
    ):
        train_step(learner)


def test_denormals_are_normalised_to_finite_numbers() -> None:
    rewards = torch.tensor([[TINY, 0.0, 3 * TINY], [1e-162, 2e-162, 3e-162]], dtype=torch.float64)
    assert standardise(rewards).isfinite().all() and standardise(rewards[1] * 1e162).abs().max() > 1
    moments = RunningMoments().after(rewards[1]).after(rewards[0])
    assert moments.deviation == 1.0 and RunningMoments(9.0, 0.0, TINY).deviation == 1.0
    assert standardise_by_moments(rewards, moments).isfinite().all()
    assert explained_variance(rewards[0], rewards[1]) == 0.0


@pytest.mark.parametrize(
    ("before", "after", "interval", "text"),
    [
        (0.0, TINY, [0.0, TINY], "0.000000 [0.000000, 0.000000]"), (TINY, TINY, [0.0, 0.0], "0.000000 [0.000000, 0.000000]"),
        (0.0, 1e100, [-1e100, 1e100], "+1e+100 [-1e+100, +1e+100]"),
        (0.0, 1e300, [-1.7e308, 1.7e308], "+1e+300 [-1.7e+308, +1.7e+308]"),
        (0.0, 0.5, [0.25, 0.75], "+0.50 [+0.25, +0.75]"),
    ],
)  # fmt: skip
def test_the_report_words_numbers_of_every_size(before, after, interval, text) -> None:
    entry = {
        "before": before,
        "after": after,
        "difference": after - before,
        "interval": interval,
        "n": 9,
        "p_value": 1.0,
    }
    assert 0 <= decimals(entry) <= 6 and difference_text(entry) == text
    assert fixed(123_456_789.0, 1) == "123,456,789.0"


def denormal(text: str) -> float:
    return len(text) * TINY


def large(text: str) -> float:
    return len(text) * 1e20


@pytest.mark.parametrize(("reward", "weight"), [(denormal, 1.0), (denormal, TINY), (large, 1e-300), (large, 1e9)])
def test_a_run_of_such_rewards_ends_with_a_report(tmp_path: Path, reward, weight: float) -> None:
    result = train_toy(tmp_path / "run", "steps=3", "algorithm.use=rloo", rewards={reward: weight})
    assert result.report.exists() and "reward" in result.evaluation


def test_samples_of_weights_that_are_not_numbers_are_refused_not_drawn(tmp_path: Path) -> None:
    tokens = draw(torch.full((3, 40), math.nan), torch.tensor([0.0, 0.5, 0.99], dtype=torch.float64))
    assert ((tokens >= 0) & (tokens < 40)).all()
    learner = toy_learner(*SMALL)
    learner.policy.parameter.data.fill_(math.nan)
    with pytest.raises(BurnishError, match=r"step 1: the policy's probabilities are not finite, first on prompt 'toy/"):
        train_step(learner)


@pytest.mark.parametrize(
    ("broken", "message"), [(5, "step 6: the policy's prob"), (6, "step 6: the weight '.*' is not")]
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_weights_replace_no_good_checkpoint(tmp_path: Path, monkeypatch, broken, message, value) -> None:
    step = burnish.training.reinforcement.train_step

    def breaks(learner: Any) -> Any:
        report = step(learner)
        if learner.step == broken:
            learner.policy.parameter.data[:, 0] = value
        return report

    monkeypatch.setattr(burnish.training.reinforcement, "train_step", breaks)
    run = tmp_path / "run"
    with pytest.raises(BurnishError, match=message) as caught:
        train_toy(run, "steps=8", "checkpoint.every=2", "checkpoint.keep=1")
    if broken == 6:
        assert "the checkpoint of step 4 stays the last" in str(caught.value)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-4"]
    (weights,) = (run / "checkpoints" / "step-4" / "model").glob("*.safetensors")
    assert not any(tensor.isnan().any() for tensor in load_file(weights).values())


def test_a_row_that_json_cannot_hold_is_named() -> None:
    with pytest.raises(BurnishError, match=r"^a\.b\.1 is -inf: a number must be finite to be kept"):
        json_text({"a": {"b": [1.0, -math.inf]}})
    assert json.loads(json_text({"a": 1.0}, indent=None)) == {"a": 1.0}
