"""Clips, gates, normalisation and schedules of a combined reward."""

from __future__ import annotations

import json
import math
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burnish.api import train
from burnish.errors import InputError
from burnish.recipe.schema import load_recipe
from burnish.recipe.sections import RewardSection, Schedule
from burnish.reports.terminal.progress import make_observer
from burnish.rewards.combine import Combination
from burnish.rewards.part import Part
from burnish.rewards.registry import reward_function
from burnish.run.folder import Run
from burnish.training.metrics import reward_metrics
from burnish.types import Completion, Prompt


def texts(*found: str, prompts: str = "") -> list[Completion]:
    """Completions of the prompts whose one-letter names are given, or of one prompt."""
    ids = prompts or "p" * len(found)
    return [Completion(Prompt(id, "?"), (0,), (1,), text, (0.0,), "stop") for id, text in zip(ids, found, strict=True)]


def number(name: str, place: int, weight: float = 1.0, **treatment: Any) -> Part:
    """A part that reads its value from the text: the place-th of its numbers."""
    return Part(name, reward_function(name, lambda text: float(text.split()[place])), weight, **treatment)


def test_clip_by_hand_and_the_parts_stay_raw() -> None:
    scores = Combination([number("a", 0, 2.0, clip=(-1.0, 3.0))]).score(texts("-5", "0.5", "9"))
    assert scores.total.tolist() == [-2.0, 1.0, 6.0]
    assert scores.parts["a"].tolist() == [-5.0, 0.5, 9.0]


def test_gate_by_hand() -> None:
    parts = [number("a", 0, 1.0, gate=0.5), number("b", 1, 2.0), number("c", 2, -1.0)]
    found = texts("0.5 1 1", "0.4 1 1", "0.4 -1 -1")
    # Open: 0.5 + 2 - 1. Closed: its own 0.4, of b nothing, of c its minus 1; then of b its minus 2, of c nothing.
    assert Combination(parts).score(found).total.tolist() == pytest.approx([1.5, 0.4 - 1.0, 0.4 - 2.0])
    # At weight 0 it is a gate and nothing else.
    parts[0] = number("a", 0, 0.0, gate=0.5)
    assert Combination(parts).score(found).total.tolist() == pytest.approx([1.0, -1.0, -2.0])


def test_two_gates_hold_each_other_back() -> None:
    parts = [number("a", 0, 1.0, gate=1.0), number("b", 1, 1.0, gate=1.0)]
    found = texts("1 1", "1 0.5", "0.5 1", "0.5 0.5")
    # b closed: nothing of a, b's own 0.5; and the other way round.
    assert Combination(parts).score(found).total.tolist() == [2.0, 0.5, 0.5, 0.0]


def test_a_gate_looks_at_the_raw_part_and_never_raises_a_reward() -> None:
    rng = np.random.default_rng(0)
    found = texts(*(" ".join(map(str, row)) for row in rng.normal(size=(60, 3))), prompts="abc" * 20)
    for gate in (-1.0, 0.0, 1.0):
        for normalise in (None, "group", "batch"):
            rest = [number("b", 1, 1.5, normalise=normalise), number("c", 2, -0.7, normalise=normalise)]
            gated = Combination([number("a", 0, clip=(-0.1, 0.1), gate=gate), *rest]).score(found, step=1)
            free = Combination([number("a", 0, clip=(-0.1, 0.1)), *rest]).score(found, step=1)
            passed = gated.parts["a"] >= gate
            assert 0 < passed.sum() < 60
            assert gated.total[passed].tolist() == free.total[passed].tolist()
            assert (gated.total <= free.total).all() and (gated.total < free.total).any()


def test_normalise_by_hand() -> None:
    found = texts("1", "7", "3", "7", prompts="xyxy")
    # x: 1 and 3, mean 2, deviation 1. y: equal, so 0.
    group = Combination([number("a", 0, 2.0, normalise="group")])
    assert group.score(found, step=1).total.tolist() == [-2.0, 0.0, 2.0, 0.0]
    # All: 1 7 3 7, mean 4.5, squares 12.25 6.25 2.25 6.25 of mean 6.75.
    batch = Combination([number("a", 0, normalise="batch")]).score(found, step=1)
    assert batch.total.tolist() == pytest.approx([d / math.sqrt(6.75) for d in (-3.5, 2.5, -1.5, 2.5)])
    assert batch.parts["a"].tolist() == [1.0, 7.0, 3.0, 7.0]
    # What can be compared between steps, and what a held-out measurement sees.
    assert group.score(found).total.tolist() == [2.0, 14.0, 6.0, 14.0]
    assert reward_metrics(group.score(found, step=1))["reward/mean"] == 9.0


def test_ranks_by_hand() -> None:
    # x: 1 below 3 below 900; y: two alike. An outlier is no more than the best.
    found = texts("1", "7", "3", "7", "900", prompts="xyxyx")
    ranked = Combination([number("a", 0, 2.0, normalise="rank")]).score(found, step=1)
    assert ranked.total.tolist() == [-2.0, 0.0, 0.0, 0.0, 2.0]
    assert ranked.unnormalised is not None
    assert ranked.unnormalised.tolist() == [2.0, 14.0, 6.0, 14.0, 1800.0]


