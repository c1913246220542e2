"""Filtering while a text is generated."""

from __future__ import annotations

import random

import pytest

from burnish.safety.filter.content_filter import ContentFilter
from burnish.safety.filter.streaming import FilteredStream, shown_text

TEXTS = [
    "A plain text that is long enough to be passed on in parts. " * 5,
    "Well, " * 30 + "that is bollocks, they said. " + "Yes. " * 40,
    "Well, " * 30 + "b o l l o c k s and bol\u200blocks" + ", yes" * 40,
    "他说了很多话。" * 20 + "王八蛋" + "，然后走了。" * 20,
    "Write to ada.lovelace@mail.example.org " * 12,
    "bollocks",
    "",
]


def streamed(content_filter: ContentFilter, text: str, seed: int) -> str:
    """The text that the stream passes on when it receives pieces of 1 to 7 characters."""
    source, shown, index = random.Random(seed), [], 0
    stream = FilteredStream(content_filter, shown.append)
    while index < len(text):
        size = source.randint(1, 7)
        stream.update(text[index : index + size])
        index += size
    stream.finish()
    return "".join(shown)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_flagged_text_is_redacted_as_a_whole_text_is(text: str, seed: int) -> None:
    content_filter = ContentFilter()
    assert streamed(content_filter, text, seed) == content_filter.redact(text)


def test_a_blocked_text_ends_before_the_finding() -> None:
    content_filter = ContentFilter()
    text = "Well, " * 30 + "the card is 4111 1111 1111 1111, " + "bollocks " * 30
    assert streamed(content_filter, text, 0) == "Well, " * 30 + "the card is [blocked: card]"
    assert shown_text(content_filter.check(text), text) == "[blocked: card]"


def test_little_is_held_back() -> None:
    shown: list[str] = []
    stream = FilteredStream(ContentFilter(), shown.append)
    text = "word " * 100
    for character in text:
        stream.update(character)
    assert len(text) - len("".join(shown)) <= 80


def test_a_layer_that_judges_whole_texts_holds_back_everything() -> None:
    shown: list[str] = []
    stream = FilteredStream(
        ContentFilter({"model": {"use": "tests.safety.filter.test_streaming:all_bad"}}), shown.append
    )
    for _ in range(50):
        stream.update("some words ")
    assert shown == []
    stream.finish()
    assert shown == ["[toxicity]"]


def all_bad(text: str) -> dict[str, float]:
    return {"toxicity": 1.0}
