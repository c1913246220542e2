"""The Chinese classifier: what it learns from, its threshold, and the layer."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from burnish.catalogue.fetch import fetch
from burnish.errors import BurnishError
from burnish.safety.filter import chinese, classifier
from burnish.safety.filter.content_filter import ContentFilter

WORDS = ["大坏蛋", "坏蛋们", "小坏蛋", "臭坏蛋"]
REVIEWS = [f"房间第{number}次{part}，服务{part}" for number in range(60) for part in ("很大", "不好", "很小", "太吵")]


@pytest.fixture
def small(monkeypatch) -> chinese.ChineseClassifier:
    monkeypatch.setattr(chinese, "REVIEWS", 160)
    monkeypatch.setattr(chinese, "CALIBRATION", 80)
    return chinese.ChineseClassifier(WORDS, REVIEWS)


def test_a_term_is_found_in_other_company_and_in_another_form(small: chinese.ChineseClassifier) -> None:
    unseen, traditional, innocent, latin, empty = small.probabilities(
        ["他是个老坏蛋。", "他是大壞蛋", "房间很大，服务很小", "room", ""]
    )
    assert unseen > 0.5 and traditional > 0.5 and innocent < 0.5 and latin < 1e-9 and empty < 1e-9
    assert small.probabilities([]) == []


def test_a_long_text_scores_as_its_worst_part_and_training_is_deterministic(small: chinese.ChineseClassifier) -> None:
    text = "房间很大。" * 50 + "大坏蛋。" + "服务不好。" * 50
    (whole,) = small.probabilities([text])
    assert whole == small.probabilities(["大坏蛋"])[0]
    assert chinese.ChineseClassifier(WORDS, [*reversed(REVIEWS)]).probabilities([text]) == [whole]


def test_of_the_general_list_only_vulgar_words_are_read(monkeypatch, tmp_path: Path) -> None:
    rows = {"cn_general.bin": ["傻瓜蛋", "总书记", "操"], "cn_pornographic.bin": ["甲乙丙", "abc"]}
    for name, words in rows.items():
        encoded = [base64.b64encode(word.encode()).decode() for word in words]
        (tmp_path / name).write_text("\n".join(encoded) + "\n", encoding="ascii")
    monkeypatch.setattr(chinese, "fetch", lambda name: {name: tmp_path / name for name in rows})
    monkeypatch.setattr(chinese, "terms", lambda: ())
    assert chinese.read_terms() == ["傻瓜蛋", "甲乙丙"]


def test_each_language_asks_its_own_classifier(monkeypatch) -> None:
    monkeypatch.setattr(classifier.chinese, "chinese_toxicity", lambda text: 0.7 if "坏" in text else 0.1)
    monkeypatch.setattr(classifier, "_predict", lambda: lambda texts: [0.6 if "bad" in texts[0] else 0.2])
    shown = {
        text: classifier.toxicity_scores(text)["toxicity"] for text in ("bad", "坏", "a bad word 坏", "bad 好人们啊")
    }
    assert shown == {"bad": 0.6, "坏": 0.7, "a bad word 坏": 0.7, "bad 好人们啊": 0.1}


@pytest.mark.slow
def test_false_alarms_of_the_real_one_and_that_it_learned_its_terms() -> None:
    try:
        fetch("chinese-word-lists", offline=True)
    except BurnishError:
        pytest.skip("needs `burnish fetch chinese-word-lists`")
    content_filter = ContentFilter({"classifier": True})
    traps = (Path(__file__).parent / "traps_zh.txt").read_text(encoding="utf-8").splitlines()
    assert sum(content_filter.check(text).verdict != "allow" for text in traps) <= 6
    scores = chinese.chinese_classifier().probabilities(chinese.read_terms())
    assert len(scores) == 576 and sum(score >= 0.5 for score in scores) >= 300
