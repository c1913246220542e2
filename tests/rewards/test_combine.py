"""Weights, clips, gates, normalisation and schedules of combined rewards."""

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
from burnish.recipe.combination import combine_rewards
from burnish.recipe.schema import load_recipe
from burnish.recipe.sections import RewardSection, Schedule
from burnish.reports.terminal.progress import make_observer
from burnish.rewards.combine import Combination, combine
from burnish.rewards.part import Part
from burnish.rewards.registry import reward_function
from burnish.run.folder import Run
from burnish.training.metrics import reward_metrics
from burnish.types import Completion
from tests.fakes import TokenValueModel
from tests.rewards.completions import answer


def samples(*texts: str, prompts: str = "") -> list[Completion]:
    """Return completions of the prompts with these one-letter ids, or of one prompt."""
    return [answer(text, id=id) for id, text in zip(prompts or "p" * len(texts), texts, strict=True)]


def number(name: str, index: int, weight: float = 1.0, **settings: Any) -> Part:
    """Return a part whose value is one of the numbers in the text."""
    return Part(name, reward_function(name, lambda text: float(text.split()[index])), weight, **settings)


def test_weighted_sum_by_hand() -> None:
    def length(text: str) -> int:
        return len(text)

    scorer = combine({"exact": 2.0, length: -0.5, "repetition": 0.0})
    scores = scorer.score([answer("true"), answer("a b a b a b")])
    assert scores.parts["exact"].tolist() == [1.0, 0.0]
    assert scores.parts["length"].tolist() == [4.0, 11.0]
    assert scores.parts["repetition"].tolist() == pytest.approx([1.0, 0.05])
    assert scores.total.tolist() == [2.0 - 2.0, -5.5]
    assert scores.weights == {"exact": 2.0, "length": -0.5, "repetition": 0.0}
    assert all(part.dtype == np.float64 for part in [scores.total, *scores.parts.values()])


def test_scores_go_with_their_completions() -> None:
    completions = [answer(text, tokens=(position,)) for position, text in enumerate(["true", "x", "true x", "a a a"])]
    scorer = combine({"exact": 1.0, "bleu": 1.0, "perplexity": 1.0, "repetition": 1.0}, TokenValueModel())
    straight = scorer.score(completions).total
    assert scorer.score(completions[::-1]).total.tolist() == straight[::-1].tolist()
    assert scorer.score(completions * 2).total.tolist() == straight.tolist() * 2


def test_no_completions() -> None:
    scores = combine({"exact": 1.0, "perplexity": 1.0}, TokenValueModel()).score([])
    assert scores.total.shape == (0,) and scores.parts["perplexity"].shape == (0,)


def test_plain_values_are_those_of_a_score() -> None:
    scorer = Combination([number("a", 0, 2.0, clip=(-1.0, 3.0)), number("b", 0)])
    completions = samples("-5", "0.5", "9")
    assert scorer.values(completions) == {name: row.tolist() for name, row in scorer.score(completions).parts.items()}
    assert scorer.values([]) == {"a": [], "b": []}


def test_combine_rewards_of_a_recipe() -> None:
    sections = [
        RewardSection(use="bleu", weight=0.5, tokenize="zh"),
        RewardSection(use="perplexity", name="fluency", form="raw"),
    ]
    scores = combine_rewards(sections, TokenValueModel()).score([answer("我爱你", reference="我爱她", tokens=(2,))])
    assert list(scores.parts) == ["bleu", "fluency"]
    assert scores.total[0] == pytest.approx(0.5 * (1 / 6) ** (1 / 3) - math.exp(2))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "no reward"),
        ({"blue": 1.0}, r"no reward named 'blue' \(did you mean 'bleu'\?\)"),
        ({"bleu": math.nan}, "weight = nan: must be a finite number"),
        ({"bleu": "1"}, "weight = '1': must be"),
        ({"bleu": True}, "weight = True: must be"),
        ({"perplexity": 1.0}, "'perplexity' needs the reference policy"),
        ({"burnish.rewards.library.answers:exact": 1.0, "exact": 1.0}, "two rewards are named 'exact'"),
    ],
)
def test_combinations_that_cannot_work(parts, message) -> None:
    with pytest.raises(InputError, match=message):
        combine(parts)


