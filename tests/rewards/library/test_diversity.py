"""Repetition, compression and diversity: values derived by hand, and the texts that game them."""

from __future__ import annotations

import random

import pytest

from burnish.errors import InputError
from burnish.rewards.library.diversity import (
    compression,
    distinct_n,
    group_diversity,
    longest_repeat,
    repeat_share,
    repetition,
)
from burnish.text import ngrams, words
from tests.rewards.completions import ODD_TEXTS, answer


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_every_reward_stays_in_its_range(text: str) -> None:
    group = [answer(text), answer("la la"), answer("", id="q")]
    assert all(0.0 <= value <= 1.0 for value in (compression(text), *group_diversity(group)))


def test_distinct_n_by_hand() -> None:
    # Bigrams: ab, bc | ab: 2 of 3 differ; none crosses the border between the texts.
    assert distinct_n(["abc", "ab"], 2) == pytest.approx(2 / 3)
    assert distinct_n(["abc", "ab"], 1) == pytest.approx(3 / 5)
    assert distinct_n(["abc", "", "z"], 2) == 1.0
    assert distinct_n(["a", ""], 2) == distinct_n([], 1) == 0.0
    with pytest.raises(InputError, match="n = 0"):
        distinct_n(["abc"], 0)


def test_distinct_n_knows_no_order_and_halves_by_duplication() -> None:
    texts = [words("the cat sat on the mat"), words("a dog"), words("我爱你。")]
    for n in (1, 2, 3):
        assert distinct_n(texts, n) == distinct_n(texts[::-1], n)
        assert distinct_n(texts * 2, n) == distinct_n(texts, n) / 2


@pytest.mark.parametrize(
    ("tokens", "length"),
    [("", 0), ("a", 0), ("ab", 0), ("aa", 1), ("abcab", 2), ("aaaa", 3), ("abababab", 6), ("abcdabcd", 4)],
)
def test_longest_repeat_by_hand(tokens: str, length: int) -> None:
    assert longest_repeat(tokens) == length


def test_longest_repeat_against_every_pair() -> None:
    rng = random.Random(0)
    for trial in range(600):
        tokens = "".join(rng.choice("ab" if trial % 2 else "abcde") for _ in range(rng.randrange(16)))
        pairs = [
            size
            for size in range(1, len(tokens))
            for later in range(1, len(tokens) - size + 1)
            for earlier in range(later)
            if tokens[later : later + size] == tokens[earlier : earlier + size]
        ]
        assert longest_repeat(tokens) == max(pairs, default=0), tokens


def test_longest_repeat_of_a_very_long_loop() -> None:
    assert longest_repeat(["la"] * 30_000) == 29_999
    assert repeat_share(["la"] * 30_000) == 1.0
    assert repeat_share(["la"]) == repeat_share([]) == 0.0


@pytest.mark.parametrize(
    ("text", "n", "value"),
    [
        ("one two three four", 2, 1.0),
        # Single words may come again where n = 2: no bigram of "the cat the" does.
        ("the cat the", 2, 1.0),
        # Bigrams ab bc ca ab: r = (4 - 3) / 3; longest repeat 2 of 4.
        ("a b c a b", 2, (1 - 1 / 3) * (1 - 2 / 4)),
        # Bigrams ab ba ab ba ab: r = (5 - 2) / 4; longest repeat "a b a b", 4 of 5.
        ("a b a b a b", 2, (1 - 3 / 4) * (1 - 4 / 5)),
        # Eight words, bigrams of three kinds: r = (7 - 3) / 6; longest repeat 3 of 7.
        ("😀😀😀😀!!!!", 2, (1 - 4 / 6) * (1 - 3 / 7)),
        # Single words: r = (3 - 2) / 2; longest repeat 1 of 2.
        ("the cat the", 1, (1 - 1 / 2) * (1 - 1 / 2)),
        ("la la la la", 2, 0.0),
        ("我我我", 2, 0.0),
        ("", 2, 1.0),
        ("word", 2, 1.0),
        ("two words", 2, 1.0),
    ],
)
def test_repetition_by_hand(text: str, n: int, value: float) -> None:
    assert repetition(text, n=n) == pytest.approx(value)


@pytest.mark.parametrize("text", ODD_TEXTS)
@pytest.mark.parametrize("n", [1, 2, 4])
def test_repetition_is_one_exactly_where_nothing_repeats(text: str, n: int) -> None:
    value = repetition(text, n=n)
    grams = list(ngrams(words(text), n))
    assert 0.0 <= value <= 1.0
    assert (value == 1.0) == (len(set(grams)) == len(grams))


def test_a_repeated_text_has_more_repetition() -> None:
    text = "the quick brown fox jumps over the lazy dog"
    assert repetition(text) > repetition(f"{text} {text}") > repetition(" ".join([text] * 5)) > 0


def test_compression_by_hand() -> None:
    # One byte: 3 bits of header, 8 for the letter, 7 for the end: 18 bits, 3 bytes, less 2, of 1.
    assert compression("a") == compression("") == 1.0
    # A pair of length and distance stands for at most 258 letters, and takes at least 2 bits.
    assert 2 / 8 / 258 < compression("a" * 258_000) < 0.01
    noise = "".join(random.Random(0).choices("abcdefghijklmnop", k=4000))
    # Sixteen letters alike hold 4 bits of the 8 of each.
    assert 0.5 <= compression(noise) < 0.6


def test_a_repeated_text_compresses_better() -> None:
    for text in ("the quick brown fox jumps over the lazy dog. ", "我家门前有两棵树，一棵是枣树，还有一棵也是枣树。"):
        assert compression(text) > compression(text * 3) > compression(text * 30)
    assert compression("short") == 1.0  # 'Fails by'


def test_group_diversity_by_hand() -> None:
    group = [answer("a b c"), answer("a b d"), answer("a b")]
    # Bigrams ab bc: ab is held by both others (1 - 2/2), bc by none (1): mean 1/2. The third has ab alone: 0.
    assert group_diversity(group) == pytest.approx([0.5, 0.5, 0.0])
    # Wherever they stand, and whatever else is in the batch.
    mixed = [group[0], answer("a b c", id="q"), group[1], answer("x y", id="q"), group[2]]
    assert group_diversity(mixed) == pytest.approx([0.5, 1.0, 0.5, 1.0, 0.0])
    assert group_diversity([answer("我爱你"), answer("我爱她")]) == pytest.approx([0.5, 0.5])
    assert group_diversity([answer("same old"), answer("same old")]) == [0.0, 0.0]
    assert group_diversity([answer(""), answer("word")]) == [0.0, 0.0]
    assert group_diversity([answer("a b c")]) == [1.0]
    assert group_diversity([answer("zq xv"), answer("a b")]) == [1.0, 1.0]  # nonsense scores in full: 'Fails by'
    assert group_diversity([]) == []
    with pytest.raises(InputError, match="n = 0"):
        group_diversity(group, n=0)
