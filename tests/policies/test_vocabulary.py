"""Vocabularies of characters, bytes and byte pairs, and their files."""

from __future__ import annotations

import pytest

from burnish.errors import InputError
from burnish.policies.vocabulary import (
    ByteVocabulary,
    CharacterVocabulary,
    build_vocabulary,
    read_vocabulary,
    write_vocabulary,
)

WORLD = CharacterVocabulary(tuple("我爱你。"), begin=3, end=3)
"""The four characters of the toy; the full stop also begins a text, as an end-of-text token may."""
TEXTS = ["the cat sat on the mat.", "a dog sat on the cat.", "我爱你。"]


class TestVocabulary:
    def test_characters_by_hand(self):
        found = CharacterVocabulary.from_texts(["ba", "c"])
        assert found.tokens == ("<end>", "<unknown>", "a", "b", "c")
        assert found.encode("cab<end>z") == (4, 2, 3, *[1] * 5, 1), "'<end>' in a text is not the end token"
        assert found.decode((4, 2, 1, 0)) == "ca\ufffd"
        assert (found.begin, found.ends) == (0, {0})

    def test_an_ending_character_is_part_of_the_text(self):
        assert WORLD.decode(WORLD.encode("我爱你。")) == "我爱你。"
        with pytest.raises(InputError, match="no token for 'x'"):
            WORLD.encode("我x")

    def test_bytes_encode_every_text(self):
        found = ByteVocabulary.from_texts([])
        assert found.size == 257
        text = "a\n爱 <end> \U0001f600"
        assert len(found.encode(text)) == len(text.encode())
        assert found.decode((0, *found.encode(text), 0)) == text
        assert found.encode("\ud800") == found.encode("?"), "half an emoji has no bytes"

    def test_learning_byte_pairs_is_deterministic(self):
        one, two = (build_vocabulary("bpe", TEXTS * 3, 280) for _ in range(2))
        assert one.to_json() == two.to_json()
        assert one.size > 257
        assert len(one.encode("the cat")) < 7
        assert one.decode(one.encode("the cat 爱")) == "the cat 爱"

    @pytest.mark.parametrize("kind", ["character", "byte", "bpe"])
    def test_file_round_trip(self, kind, tmp_path):
        made = build_vocabulary(kind, TEXTS, 270 if kind == "bpe" else None)
        write_vocabulary(made, tmp_path)
        found = read_vocabulary(tmp_path / "vocabulary.json")
        assert (found.to_json(), found.size, found.begin) == (made.to_json(), made.size, made.begin)
        assert [found.encode(text) for text in TEXTS] == [made.encode(text) for text in TEXTS]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "not a vocabulary"),
            ('{"kind": "words"}', "known: character, byte, bpe"),
            ('{"kind": "character", "tokens": ["a", "a"]}', "all different"),
            ('{"kind": "character", "tokens": ["a", "b"], "end": 2}', "end = 2 is not a token"),
            ('{"kind": "bpe", "tokenizer": {}}', "not a vocabulary"),
            ("[1]", "not a vocabulary"),
        ],
    )
    def test_a_file_that_is_not_a_vocabulary_is_refused(self, tmp_path, text, message):
        (tmp_path / "v.json").write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            read_vocabulary(tmp_path / "v.json")
        assert "v.json" in str(caught.value)
