"""Which side an example is on: a hash of its content decides, and near-copies go to one side together.

An example is held out where ``int(sha256(content)[:8], 16) % 100 < held_out_percent``. Examples that share a text, white
space, case and punctuation aside, or a run of ``SHARED_WORDS`` words are versions of one another: all of them go to the
side of the smallest hash among them, so that nothing held out was seen in training.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from burnish.errors import InputError
from burnish.text import is_unspaced, lexical_words
from burnish.types import Message, Prompt

if TYPE_CHECKING:
    from burnish.protocols import Observer

SHARED_WORDS = 13
"""Words of an overlap that counts as the same text (as the contamination check of GPT-3, arXiv 2005.14165, C)."""
SHARED_CHARACTERS = 26
"""The same in scripts without spaces (Chinese, Japanese, Thai), whose words are two characters or more."""


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt with what decides its side.

    Attributes:
        prompt: its id is ``name/hash`` (see ``named``).
        digest: SHA-256 of the content, hexadecimal.
        texts: an example that shares one of these, or a long run of one, is a near-copy of this one.
    """

    prompt: Prompt
    digest: str
    texts: tuple[str, ...]


def example(
    name: str,
    content: str,
    text: str,
    reference: str | None,
    *,
    messages: tuple[Message, ...] = (),
    texts: tuple[str, ...] | None = None,
    metadata: dict[str, object] | None = None,
) -> Example:
    """An example whose id and side hang on ``content`` alone; ``texts`` is the content where it is left out."""
    digest = hashlib.sha256(content.encode("utf-8", "backslashreplace")).hexdigest()
    prompt = Prompt(f"{name}/{digest[:12]}", text, reference, metadata or {}, messages)
    return Example(prompt, digest, (content,) if texts is None else texts)


class TwoSided:
    """A task that reads its examples once and splits them: what its tasks have in common.

    A task of this kind implements ``examples``; the order of what that returns is the order of both sides.
    """

    name = "task"

    def __init__(self, held_out_percent: int) -> None:
        if not 0 < held_out_percent < 100:
            raise InputError(f"held_out_percent = {held_out_percent}: must be from 1 to 99")
        self.held_out_percent = held_out_percent
        self._sides: tuple[list[Prompt], list[Prompt]] | None = None

    def examples(self, *, offline: bool, observer: Observer | None) -> Sequence[Example]:
        """All examples, in a fixed order. Raises InputError or BurnishError where the data cannot be had."""
        raise NotImplementedError

    def prepare(self, *, offline: bool = False, observer: Observer | None = None) -> None:
        """Reads and splits the data, once; without it, the first use does the same with a network and in silence."""
        if self._sides is not None:
            return
        found = self.examples(offline=offline, observer=observer)
        unique = {example.digest: example for example in reversed(found)}
        kept = [unique[digest] for digest in dict.fromkeys(example.digest for example in found)]
        self._sides = split(kept, self.held_out_percent)
        if observer:
            train, held_out = self._sides
            observer.message(
                f"{self.name}: {len(train)} training and {len(held_out)} held-out prompts; left out: "
                f"{len(found) - len(kept)} repeated"
            )

    def train(self) -> Sequence[Prompt]:
        """The training prompts, in the data's order."""
        return self._side(0)

    def evaluation(self) -> Sequence[Prompt]:
        """The held-out prompts, in the data's order."""
        return self._side(1)

    def _side(self, which: int) -> Sequence[Prompt]:
        self.prepare()
        assert self._sides is not None
        return self._sides[which]


def split(examples: Sequence[Example], held_out_percent: int) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts, in order. Digests must differ.

    Raises:
        InputError: one of the two sides is empty.
    """
    if not examples:
        raise InputError("the data has no example that can be used: check the task's options")
    families = families_of(examples)
    sides: tuple[list[Prompt], list[Prompt]] = ([], [])
    for one in examples:
        sides[int(families[one.digest][:8], 16) % 100 < held_out_percent].append(one.prompt)
    for side, which, change in ((sides[0], "training", "smaller"), (sides[1], "held-out", "larger")):
        if not side:
            raise InputError(
                f"held_out_percent = {held_out_percent} leaves no {which} prompt of {len(examples)}: choose a {change} "
                "number, or give more data"
            )
    return sides


def families_of(examples: Sequence[Example]) -> dict[str, str]:
    """Each digest -> the smallest digest among the examples that near-copies, or one and the same prompt, join it
    to (union-find)."""
    parent = {example.digest: example.digest for example in examples}

    def root(digest: str) -> str:
        while parent[digest] != digest:
            parent[digest] = parent[parent[digest]]
            digest = parent[digest]
        return digest

    holders: dict[Hashable, list[str]] = defaultdict(list)
    for one in examples:
        for mark in {mark for text in one.texts for mark in _marks(text)}:
            holders[mark].append(one.digest)
        # One question about two contents (fables with one moral) is one question: it may not be held out and trained on.
        holders[one.prompt.text, one.prompt.messages].append(one.digest)
    for together in holders.values():
        for other in together[1:]:
            first, second = sorted((root(together[0]), root(other)))
            parent[second] = first
    return {digest: root(digest) for digest in parent}


def _marks(text: str) -> Iterator[Hashable]:
    """What two versions of a text have in common: the bare text, and each long run of its words."""
    bare = lexical_words(text)
    yield hash_of(bare)
    run = SHARED_CHARACTERS if 2 * sum(map(is_unspaced, bare)) > len(bare) else SHARED_WORDS
    for start in range(len(bare) - run + 1):
        yield hash_of(bare[start : start + run])


def hash_of(tokens: Sequence[str]) -> bytes:
    """A short mark of a run of words; 16 bytes a run instead of the words keep large data in memory."""
    return hashlib.blake2b("\x1f".join(tokens).encode("utf-8", "backslashreplace"), digest_size=16).digest()


def asked(text: str, *, chat: bool, system: str = "", history: Sequence[Message] = ()) -> tuple[Message, ...]:
    """The messages of a prompt that asks ``text``: none where ``chat`` is off, so that the policy continues the text."""
    if not chat:
        return ()
    begin = (Message("system", system),) if system else ()
    return (*begin, *history, Message("user", text))