def test_clip_by_hand_leaves_the_parts_raw() -> None:
    scores = Combination([number("a", 0, 2.0, clip=(-1.0, 3.0))]).score(samples("-5", "0.5", "9"))
    assert scores.total.tolist() == [-2.0, 1.0, 6.0]
    assert scores.parts["a"].tolist() == [-5.0, 0.5, 9.0]


def test_gate_by_hand() -> None:
    parts = [number("a", 0, 1.0, gate=0.5), number("b", 1, 2.0), number("c", 2, -1.0)]
    completions = samples("0.5 1 1", "0.4 1 1", "0.4 -1 -1")
    # Open: 0.5 + 2 - 1. Closed: 0.4 of a; nothing of b and -1 of c, or -2 of b and nothing of c.
    assert Combination(parts).score(completions).total.tolist() == pytest.approx([1.5, 0.4 - 1.0, 0.4 - 2.0])
    # With weight 0 it is only a gate.
    parts[0] = number("a", 0, 0.0, gate=0.5)
    assert Combination(parts).score(completions).total.tolist() == pytest.approx([1.0, -1.0, -2.0])


def test_two_gates_hold_each_other_back() -> None:
    parts = [number("a", 0, 1.0, gate=1.0), number("b", 1, 1.0, gate=1.0)]
    completions = samples("1 1", "1 0.5", "0.5 1", "0.5 0.5")
    # b closed: nothing of a, 0.5 of b; and the reverse.
    assert Combination(parts).score(completions).total.tolist() == [2.0, 0.5, 0.5, 0.0]


def test_a_gate_compares_the_raw_part_and_never_raises_a_reward() -> None:
    rng = np.random.default_rng(0)
    completions = samples(*(" ".join(map(str, row)) for row in rng.normal(size=(60, 3))), prompts="abc" * 20)
    for gate in (-1.0, 0.0, 1.0):
        for normalise in (None, "group", "batch"):
            rest = [number("b", 1, 1.5, normalise=normalise), number("c", 2, -0.7, normalise=normalise)]
            gated = Combination([number("a", 0, clip=(-0.1, 0.1), gate=gate), *rest]).score(completions, step=1)
            free = Combination([number("a", 0, clip=(-0.1, 0.1)), *rest]).score(completions, step=1)
            passed = gated.parts["a"] >= gate
            assert 0 < passed.sum() < 60
            assert gated.total[passed].tolist() == free.total[passed].tolist()
            assert (gated.total <= free.total).all() and (gated.total < free.total).any()


def test_normalise_by_hand() -> None:
    completions = samples("1", "7", "3", "7", prompts="xyxy")
    # x: 1 and 3, mean 2, standard deviation 1. y: equal, so 0.
    group = Combination([number("a", 0, 2.0, normalise="group")])
    assert group.score(completions, step=1).total.tolist() == [-2.0, 0.0, 2.0, 0.0]
    # All: 1 7 3 7, mean 4.5, variance (12.25 + 6.25 + 2.25 + 6.25) / 4 = 6.75.
    batch = Combination([number("a", 0, normalise="batch")]).score(completions, step=1)
    assert batch.total.tolist() == pytest.approx([d / math.sqrt(6.75) for d in (-3.5, 2.5, -1.5, 2.5)])
    assert batch.parts["a"].tolist() == [1.0, 7.0, 3.0, 7.0]
    # Held-out measurements and the metric, which is compared between steps, are not normalised.
    assert group.score(completions).total.tolist() == [2.0, 14.0, 6.0, 14.0]
    assert reward_metrics(group.score(completions, step=1))["reward/mean"] == 9.0


