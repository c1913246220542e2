"""Rewards as held-out metrics: read from a recipe, measured beside the reward, compared, shown; refused if they cannot
work."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pytest

from burnish.api import train
from burnish.backends.preflight import check_references
from burnish.errors import BurnishError, InputError
from burnish.evaluation.held_out import compare, measure, summary
from burnish.evaluation.measurement import Measurement
from burnish.evaluation.statistics import mean_of_units, paired_bootstrap
from burnish.recipe.combination import combine_metrics
from burnish.recipe.evaluation import MetricSection
from burnish.recipe.schema import RECIPES, Recipe, load_recipe
from burnish.reports.terminal.progress import make_observer
from burnish.reports.terminal.tables import plain_text
from burnish.rewards.combine import Combination, combine
from burnish.training.reinforcement import measure_by_recipe
from burnish.types import Prompt, SamplingParams
from tests.fakes import CharacterModel, RecordingObserver, TextSampler, toy_recipe

TWO = [MetricSection(use="length_band", low=1, high=2), MetricSection(use="repetition", name="loops", better="lower")]


def recipe(metrics: object) -> Recipe:
    return toy_recipe(evaluation={"metrics": metrics})


def test_a_name_is_short_for_a_table_and_the_recipe_round_trips() -> None:
    found = recipe(["rouge_l", {"use": "chrf", "name": "chrf++", "word_order": 2, "better": "neither"}])
    assert [(m.use, m.part, m.better, m.options) for m in found.evaluation.metrics] == [
        ("rouge_l", "rouge_l", "higher", {}),
        ("chrf", "chrf++", "neither", {"word_order": 2}),
    ]
    assert load_recipe(tomllib.loads(found.toml())) == found


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["rouge"], r"evaluation.metrics.0: .*rouge_l"),
        ([{"use": "chrf", "word_ordr": 2}], r"evaluation.metrics.0: 'chrf' has no option 'word_ordr' .did you mean"),
        ([{"use": "chrf", "x": 1}], r"known: use, name, better, word_order$"),
        ([{"use": "chrf", "weight": 2.0}], "not trained on and takes no weight"),
        (["chrf", "chrf"], "two metrics are called 'chrf'"),
        ([{"use": "chrf", "better": "more"}], "better"),
        ("chrf", "evaluation.metrics"),
        ([{"name": "x"}], "evaluation.metrics"),
    ],
)
def test_invalid_metrics_are_refused_before_anything_is_loaded(metrics: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe(metrics)


def test_overrides_can_change_a_metric_in_the_list() -> None:
    data = tomllib.loads((RECIPES / "toy.toml").read_text(encoding="utf-8"))
    found = load_recipe(data, ['evaluation.metrics=[{use="chrf"}]', "evaluation.metrics.0.word_order=1"])
    assert found.evaluation.metrics[0].options == {"word_order": 1}
    with pytest.raises(InputError, match="set the whole list"):
        load_recipe(data, ['evaluation.metrics=["chrf"]', "evaluation.metrics.0.word_order=1"])


def test_a_metric_needs_references_of_held_out_prompts_only() -> None:
    found = recipe(["rouge_l"])
    with_reference, without = Prompt("a", "", "x"), Prompt("b", "")
    found = found.model_copy(update={"reward": []})
    check_references(found, [without], [with_reference])
    with pytest.raises(InputError, match=r"evaluation.metrics.0: 'rouge_l' needs a reference.*remove this metric"):
        check_references(found, [with_reference], [without])


def measured(texts: dict[str, list[str]]) -> Measurement:
    prompts = [Prompt(name, name, "down") for name in texts]
    return measure(
        CharacterModel(), TextSampler(texts), combine({"exact": 1.0}), prompts, sampling=SamplingParams(20),
        samples_per_prompt=2, seed=0, metrics=combine_metrics(TWO), better={"loops": "lower"},
    )  # fmt: skip


def test_before_and_after_by_hand() -> None:
    before = measured({"a": ["one two three", "one two"], "b": ["one", "one two three four"]})
    after = measured({"a": ["one", "one two"], "b": ["one", "one two"]})
    # Band of 1 to 2 words: 3 words score (2 * 2 - 3) / 2 = 0.5, 4 words score 0. The mean is that of 0.5, 1, 1, 0.
    assert summary(before)["metric/length_band"] == pytest.approx(0.625)
    assert summary(before)["metric/loops"] == 1.0
    table = compare(before, after)
    entry = table["metric/length_band"]
    assert (entry["before"], entry["after"], entry["n"], entry["better"]) == (0.625, 1.0, 2, "higher")
    # Sums and counts per prompt are compared in pairs, as for the reward.
    sums = [np.array([[a, 2.0], [b, 2.0]]) for a, b in ((1.5, 1.0), (2.0, 2.0))]
    same = paired_bootstrap(*sums, statistic=mean_of_units, resamples=1000, seed=0)
    assert entry["difference"] == pytest.approx(0.375)
    assert (entry["interval"], entry["p_value"]) == (list(same.interval), same.p_value)
    assert table["metric/loops"]["better"] == "lower"
    # Metrics do not change the reward, and neither total includes the other's parts.
    assert summary(before)["reward"] == 0.0 and before.weights == {"exact": 1.0}


def test_json_keeps_every_bit_and_files_from_before_metrics_can_be_read() -> None:
    found = measured({"a": ["one two three", "one"], "b": ["one", "two"]})
    assert Measurement.from_json(found.to_json()) == found
    old = json.loads(found.to_json())
    del old["metrics"]
    for sample in old["samples"]:
        del sample["metrics"]
    assert "metric/loops" not in summary(Measurement.from_json(json.dumps(old)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reward": [{"use": "exact"}, {"use": "group_diversity", "weight": 0.0}]}, "evaluation.samples_per_prompt must"),
        ({"reward": [{"use": "group_diversity"}], "sampling": {"samples_per_prompt": 1}, "algorithm": {"use": "reinforce"}},
         "sampling.samples_per_prompt and evaluation.samples_per_prompt must"),
        ({"evaluation": {"metrics": ["group_diversity"]}}, "evaluation.samples_per_prompt must"),
    ],
)  # fmt: skip
def test_a_reward_that_compares_samples_needs_more_than_one(changes: dict, said: str, tmp_path) -> None:
    plain = {
        "name": "alone",
        "task": {"use": "toy"},
        "policy": {"use": "tabular"},
        "reward": [{"use": "exact"}],
        "steps": 1,
    }
    recipe = load_recipe({**plain, **changes})
    with pytest.raises(
        InputError, match=f"'group_diversity' compares the samples of one prompt, but there is only one: {said}"
    ):
        train(recipe, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_measures_shows_and_reports_them(tmp_path) -> None:
    result = train(
        "toy", overrides=['evaluation.metrics=["chrf", {use="length_band", name="four", low=4, high=4}]'],
        steps=3, run_dir=tmp_path / "run", observer=make_observer(quiet=True),
    )  # fmt: skip
    assert {"metric/chrf", "metric/four"} <= result.evaluation.keys()
    # Only the reward is trained on: the rows per step contain no metric.
    assert not any("four" in key or "chrf" in key for row in result.metrics for key in row)
    text = " ".join(plain_text(result.evaluation).split())
    assert "metric: four" in text and "does not train on" in text
    page = result.report.read_text(encoding="utf-8")
    assert "metric: four" in page and "metric: a reward that the recipe measures" in page


def test_a_metric_of_one_kind_of_prompt_applies_to_none_of_a_set() -> None:
    def short(text: str, prompt: Prompt) -> float | None:
        return float(len(text) < 4) if prompt.id.startswith("main") else None

    def forgotten(text: str) -> None:
        """Lack a return."""

    parts = combine({short: 1.0, forgotten: 1.0}).parts
    texts = {f"{name} {index}": ["one", "three"] for name in ("main", "other") for index in range(2)}
    prompts = {name: [Prompt(f"{name} {n}", name) for n in range(2)] for name in ("main", "other")}
    observer = RecordingObserver()
    found = measure_by_recipe(
        toy_recipe(evaluation={"samples_per_prompt": 2}), CharacterModel(), TextSampler(texts), combine({"repetition": 1.0}),
        Combination(parts, must_apply=False), prompts["main"], {"other": prompts["other"]}, observer=observer,
    )  # fmt: skip
    numbers = summary(found)
    assert numbers["metric/short"] == 0.5
    assert not any(name.startswith(("set/other/metric", "metric/forgotten")) for name in numbers)
    assert [text for text in observer.texts if "metric" in text] == [
        "metric 'forgotten' returned None for all held-out completions; is a return missing?"
    ]


def test_in_a_measurement_a_reward_may_apply_to_none_of_a_later_batch() -> None:
    def short(text: str, prompt: Prompt) -> float | None:
        return float(len(text) < 4) if prompt.id == "a" else None

    (one,), (other,) = (
        group.completions
        for group in TextSampler({"a": ["one"], "b": ["one"]}).sample(
            [Prompt("a", "a"), Prompt("b", "b")], samples_per_prompt=1, sampling=SamplingParams(9), seed=(0,)
        )
    )
    with pytest.raises(BurnishError, match="no reward applies to any of 1 completions: short returned None"):
        combine({short: 1.0}).score([other])
    scorer = combine({short: 1.0})
    assert scorer.score([one]).total.tolist() == [1.0]
    assert scorer.score([other]).total.tolist() == [0.0]
