"""The split: sides depend on content alone, and near-copies share a side."""

from __future__ import annotations

import hashlib

import pytest

from burnish.data.splits import (
    COMMON_LEAST,
    SHARED_WORDS,
    TaskExample,
    chat_messages,
    example_families,
    is_held_out,
    near_copy_families,
    split_items,
    task_example,
)
from burnish.errors import InputError
from burnish.types import Message


def examples(texts: list[str]) -> list[TaskExample]:
    return [task_example("t", text, text, None) for text in texts]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def bucket(text: str) -> int:
    return int(sha256(text)[:8], 16) % 100


def families(texts: list[str]) -> list[str]:
    """Return the family of each text."""
    by_digest = near_copy_families((sha256(text), (text,), text) for text in texts)
    return [by_digest[sha256(text)] for text in texts]


def test_the_side_is_the_documented_hash_and_the_order_is_kept() -> None:
    texts = [f"word{number} of its own" for number in range(60)]
    train, held_out = split_items(texts, families(texts), 30)
    assert held_out == [text for text in texts if bucket(text) < 30]
    assert train == [text for text in texts if bucket(text) >= 30]
    assert is_held_out(sha256("one"), 38) and not is_held_out(sha256("one"), 37)  # bucket 37; see below
    assert examples(["one"])[0].prompt.id == f"t/{sha256('one')[:12]}"
    # Neither the order nor the other texts decide.
    some = texts[::-1][:40]
    assert set(split_items(some, families(some), 30)[0]) <= set(train)


RUN = [f"w{number}" for number in range(SHARED_WORDS)]
HAN = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁"
HINDI = "एक दो तीन चार पाँच छह सात आठ नौ दस ग्यारह बारह तेरह"


@pytest.mark.parametrize(
    ("one", "two", "together"),
    [
        ("How are you?", "how are you", True),  # case and punctuation do not count
        ("How are you?", "How are they?", False),
        ("a b " + " ".join(RUN), " ".join(RUN) + " c d", True),
        ("a b " + " ".join(RUN[:12]), " ".join(RUN[:12]) + " c d", False),
        ("甲" + HAN[:26] + "乙", "丙" + HAN[:26], True),
        ("甲" + HAN[:25] + "乙", "丙" + HAN[:25], False),  # 25 Han characters are about twelve words
        ("你好！", "你好。", True),
        ("क " + HINDI, HINDI + " ख", True),
        ("क " + HINDI.removesuffix(" तेरह"), HINDI.removesuffix(" तेरह") + " ख", False),  # twelve words
        ("!", "?", False),  # no words in common
    ],
)
def test_near_copies(one: str, two: str, together: bool) -> None:
    assert (len(set(families([one, two]))) == 1) == together


def test_a_chain_of_copies_goes_to_the_side_of_its_smallest_digest() -> None:
    a, b = "same start here", "another thing there"
    chain = [
        task_example("t", "one", "one", None, texts=(a,)),
        task_example("t", "two", "two", None, texts=(a, b)),
        task_example("t", "three", "three", None, texts=(b,)),
    ]
    assert set(example_families(chain).values()) == {min(one.digest for one in chain)}


INSTRUCTION = "Below is an instruction that describes a task so write an answer that completes it as asked"


@pytest.mark.parametrize(("count", "together"), [(COMMON_LEAST, True), (COMMON_LEAST + 1, False)])
def test_an_instruction_before_every_question_makes_no_family(count: int, together: bool) -> None:
    assert len(INSTRUCTION.split()) > SHARED_WORDS
    texts = [f"{INSTRUCTION}: question {number}" for number in range(count)]
    assert len(set(families(texts))) == (1 if together else count)


def test_runs_across_the_end_of_an_instruction_make_no_family() -> None:
    # Without the rule, twelve words of the instruction and the first word of the question would be a run.
    texts = [f"{INSTRUCTION}: name{number % 20} the item {number}" for number in range(40)]
    copies = [f"{INSTRUCTION}: {mark} {' '.join(RUN)}" for mark in ("first", "second")]
    result = families([*texts, *copies])
    assert len(set(result[:40])) == 40
    assert result[40] == result[41] not in result[:40]


def test_common_wording_is_more_than_one_item_of_twenty() -> None:
    # 400 items: a run that 20 of them have is a copy, one that 21 have is common wording.
    for count, together in ((20, True), (21, False)):
        texts = [f"{' '.join(RUN)} end {number}" for number in range(count)]
        texts += [f"alone {number}" for number in range(400 - count)]
        assert len(set(families(texts)[:count])) == (1 if together else count)


def test_an_empty_side_names_the_option_and_the_direction() -> None:
    # sha256("one")[:8] = 7692c3ad: 0x7692c3ad % 100 = 1989329837 % 100 = 37.
    assert bucket("one") == 37
    with pytest.raises(InputError, match="held_out_percent = 37 leaves no held-out prompt of 1: choose a larger"):
        split_items(["one"], [sha256("one")], 37)
    with pytest.raises(InputError, match="leaves no training prompt of 1: choose a smaller"):
        split_items(["one"], [sha256("one")], 38)
    texts = ["one", "one", *(text for text in map(str, range(20)) if bucket(text) > 37)]
    with pytest.raises(InputError, match="held_out_percent = 38 leaves 1 held-out prompt of"):
        split_items(texts, families(texts), 38, least_held_out=2)


def test_a_text_with_half_an_emoji_has_a_digest() -> None:
    assert task_example("t", "\ud83d", "x", None).prompt.id.startswith("t/")
    assert len(set(example_families(examples(["\ud83d", "b"])).values())) == 2


def test_messages() -> None:
    assert chat_messages("hi", chat=False) == ()
    assert chat_messages("hi", chat=True) == (Message("user", "hi"),)


def test_one_question_about_several_contents_is_on_one_side() -> None:
    """Fables with one moral, for instance: a held-out question was not asked in training."""
    rows = [task_example("t", f"content {number} alone", f"moral {number % 40}", None) for number in range(400)]
    by_digest = example_families(rows)
    train, held_out = split_items([row.prompt for row in rows], [by_digest[row.digest] for row in rows], 30)
    assert train and held_out
    assert {prompt.text for prompt in train}.isdisjoint(prompt.text for prompt in held_out)
    # An earlier message makes it another question.
    first, second = (
        task_example(
            "t", name, "And then?", None,
            messages=(Message("user", name), Message("user", "And then?")),
        )
        for name in ("once", "twice")
    )  # fmt: skip
    assert len(set(example_families([first, second]).values())) == 2
