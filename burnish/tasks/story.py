"""The story task: write a short story from an opening, some words or a moral; the data is ``fables``."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from burnish.catalogue import fetch
from burnish.data.splits import SplitTask, TaskExample, chat_messages, task_example
from burnish.errors import InputError
from burnish.registry import nearest

if TYPE_CHECKING:
    from burnish.protocols import Observer

DATA = "fables"
LANGUAGES = ("en", "zh")
GIVEN = ("opening", "words", "moral")
LEAST_REFERENCE = 8
"""Words (or Chinese characters) that must follow an opening."""
FORMS = {
    ("words", "en"): ("Write a short story with these words: {content}.", "Words: {content}.\nStory:"),
    ("moral", "en"): ("Write a short story with this moral: {content}", "Moral: {content}\nStory:"),
    ("moral", "zh"): ("请写一个短故事，寓意是：{content}", "寓意：{content}\n故事："),
    ("opening", "en"): ("Continue this story: {content}", "{content}"),
    ("opening", "zh"): ("请续写这个故事：{content}", "{content}"),
}
"""Option ``given``, language -> the question in a chat, and the text without one."""
_CHOICE = re.compile(r"(?:^|\s)([A-E])\) ")
_LETTER = re.compile(r"[A-E]$")


@dataclass(frozen=True, slots=True)
class Fable:
    """A story and its moral ("" if the data names none)."""

    text: str
    moral: str


class Story(SplitTask):
    """Prompts for a story, each with the true one.

    Args:
        given: "opening" (the story's first words, to be continued), "words" (some of its longer words, to be used; the
            reward ``keywords`` reads them from the metadata; English only) or "moral".
        language: "en" (1,628 fables) or "zh" (1,930).
        prompt_words: words of an opening; in Chinese, characters.
        words: number of words in the prompt, for ``given = "words"``.
        reference_words: the most words of the reference; in Chinese, characters.
        chat: whether prompts go through the model's chat template.
        held_out_percent: share of the stories, by hash, that training never sees.
    """

    name = "story"

    def __init__(
        self,
        *,
        given: str = "opening",
        language: str = "en",
        prompt_words: int = 24,
        words: int = 5,
        reference_words: int = 64,
        chat: bool = False,
        held_out_percent: int = 25,
    ) -> None:
        super().__init__(held_out_percent)
        for key, value, known in (("given", given, GIVEN), ("language", language, LANGUAGES)):
            if value not in known:
                raise InputError(f"{key} = '{value}'{nearest(value, known)}: write one of {', '.join(known)}")
        if (given, language) not in FORMS:
            raise InputError('given = "words" is for English: Chinese words have no spaces between them; use "opening"')
        for key, number, least in (
            ("prompt_words", prompt_words, 1), ("words", words, 1),
            ("reference_words", reference_words, LEAST_REFERENCE),
        ):  # fmt: skip
            if number < least:
                raise InputError(f"{key} = {number}: must be at least {least}")
        self.given, self.language, self.chat = given, language, chat
        self.prompt_words, self.words, self.reference_words = prompt_words, words, reference_words
        self._texts: dict[str, str] = {}

    def examples(self, *, offline: bool, observer: Observer | None) -> Sequence[TaskExample]:
        stories = fables(self.language, offline=offline, observer=observer)
        made = [(fable, self._example(fable)) for fable in stories]
        kept = [(fable, one) for fable, one in made if one is not None]
        if observer and len(kept) < len(stories):
            observer.message(
                f"story: {len(stories) - len(kept)} of {len(stories)} fables are too short or name no moral"
            )
        self._texts = {one.prompt.id: fable.text for fable, one in kept}
        return [one for _, one in kept]

    def texts(self) -> Sequence[str]:
        """Return the whole stories of the training side, for training by likelihood."""
        return [self._texts[prompt.id] for prompt in self.train()]

    def _example(self, fable: Fable) -> TaskExample | None:
        between = " " if self.language == "en" else ""
        pieces = fable.text.split(" ") if between else list(fable.text)
        metadata: dict[str, object] = {"moral": fable.moral}
        start = 0
        if self.given == "opening":
            start = self.prompt_words
            content = between.join(pieces[:start])
        elif self.given == "words":
            chosen = content_words(fable.text, self.words)
            metadata["keywords"] = chosen
            content = ", ".join(chosen) if len(chosen) == self.words else ""
        else:
            content = fable.moral
        if len(pieces) < start + LEAST_REFERENCE or not content:
            return None
        text = FORMS[self.given, self.language][0 if self.chat else 1].format(content=content)
        return task_example(
            f"story/{self.language}",
            fable.text,
            text,
            between.join(pieces[start : start + self.reference_words]),
            messages=chat_messages(text, chat=self.chat),
            metadata=metadata,
        )


def content_words(text: str, count: int) -> list[str]:
    """Return different lower-case words of at least five letters in text order, drawn with the text's hash as seed."""
    candidates = list(dict.fromkeys(re.findall(r"\b[a-z]{5,}\b", text)))
    draw = random.Random(hashlib.sha256(text.encode()).hexdigest())
    chosen = set(draw.sample(candidates, min(count, len(candidates))))
    return [word for word in candidates if word in chosen]


def fables(language: str, *, offline: bool = False, observer: Observer | None = None) -> list[Fable]:
    """Return the different fables of a language in the data's order. Raises InputError or BurnishError as ``fetch``."""
    files = fetch(DATA, offline=offline, observer=observer)
    path = next(path for name, path in files.items() if name.endswith(f"-{language}.jsonl"))
    unique: dict[str, Fable] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        story, _, choices = row["input"][1]["content"].partition("\nWhich moral")
        text = " ".join(story.split()) if language == "en" else "".join(story.split())
        if text:
            unique.setdefault(text, Fable(text, _moral(choices, row["ideal"][0])))
    return list(unique.values())


def _moral(choices: str, ideal: str) -> str:
    """Return the correct choice according to the data; "" if it is not among the choices."""
    letter = _LETTER.search(ideal.strip())
    parts = _CHOICE.split(choices.partition("\nThe output should")[0].partition("\n")[2])
    options = dict(zip(parts[1::2], parts[2::2], strict=True))
    return " ".join(options.get(letter[0], "").split()) if letter else ""
