"""Sources of training rows: the registry, and the catalogue's data.

A source's keyword arguments, all with defaults, are the options of its ``[data]`` table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from burnish.data.rows import (
    BrokenRow,
    Conversation,
    PreferencePair,
    PromptCompletion,
    Rows,
    TrainingRow,
    unrepeated,
)  # fmt: skip
from burnish.data.splits import TaskExample, digest, example_families, is_held_out
from burnish.errors import InputError
from burnish.evaluation.held_out import continuation
from burnish.protocols import Observer
from burnish.registry import Registry, factory, nearest
from burnish.tasks.news import Article, articles
from burnish.tasks.translation import HSK, Sentences
from burnish.types import Message


class Source(Protocol):
    """A source of rows of one kind, in a fixed order. Rows that must share a side of the split have the same unit.

    A source that mixes texts of several rows must stay within a side, which it knows from ``held_out_percent``.
    """

    def rows(self, *, held_out_percent: int = 25, offline: bool = False, observer: Observer | None = None) -> Rows: ...


SOURCES: Registry[Callable[..., Source]] = Registry(
    "source",
    builtin={
        "data": "burnish.supervised.data_rows:DataRows",
        "jsonl": "burnish.supervised.data_rows:DataRows",
        "translation": "burnish.supervised.sources:TranslationRows",
        "news": "burnish.supervised.sources:NewsText",
        "news-pairs": "burnish.supervised.sources:NewsPairs",
    },
    wrap=partial(factory, "source"),
)


@dataclass(kw_only=True, eq=False)
class TranslationRows(Sentences):
    """The sentences of the task ``translation``, as prompts and completions.

    The unit of a row is its family of near-copies in the task: with the same held-out percentage (25), both hold out
    the same sentences.

    Args:
        data, source, target, template, min_words, max_words, folder: as in the task.
        chat: return conversations, for a model with a chat template.
    """

    def rows(self, *, held_out_percent: int = 25, offline: bool = False, observer: Observer | None = None) -> Rows:
        examples = self.examples(offline=offline, observer=observer)
        families = example_families(examples)
        unique, repeats = unrepeated([_training_row(one, families[one.digest]) for one in examples])
        return Rows(unique, repeats=repeats, origin=HSK if self.data == "hsk" else str(self.help_folder))


def _training_row(one: TaskExample, unit: str) -> TrainingRow:
    """Return a task's example as a row whose completion is the reference."""
    prompt, reference = one.prompt, one.prompt.reference or ""
    if prompt.messages:
        return Conversation((*prompt.messages, Message("assistant", reference)), unit)
    return PromptCompletion(prompt.text, continuation(prompt.text, reference), unit)


class NewsText:
    """News articles (``lee-news``) as plain text.

    The unit of an article is its family in the task ``news``: with the same held-out percentage (25), both hold out the
    same articles.
    """

    def rows(self, *, held_out_percent: int = 25, offline: bool = False, observer: Observer | None = None) -> Rows:
        unique, repeats = articles(offline=offline, observer=observer)
        rows = tuple(PromptCompletion("", one.text, one.family) for one in unique)
        return Rows(rows, repeats=repeats, origin="lee-news")


class NewsPairs:
    """Beginnings of news passages, each with its true continuation (chosen) and a false one (rejected).

    An article is cut into passages. Units are articles, as in ``NewsText``: the passages of an article share a side and
    are not independent evidence.

    Args:
        rejected: "other" (the continuation of another article on the same side of the split; each is used once, so that
            a continuation alone does not show whether it is true) or "words" (the true continuation's words, shuffled).
        prompt_words, completion_words: the size of a passage.
        passages: the maximum number of passages per article, from its beginning.
        seed: the seed of the shuffles.
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
        unique, repeats = articles(offline=offline, observer=observer)
        passages = [(one, *passage) for one in unique for passage in self._passages(one)]
        if self.rejected == "words":
            false = [self._shuffled(completion) for _, _, completion in passages]
        else:
            false = _exchanged(
                [(one.family, completion) for one, _, completion in passages],
                [is_held_out(one.family, held_out_percent) for one, _, _ in passages],
            )
        pairs: list[TrainingRow] = []
        broken: list[BrokenRow] = []
        for (one, prompt, true), other in zip(passages, false, strict=True):
            if other == true:
                broken.append(BrokenRow(f"article {one.sha256[:12]}", "no other continuation is available"))
            else:
                chosen, rejected = continuation(prompt, true), continuation(prompt, other)
                pairs.append(PreferencePair(prompt, chosen, rejected, one.family))
        return Rows(tuple(pairs), tuple(broken), repeats, "lee-news")

    def _passages(self, article: Article) -> Iterator[tuple[str, str]]:
        words, size = article.text.split(" "), self.prompt_words + self.completion_words
        for index in range(min(self.passages, len(words) // size)):
            passage = words[index * size : (index + 1) * size]
            yield " ".join(passage[: self.prompt_words]), " ".join(passage[self.prompt_words :])

    def _shuffled(self, text: str) -> str:
        words = text.split(" ")
        generator = np.random.default_rng([self.seed, int(digest(text)[:8], 16)])
        return " ".join(words[index] for index in generator.permutation(len(words)))


def _exchanged(passages: Sequence[tuple[str, str]], sides: Sequence[bool]) -> list[str]:
    """Return for each (family, completion) a completion of another family on the same side, each used once.

    On a side with too few families, each keeps its own completion.
    """
    false = [completion for _, completion in passages]
    for side in (False, True):
        order = sorted((index for index in range(len(passages)) if sides[index] == side), key=lambda i: passages[i][0])
        sizes = Counter(passages[index][0] for index in order)
        # In the order of families, a shift by the size of the largest one always reaches another family.
        shift = max(sizes.values(), default=0)
        if 2 * shift <= len(order):
            for rank, index in enumerate(order):
                false[index] = passages[order[(rank + shift) % len(order)]][1]
    return false
