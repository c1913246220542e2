"""The headline task: write the headline of a news article.

The articles are the catalogue's ``lee-news``, which has no headlines. The first sentence of an article summarises it:
it is removed from the article and is the reference.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from burnish.data.splits import SplitTask, TaskExample, chat_messages, task_example
from burnish.errors import InputError
from burnish.tasks.news import DATA, Article, articles

if TYPE_CHECKING:
    from burnish.protocols import Observer

LEAST_BODY = 20
"""Words of an article after its first sentence; a shorter one is left out."""
_SENTENCE = re.compile(r"(.{20,}?[.!?][\"']?) (?=[\"']?[A-Z])")


class Headlines(SplitTask):
    """News articles without their first sentence, each with that sentence as the reference.

    The sides are those of the task ``news`` with the same ``held_out_percent``.

    Args:
        body_words: words of the article in the prompt.
        question: the question; ``{article}`` is replaced by the article.
        chat: whether prompts go through the model's chat template; else "Headline:" follows the question.
        held_out_percent: share of the articles, by hash, that training never sees.

    Raises:
        InputError: an option is out of range.
    """

    name = "headlines"

    def __init__(
        self,
        *,
        body_words: int = 60,
        question: str = "Write a headline of at most ten words for this news article. Give the headline only.\n\n{article}",
        chat: bool = True,
        held_out_percent: int = 25,
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
