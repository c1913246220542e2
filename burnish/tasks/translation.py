"""The translation task: translate a sentence of a parallel corpus.

Two sources. ``hsk`` is the catalogue's ``hsk-sentences``: Chinese sentences for learners with English translations.
``libreoffice`` is LibreOffice's help, as Debian's packages ``libreoffice-help-*`` install it: paragraphs with the same
file and id are translations of each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

from burnish.catalogue import fetch
from burnish.data.splits import SplitTask, TaskExample, chat_messages, task_example
from burnish.errors import InputError
from burnish.registry import nearest
from burnish.system.paths import expanded
from burnish.text import lexical_words

if TYPE_CHECKING:
    from burnish.protocols import Observer

HSK = "hsk-sentences"
LANGUAGES = {"zh": "Chinese", "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian"}
LANGUAGE_FOLDERS = {"zh": "zh-CN", "en": "en-US", "de": "de", "fr": "fr", "es": "es", "it": "it"}
HELP_FOLDER = "/usr/share/libreoffice/help"
SOURCES = {"hsk": ("en", "zh"), "libreoffice": tuple(LANGUAGE_FOLDERS)}
TEMPLATE = "Translate from {source} to {target}.\n{source}: {text}\n{target}:"


@dataclass(kw_only=True, eq=False)
class Sentences:
    """Sentences and their translations as examples.

    The side of a pair depends on the text of the language whose code is later in the alphabet, so that both directions
    have the same split. Pairs with a near-copy in either language share a side.

    Args:
        data: "hsk" (Chinese and English) or "libreoffice" (any two of zh, en, de, fr, es, it).
        source, target: codes of the languages.
        template: the prompt; ``{text}``, ``{source}`` and ``{target}`` are filled in.
        min_words, max_words: limits for both texts; a Chinese character is a word. Other pairs are left out.
        folder: the folder of LibreOffice's help, with a folder for each language.
        chat: whether prompts go through the model's chat template; else the policy continues the template.
    """

    data: str = "hsk"
    source: str = "zh"
    target: str = "en"
    template: str = TEMPLATE
    min_words: int = 1
    max_words: int = 40
    folder: str = HELP_FOLDER
    chat: bool = False

    def __post_init__(self) -> None:
        data, pair = self.data, {self.source, self.target}
        if data not in SOURCES:
            raise InputError(f"data = '{data}'{nearest(data, SOURCES)}: write one of {', '.join(SOURCES)}")
        if len(pair) < 2 or not pair <= set(SOURCES[data]):
            raise InputError(
                f"source = '{self.source}', target = '{self.target}': data = '{data}' has {', '.join(SOURCES[data])}; "
                "name two of them"
            )
        check_template(self.template)
        if not 1 <= self.min_words <= self.max_words:
            raise InputError(
                f"min_words = {self.min_words}, max_words = {self.max_words}: must be 1 <= min_words <= max_words"
            )

    @property
    def help_folder(self) -> Path:
        return expanded(self.folder)

    def examples(self, *, offline: bool, observer: Observer | None) -> Sequence[TaskExample]:
        if self.data == "hsk":
            pairs = list(hsk_pairs(self.source, self.target, offline=offline, observer=observer))
        else:
            pairs = help_pairs(self.help_folder, self.source, self.target)
        kept = [pair for pair in pairs if all(self.min_words <= _length(text) <= self.max_words for text in pair)]
        if observer and len(kept) < len(pairs):
            observer.message(
                f"translation: {len(pairs) - len(kept)} of {len(pairs)} pairs left out: not of {self.min_words} to "
                f"{self.max_words} words"
            )
        return [self._example(*pair) for pair in kept]

    def _example(self, source: str, target: str) -> TaskExample:
        text = self.template.format(text=source, source=LANGUAGES[self.source], target=LANGUAGES[self.target])
        return task_example(
            f"translation/{self.source}-{self.target}",
            source if self.source > self.target else target,
            text,
            target,
            messages=chat_messages(text, chat=self.chat),
            texts=(source, target),
            metadata={"source": source},
        )


@dataclass(kw_only=True, eq=False)
class Translation(Sentences, SplitTask):
    """``Sentences``, of which ``held_out_percent`` are a share, by hash, that training never sees."""

    held_out_percent: int = 25

    name = "translation"

    def __post_init__(self) -> None:
        SplitTask.__init__(self, self.held_out_percent)
        super().__post_init__()


def check_template(template: str) -> None:
    """Raise InputError if a template does not contain {text}, or contains an unknown field."""
    if "{text}" not in template:
        raise InputError("template must contain {text}, which is replaced by the sentence")
    try:
        template.format(text="", source="", target="")
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise InputError(f"template: {error!r}: only {{text}}, {{source}} and {{target}} are filled in") from error


def hsk_pairs(
    source: str, target: str, *, offline: bool = False, observer: Observer | None = None
) -> Iterator[tuple[str, str]]:
    """Yield the catalogue's sentences in two languages, in order. Raises InputError or BurnishError as ``fetch``."""
    (path,) = fetch(HSK, offline=offline, observer=observer).values()
    for sentence in json.loads(path.read_text(encoding="utf-8")):
        texts = {"zh": sentence["chinese"].strip(), "en": sentence["translation"]["en"].strip()}
        yield texts[source], texts[target]


