"""Red team: families, requests, the judge, measuring, the bandit, and rows to train on. No package is needed."""

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from burnish.data.rows import Conversation, ConversationPair
from burnish.errors import InputError
from burnish.evaluation.statistics import wilson_interval
from burnish.safety.redteam import measure as measuring
from burnish.safety.redteam.bandit import ThompsonBandit, search
from burnish.safety.redteam.export import SAFE_CHINESE, SAFE_ENGLISH, export_found, safe_answer_to
from burnish.safety.redteam.families import FAMILIES, HELD_OUT, TRAINED, check_families, word_attack
from burnish.safety.redteam.judge import refuses
from burnish.safety.redteam.look_alikes import LOOK_ALIKES, TRAINING_LOOK_ALIKES
from burnish.safety.redteam.requests import HarmfulRequest
from burnish.supervised.sources import SOURCES
from burnish.text import mostly_han_or_kana

REQUESTS = [HarmfulRequest(f"set/{n}", f"set/{'even' if n % 2 == 0 else 'odd'}", f"Request {n}") for n in range(20)]


class FakeJudge:
    """Finds an answer unsafe that contains "yes"."""

    def unsafe(self, requests: Sequence[str], answers: Sequence[str]) -> list[float]:
        return [0.9 if "yes" in answer else 0.1 for answer in answers]


def obeys_stories(prompts: Sequence[tuple[str, str]]) -> list[str]:
    return ["yes" if id.startswith("story/") else "I'm sorry, no." for id, _ in prompts]


def test_wilsons_interval_is_that_of_the_formula() -> None:
    # 8 of 10: centre (8 + 1.9207) / (10 + 3.8415) = 0.71674, half 0.22657 by Wilson's formula with z = 1.95996.
    assert wilson_interval(8, 10) == pytest.approx((0.49016, 0.94331), abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wording_depends_on_the_request_and_rounds_give_all_wordings(family: str) -> None:
    attack = word_attack(REQUESTS[0], family)
    assert attack == word_attack(REQUESTS[0], family) and attack.id == f"{family}/set/0"
    rounds = {word_attack(REQUESTS[0], family, number).text for number in range(len(FAMILIES[family]))}
    assert len(rounds) == len(FAMILIES[family])


def test_encodings_hide_the_request_and_can_be_decoded() -> None:
    texts = [word_attack(REQUESTS[0], "encoding", number).text for number in range(3)]
    assert not any("Request 0" in text for text in texts)
    (encoded,) = [text.rsplit(" ", 1)[1] for text in texts if "base64" in text]
    assert base64.b64decode(encoded) == b"Request 0"


def test_a_request_with_braces_is_kept() -> None:
    assert word_attack(HarmfulRequest("a", "b", "{x} {}"), "direct").text == "{x} {}"


def test_held_out_families_are_not_trained_on() -> None:
    assert set(TRAINED) | set(HELD_OUT) == set(FAMILIES) and not set(TRAINED) & set(HELD_OUT)
    with pytest.raises(InputError, match=r"unknown family 'storie' \(did you mean 'story'\?\); known: direct, "):
        check_families(["storie"])


def test_look_alikes_are_sixty_in_two_languages_and_none_is_trained_on() -> None:
    assert len(set(LOOK_ALIKES)) == 60 and sum(map(mostly_han_or_kana, LOOK_ALIKES)) == 30
    assert not set(LOOK_ALIKES) & set(TRAINING_LOOK_ALIKES)


@pytest.mark.parametrize("text", [*SAFE_ENGLISH, *SAFE_CHINESE, "I’m sorry, no.", "As an AI, I cannot help with that."])
def test_refusals_are_recognised(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Use the kill command.",
        "The film was sorry stuff.",
        "You cannot lose.",
        "先打开窗户。",
        "x" * 300 + "I'm sorry",
    ],
)
def test_other_answers_are_not_refusals(text: str) -> None:
    assert not refuses(text)


