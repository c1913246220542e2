"""Where rows come from: files of one's own, and the catalogue's data. A source is a class whose keyword arguments, all
with defaults, are the options of its ``[data]`` table, with one method ``rows``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from burnish.data.rows import Broken, Dialogue, Pair, Row, Rows, Text, Turn, digest, held_out, unrepeated
from burnish.data.splits import Example, families_of
from burnish.errors import InputError
from burnish.evaluation.held_out import continuation
from burnish.protocols import Observer
from burnish.registry import Registry, factory, nearest
from burnish.tasks.news import Article, articles
from burnish.tasks.translation import HSK as TRANSLATION
from burnish.tasks.translation import Sentences


class Source(Protocol):
    """Gives rows of one kind, in a fixed order. ``held_out_percent`` is for those that mix texts of several rows, which
    must not be done across the split."""

    def rows(self, *, held_out_percent: int = 25, offline: bool = False, observer: Observer | None = None) -> Rows: ...


SourceFactory = Callable[..., Source]


SOURCES: Registry[SourceFactory] = Registry(
    "source",
    builtin={
        "jsonl": "burnish.supervised.jsonl:JsonLines",
        "translation": "burnish.supervised.sources:Translation",
        "news": "burnish.supervised.sources:NewsText",
        "news-pairs": "burnish.supervised.sources:NewsPairs",
    },
    wrap=partial(factory, "source"),
)


@dataclass(kw_only=True, eq=False)
class Translation(Sentences):
    """Sentences with their translations, as prompts and completions: those of the task ``translation``.

    The unit of a row is the family of near-copies that the task splits by: with the same held-out percentage (25), what is
    held out there is held out here.

    Args:
        data, source, target, template, min_words, max_words, folder: as in the task.
        chat: whether rows are chats, for a model that is asked through its chat template.
    """

    def rows(self, *, held_out_percent: int = 25, offline: bool = False, observer: Observer | None = None) -> Rows:
        found = self.examples(offline=offline, observer=observer)
        families = families_of(found)
        unique, repeats = unrepeated([_learnt(one, families[one.digest]) for one in found])
        return Rows(unique, repeats=repeats, origin=TRANSLATION if self.data == "hsk" else str(self.place))


def _learnt(one: Example, unit: str) -> Row:
    """A task's example as a row: its reference is what is learnt."""
    prompt, reference = one.prompt, one.prompt.reference or ""
    if prompt.messages:
        turns = tuple(Turn(message.role, message.content) for message in prompt.messages)
        return Dialogue((*turns, Turn("assistant", reference)), unit)
    return Text(prompt.text, continuation(prompt.text, reference), unit)


class NewsText:
    """News articles (``lee-news``) as plain text.

    The unit of an article is that of the task ``news``: with the same held-out percentage (25), what is held out there
    is held out here.
    """

    def rows(self, *, held_out_percent: int = 25, offline: bool = False, observer: Observer | None = None) -> Rows:
        found, repeats = articles(offline=offline, observer=observer)
        return Rows(tuple(Text("", one.text, one.family) for one in found), repeats=repeats, origin="lee-news")


class NewsPairs:
    """Heads of news passages, each with its true continuation (chosen) and a false one (rejected).

    An article is cut into passages; units are articles, as in ``NewsText``, so one article's passages lie on one side and
    are never taken for independent evidence.

    Args:
        rejected: "other" (the continuation of another article on the same side of the split; each is used once, so a text
            says by itself nothing of being true) or "words" (the true continuation's words in another order).
        prompt_words, completion_words: of a passage.
        passages: at most so many of each article, from its beginning.
        seed: of the shuffles.
    """

    def __init__(
        self,
        *,
        rejected: str = "other",
        prompt_words: int = 32,
        completion_words: int = 32,
        passages: int = 3,
        seed: int = 0,
    ) -> None:
        if rejected not in ("other", "words"):
            hint = nearest(rejected, ("other", "words"))
            raise InputError(f'data.rejected = \'{rejected}\'{hint}: write "other" or "words"')
        for name, value in (("prompt_words", prompt_words), ("completion_words", completion_words)):
            if value < 4:
                raise InputError(f"data.{name} = {value}: must be at least 4")
        if passages < 1:
            raise InputError(f"data.passages = {passages}: must be at least 1")
        self.rejected, self.passages, self.seed = rejected, passages, seed
        self.prompt_words, self.completion_words = prompt_words, completion_words

    def rows(self, *, held_out_percent: int = 25, offline: bool = False, observer: Observer | None = None) -> Rows:
        found, repeats = articles(offline=offline, observer=observer)
        passages = [(one, *passage) for one in found for passage in self._passages(one)]
        if self.rejected == "words":
            false = [self._shuffled(completion) for _, _, completion in passages]
        else:
            false = _exchanged(
                [(one.family, completion) for one, _, completion in passages],
                [held_out(one.family, held_out_percent) for one, _, _ in passages],
            )
        pairs: list[Row] = []
        broken: list[Broken] = []
        for (one, prompt, true), other in zip(passages, false, strict=True):
            if other == true:
                broken.append(Broken(f"article {one.sha256[:12]}", "no other continuation to be had"))
            else:
                pairs.append(Pair(prompt, continuation(prompt, true), continuation(prompt, other), one.family))
        return Rows(tuple(pairs), tuple(broken), repeats, "lee-news")

    def _passages(self, article: Article) -> Iterator[tuple[str, str]]:
        words, size = article.text.split(" "), self.prompt_words + self.completion_words
        for place in range(min(self.passages, len(words) // size)):
            passage = words[place * size : (place + 1) * size]
            yield " ".join(passage[: self.prompt_words]), " ".join(passage[self.prompt_words :])

    def _shuffled(self, text: str) -> str:
        words = text.split(" ")
        generator = np.random.default_rng([self.seed, int(digest(text)[:8], 16)])
        return " ".join(words[place] for place in generator.permutation(len(words)))


def _exchanged(passages: Sequence[tuple[str, str]], sides: Sequence[bool]) -> list[str]:
    """For each (family, completion) a completion of another family on the same side, each used once; its own where a side
    has too few families."""
    false = [completion for _, completion in passages]
    for side in (False, True):
        places = sorted((place for place in range(len(passages)) if sides[place] == side), key=lambda p: passages[p][0])
        sizes = Counter(passages[place][0] for place in places)
        # In the order of families, a shift by the largest one's size always leads to another.
        shift = max(sizes.values(), default=0)
        if 2 * shift <= len(places):
            for index, place in enumerate(places):
                false[place] = passages[places[(index + shift) % len(places)]][1]
    return false
