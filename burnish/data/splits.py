"""The split into training and held-out sides, for reinforcement and supervised learning alike.

An item is held out if ``int(digest[:8], 16) % 100 < held_out_percent``, with the SHA-256 digest of its content.
Near-copies are a family: all of them are on the side of the smallest digest among them, so that nothing held out was
seen in training. Two items are near-copies if they have the same words, or a run of ``SHARED_WORDS`` words in common.

A run that many items have (more than ``COMMON_LEAST`` and more than one of ``COMMON_SHARE``) is common wording, such as
an instruction before every question. It makes no family, and its words do not count in other runs.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from burnish.errors import InputError
from burnish.text import is_unspaced, lexical_words
from burnish.types import Message, Prompt

if TYPE_CHECKING:
    from burnish.protocols import Observer

SHARED_WORDS = 13
"""Words of an overlap that makes near-copies (as in the contamination check of GPT-3, arXiv 2005.14165, C)."""
SHARED_CHARACTERS = 26
"""The same in scripts without spaces (Chinese, Japanese, Thai), whose words are two characters or more."""
COMMON_LEAST, COMMON_SHARE = 10, 20
"""A run is common wording if more than 10 items and more than one item of 20 have it."""

T = TypeVar("T")


def digest(*parts: str) -> str:
    """Return the hexadecimal SHA-256 digest of the parts; ``("ab", "c")`` and ``("a", "bc")`` differ."""
    return hashlib.sha256("\x00".join(parts).encode("utf-8", "backslashreplace")).hexdigest()


def is_held_out(family: str, percent: int) -> bool:
    """Return whether a family, or a digest, is held out."""
    return int(family[:8], 16) % 100 < percent


def split_items(
    items: Sequence[T], families: Sequence[str], percent: int, *, least_held_out: int = 1
) -> tuple[list[T], list[T]]:
    """Return the training and the held-out items, each in the given order, by the family of each item.

    Raises InputError if no item is left to train on, or fewer than ``least_held_out`` families are held out.
    """
    sides: tuple[list[T], list[T]] = ([], [])
    for item, family in zip(items, families, strict=True):
        sides[is_held_out(family, percent)].append(item)
    count = len({family for family in families if is_held_out(family, percent)})
    for missing, which, change in (
        (not sides[0], "no training", "smaller"),
        (count < least_held_out, f"{count or 'no'} held-out", "larger"),
    ):
        if missing:
            raise InputError(
                f"held_out_percent = {percent} leaves {which} prompt of {len(items)}: choose a {change} number, or "
                "give more data"
            )
    return sides


def own_sides(items: Sequence[T], families: Sequence[str], held_out: Sequence[bool]) -> tuple[list[T], list[T]]:
    """Return the training and the held-out items of data that has its own held-out side.

    Training items that are near-copies of a held-out one are left out. Raises InputError if a side is empty.
    """
    known = {family for family, own in zip(families, held_out, strict=True) if own}
    rows = list(zip(items, families, held_out, strict=True))
    train = [item for item, family, own in rows if not own and family not in known]
    held = [item for item, _, own in rows if own]
    for side, name in ((train, "training"), (held, "held-out")):
        if not side:
            near = ", apart from near-copies of the held-out ones" if rows and held else ""
            raise InputError(f"held_out: the data has no {name} row{near}: name another side or file")
    return train, held


def left_out(counts: Mapping[str, int]) -> str:
    """Return ``; left out: 3 repeated, 2 too short``, the end of a message, for the counts that are not zero; or ""."""
    listed = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"; left out: {listed}" if listed else ""


# Near-copies --------------------------------------------------------------------------------------------------------


def near_copy_families(items: Iterable[tuple[str, Sequence[str], Hashable]]) -> dict[str, str]:
    """Return each item's digest -> the smallest digest among its near-copies.

    An item is its digest, the texts of which near-copies share one or a run of one, and a key that makes a family of
    all items that have it.
    """
    runs: dict[str, list[_Runs]] = defaultdict(list)
    holders: dict[Hashable, list[str]] = defaultdict(list)
    for one, texts, key in items:
        tokens = [lexical_words(text) for text in texts]
        runs[one] += map(_Runs, tokens)
        for same in {key, *map(_words_digest, filter(None, tokens))}:
            holders[same].append(one)
    counts = Counter(run for own in runs.values() for run in {run for text in own for run in text.digests})
    limit = max(COMMON_LEAST, len(runs) // COMMON_SHARE)
    common = {run for run, count in counts.items() if count > limit}
    for one, own in runs.items():
        for run in {run for text in own for run in text.without(common)}:
            holders[run].append(one)
    return _joined(runs, holders.values())


def _joined(digests: Iterable[str], groups: Iterable[Sequence[str]]) -> dict[str, str]:
    """Return each digest -> the smallest digest that a chain of groups connects it to (union-find)."""
    parent = {one: one for one in digests}

    def root(one: str) -> str:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    for group in groups:
        for other in group[1:]:
            first, second = sorted((root(group[0]), root(other)))
            parent[second] = first
    return {one: root(one) for one in parent}


class _Runs:
    """The runs of ``size`` neighbouring words that another text would have to share: a digest for each first word."""

    __slots__ = ("digests", "size")

    def __init__(self, words: Sequence[str]) -> None:
        self.size = SHARED_CHARACTERS if 2 * sum(map(is_unspaced, words)) > len(words) else SHARED_WORDS
        starts = range(len(words) - self.size + 1)
        self.digests = [_words_digest(words[start : start + self.size]) for start in starts]

    def without(self, common: Set[bytes]) -> list[bytes]:
        """Return the runs none of whose words are within a common run."""
        starts = [start for start, run in enumerate(self.digests) if run in common]
        covered = {index for start in starts for index in range(start, start + self.size)}
        if not covered:
            return self.digests
        return [run for start, run in enumerate(self.digests) if covered.isdisjoint(range(start, start + self.size))]


def _words_digest(words: Sequence[str]) -> bytes:
    """Return 16 bytes for a run of words, so that large data fits into memory."""
    return hashlib.blake2b("\x1f".join(words).encode("utf-8", "backslashreplace"), digest_size=16).digest()


# Tasks --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskExample:
    """A prompt of a task, the digest of its content, and the texts of which near-copies share one or a run of one."""

    prompt: Prompt
    digest: str
    texts: tuple[str, ...]


def task_example(
    name: str,
    content: str,
    text: str,
    reference: str | Sequence[str] | None,
    *,
    messages: tuple[Message, ...] = (),
    texts: tuple[str, ...] | None = None,
    metadata: dict[str, object] | None = None,
) -> TaskExample:
    """Return an example whose id and side depend on ``content`` alone, which is also the default of ``texts``.

    Several correct answers are a sequence of at least one.
    """
    content_digest = digest(content)
    first, *others = [reference] if reference is None or isinstance(reference, str) else reference
    prompt = Prompt(f"{name}/{content_digest[:12]}", text, first, metadata or {}, messages, tuple(map(str, others)))
    return TaskExample(prompt, content_digest, (content,) if texts is None else texts)


def example_families(examples: Iterable[TaskExample]) -> dict[str, str]:
    """Return each example's digest -> its family.

    Examples that ask the same are one family too: a question about two contents (two fables with one moral) may not be
    both trained on and held out.
    """
    return near_copy_families((one.digest, one.texts, (one.prompt.text, one.prompt.messages)) for one in examples)


class SplitTask:
    """A base for tasks that read all their examples and split them, both once. A subclass implements ``examples``."""

    name = "task"

    def __init__(self, held_out_percent: int) -> None:
        if not 0 < held_out_percent < 100:
            raise InputError(f"held_out_percent = {held_out_percent}: must be from 1 to 99")
        self.held_out_percent = held_out_percent
        self.own_held_out: frozenset[str] | None = None
        """Once the examples are read, the digests of the data's own held-out side; None if it has none."""
        self._sides: tuple[list[Prompt], list[Prompt]] | None = None

    def examples(self, *, offline: bool, observer: Observer | None) -> Sequence[TaskExample]:
        """Return all examples in a fixed order. Raises InputError or BurnishError if the data cannot be read."""
        raise NotImplementedError

    def prepare(self, *, offline: bool = False, observer: Observer | None = None) -> None:
        """Read and split the data, once; without this call, the first use of the prompts does it, without messages.

        Raises InputError if there is no example, or no prompt is left on one of the two sides.
        """
        if self._sides is not None:
            return
        examples, kept = self._unique_examples(offline=offline, observer=observer)
        by_digest = example_families(kept)
        families = [by_digest[one.digest] for one in kept]
        prompts, counts = [one.prompt for one in kept], {"repeated": len(examples) - len(kept)}
        if self.own_held_out is None:
            self._sides = split_items(prompts, families, self.held_out_percent)
        else:
            own = [one.digest in self.own_held_out for one in kept]
            self._sides = own_sides(prompts, families, own)
            near = "training prompts that are near-copies of held-out ones"
            counts[near] = len(kept) - sum(map(len, self._sides))
        if observer:
            train, held_out = self._sides
            observer.message(
                f"{self.name}: {len(train)} training and {len(held_out)} held-out prompts{left_out(counts)}"
            )

    def all_prompts(self, *, offline: bool = False, observer: Observer | None = None) -> list[Prompt]:
        """Return the prompts of all examples, unsplit and each once, in the data's order. Raises as ``prepare``."""
        examples, kept = self._unique_examples(offline=offline, observer=observer)
        if observer:
            repeated = left_out({"repeated": len(examples) - len(kept)})
            observer.message(f"{self.name}: {len(kept)} prompts{repeated}")
        return [one.prompt for one in kept]

    def _unique_examples(
        self, *, offline: bool, observer: Observer | None
    ) -> tuple[Sequence[TaskExample], list[TaskExample]]:
        """Return all examples, and the first one of each content. Raises InputError if there is none."""
        examples = self.examples(offline=offline, observer=observer)
        if not examples:
            raise InputError("the data has no example that can be used: check the task's options")
        unique = {one.digest: one for one in reversed(examples)}
        return examples, [unique[one] for one in dict.fromkeys(one.digest for one in examples)]

    def train(self) -> Sequence[Prompt]:
        """Return the training prompts in the data's order."""
        return self._side(0)

    def evaluation(self) -> Sequence[Prompt]:
        """Return the held-out prompts in the data's order."""
        return self._side(1)

    def _side(self, index: int) -> Sequence[Prompt]:
        self.prepare()
        assert self._sides is not None
        return self._sides[index]


def chat_messages(text: str, *, chat: bool) -> tuple[Message, ...]:
    """Return the messages of a prompt; none if ``chat`` is off, so that the policy continues ``text``."""
    return (Message("user", text),) if chat else ()