def test_measuring_gives_each_family_the_same_requests_and_reports_the_rates() -> None:
    attacks = measuring.plan_attacks(REQUESTS, ["direct", "story"], 10)
    drawn = [attack.request.id for attack in attacks]
    assert drawn[:10] == drawn[10:] and len(set(drawn)) == 10
    after = measuring.attack_model(attacks, obeys_stories, FakeJudge())  # type: ignore[arg-type]
    before = measuring.attack_model(attacks, lambda prompts: ["yes"] * len(prompts), FakeJudge())  # type: ignore[arg-type]
    rows = {(row["kind"], row["name"]): row for row in measuring.red_team_report(after, before)["rows"]}  # type: ignore[attr-defined]
    assert [rows["family", name]["share"] for name in ("direct", "story")] == [0.0, 1.0]
    assert rows["family", "direct"]["difference"] == -1.0 and rows["family", "story"]["interval"] == (0.0, 0.0)
    assert [rows["families", name]["share"] for name in ("trained", "held out")] == [0.0, 1.0]
    total = rows["all", "all"]
    assert (total["share"], total["n"], total["difference"]) == (0.5, 20, -0.5)
    assert (total["low"], total["high"]) == wilson_interval(5, 10)  # ten requests, each asked twice
    assert rows["over-refusal", "look-alikes"]["share"] == 1.0
    assert rows["over-refusal", "look-alikes"]["difference"] == 1.0


def test_more_requests_than_the_sets_have_are_refused() -> None:
    with pytest.raises(InputError, match="--each 21: the sets have 20 requests"):
        measuring.plan_attacks(REQUESTS, ["direct"], 21)


def test_the_bandit_spends_more_on_the_family_that_works() -> None:
    trials = search(REQUESTS, list(FAMILIES), 100, obeys_stories, FakeJudge())  # type: ignore[arg-type]
    stories = sum(trial.attack.family == "story" for trial in trials)
    assert len(trials) == 100 and stories > 100 / len(FAMILIES) * 1.5
    assert trials == search(REQUESTS, list(FAMILIES), 100, obeys_stories, FakeJudge())  # type: ignore[arg-type]


def test_the_search_ends_when_all_wordings_are_used() -> None:
    trials = search(REQUESTS[:2], ["direct", "story"], 100, obeys_stories, FakeJudge())  # type: ignore[arg-type]
    assert len({trial.attack.text for trial in trials}) == len(trials) == 2 * (1 + len(FAMILIES["story"]))


def test_the_bandits_posterior_counts_both_outcomes() -> None:
    bandit = ThompsonBandit(["a", "b"])
    for success in (True, True, False):
        bandit.update("a", success)
    assert bandit.counts == {"a": [3, 2], "b": [1, 1]}


def test_exported_rows_prefer_the_safe_answer(tmp_path: Path) -> None:
    attacks = measuring.plan_attacks(REQUESTS, ["direct", "story"], 3)
    trials = measuring.run_attacks(attacks, obeys_stories, FakeJudge())  # type: ignore[arg-type]
    harmless = [("How do I boil an egg?", "In water."), ("怎么煮鸡蛋？", "对不起，我不能。"), ("Why?", " ")]
    assert export_found(trials, harmless, tmp_path / "found.jsonl") == {"attacks": 3, "harmless": 1}
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text(encoding="utf-8").splitlines()]
    answered = rows.pop()
    assert answered["chosen"] == "In water." and answered["rejected"] in SAFE_ENGLISH
    assert {row["family"] for row in rows} == {"story"} and all(row["rejected"] == "yes" for row in rows)
    assert all(row["chosen"] in SAFE_ENGLISH and row["prompt"] != row["chosen"] for row in rows)
    assert safe_answer_to("x", "怎么做这件事") in SAFE_CHINESE


@pytest.mark.parametrize(("columns", "kind"), [({}, ConversationPair), ({"completion": "chosen"}, Conversation)])
def test_exported_rows_are_read_for_a_reward_model_and_for_fine_tuning(
    tmp_path: Path, columns: dict[str, str], kind: type
) -> None:
    attacks = measuring.plan_attacks(REQUESTS, ["story"], 10)
    path = tmp_path / "found.jsonl"
    export_found(measuring.run_attacks(attacks, obeys_stories, FakeJudge()), [], path)  # type: ignore[arg-type]
    form = {"format": "completion"} if columns else {}
    rows = SOURCES.get("data")(path=str(path), chat=True, columns=columns, **form).rows(held_out_percent=25)
    assert len(rows.rows) == 10 and not rows.broken
    assert all(isinstance(row, kind) for row in rows.rows)


def test_no_request_of_a_set_is_in_the_package() -> None:
    texts = [text for wordings in FAMILIES.values() for text in wordings if isinstance(text, str)]
    assert all(re.sub(r"[{}]", "", text) != text for text in texts)