def test_ranks_by_hand() -> None:
    # x: 1 < 3 < 900; y: two equal. An outlier gets no more than the best rank.
    completions = samples("1", "7", "3", "7", "900", prompts="xyxyx")
    ranked = Combination([number("a", 0, 2.0, normalise="rank")]).score(completions, step=1)
    assert ranked.total.tolist() == [-2.0, 0.0, 0.0, 0.0, 2.0]
    assert ranked.unnormalised is not None
    assert ranked.unnormalised.tolist() == [2.0, 14.0, 6.0, 14.0, 1800.0]


def test_running_moments_by_hand() -> None:
    scorer = Combination([number("a", 0, 3.0, normalise="running", clip=(0.0, 5.0))])
    first = scorer.score(samples("1", "9"), step=1)
    # There are no earlier steps, and a step is not compared with itself.
    assert first.total.tolist() == scorer.score(samples("1", "9"), step=1).total.tolist() == [3.0, 15.0]
    scorer.update_state(first)
    # 1 and 5 (9, clipped): mean 3, standard deviation sqrt 8.
    second = scorer.score(samples("3", "7", "-1"), step=2)
    assert second.total.tolist() == pytest.approx([0.0, 3 * 2 / math.sqrt(8), -3 * 3 / math.sqrt(8)])
    scorer.update_state(second)
    assert scorer.state == {"a": [5.0, pytest.approx((1 + 5 + 3 + 5 + 0) / 5), pytest.approx(60 - 14 * 14 / 5)]}
    # A held-out measurement neither reads nor changes the state; another combination continues from it.
    assert scorer.score(samples("1", "9")).total.tolist() == [3.0, 15.0]
    other = Combination(scorer.parts)
    other.state = json.loads(json.dumps(scorer.state))
    assert other.score(samples("4"), step=3).total.tolist() == scorer.score(samples("4"), step=3).total.tolist()


@pytest.mark.parametrize(
    "state", [[1.0], [2.0, math.nan, 1.0], [-1.0, 0.0, 1.0], [2.0, 0.0, -1.0], [1.0, 2.0, 3.0, 4.0]]
)
def test_a_state_that_is_not_valid_is_refused(state) -> None:
    scorer = Combination([number("a", 0, normalise="running")])
    with pytest.raises(InputError, match="the state of reward 'a' is"):
        scorer.state = {"a": state}
    assert scorer.state == {"a": [0.0, 0.0, 0.0]}


@pytest.mark.slow
def test_a_resumed_run_keeps_the_running_moments(tmp_path) -> None:
    def state(run: Path) -> tuple[bytes, bytes]:
        newest = run / "checkpoints" / "step-6"
        return (newest / "state.json").read_bytes(), (newest / "model" / "model.safetensors").read_bytes()

    keys = [
        "reward.0.normalise='running'",
        "algorithm.use='reinforce'",
        "reward.1.weight=0.5",
        "reward.1.normalise='rank'",
    ]
    keys += [
        "reward.1.schedule.steps=6",
        "checkpoint.every=3",
        "checkpoint.keep=9",
        "steps=6",
        "evaluation.resamples=100",
    ]
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
    plain = samples("1 1", "2 5", "4 2", "3 9", prompts="xxyy")
    scaled = samples("1 100", "2 500", "4 207", "3 907", prompts="xxyy")
    assert scorer.score(plain, step=1).total == pytest.approx(scorer.score(scaled, step=1).total)


def test_equal_values_normalise_to_exactly_zero() -> None:
    # In floating point, the mean of three times 0.1 is not 0.1.
    scores = Combination([number("a", 0, normalise="group")]).score(samples("0.1", "0.1", "0.1"), step=1)
    assert scores.total.tolist() == [0.0, 0.0, 0.0]


def test_schedule_by_hand() -> None:
    scorer = Combination([number("a", 0, 2.0, schedule=Schedule(start=1.0, end=0.0, steps=5))])
    weights = [scorer.score(samples("3"), step=step).weights["a"] for step in (1, 2, 3, 5, 6, 100)]
    assert weights == [2.0, 1.5, 1.0, 0.0, 0.0, 0.0]
    assert scorer.score(samples("3"), step=2).total.tolist() == [4.5]
    assert scorer.score(samples("3")).weights == {"a": 0.0}  # held out: after the last step