def test_running_moments_by_hand() -> None:
    scorer = Combination([number("a", 0, 3.0, normalise="running", clip=(0.0, 5.0))])
    first = scorer.score(texts("1", "9"), step=1)
    # Nothing came before, and what is scored is not compared with itself.
    assert first.total.tolist() == scorer.score(texts("1", "9"), step=1).total.tolist() == [3.0, 15.0]
    scorer.update_state(first)
    # 1 and 5 (9, cut): mean 3, deviation sqrt 8.
    second = scorer.score(texts("3", "7", "-1"), step=2)
    assert second.total.tolist() == pytest.approx([0.0, 3 * 2 / math.sqrt(8), -3 * 3 / math.sqrt(8)])
    scorer.update_state(second)
    assert scorer.state == {"a": [5.0, pytest.approx((1 + 5 + 3 + 5 + 0) / 5), pytest.approx(60 - 14 * 14 / 5)]}
    # A held-out measurement neither sees nor changes it; another combination goes on from what was kept.
    assert scorer.score(texts("1", "9")).total.tolist() == [3.0, 15.0]
    other = Combination(scorer.parts)
    other.state = json.loads(json.dumps(scorer.state))
    assert other.score(texts("4"), step=3).total.tolist() == scorer.score(texts("4"), step=3).total.tolist()


@pytest.mark.parametrize(
    "kept", [[1.0], [2.0, math.nan, 1.0], [-1.0, 0.0, 1.0], [2.0, 0.0, -1.0], [1.0, 2.0, 3.0, 4.0]]
)
def test_moments_that_are_none_are_refused(kept) -> None:
    scorer = Combination([number("a", 0, normalise="running")])
    with pytest.raises(InputError, match="the state of reward 'a' is"):
        scorer.state = {"a": kept}
    assert scorer.state == {"a": [0.0, 0.0, 0.0]}


def test_a_resumed_run_remembers_the_rewards_of_before(tmp_path) -> None:
    def state(run: Path) -> tuple[bytes, bytes]:
        newest = run / "checkpoints" / "step-6"
        return (newest / "state.json").read_bytes(), (newest / "model" / "model.safetensors").read_bytes()

    keys = [
        "reward.0.normalise='running'",
        "algorithm.use='reinforce'",
        "reward.1.weight=0.5",
        "reward.1.normalise='rank'",
    ]
    keys += ["reward.1.schedule.steps=6", "checkpoint.every=3", "checkpoint.keep=9", "steps=6"]
    quiet = make_observer(quiet=True)
    run = train(tomllib.loads(RECIPE), run_dir=tmp_path / "run", overrides=keys, observer=quiet).run_dir
    whole, rows = state(run), (run / "samples.jsonl").read_bytes()
    count, mean, _ = json.loads(whole[0])["scorer"]["exact"]
    parts = [row["parts"]["exact"] for row in Run.open(run).rows("samples.jsonl")]
    assert (count, mean) == (len(parts), pytest.approx(np.mean(parts)))
    shutil.rmtree(run / "checkpoints" / "step-6")
    train(resume=run, observer=quiet)
    assert state(run) == whole
    assert (run / "samples.jsonl").read_bytes() == rows


def test_a_normalised_part_has_no_scale() -> None:
    scorer = Combination([number("a", 0, normalise="group"), number("b", 1, normalise="group")])
    plain = texts("1 1", "2 5", "4 2", "3 9", prompts="xxyy")
    scaled = texts("1 100", "2 500", "4 207", "3 907", prompts="xxyy")
    assert scorer.score(plain, step=1).total == pytest.approx(scorer.score(scaled, step=1).total)


def test_equal_values_normalise_to_exactly_nothing() -> None:
    # The mean of three times 0.1 is 0.10000000000000002 or so.
    scores = Combination([number("a", 0, normalise="group")]).score(texts("0.1", "0.1", "0.1"), step=1)
    assert scores.total.tolist() == [0.0, 0.0, 0.0]


def test_schedule_by_hand() -> None:
    scorer = Combination([number("a", 0, 2.0, schedule=Schedule(start=1.0, end=0.0, steps=5))])
    weights = [scorer.score(texts("3"), step=step).weights["a"] for step in (1, 2, 3, 5, 6, 100)]
    assert weights == [2.0, 1.5, 1.0, 0.0, 0.0, 0.0]
    assert scorer.score(texts("3"), step=2).total.tolist() == [4.5]
    assert scorer.score(texts("3")).weights == {"a": 0.0}  # held out: after the last step


def test_nothing_to_score() -> None:
    scorer = Combination([number("a", 0, gate=1.0, clip=(0.0, 1.0)), number("b", 1, normalise="group")])
    assert scorer.score([], step=1).total.shape == (0,)


