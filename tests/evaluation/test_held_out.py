"""Held-out measurements and their comparison, with a model and a sampler of fixed answers."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from burnish.errors import InputError
from burnish.evaluation.held_out import LONGEST_TRUTH, compare, continuation, measure, summary
from burnish.evaluation.measurement import Measurement, Truth
from burnish.rewards.combine import combine
from burnish.types import Prompt, SamplingParams
from tests.fakes import CharacterModel, RecordingObserver, TextSampler

SAMPLING = SamplingParams(max_new_tokens=20)
METRICS = [
    "reward",
    "reward/exact",
    "perplexity",
    "truth_perplexity",
    "chrf",
    "distinct_1",
    "distinct_2",
    "length",
]


PROMPTS = [Prompt("a", "The cat", "sat down"), Prompt("b", "It rained", "all day"), Prompt("c", "Nobody", "knew why")]
BEFORE = {"a": ["sat up", "ran"], "b": ["all day", "a lot"], "c": ["came", "came"]}
AFTER = {"a": ["sat down", "sat"], "b": ["all day", "all"], "c": ["knew why", "knew"]}


def measured(answers=None, prompts=PROMPTS, model=None, samples=2, **options) -> Measurement:
    model = model or CharacterModel()
    answers = BEFORE if answers is None else answers
    rewards = combine({"exact": 1.0} if all(p.reference for p in prompts) else {"repetition": 1.0})
    options = {"seed": 0, **options}
    return measure(
        model, TextSampler(answers), rewards, prompts, sampling=SAMPLING, samples_per_prompt=samples, **options
    )


# Attempts -----------------------------------------------------------------------------------------------------------


def test_pass_at_k_by_hand():
    answers = {"a": ["sat down", "x", "sat down", "x"], "b": ["x"] * 4, "c": ["knew why"] + ["x"] * 3}
    measurement = measured(answers, samples=4, correct="exact", attempts=[1, 2, 4])
    result = summary(Measurement.from_json(measurement.to_json()))
    assert result["avg@4"] == result["pass@1"] == pytest.approx((2 + 0 + 1) / 12)
    # Of the 6 pairs of four samples one has neither of two right ones, and 3 lack the only right one.
    assert result["pass@2"] == pytest.approx((5 / 6 + 0 + 3 / 6) / 3)
    assert result["pass@4"] == pytest.approx(2 / 3)
    better = measured({key: ["sat down", "all day", "knew why", "x"] for key in "abc"}, samples=4, correct="exact",
                      attempts=[2])  # fmt: skip
    row = compare(measurement, better)["pass@2"]
    assert (row["n"], row["after"], row["better"]) == (3, pytest.approx(0.5), "higher")


def test_pass_at_k_leaves_out_samples_that_the_part_does_not_apply_to():
    answers = {"a": ["sat down", "x", "sat down", "x"], "b": ["x"] * 4, "c": ["knew why"] + ["x"] * 3}
    measurement = measured(answers, samples=4, correct="exact", attempts=[1, 4])
    # The last sample of "a", and all of "b".
    samples = [
        replace(one, parts={}) if one.prompt_id == "b" or (one.prompt_id, one.index) == ("a", 3) else one
        for one in measurement.samples
    ]
    result = summary(replace(measurement, samples=tuple(samples)))
    assert result["avg@4"] == pytest.approx(3 / 7)
    assert result["pass@1"] == pytest.approx((2 / 3 + 1 / 4) / 2)
    assert result["pass@4"] == 1.0  # only "c" has four
    nothing = summary(replace(measurement, samples=tuple(replace(one, parts={}) for one in measurement.samples)))
    assert not any("@" in name for name in nothing)


# Measuring ----------------------------------------------------------------------------------------------------------


def test_every_number_of_a_sample() -> None:
    model = CharacterModel(1.0, 2.0, reference=CharacterModel(0.5, 3.0))
    result = measured(model=model)
    keys = [(sample.prompt_id, sample.index, sample.text) for sample in result.samples[:3]]
    assert keys == [("a", 0, "sat up"), ("a", 1, "ran"), ("b", 0, "all day")]
    third = result.samples[2]
    # "all day" and the end-of-text token under the reference: one space, seven other tokens.
    assert (third.tokens, third.nll, third.finish_reason) == (8, 0.5 + 7 * 3.0, "stop")
    assert (third.reward, third.parts, third.prompt, third.reference) == (1.0, {"exact": 1.0}, "It rained", "all day")
    # " sat down" under the policy: two spaces, seven other tokens. No end-of-text token, since the true text goes on.
    assert result.truths[0] == Truth("a", 2 * 1.0 + 7 * 2.0, 9)
    assert result.weights == {"exact": 1.0}


def test_the_truth_follows_the_prompt_as_the_sampler_encoded_it() -> None:
    model = CharacterModel(reference=CharacterModel())
    measured(model=model)
    assert [completion.prompt_ids for completion in model.scored] == [(7, 7)] * 3
    assert model.scored[0].token_ids == tuple(map(ord, " sat down"))


def test_a_truth_is_cut_to_the_models_positions() -> None:
    model = CharacterModel()
    model.max_positions = 6
    # The sampler's prompts have two tokens, which leaves four for the truth: " sat" of " sat down".
    assert [truth.tokens for truth in measured(model=model).truths] == [4, 4, 4]
    model.max_positions = 2
    assert measured(model=model).truths == ()


def test_a_very_long_truth_is_cut() -> None:
    prompts = [Prompt("a", "x", "word " * 1000), Prompt("b", "x", "y")]
    result = measured({"a": ["q"], "b": ["q"]}, prompts, samples=1)
    assert [truth.tokens for truth in result.truths] == [LONGEST_TRUTH, 2]


def test_batches_change_nothing_and_report_progress() -> None:
    whole, progress = measured(), RecordingObserver()
    assert measured(prompts_per_batch=1) == whole
    assert measured(prompts_per_batch=2, observer=progress) == whole
    assert progress.phases == [("evaluating", 2, 3), ("evaluating", 3, 3)]


@pytest.mark.parametrize(("seed", "passed"), [(5, (5,)), ([5, 6], (5, 6))])
def test_the_seed_reaches_the_sampler(seed, passed) -> None:
    sampler = TextSampler(BEFORE)
    measure(
        CharacterModel(),
        sampler,
        combine({"exact": 1.0}),
        PROMPTS,
        sampling=SAMPLING,
        samples_per_prompt=2,
        seed=seed,
        prompts_per_batch=2,
    )
    assert sampler.seeds == [passed, passed] and sampler.batches == [2, 1]


@pytest.mark.parametrize(
    ("prompts", "samples", "message"),
    [
        ([], 1, "no held-out prompts"),
        ([PROMPTS[0], PROMPTS[0]], 1, "two held-out prompts have the id 'a'"),
        (PROMPTS[:1], 1, "raise evaluation.prompts or evaluation.samples_per_prompt"),
    ],
)
def test_prompts_that_cannot_be_measured_are_refused(prompts, samples, message) -> None:
    with pytest.raises(InputError, match=message):
        measured(prompts=prompts, samples=samples)


@pytest.mark.parametrize(
    ("prompt", "reference", "expected"),
    [
        ("The cat", "sat", " sat"),
        ("The cat ", "sat", "sat"),
        ("The cat", " sat", " sat"),
        ("The cat\n", "sat", "sat"),
        ("The cat", ", too", ", too"),
        ("It cost", "$5", " $5"),
        ("He said (", "quietly)", "quietly)"),
        ("He said", "(quietly)", " (quietly)"),
        ("我爱", "你。", "你。"),
        ("我爱", "GPT", "GPT"),
        ("I love", "你", "你"),
        ("他说：", "好", "好"),
        ("ฉัน", "รัก", "รัก"),
        ("나는", "너를", " 너를"),
        ("Done.", "Next", " Next"),
        ("", "sat", "sat"),
        ("The cat", "", ""),
    ],
)
def test_continuation(prompt: str, reference: str, expected: str) -> None:
    assert continuation(prompt, reference) == expected


# Serialisation ------------------------------------------------------------------------------------------------------


def test_json_keeps_every_bit() -> None:
    result = measured({"a": ['😀 \u2028 "q"', ""], "b": ["我爱你。", "\\n"], "c": ["</script>", "\x00"]})
    odd = [0.1 + 0.2, 1e-310, -0.0, 1 / 3, math.inf, 2.0**53]
    samples = tuple(replace(s, reward=v, nll=v, parts={"exact": v}) for s, v in zip(result.samples, odd, strict=True))
    result = replace(result, samples=samples)
    again = Measurement.from_json(result.to_json())
    assert again == result
    assert math.copysign(1, again.samples[2].reward) == -1


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"samples": [{"x": 1}], "truths": [], "weights": {}}'])
def test_json_that_is_not_a_measurement_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a held-out measurement"):
        Measurement.from_json(text)


# Metrics ------------------------------------------------------------------------------------------------------------


def test_summary_by_hand() -> None:
    result = summary(measured(model=CharacterModel(1.0, 2.0, reference=CharacterModel(0.5, 3.0))))
    texts = [text for answers in BEFORE.values() for text in answers]
    references = [[prompt.reference for prompt in PROMPTS for _ in range(2)]]
    spaces, tokens = 3, sum(map(len, texts)) + 6
    assert list(result) == METRICS
    assert result["reward"] == result["reward/exact"] == 1 / 6
    assert result["perplexity"] == pytest.approx(math.exp((0.5 * spaces + 3.0 * (tokens - spaces)) / tokens))
    # " sat down", " all day", " knew why": 26 characters, of which 6 are spaces.
    assert result["truth_perplexity"] == pytest.approx(math.exp((6 * 1.0 + 20 * 2.0) / 26))
    assert result["chrf"] == pytest.approx(CHRF().corpus_score(texts, references).score)
    # Words: sat up ran all day a lot came came, 8 distinct of 9. Bigrams: sat-up, all-day, a-lot.
    assert result["distinct_1"] == pytest.approx(8 / 9) and result["distinct_2"] == 1.0
    assert result["length"] == pytest.approx(tokens / 6)


def test_bleu_needs_references_of_four_tokens() -> None:
    answers = {key: ["it sat on a mat", "no"] for key in "abc"}
    long = [replace(prompt, reference=f"{prompt.reference} on that day") for prompt in PROMPTS]
    result = summary(measured(answers, [*long[:2], PROMPTS[2]]))
    texts, references = [*answers["a"]] * 3, [one.reference for one in [*long[:2], PROMPTS[2]] for _ in range(2)]
    assert result["bleu"] == pytest.approx(BLEU().corpus_score(texts, [references]).score)
    # Most references have two tokens: BLEU could only be 0.
    assert "bleu" not in summary(measured(answers, [long[0], *PROMPTS[1:]]))


def test_compare_agrees_with_the_summaries() -> None:
    before, after = measured(), measured(AFTER, model=CharacterModel(0.5, 1.0, reference=CharacterModel()))
    table = compare(before, after, resamples=200, seed=3)
    assert list(table) == METRICS
    for name, row in table.items():
        assert list(row) == ["before", "after", "difference", "interval", "p_value", "n", "better"]
        assert row["before"] == pytest.approx(summary(before)[name], rel=1e-12)
        assert row["after"] == pytest.approx(summary(after)[name], rel=1e-12)
        assert row["difference"] == row["after"] - row["before"]
        assert row["interval"][0] <= row["difference"] <= row["interval"][1]
        assert row["n"] == 3 and 0 < row["p_value"] <= 1
    assert {name: row["better"] for name, row in table.items() if row["better"] != "higher"} == {
        "perplexity": "lower",
        "truth_perplexity": "lower",
        "length": None,
    }
    json.dumps(table, allow_nan=False)


def test_equal_measurements_differ_by_exactly_zero() -> None:
    for row in compare(measured(), measured()).values():
        assert (row["difference"], row["interval"], row["p_value"]) == (0.0, [0.0, 0.0], 1.0)


def test_the_same_seed_gives_the_same_table_in_any_order_of_after() -> None:
    rng = random.Random(0)
    prompts = [Prompt(f"p{i}", "Once", f"there was {i} of us") for i in range(12)]
    vocabulary = ["there", "was", "a", "of", "us", "3"]
    before, after = (
        measured({p.id: [" ".join(rng.choices(vocabulary, k=6)) for _ in range(2)] for p in prompts}, prompts)
        for _ in range(2)
    )
    table = compare(before, after, resamples=300, seed=4)
    shuffled = replace(after, samples=after.samples[::-1], truths=after.truths[::-1])
    assert compare(before, shuffled, resamples=300, seed=4) == table
    assert compare(before, after, resamples=300, seed=5)["chrf"]["interval"] != table["chrf"]["interval"]


def test_repeated_samples_add_no_evidence() -> None:
    once = [measured({key: [texts[0]] for key, texts in answers.items()}, samples=1) for answers in (BEFORE, AFTER)]
    twice = [measured({key: [texts[0]] * 2 for key, texts in answers.items()}) for answers in (BEFORE, AFTER)]
    first, second = compare(*once), compare(*twice)
    for name in ("reward", "perplexity", "truth_perplexity", "chrf", "length"):
        assert first[name]["interval"] == pytest.approx(second[name]["interval"]), name
        assert first[name]["p_value"] == pytest.approx(second[name]["p_value"]), name
        assert first[name]["n"] == second[name]["n"] == 3
    # Corpus-level distinct-n does fall if every text occurs twice: that is what it measures.
    assert second["distinct_1"]["before"] == first["distinct_1"]["before"] / 2


def test_one_prompt_is_compared_by_its_samples() -> None:
    prompt = [Prompt("start", "", "我爱你。")]
    before, after = (
        measured({"start": texts}, prompt, samples=6)
        for texts in (["我我", "我爱你。", "你", "爱", "。", "我"], ["我爱你。"] * 5 + ["我"])
    )
    table = compare(before, after, bleu_tokenize="zh")
    assert table["reward"]["n"] == 6
    assert (table["reward"]["before"], table["reward"]["after"]) == (pytest.approx(1 / 6), pytest.approx(5 / 6))
    assert "truth_perplexity" not in table and "truth_perplexity" in summary(after)
    assert table["bleu"]["after"] > table["bleu"]["before"]


def test_without_references() -> None:
    prompts = [Prompt(key, "Tell") for key in "abc"]
    table = compare(measured(prompts=prompts), measured(AFTER, prompts))
    assert list(table) == ["reward", "reward/repetition", "perplexity", "distinct_1", "distinct_2", "length"]


def test_references_for_some_prompts_only() -> None:
    prompts = [PROMPTS[0], PROMPTS[1], Prompt("c", "Nobody")]
    table = compare(measured(prompts=prompts), measured(AFTER, prompts))
    assert {name: table[name]["n"] for name in ("reward", "chrf", "truth_perplexity")} == {
        "reward": 3,
        "chrf": 2,
        "truth_perplexity": 2,
    }


def test_perplexity_is_left_out_if_a_token_is_impossible() -> None:
    result = measured(model=CharacterModel(math.inf, 1.0, reference=CharacterModel()))
    assert "truth_perplexity" not in summary(result) and "perplexity" in summary(result)
    assert "truth_perplexity" not in compare(measured(), result)


def test_totals_of_different_reward_weights_are_not_compared() -> None:
    other = replace(measured(AFTER), weights={"exact": 2.0})
    table = compare(measured(), other)
    assert "reward" not in table and "reward/exact" in table
    negative = replace(measured(), weights={"exact": -1.0})
    assert compare(negative, negative)["reward/exact"]["better"] == "lower"


def test_measurements_of_different_prompts_are_refused() -> None:
    others = [*PROMPTS[:2], Prompt("d", "Nobody", "knew why")]
    with pytest.raises(InputError, match=r"differ in prompt 'c' \(and 1 more\)"):
        compare(measured(), measured({**AFTER, "d": ["x", "y"]}, others))
    changed = [*PROMPTS[:2], Prompt("c", "Nobody", "cared")]
    with pytest.raises(InputError, match=r"differ in prompt 'c' \(and 0 more\)"):
        compare(measured(), measured(AFTER, changed))
    with pytest.raises(InputError, match="same number of samples per prompt"):
        compare(measured(), measured(AFTER, samples=1))


@pytest.mark.parametrize("texts", [["", ""], ["😀", "!!!"], ["a" * 3000, "la " * 2000], ["我爱你。" * 300, " "]])
def test_unusual_texts_have_finite_metrics(texts: list[str]) -> None:
    before, after = measured(), measured(dict.fromkeys("abc", texts))
    for name, row in compare(before, after, resamples=100).items():
        numbers = [row["before"], row["after"], row["difference"], *row["interval"], row["p_value"]]
        assert all(map(math.isfinite, numbers)), name
