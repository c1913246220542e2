"""News tasks: continue an article from its first words, or write its headline; the data is ``lee-news``.

The side of an article depends on its text with single spaces, and versions of one report share a side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from burnish.catalogue import fetch
from burnish.data.splits import (
    SplitTask,
    TaskExample,
    chat_messages,
    digest,
    is_held_out,
    left_out,
    near_copy_families,
    split_items,
    task_example,
)
from burnish.errors import InputError
from burnish.types import Prompt

if TYPE_CHECKING:
    from burnish.protocols import Observer

DATA = "lee-news"
MINIMUM_REFERENCE_WORDS = 8
"""An article with fewer words after its prompt is left out: they are too few for the 4-grams of BLEU."""
QUESTION = "Write a headline of at most ten words for this news article. Give the headline only.\n\n{article}"
LEAST_BODY = 20
"""Words of an article after its first sentence; ``Headlines`` leaves out a shorter one."""
_SENTENCE = re.compile(r"(.{20,}?[.!?][\"']?) (?=[\"']?[A-Z])")


@dataclass(frozen=True, slots=True)
class Article:
    """One article: its text with single spaces, the text's digest, and the smallest digest among its near-copies."""

    text: str
    sha256: str
    family: str


class News(SplitTask):
    """The beginnings of news articles, each with its true continuation.

    Args:
        prompt_words: words of the article in the prompt.
        reference_words: the most words of the continuation in the reference.
        held_out_percent: share of the articles, by hash, that training never sees; 25 gives 87 of 340.
        references: whether prompts carry the true continuation. Without it the task is unlabelled, and rewards that
            need a reference are refused.
    """

    name = "news"

    def __init__(
        self, *, prompt_words: int = 32, reference_words: int = 48, held_out_percent: int = 25, references: bool = True
    ) -> None:
        if prompt_words < 1:
            raise InputError(f"prompt_words = {prompt_words}: must be at least 1")
        if reference_words < MINIMUM_REFERENCE_WORDS:
            raise InputError(f"reference_words = {reference_words}: must be at least {MINIMUM_REFERENCE_WORDS}")
        super().__init__(held_out_percent)
        self.prompt_words, self.reference_words, self.references = prompt_words, reference_words, references
        self._texts: list[str] = []

    def prepare(self, *, offline: bool = False, observer: Observer | None = None) -> None:
        if self._sides is None:
            unique, duplicates = articles(offline=offline, observer=observer)
            self._texts = [one.text for one in unique if not is_held_out(one.family, self.held_out_percent)]
            self._sides = self._split(unique, duplicates, observer)

    def texts(self) -> Sequence[str]:
        """Return the whole articles of the training side, for training by likelihood."""
        self.prepare()
        return self._texts

    def _split(
        self, unique: Sequence[Article], duplicates: int, observer: Observer | None
    ) -> tuple[list[Prompt], list[Prompt]]:
        needed = self.prompt_words + MINIMUM_REFERENCE_WORDS
        prompts = [(self._prompt(one), one.family) for one in unique if len(one.text.split(" ")) >= needed]
        if not prompts:
            raise InputError(
                f"prompt_words = {self.prompt_words} leaves no article: each of the {len(unique)} has fewer than "
                f"{needed} words; choose a smaller number"
            )
        # Two versions of one report that begin alike would count twice.
        first = {prompt.text: (prompt, family) for prompt, family in reversed(prompts)}
        kept = [first[text] for text in dict.fromkeys(prompt.text for prompt, _ in prompts)]
        sides = split_items([prompt for prompt, _ in kept], [family for _, family in kept], self.held_out_percent)
        if observer:
            counts = {
                "repeated articles": duplicates,
                "that begin like another": len(prompts) - len(kept),
                f"of fewer than {needed} words": len(unique) - len(prompts),
            }
            observer.message(f"news: {len(sides[0])} training and {len(sides[1])} held-out prompts{left_out(counts)}")
        return sides

    def _prompt(self, article: Article) -> Prompt:
        words = article.text.split(" ")
        reference = words[self.prompt_words : self.prompt_words + self.reference_words]
        return Prompt(
            id=f"{DATA}/{article.sha256[:12]}",
            text=" ".join(words[: self.prompt_words]),
            reference=" ".join(reference) if self.references else None,
            metadata={"words": len(words)},
        )


class Headlines(SplitTask):
    """News articles without their first sentence, each with that sentence as the reference.

    The first sentence of an article summarises it. The sides are those of ``News`` with the same ``held_out_percent``.

    Args:
        body_words: words of the article in the prompt.
        question: the question; ``{article}`` is replaced by the article.
        chat: whether prompts go through the model's chat template; else "Headline:" follows the question.
        held_out_percent: share of the articles, by hash, that training never sees.
    """

    name = "headlines"

    def __init__(
        self, *, body_words: int = 60, question: str = QUESTION, chat: bool = True, held_out_percent: int = 25
    ) -> None:
        super().__init__(held_out_percent)
        if body_words < LEAST_BODY:
            raise InputError(f"body_words = {body_words}: must be at least {LEAST_BODY}")
        if question.count("{article}") != 1:
            raise InputError("question must contain {article} once, which is replaced by the article")
        self.body_words, self.question, self.chat = body_words, question, chat

    def examples(self, *, offline: bool, observer: Observer | None) -> Sequence[TaskExample]:
        corpus, _ = articles(offline=offline, observer=observer)
        made = [self._example(article) for article in corpus]
        kept = [one for one in made if one is not None]
        if observer and len(kept) < len(corpus):
            observer.message(f"headlines: {len(corpus) - len(kept)} of {len(corpus)} articles are too short for one")
        return kept

    def _example(self, article: Article) -> TaskExample | None:
        first = _SENTENCE.match(article.text)
        body = article.text[first.end() :].split(" ") if first else []
        if first is None or len(body) < LEAST_BODY:
            return None
        question = self.question.replace("{article}", " ".join(body[: self.body_words]))
        return task_example(
            f"headlines/{DATA}",
            article.text,
            question if self.chat else f"{question}\nHeadline:",
            first[1],
            messages=chat_messages(question, chat=self.chat),
            texts=(article.family,),
        )


def articles(*, offline: bool = False, observer: Observer | None = None) -> tuple[list[Article], int]:
    """Return the corpus in its order without exact repeats, and the number of repeats. Raises what ``fetch`` raises."""
    texts: list[str] = []
    for path in fetch(DATA, offline=offline, observer=observer).values():
        # Latin-1, as in gensim's own readers: one article has a pound sign as the byte A3.
        lines = path.read_text(encoding="latin-1").split("\n")
        texts += [text for line in lines if (text := " ".join(line.split()))]
    unique = {digest(text): text for text in dict.fromkeys(texts)}
    families = near_copy_families((sha256, (text,), sha256) for sha256, text in unique.items())
    return [Article(text, sha256, families[sha256]) for sha256, text in unique.items()], len(texts) - len(unique)