@pytest.mark.parametrize(
    ("treatment", "message"),
    [
        ({"gate": math.nan}, "gate = nan: must be a finite number"),
        ({"gate": "1"}, "gate = '1': must be"),
        ({"clip": (1.0, 0.0)}, r"clip = \(1.0, 0.0\): must be two numbers, the first below"),
        ({"clip": (0.0, math.inf)}, "clip = inf: must be a finite number"),
        ({"clip": (0.0, 1.0, 2.0)}, "must be two numbers"),
        ({"normalise": "groups"}, "normalise = 'groups': must be"),
    ],
)
def test_parts_that_cannot_work(treatment, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Combination([number("a", 0, **treatment), number("b", 1)])


def test_a_gate_alone_is_refused() -> None:
    with pytest.raises(InputError, match=r"gate = 1.0 needs another reward to hold back"):
        Combination([number("a", 0, gate=1.0)])


RECIPE = """
name = "mine"
steps = 10
[policy]
use = "tabular"
[task]
use = "toy"
[[reward]]
use = "exact"
clip = [0, 1]
normalise = "group"
[[reward]]
use = "length_band"
weight = 0.0
gate = 0.5
schedule = { start = 0.0, end = 1.0, steps = 10 }
"""


def test_a_recipe_says_it_and_comes_back_from_its_own_text() -> None:
    recipe = load_recipe(tomllib.loads(RECIPE))
    assert load_recipe(tomllib.loads(recipe.toml())) == recipe
    first, second = Combination.from_recipe(recipe.reward).parts
    assert (first.clip, first.normalise, second.gate) == ((0.0, 1.0), "group", 0.5)
    assert second.schedule == Schedule(start=0.0, end=1.0, steps=10)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.0.clip=[1, 1]", r"reward.0.clip: clip = \[1.0, 1.0\]: the first must be below the second"),
        ("reward.0.clip=[1]", "reward.0.clip"),
        ("reward.0.gat=1", r"no option 'gat' \(did you mean 'gate'"),
        ("reward.0.weight=0", "every reward has weight 0"),
        ("reward.1.schedule.steps=11", "schedule.steps = 11 ends after the run's 10 steps"),
        ("reward.1.schedule.stop=1.0", r"unknown key 'reward.1.schedule.stop'"),
        ("reward.0.normalise='groups'", "reward.0.normalise = 'groups'.*'group', 'batch', 'rank' or 'running'"),
        ("sampling.samples_per_prompt=1", 'normalise = "group" compares completions, and there is one'),
        ("reward.0.normalise='rank'", 'normalise = "rank" compares completions, and there is one'),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(override: str, message: str) -> None:
    overrides = [override, 'algorithm.use="reinforce"', "reward.1.weight=0"]
    overrides += ["sampling.samples_per_prompt=1"] if "rank" in override else []
    with pytest.raises(InputError, match=message):
        load_recipe(tomllib.loads(RECIPE), overrides)


def test_a_gate_needs_something_to_hold_back_in_a_recipe() -> None:
    with pytest.raises(
        InputError, match=r"gate = 0.5 holds back the other parts' credit, and no other part has a weight"
    ):
        load_recipe(tomllib.loads(RECIPE), ["reward.0.weight=0", "reward.1.weight=1.0"])


def test_a_run_trains_on_one_number_and_reports_the_other(tmp_path) -> None:
    # Sampled texts that are too short by a gate of weight 0 earn nothing; the rest is normalised within its group.
    overrides = [
        "steps=3",
        "reward.1.gate=1.0",
        "reward.1.low=3",
        "reward.1.schedule.steps=2",
        "sampling.prompts_per_step=4",
    ]
    result = train(
        tomllib.loads(RECIPE), run_dir=tmp_path / "run", overrides=overrides, observer=make_observer(quiet=True)
    )
    rows = Run.open(result.run_dir).rows("samples.jsonl")
    for metrics in result.metrics:
        step = [row for row in rows if row["step"] == metrics["step"]]
        raw = [row["parts"]["exact"] * (row["parts"]["length_band"] >= 1.0) for row in step]
        assert metrics["reward/mean"] == pytest.approx(np.mean(raw))
        assert metrics["reward/exact"] == pytest.approx(np.mean([row["parts"]["exact"] for row in step]))
        for id in {row["prompt_id"] for row in step}:
            ours = [row for row in step if row["prompt_id"] == id]
            values = np.array([row["parts"]["exact"] for row in ours])
            spread = values.std() or 1.0
            closed = np.array([row["parts"]["length_band"] < 1.0 for row in ours])
            expected = (values - values.mean()) / spread
            expected = np.where(closed, np.minimum(expected, 0.0), expected)
            assert [row["reward"] for row in ours] == pytest.approx(expected.tolist())
    # Held out nothing is normalised: the reward is a share of right answers.
    assert 0.0 <= result.evaluation["reward"]["before"] <= 1.0
    assert result.evaluation["reward"]["before"] == pytest.approx(result.evaluation["reward/exact"]["before"])


def test_a_schedule_that_is_zero_throughout_is_no_weight() -> None:
    zero = RewardSection(use="exact", schedule=Schedule(start=0.0, end=0.0, steps=2))
    assert not zero.counts and RewardSection(use="exact").counts