def test_no_completions_with_gates_and_normalisation() -> None:
    scorer = Combination([number("a", 0, gate=1.0, clip=(0.0, 1.0)), number("b", 1, normalise="group")])
    assert scorer.score([], step=1).total.shape == (0,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate": math.nan}, "gate = nan: must be a finite number"),
        ({"gate": "1"}, "gate = '1': must be"),
        ({"clip": (1.0, 0.0)}, r"clip = \(1.0, 0.0\): must be two numbers, the first below"),
        ({"clip": (0.0, math.inf)}, "clip = inf: must be a finite number"),
        ({"clip": (0.0, 1.0, 2.0)}, "must be two numbers"),
        ({"normalise": "groups"}, "normalise = 'groups': must be"),
    ],
)
def test_parts_that_cannot_work(settings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Combination([number("a", 0, **settings), number("b", 1)])


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


def test_a_recipe_survives_writing_and_reading() -> None:
    recipe = load_recipe(tomllib.loads(RECIPE))
    assert load_recipe(tomllib.loads(recipe.toml())) == recipe
    first, second = combine_rewards(recipe.reward).parts
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
        ("sampling.samples_per_prompt=1", 'normalise = "group" compares completions, but there is only one'),
        ("reward.0.normalise='rank'", 'normalise = "rank" compares completions, but there is only one'),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(override: str, message: str) -> None:
    overrides = [override, 'algorithm.use="reinforce"', "reward.1.weight=0"]
    overrides += ["sampling.samples_per_prompt=1"] if "rank" in override else []
    with pytest.raises(InputError, match=message):
        load_recipe(tomllib.loads(RECIPE), overrides)


def test_a_gate_in_a_recipe_needs_another_part_with_a_weight() -> None:
    with pytest.raises(
        InputError, match=r"gate = 0.5 controls the credit of the other parts, but no other part has a weight"
    ):
        load_recipe(tomllib.loads(RECIPE), ["reward.0.weight=0", "reward.1.weight=1.0"])


def test_a_run_trains_on_one_number_and_reports_the_other(tmp_path) -> None:
    # A gate of weight 0 refuses short texts; the other part is normalised within its group.
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
    # Held out, nothing is normalised: the reward is a share of right answers.
    assert 0.0 <= result.evaluation["reward"]["before"] <= 1.0
    assert result.evaluation["reward"]["before"] == pytest.approx(result.evaluation["reward/exact"]["before"])


def test_a_schedule_that_is_always_zero_does_not_count() -> None:
    zero = RewardSection(use="exact", schedule=Schedule(start=0.0, end=0.0, steps=2))
    assert not zero.counts and RewardSection(use="exact").counts


def test_flags_can_gate_the_other_rewards() -> None:
    """What screening found reaches rewards that name ``flags``, one at a time or all at once."""

    def unflagged(text: str, flags: tuple[str, ...]) -> float:
        return 0.0 if flags else 1.0

    def counts(texts: list[str], flags: list[tuple[str, ...]]) -> list[float]:
        return [float(len(own)) for own in flags]

    gate = Part("unflagged", reward_function("unflagged", unflagged), 0.0, gate=1.0)
    scorer = Combination([gate, number("number", 0), Part("counts", reward_function("counts", counts), -0.5)])
    completions = samples("3", "4", "5")
    scores = scorer.score(completions, step=1, flags=[(), ("truncated",), ("empty", "truncated")])
    assert scores.parts["counts"].tolist() == [0.0, 1.0, 2.0]
    assert scores.passed["unflagged"].tolist() == [True, False, False]
    # A closed gate leaves only what is negative.
    assert scores.total.tolist() == [3.0, -0.5, -1.0]
    assert scorer.score(completions).total.tolist() == [3.0, 4.0, 5.0], "unscreened completions have no flags"
