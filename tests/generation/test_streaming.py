"""Text while it is sampled: in pieces that add up to the completion and never end within a character."""

from __future__ import annotations

import pytest

from burnish.generation.engine import make_sampler
from burnish.generation.streaming import TextStream
from burnish.policies.loading import load_model
from burnish.types import Prompt, SamplingParams


def decode_bytes(token_ids) -> str:
    return bytes(token_ids).decode("utf-8", errors="replace")


def pieces_of_bytes(data: bytes, final: str, stops=()) -> list[str]:
    pieces: list[str] = []
    stream = TextStream(decode_bytes, pieces.append, stops)
    for length in range(1, len(data) + 1):
        stream.update(list(data[:length]))
    stream.finish(final)
    return pieces


@pytest.mark.parametrize("text", ["我爱你。", "naïve 🙂 😀", "a\nb"])
def test_a_character_is_passed_on_with_its_last_byte(text: str) -> None:
    data = text.encode()
    pieces = pieces_of_bytes(data, text)
    assert "".join(pieces) == text
    ends = [length for length in range(1, len(data) + 1) if not decode_bytes(data[:length]).endswith("\ufffd")]
    assert [index for index, piece in enumerate(pieces, 1) if piece] == ends


def test_bytes_that_are_no_character_are_passed_on() -> None:
    # Three bytes of a character of four, then a letter; and an unfinished character at the end.
    assert "".join(pieces_of_bytes(b"\xf0\x9f\x99a\xe6\x88", "\ufffda\ufffd")) == "\ufffda\ufffd"


def test_the_beginning_of_a_stop_text_is_held_back() -> None:
    assert pieces_of_bytes(b"ok\nUs", "ok", stops=["\nUser:"]) == ["o", "k", "", "", "", ""]
    assert pieces_of_bytes(b"\nUps", "\nUps", stops=["\nUser:"]) == ["", "", "\nUp", "s", ""]


def test_a_text_that_changed_is_repeated() -> None:
    assert pieces_of_bytes(b"a ", "b") == ["a", " ", "\nb"]


@pytest.mark.parametrize("kind", ["llama", pytest.param("mamba", marks=pytest.mark.slow)])
def test_the_pieces_of_a_sample_are_its_text(tiny, kind: str) -> None:
    sampler = make_sampler(load_model(tiny(kind)))
    options = {"samples_per_prompt": 1, "sampling": SamplingParams(20)}
    for seed in range(4):
        pieces: list[str] = []
        (streamed,) = sampler.sample([Prompt("p", "我爱")], seed=(seed,), on_text=pieces.append, **options)
        assert [streamed] == sampler.sample([Prompt("p", "我爱")], seed=(seed,), **options)
        (completion,) = streamed.completions
        assert "".join(pieces) == completion.text
        tokens = len(completion.token_ids) - (completion.finish_reason == "stop")
        assert len(pieces) == tokens + 1


def test_a_stop_text_within_a_token_is_not_passed_on() -> None:
    pieces: list[str] = []
    stream = TextStream(decode_bytes, pieces.append, ["END"])
    stream.update(list(b"one"))
    stream.update(list(b"one END two"))
    stream.finish("one ")
    assert pieces == ["one", " ", ""]
