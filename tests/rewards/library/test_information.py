"""Informativeness and readability: values derived by hand, Chinese beside English, and the texts that game them."""

from __future__ import annotations

import pytest

from burnish.errors import InputError
from burnish.rewards.library.information import informativeness, readability
from burnish.rewards.registry import REWARDS
from tests.rewards.completions import ODD_TEXTS, answer


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_every_reward_stays_in_its_range(text: str) -> None:
    assert 0.0 <= informativeness(answer(text)) <= 1.0
    assert 0.0 <= readability(text) <= 1.0


@pytest.mark.parametrize(
    ("text", "reference", "value"),
    [
        # Content words police, arrested, men; names and numbers sydney, 12. All words and no name: (1 + 0) / 2.
        ("Police arrested men.", "Police in Sydney arrested 12 men.", 0.5),
        ("police arrested 12 men in SYDNEY", "Police in Sydney arrested 12 men.", 1.0),
        # Two of three words, one of two names.
        ("Twelve men were arrested in Sydney.", "Police in Sydney arrested 12 men.", (2 / 3 + 1 / 2) / 2),
        ("", "Police in Sydney arrested 12 men.", 0.0),
        ("of the and in", "Police in Sydney arrested 12 men.", 0.0),
        # A number is one however its thousands are set off, and no other is.
        ("1200", "1,200", 1.0),
        ("12", "1,200", 0.0),
        ("3.5", "3.5", 1.0),
        # Capitals are no function word: WHO is not who.
        ("who said so", "The WHO said so.", 0.0),
        ("the WHO", "The WHO said so.", 1.0),
        # Chinese: 北京, 京下, 下雪; with 的 between them no pair.
        ("北京", "北京下雪", 1 / 3),
        ("北京的雪", "北京的雪", 1.0),
        ("北京下雪了，气温１２度。", "北京下雪12度", 1.0),
        # 《红楼梦》 and GPT are names; of the pairs 红楼, 楼梦, 读红 ... only the two within the title are said.
        ("《红楼梦》", "《红楼梦》", 1.0),
        ("gpt", "热爱GPT", 0.5),
    ],
)
def test_informativeness_by_hand(text: str, reference: str, value: float) -> None:
    assert informativeness(answer(text, reference)) == pytest.approx(value)


def test_informativeness_of_a_prompt_and_where_there_is_nothing_to_say() -> None:
    assert informativeness(answer("a lonely fox", None, "Write of a lonely fox."), source="prompt") == pytest.approx(
        2 / 3
    )
    with pytest.raises(InputError, match="needs a reference"):
        informativeness(answer("x", None))
    with pytest.raises(InputError, match="prompt of prompt 'p' has no content word"):
        informativeness(answer("x", None, "and so it is"), source="prompt")
    with pytest.raises(InputError, match=r"unknown source = 'prompts' \(did you mean 'prompt'"):
        REWARDS.get("informativeness").check_options({"source": "prompts"})


def test_a_bare_list_of_words_games_informativeness() -> None:
    reference = "Police in Sydney arrested 12 men."
    assert informativeness(answer("men 12 arrested Sydney police", reference)) == 1.0


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        # 4.71 * 9 / 3 + 0.5 * 3 / 1 - 21.43
        ("The cat sat.", -5.8),
        # Two sentences: 4.71 * 18 / 6 + 0.5 * 6 / 2 - 21.43. The end of the text ends one.
        ("The cat sat. The cat sat", -5.8),
        # The point of a number ends none: letters 2 + 4 + 2 (3.5 is two words of one digit).
        ("It rose 3.5", 4.71 * 8 / 4 + 0.5 * 4 - 21.43),
        # Characters a sentence.
        ("今天天气很好。我们去公园。", 5.5),
        ("", 0.0),
        ("...", 0.0),
    ],
)
def test_readability_by_hand(text: str, grade: float) -> None:
    assert readability(text, form="grade") == pytest.approx(grade)


def test_readability_as_a_reward() -> None:
    assert readability("The cat sat.", grade=-10.0) == pytest.approx(1 - (-5.8 + 10) / 8)
    assert readability("The cat sat.") == 1.0
    assert readability("Interdepartmental reorganisation notwithstanding considerable opposition") == 0.0
    assert readability("今天天气很好。我们去公园。", characters=3) == pytest.approx((9 - 5.5) / 6)
    assert readability("长" * 200) == 0.0 and readability("") == 0.0
    with pytest.raises(InputError, match="above 0"):
        REWARDS.get("readability").check_options({"spread": 0.0})
