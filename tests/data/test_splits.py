"""Sides hang on content alone, and near-copies stay together."""

from __future__ import annotations

import hashlib

import pytest

from burnish.data.splits import asked, example, families_of, split
from burnish.errors import InputError
from burnish.types import Message


def made(texts: list[str]):
    return [example("t", text, text, None) for text in texts]


def bucket(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 100


def test_the_side_is_the_stated_hash_and_the_order_is_kept() -> None:
    texts = [f"word{number} of its own" for number in range(60)]
    train, held_out = split(made(texts), 30)
    assert [prompt.text for prompt in held_out] == [text for text in texts if bucket(text) < 30]
    assert [prompt.text for prompt in train] == [text for text in texts if bucket(text) >= 30]
    assert train[0].id == f"t/{hashlib.sha256(train[0].text.encode()).hexdigest()[:12]}"
    # Neither order nor company decides.
    again, _ = split(made(texts[::-1][:40]), 30)
    assert {prompt.id for prompt in again} <= {prompt.id for prompt in train}


RUN = [f"w{number}" for number in range(13)]
HAN = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁"


@pytest.mark.parametrize(
    ("one", "two", "together"),
    [
        ("How are you?", "how are you", True),  # case and punctuation aside
        ("How are you?", "How are they?", False),
        ("a b " + " ".join(RUN), " ".join(RUN) + " c d", True),
        ("a b " + " ".join(RUN[:12]), " ".join(RUN[:12]) + " c d", False),
        ("甲" + HAN[:26] + "乙", "丙" + HAN[:26], True),
        ("甲" + HAN[:25] + "乙", "丙" + HAN[:25], False),  # 13 Han characters are only some six words
        ("你好！", "你好。", True),
    ],
)
def test_near_copies(one: str, two: str, together: bool) -> None:
    families = families_of(made([one, two]))
    assert (len(set(families.values())) == 1) == together


def test_a_chain_of_copies_goes_to_the_side_of_its_smallest_hash() -> None:
    a, b = "same start here", "another thing there"
    chain = [
        example("t", "one", "one", None, texts=(a,)),
        example("t", "two", "two", None, texts=(a, b)),
        example("t", "three", "three", None, texts=(b,)),
    ]
    assert set(families_of(chain).values()) == {min(one.digest for one in chain)}


def test_an_empty_side_says_which_way() -> None:
    # sha256("one")[:8] = 7692c3ad: 0x7692c3ad % 100 = 1989329837 % 100 = 37.
    assert bucket("one") == 37
    with pytest.raises(InputError, match="held_out_percent = 37 leaves no held-out prompt of 1: choose a larger"):
        split(made(["one"]), 37)
    with pytest.raises(InputError, match="leaves no training prompt of 1: choose a smaller"):
        split(made(["one"]), 38)
    with pytest.raises(InputError, match="no example"):
        split([], 10)


def test_a_text_with_half_an_emoji_is_hashed_all_the_same() -> None:
    assert example("t", "\ud83d", "x", None).prompt.id.startswith("t/")
    assert len(families_of(made(["\ud83d", "b"]))) == 2


def test_messages() -> None:
    assert asked("hi", chat=False, system="be kind") == ()
    past = [Message("user", "a"), Message("assistant", "b")]
    assert asked("hi", chat=True, system="be kind", history=past) == (
        Message("system", "be kind"), *past, Message("user", "hi"),
    )  # fmt: skip


def test_one_prompt_about_different_contents_lies_on_one_side() -> None:
    """As fables with one moral are: what is asked on the held-out side has not been trained on."""
    rows = [example("t", f"content {number} alone", f"moral {number % 40}", None) for number in range(400)]
    train, held_out = split(rows, 30)
    assert train and held_out
    assert {prompt.text for prompt in train}.isdisjoint(prompt.text for prompt in held_out)
    # What came before makes another prompt of the same last words.
    first, second = (
        example("t", name, "And then?", None, messages=asked("And then?", chat=True, history=[Message("user", name)]))
        for name in ("once", "twice")
    )
    assert len(set(families_of([first, second]).values())) == 2
