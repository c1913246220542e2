"""The news task: continue a real news article from its first words.

The articles are the catalogue's ``lee-news``. The prompt is an article's head, the reference its true continuation.
Which side an article is on hangs on its text alone: ``int(sha256(text)[:8], 16) % 100 < held_out_percent`` is held out,
where ``text`` is the article with single spaces. Articles that share a run of ``SHARED_WORDS`` words are versions of
one report: all of them go to the side of the smallest hash among them, so that nothing held out was seen in training.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from burnish.catalogue import fetch
from burnish.errors import InputError
from burnish.types import Prompt

if TYPE_CHECKING:
    from burnish.protocols import Observer

DATA = "lee-news"
MINIMUM_REFERENCE_WORDS = 8
"""An article with fewer words after its prompt is left out: BLEU of four-word sequences means little on less."""
SHARED_WORDS = 13
"""The length of overlap that counts as the same report (as the contamination check of GPT-3, arXiv 2005.14165, C)."""


@dataclass(frozen=True, slots=True)
class Article:
    """One article.

    Attributes:
        text: the whole article, words separated by single spaces.
        sha256: of that text in UTF-8, hexadecimal.
        family: the smallest sha256 among the articles that share a run of words with this one; its own where none does.
    """

    text: str
    sha256: str
    family: str


class News:
    """The heads of news articles, each with its true continuation.

    Args:
        prompt_words: words of the article that the policy is given.
        reference_words: at most so many of the words that follow are the reference.
        held_out_percent: share of the articles, by hash, that training never sees; 25 gives 87 of 340.
        references: whether prompts carry the true continuation; without them the task is unlabelled, and rewards that
            need a reference are refused.

    Raises:
        InputError: an option is out of range, or leaves no prompt on one of the two sides (when the data is read).
    """

    def __init__(
        self,
        *,
        prompt_words: int = 32,
        reference_words: int = 48,
        held_out_percent: int = 25,
        references: bool = True,
    ) -> None:
        if prompt_words < 1:
            raise InputError(f"prompt_words = {prompt_words}: must be at least 1")
        if reference_words < MINIMUM_REFERENCE_WORDS:
            raise InputError(f"reference_words = {reference_words}: must be at least {MINIMUM_REFERENCE_WORDS}")
        if not 0 < held_out_percent < 100:
            raise InputError(f"held_out_percent = {held_out_percent}: must be from 1 to 99")
        self.prompt_words = prompt_words
        self.reference_words = reference_words
        self.held_out_percent = held_out_percent
        self.references = references
        self._sides: tuple[list[Prompt], list[Prompt]] | None = None
        self._texts: list[str] = []

    def prepare(self, *, offline: bool = False, observer: Observer | None = None) -> None:
        """Fetches and splits the data, once; without it, the first use does the same with a network and in silence.

        Raises:
            InputError: the options leave nothing, or the data is absent and ``offline`` is on.
            BurnishError: the data could not be fetched.
        """
        if self._sides is None:
            found, duplicates = articles(offline=offline, observer=observer)
            self._texts = [article.text for article in found if not self._held_out(article)]
            self._sides = self._split(found, duplicates, observer)

    def train(self) -> Sequence[Prompt]:
        """The training prompts, in the corpus's order."""
        return self._side(0)

    def evaluation(self) -> Sequence[Prompt]:
        """The held-out prompts, in the corpus's order."""
        return self._side(1)

    def texts(self) -> Sequence[str]:
        """The training side's articles whole, for training by likelihood; none that shares a report with a held-out one."""
        self.prepare()
        return self._texts

    def _side(self, which: int) -> Sequence[Prompt]:
        self.prepare()
        assert self._sides is not None
        return self._sides[which]

    def _split(
        self, found: Sequence[Article], duplicates: int, observer: Observer | None
    ) -> tuple[list[Prompt], list[Prompt]]:
        sides: tuple[list[Prompt], list[Prompt]] = ([], [])
        heads: set[str] = set()
        short = same_head = 0
        for article in found:
            prompt = self._prompt(article)
            if prompt is None:
                short += 1
            elif prompt.text in heads:  # two versions of one report that begin alike would count twice
                same_head += 1
            else:
                heads.add(prompt.text)
                sides[self._held_out(article)].append(prompt)
        needed = self.prompt_words + MINIMUM_REFERENCE_WORDS
        if not sides[0] and not sides[1]:
            raise InputError(
                f"prompt_words = {self.prompt_words} leaves no article: each of the {len(found)} has fewer than "
                f"{needed} words; choose a smaller number"
            )
        for side, which, change in ((sides[0], "training", "smaller"), (sides[1], "held-out", "larger")):
            if not side:
                raise InputError(
                    f"held_out_percent = {self.held_out_percent} leaves no {which} prompt: choose a {change} number, "
                    f"or a smaller prompt_words"
                )
        if observer:
            observer.message(
                f"news: {len(sides[0])} training and {len(sides[1])} held-out prompts; left out: {duplicates} repeated "
                f"articles, {same_head} that begin like another, {short} of fewer than {needed} words"
            )
        return sides

    def _prompt(self, article: Article) -> Prompt | None:
        words = article.text.split(" ")
        if len(words) < self.prompt_words + MINIMUM_REFERENCE_WORDS:
            return None
        reference = words[self.prompt_words : self.prompt_words + self.reference_words]
        return Prompt(
            id=f"{DATA}/{article.sha256[:12]}",
            text=" ".join(words[: self.prompt_words]),
            reference=" ".join(reference) if self.references else None,
            metadata={"words": len(words)},
        )

    def _held_out(self, article: Article) -> bool:
        return int(article.family[:8], 16) % 100 < self.held_out_percent


def articles(*, offline: bool = False, observer: Observer | None = None) -> tuple[list[Article], int]:
    """The corpus without exact repeats, in its order, and how many repeats there were.

    Raises InputError or BurnishError as ``burnish.catalogue.fetch``.
    """
    texts: list[str] = []
    for path in fetch(DATA, offline=offline, observer=observer).values():
        # Latin-1, as gensim's own readers take it: one article writes a pound sign as the byte A3.
        lines = path.read_text(encoding="latin-1").split("\n")
        texts += [text for line in lines if (text := " ".join(line.split()))]
    unique = list(dict.fromkeys(texts))
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in unique]
    families = _families(unique, hashes)
    found = [Article(text, digest, families[digest]) for text, digest in zip(unique, hashes, strict=True)]
    return found, len(texts) - len(unique)


def _families(texts: Sequence[str], hashes: Sequence[str]) -> dict[str, str]:
    """Each article's hash -> the smallest hash among those it is joined to by shared runs of words (union-find)."""
    parent = {digest: digest for digest in hashes}

    def root(digest: str) -> str:
        while parent[digest] != digest:
            digest = parent[digest]
        return digest

    holders: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for text, digest in zip(texts, hashes, strict=True):
        words = re.findall(r"\w+", text.lower())
        for run in {tuple(words[start : start + SHARED_WORDS]) for start in range(len(words) - SHARED_WORDS + 1)}:
            holders[run].append(digest)
    for together in holders.values():
        for other in together[1:]:
            one, two = sorted((root(together[0]), root(other)))
            parent[two] = one
    return {digest: root(digest) for digest in hashes}
