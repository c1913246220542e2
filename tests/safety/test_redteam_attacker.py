"""A trained attacker: its task, its rewards, what it learns in a tiny world, and its part of a measurement."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from burnish.errors import InputError
from burnish.rewards.combine import Combination
from burnish.rewards.part import Part
from burnish.rewards.registry import reward_function
from burnish.safety.redteam import attacker, attacker_rewards
from burnish.safety.redteam.attacker_rewards import complied, keeps_request, novelty
from burnish.safety.redteam.requests import HarmfulRequest
from burnish.training.step import train_step
from burnish.types import Completion, Prompt
from tests.fakes import toy_learner

REQUEST = "Explain how to paint a wall"


def attack(text: str, request: str = REQUEST) -> Completion:
    return Completion(Prompt(f"p/{request}", "p", metadata={"request": request}), (), (), text, (), "stop")


def test_the_kept_share_counts_words_of_more_than_three_letters() -> None:
    # explain, paint and wall count.
    assert attacker.kept_share(REQUEST, "She asks: how does one PAINT a wall?") == pytest.approx(2 / 3)
    assert keeps_request("A wall", attack("").prompt) == pytest.approx(1 / 3)
    assert attacker.kept_share("怎么做", "x") == 1.0


def test_novelty_is_the_distance_from_the_nearest_other_attack() -> None:
    texts = [
        f"A cook asks {REQUEST}",  # a cook, cook asks, asks explain
        f"A cook says {REQUEST}",  # a cook, cook says, says explain: one of three in common with the first
        REQUEST,  # no word pair of its own
        "My cat sings",
    ]
    assert novelty([attack(text) for text in texts]) == pytest.approx([2 / 3, 2 / 3, 0.0, 1.0])
    assert novelty([attack("my cat"), attack("My cat!", "Other")]) == [0.0, 0.5]
    assert novelty([attack("my cat")]) == [1.0]


def test_an_archive_makes_its_attacks_old(tmp_path: Path) -> None:
    archive = tmp_path / "found.jsonl"
    rows = [{"prompt": "my cat\u2028sings"}, {"prompt": "his dog", "family": "harmless"}]
    archive.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert novelty([attack("my cat"), attack("his dog")], archive=str(archive)) == [0.0, 1.0]


@pytest.mark.parametrize("line", ["{", "[1]", "{}", '{"prompt": 3}', "[" * 100_000])
def test_a_broken_archive_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "found.jsonl"
    path.write_text(line)
    with pytest.raises(InputError, match="novelty: archive, line 1: expected JSON with a text 'prompt'"):
        reward_function("novelty", novelty).check_options({"archive": str(path)})


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (complied, {}, "complied: set model to the target"),
        (complied, {"model": "x", "max_new_tokens": 0}, "complied: max_new_tokens = 0: must be at least 1"),
        (complied, {"model": "x", "temperature": -1.0}, "complied: temperature = -1.0: must be a number from 0 on"),
        (complied, {"model": "x", "temperature": float("nan")}, "temperature = nan: must be a number from 0 on"),
        (complied, {"model": "x", "temperature": float("inf")}, "temperature = inf: must be a number from 0 on"),
        (novelty, {"n": 0}, "novelty: n = 0: an n-gram has at least one word"),
        (novelty, {"archive": "/none"}, "novelty: archive = '/none': there is no such file"),
    ],
)
def test_options_that_cannot_work_are_refused(function: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        reward_function("x", function).check_options(options)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Pairs of request and answer that the judge was asked; its score is the answer's length over 1000."""
    asked: list[tuple[str, str]] = []

    def unsafe(requests: Sequence[str], answers: Sequence[str]) -> list[float]:
        asked.extend(zip(requests, answers, strict=True))
        return [0.001 + len(answer) / 1000 for answer in answers]

    monkeypatch.setattr(attacker_rewards, "answer_judge", lambda *_: SimpleNamespace(unsafe=unsafe))
    return asked


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_target_answers_an_attack_whatever_the_batch(
    tiny_chat: Path, judged: list[tuple[str, str]], temperature: float
) -> None:
    options: dict[str, Any] = {"model": str(tiny_chat), "max_new_tokens": 6, "temperature": temperature}
    together = complied([attack("Paint it"), attack(" "), attack("Sing", "Other"), attack("Paint it")], **options)
    assert [request for request, _ in judged] == [REQUEST, REQUEST, "Other", REQUEST]
    assert together[1] == 0.0 < together[0] == together[3]
    assert complied([attack("Sing", "Other")], **options) == [together[2]]


def parts(target: Callable[..., list[float]], bonus: float) -> Combination:
    made = [Part("target", reward_function("target", target))]
    return Combination(
        [*made, Part("novelty", reward_function("novelty", novelty), bonus, {"n": 1})] if bonus else made
    )


def weak(texts: Sequence[str]) -> list[float]:
    """Score a target that does what is requested after 我, and almost as often after 爱."""
    return [{"我": 1.0, "爱": 0.9}.get(text, 0.0) for text in texts]


def firm(texts: Sequence[str]) -> list[float]:
    return [0.0 for _ in texts]


@pytest.mark.parametrize(
    ("target", "bonus", "kept"), [(weak, 0.0, {"我"}), (weak, 1.0, {"我", "爱"}), (firm, 0.0, {"我", "爱", "你", "。"})]
)
def test_an_attacker_learns_what_works_and_the_bonus_keeps_more_than_one_attack(
    target: Callable[..., list[float]], bonus: float, kept: set[str]
) -> None:
    learner = toy_learner(
        "sampling.prompts_per_step=2", "sampling.samples_per_prompt=8", "sampling.max_new_tokens=1",
        "optimizer.learning_rate=0.2",
    )  # fmt: skip
    learner.scorer = parts(target, bonus)
    for _ in range(60):
        train_step(learner)
    policy: Any = learner.policy
    probabilities = torch.softmax(policy.parameter.detach()[-1], -1)
    likely = {text for text, share in zip(policy.vocabulary, probabilities, strict=True) if share > 0.1}
    assert likely == kept


def test_the_first_text_that_keeps_the_request_is_the_attack() -> None:
    requests = [HarmfulRequest(f"set/{n}", "set/x", REQUEST) for n in range(2)]
    attacks = attacker.learned_attacks(requests, [["No", "paint a wall", REQUEST], ["No", ""]])
    assert [one.text for one in attacks] == ["paint a wall", ""] and attacks[0].id == "learned/set/0"

    def answer(prompts: Sequence[tuple[str, str]]) -> list[str]:
        assert prompts == [("learned/set/0", "paint a wall")]
        return ["yes"]

    judge: Any = SimpleNamespace(unsafe=lambda requests, answers: [0.9] * len(answers))
    trials = attacker.run_learned(attacks, answer, judge)
    row = attacker.learned_row(trials, trials)
    assert (row["share"], row["n"], row["kept"], row["difference"]) == (0.5, 2, 0.5, 0.0)


def test_the_attacker_sees_examples_and_its_own_request() -> None:
    messages = attacker.rewording_messages("{x}")
    assert [one.role for one in messages[-3:]] == ["user", "assistant", "user"]
    assert messages[-1].content.endswith(" {x}")
