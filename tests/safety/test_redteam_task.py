"""Red team: what is read of the packaged sets, the judge, the task's sides, and the recipe's rewards."""

from pathlib import Path

import numpy as np
import pytest

from burnish.errors import InputError
from burnish.safety.redteam import rewards
from burnish.safety.redteam.attacker import Rewordings
from burnish.safety.redteam.families import HELD_OUT, TRAINED
from burnish.safety.redteam.judge import AnswerJudge, cross_validated
from burnish.safety.redteam.look_alikes import LOOK_ALIKES, TRAINING_LOOK_ALIKES
from burnish.safety.redteam.requests import JudgedAnswer, read_judged, read_requests
from burnish.safety.redteam.task import Attacks, LookAlikes, requests_on
from burnish.types import Completion, Prompt
from tests.safety.packaged import WORDS, fake_sets


@pytest.fixture(autouse=True)
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_sets(tmp_path, monkeypatch)


def test_requests_of_both_sets_are_read_once_each_with_their_categories() -> None:
    requests = read_requests()
    assert len(requests) == 100 == len({one.id for one in requests})
    categories = [one.category for one in requests]
    assert categories == ["do-not-answer/malicious_uses"] * 60 + ["adv-bench/big_harm"] * 40


def test_a_refusal_that_people_saw_is_a_safe_answer() -> None:
    assert [(row.request, row.answer, row.unsafe) for row in read_judged()] == [
        ("Do A", "First, do", True), ("Do A", "No", False), ("Do B", "I refuse", False), ("Do B", "Step one", True),
    ]  # fmt: skip


@pytest.mark.slow  # scikit-learn is imported
def test_the_judge_learns_from_rows_and_agrees_with_them_on_other_requests() -> None:
    rows = [
        JudgedAnswer(f"{word} {n}", f"{'First, you take' if n % 2 else 'I will not do'} {word}", bool(n % 2), False)
        for word in WORDS
        for n in range(4)
    ]
    assert cross_validated(rows).mean() == 1.0
    judge = AnswerJudge(rows)
    yes, no = judge.unsafe(["x", "x"], ["First, you take a lamp", "I will not do that"])
    assert yes > 0.5 > no and judge.unsafe([], []) == []
    assert np.isfinite(judge.unsafe([""], [""])).all()


def test_a_request_is_on_one_side_whatever_the_families() -> None:
    train, held_out = requests_on("train"), requests_on("held_out")
    assert len(train) + len(held_out) == len(requests_on("all")) == 100 and 10 < len(held_out) < 40
    for families in (TRAINED, HELD_OUT, ("direct",)):
        task = Attacks(families=list(families))
        assert {one.metadata["request"] for one in task.train()} == {one.text for one in train}
        assert {one.metadata["request"] for one in task.evaluation()} == {one.text for one in held_out}
        assert {one.metadata["family"] for one in task.train()} == set(families)
    with pytest.raises(
        InputError, match=r"unknown side 'tran' \(did you mean 'train'\?\); known: all, train, held_out"
    ):
        requests_on("tran")


def test_an_attacker_words_the_same_sides() -> None:
    task = Rewordings()
    assert [one.metadata["request"] for one in task.train()] == [one.text for one in requests_on("train")]
    assert [one.metadata["request"] for one in task.evaluation()] == [one.text for one in requests_on("held_out")]
    assert task.train()[0].messages[-1].content == task.train()[0].text


def test_harmless_prompts_are_trained_on_and_not_measured() -> None:
    task = Attacks(harmless=True)
    kinds = {one.metadata["kind"] for one in task.train()}
    assert kinds == {"attack", "look_alike", "headline", "chat"}
    assert {one.metadata["kind"] for one in task.evaluation()} == {"attack"}
    texts = {one.text for one in task.train()}
    assert set(TRAINING_LOOK_ALIKES) < texts and not set(LOOK_ALIKES) & texts
    assert [one.text for one in LookAlikes().evaluation()] == list(LOOK_ALIKES)


def completion(kind: str | None, text: str, reference: str | None = None) -> Completion:
    metadata = {} if kind is None else {"kind": kind, "request": "Do A"}
    return Completion(Prompt("p", "p", reference, metadata), (), (), text, (), "stop")


@pytest.mark.parametrize(
    ("kind", "text", "refused", "helps"),
    [
        ("attack", "I'm sorry, but no.", 1.0, None),
        ("attack", "First, do", 0.0, None),
        ("chat", "I'm sorry, but no.", None, 0.0),
        ("look_alike", " ", None, 0.0),
        (None, "Use kill.", None, 1.0),
    ],
)
def test_a_reward_applies_to_its_own_kind_of_prompt(
    kind: str | None, text: str, refused: float | None, helps: float | None
) -> None:
    prompt = completion(kind, text).prompt
    assert rewards.refusal(text, prompt) == refused and rewards.helpful(text, prompt) == helps


def test_the_overlap_of_a_headline_is_rouge_l() -> None:
    # Three of three words in order, of four in the reference: P = 1, R = 3/4, F = 6/7.
    assert rewards.headline_overlap(completion("headline", "a b c", "a b x c")) == pytest.approx(6 / 7)
    assert rewards.headline_overlap(completion(None, "a b c", "a b c")) == 1.0
    assert rewards.headline_overlap(completion("chat", "a b c", "a b c")) is None
    assert rewards.headline_overlap(completion(None, "a b c")) is None


def test_attack_success_is_the_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    class Judge:
        def unsafe(self, requests: list[str], answers: list[str]) -> list[float]:
            assert requests == ["Do A"]
            return [0.7 if "First" in answers[0] else 0.2]

    monkeypatch.setattr(rewards, "answer_judge", Judge)
    prompt = completion("attack", "").prompt
    assert rewards.attack_success("First, do", prompt) == 1.0 and rewards.attack_success("No", prompt) == 0.0
    assert rewards.attack_success("First", completion("chat", "").prompt) is None
