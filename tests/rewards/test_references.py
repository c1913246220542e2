"""Several correct answers of one prompt: every reward gives the best, corpus BLEU reads all."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from burnish.data.splits import task_example
from burnish.errors import BurnishError
from burnish.evaluation.measurement import Measurement, Sample
from burnish.evaluation.metrics import held_out_metrics
from burnish.rewards.combine import combine
from burnish.rewards.forms import Context
from burnish.rewards.part import Part
from burnish.rewards.registry import reward_function
from tests.rewards.completions import answer

TEXTS = ("Paris", "the capital, Paris", "Lutetia", "Rome")


def scores(reward, texts=TEXTS, *, reference: str = "Lutetia", alternatives: tuple[str, ...] = ("Paris",)):
    completions = [answer(text, reference, alternatives=alternatives) for text in texts]
    return list(combine({reward: 1.0}).score(completions).total)


@pytest.mark.parametrize("name", ["exact", "chrf", "ter", "rouge_l", "word_f1"])
def test_the_best_of_two_references_counts(name: str) -> None:
    alone = [scores(name, reference=one, alternatives=()) for one in ("Lutetia", "Paris")]
    assert scores(name) == list(np.maximum(*alone))
    assert alone[0] != alone[1]


def test_bleu_counts_n_grams_of_any_reference() -> None:
    # Unigrams 4/4 and bigrams 3/3 with both; trigram "a b c" and "b c d": 1/2; no 4-gram: smoothed to 1/(2*1).
    value = scores("bleu", ["a b c d"], reference="a b c x", alternatives=("y c d z",))[0]
    assert value == pytest.approx((1 * 1 * 1 / 2 * 1 / 2) ** (1 / 4))


def test_functions_see_one_reference_at_a_time() -> None:
    def same(text: str, reference: str) -> float:
        return float(text == reference)

    def same_batch(texts: list[str], references: list[str]) -> list[float]:
        return [float(text == reference) for text, reference in zip(texts, references, strict=True)]

    assert scores(same) == scores(same_batch) == [1.0, 0.0, 1.0, 0.0]


def test_the_best_score_in_verls_form_counts() -> None:
    def graded(text: str, reference: str) -> dict[str, float]:
        return {"score": float(text == reference), "length": float(len(text))}

    assert scores(graded) == [1.0, 0.0, 1.0, 0.0]


def test_a_ground_truth_that_is_the_reference_is_each_of_them() -> None:
    def compute_score(solution_str: str, ground_truth: str) -> float:
        return float(solution_str == ground_truth)

    def compute_scores(solution_strs: list[str], ground_truths: list[str]) -> list[float]:
        return [float(text == truth) for text, truth in zip(solution_strs, ground_truths, strict=True)]

    assert scores(compute_score) == scores(compute_scores) == [1.0, 0.0, 1.0, 0.0]


def test_a_wrong_value_for_one_reference_is_refused() -> None:
    with pytest.raises(BurnishError, match="must be finite"):
        scores(_reciprocal)
    with pytest.raises(BurnishError, match="returned 1 values for 8 completions"):
        scores(_one)


def _reciprocal(text: str, reference: str) -> float:
    return math.inf if reference == "Paris" else 1.0


def _one(texts: list[str], references: list[str]) -> list[float]:
    return [1.0]


def test_the_best_numbers_per_token_have_the_largest_sum() -> None:
    function = reward_function("f", lambda completion, reference: [0.9, 0.0] if reference == "a" else [0.5, 0.5])
    part = Part("f", function, credit="token")
    values, per_token = part.values([answer("x", "a", alternatives=("b",), tokens=(1, 2))], Context())
    assert values.tolist() == [1.0] and per_token is not None and per_token[0].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("text", "reference", "value"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0),
        ("in the city of Paris", "Paris", 2 * 1 / (4 + 1)),  # in, city, of, Paris
        ("no no", "no", 2 * 1 / (2 + 1)),  # counted as often as both have it
        ("我爱你", "我爱她", 2 * 2 / 6),
        ("the", "The", 0.0),
        ("?", "?", 1.0),
        ("", "x", 0.0),
    ],
)
def test_word_f1_by_hand(text: str, reference: str, value: float) -> None:
    assert scores("word_f1", [text], reference=reference, alternatives=())[0] == pytest.approx(value)


def test_an_example_keeps_every_reference() -> None:
    prompt = task_example("data", "q", "q", ("a", "b", "c")).prompt
    assert (prompt.reference, prompt.alternatives, prompt.references) == ("a", ("b", "c"), ("a", "b", "c"))
    assert task_example("data", "q", "q", None).prompt.references == ()


def test_corpus_bleu_reads_every_reference_and_survives_json() -> None:
    texts = ["the cat sat on the mat today", "a dog ran home to us all"]
    further = [("the cat sat on a mat", "a cat sat on the mat today"), ()]
    first = ["one cat sat there quietly", "the dog ran home to us"]
    samples = tuple(
        Sample(f"p{i}", "", first[i], 0, texts[i], 0.0, {}, 5, "stop", 1.0, alternatives=further[i]) for i in range(2)
    )
    measurement = Measurement.from_json(Measurement(samples, (), {}).to_json())
    assert measurement.samples == samples
    streams = [first, [further[0][0], ""], [further[0][1], ""]]
    value = {metric.name: metric.value(metric.data) for metric in held_out_metrics(measurement, "13a")}["bleu"]
    assert value == pytest.approx(BLEU().corpus_score(texts, streams).score)
    assert value > BLEU().corpus_score(texts, [first]).score