def help_pairs(folder: Path, source: str, target: str) -> list[tuple[str, str]]:
    """Return the paragraphs of LibreOffice's help in two languages, in the order of file names.

    A paragraph is left out if it is the same in both languages, or if either text came before, so that each text has
    one translation. Raises InputError if a language's folder is missing, or the two have no page in common.
    """
    for code in (source, target):
        if not (folder / LANGUAGE_FOLDERS[code]).is_dir():
            package = f"libreoffice-help-{LANGUAGE_FOLDERS[code].lower()}"
            raise InputError(
                f"folder = '{folder}' has no help in {LANGUAGES[code]} ({LANGUAGE_FOLDERS[code]}): on Debian `apt-get "
                f"install {package}`, or `apt-get download {package}`, `dpkg -x` it, "
                "and name its folder usr/share/libreoffice/help"
            )
    pairs: list[tuple[str, str]] = []
    seen: set[str] = set()
    first = folder / LANGUAGE_FOLDERS[source]
    for page in sorted(first.rglob("*.html")):
        other = folder / LANGUAGE_FOLDERS[target] / page.relative_to(first)
        if not other.is_file():
            continue
        left, right = paragraphs(page), paragraphs(other)
        for name, text in left.items():
            pair = text, right.get(name, "")
            if text and pair[1] and text != pair[1] and text not in seen and pair[1] not in seen:
                seen.update(pair)
                pairs.append(pair)
    if not pairs:
        raise InputError(f"folder = '{folder}': no help page has paragraphs in both languages: install both packages")
    return pairs


class _Paragraphs(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.paragraphs: dict[str, str] = {}
        self._id: str | None = None
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "p":
            name = dict(attrs).get("id") or ""
            self._id, self._text = (name if name.startswith("par_") else None), []

    def handle_endtag(self, tag: str) -> None:
        if tag == "p" and self._id is not None:
            self.paragraphs.setdefault(self._id, " ".join("".join(self._text).split()))
            self._id = None

    def handle_data(self, data: str) -> None:
        if self._id is not None:
            self._text.append(data)


def paragraphs(page: Path) -> dict[str, str]:
    """Return id -> text of a help page's paragraphs. Raises InputError if it cannot be read."""
    parser = _Paragraphs()
    try:
        parser.feed(page.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{page} cannot be read ({error}): install its package again") from error
    parser.close()
    return parser.paragraphs


def _length(text: str) -> int:
    return len(lexical_words(text))
