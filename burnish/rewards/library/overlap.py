"""Rewards for the overlap of a completion with its prompt's reference: BLEU, chrF, TER, ROUGE-L, word F1."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from burnish.errors import InputError, one_line
from burnish.registry import nearest
from burnish.rewards.references import get_reference, get_references
from burnish.rewards.registry import reward
from burnish.text import lexical_words, mostly_han_or_kana, mostly_unspaced, words
from burnish.types import Completion

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa]")
LONGEST_TER = 2000
"""Characters of a text that ``ter`` reads. The time of its search for shifts grows faster than the words squared."""


@reward(needs_reference=True, several_references=True)
def bleu(completion: Completion, *, tokenize: str = "auto") -> float:
    """Sentence BLEU against the prompt's references, in [0, 1]: sacrebleu's score divided by 100.

    It counts an n-gram that any of several references has. It uses exponential smoothing and effective order, so that a
    text of fewer than four words can score. An empty text scores 0.

    Fails by: rewarding shared word order and nothing else. A long continuation has many good answers, and shares few
    words with the reference, so the scores are low and noisy.

    Args:
        tokenize: sacrebleu's tokenizer: "13a" for languages with spaces, "zh" for Chinese, "char", "intl", "none", ...;
            "auto" depends on the reference: "zh" for Chinese, "char" for Japanese or Thai, else "13a".

    Source: Papineni et al. 2002; Chen and Cherry 2014 (smoothing); Post 2018 (sacrebleu, arXiv 1804.08771).
    """
    references = get_references(completion, "bleu")
    metric = load_bleu(tokenizer_for(references) if tokenize == "auto" else tokenize, effective_order=True)
    score: float = metric.sentence_score(completion.text, references).score
    # sacrebleu scores a perfect match as 100.00000000000004.
    return min(1.0, max(0.0, score / 100.0))


@reward(needs_reference=True)
def chrf(completion: Completion, *, word_order: int = 0) -> float:
    """chrF against the prompt's reference, in [0, 1]: the overlap of character n-grams, n = 1 to 6.

    sacrebleu's sentence score divided by 100. White space does not count, so Chinese needs no setting. An empty text
    scores 0.

    Fails by: weighing recall four times as much as precision (beta is 2), so that padding is cheap: the whole reference
    within a text of four times its length still earns about 0.6.

    Args:
        word_order: longest word n-grams that count too, 0 to 2; 2 is chrF++.

    Source: Popovic 2015; Popovic 2017 (chrF++).
    """
    if word_order not in (0, 1, 2):
        raise InputError(f"chrf: word_order = {word_order}: must be 0, 1 or 2")
    reference = get_reference(completion, "chrf")
    score: float = _sentence_chrf(word_order).sentence_score(completion.text, [reference]).score
    return min(1.0, max(0.0, score / 100.0))


@reward(needs_reference=True)
def ter(completion: Completion, *, chinese: bool = False) -> float:
    """1 minus the translation edit rate against the prompt's reference, in [0, 1]: 1 if the words are equal.

    The rate is the number of words inserted, deleted or replaced and of runs of words shifted, divided by the number of
    words of the reference. The reward is 0 for an empty text, and if there are at least as many edits as words. Case
    does not count. Only the first ``LONGEST_TER`` characters of a text are read.

    Fails by: preferring short texts, since a missing word costs as much as a wrong one; and being 0 for all texts if
    most are far off.

    Args:
        chinese: count every Chinese or Japanese character and every punctuation mark as a word; else words lie between
            spaces. On by default if the reference is mostly such characters. In a reference that is mostly Thai, Lao,
            Khmer or Burmese, words are those of ``burnish.text``.

    Source: Snover et al. 2006.
    """
    reference, text = get_reference(completion, "ter"), completion.text[:LONGEST_TER]
    chinese = chinese or mostly_han_or_kana(reference)
    if not chinese and mostly_unspaced(reference):
        reference, text = " ".join(words(reference)), " ".join(words(text))
    score: float = _sentence_ter(chinese).sentence_score(text, [reference]).score
    return min(1.0, max(0.0, 1.0 - score / 100.0))


def normalized_words(text: str) -> list[str]:
    """Return the words of a text without punctuation; full-width forms such as １２ are equal to ordinary ones."""
    return lexical_words(unicodedata.normalize("NFKC", text))


@reward(needs_reference=True)
def rouge_l(completion: Completion, *, beta: float = 1.0) -> float:
    """ROUGE-L against the prompt's reference, in [0, 1], from the longest common subsequence of words.

    With L its length, P = L / words of the text and R = L / words of the reference, the reward is the F-measure ``(1 +
    beta^2) P R / (R + beta^2 P)``: exact, without stemming, and 0 if either has no words. Case and punctuation do not
    count. In scripts without spaces, such as Chinese, every character is a word.

    Fails by: rewarding frequent words ("the ... of ... the"), which any text has in some order, and no synonyms.

    Args:
        beta: weight of recall relative to precision; above 0.

    Source: Lin 2004, ROUGE: a package for automatic evaluation of summaries, section 3.
    """
    if not (math.isfinite(beta) and beta > 0):
        raise InputError(f"rouge_l: beta = {beta}: must be above 0")
    text, reference = normalized_words(completion.text), normalized_words(get_reference(completion, "rouge_l"))
    common = common_subsequence(text, reference)
    if common == 0:
        return 0.0
    precision, recall = common / len(text), common / len(reference)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


@reward(needs_reference=True, judges_answers=True)
def word_f1(completion: Completion) -> float:
    """F1 of the words shared with the prompt's reference, in [0, 1], whatever their order.

    Precision and recall count a word as often as both have it. Case, punctuation and the articles a, an and the do not
    count; a text without other words scores 1 if it equals the reference, else 0. In scripts without spaces, such as
    Chinese, every character is a word.

    Fails by: ignoring order and negation ("not guilty" scores 2/3 against "guilty"); with several references, a text
    need only be close to one of them.

    Source: F1 in question answering (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1).
    """
    text, reference = completion.text, get_reference(completion, "word_f1")
    first, second = (
        Counter(word for word in normalized_words(each) if word not in ("a", "an", "the")) for each in (text, reference)
    )
    if not first or not second:
        return float(text.strip() == reference.strip())
    return 2 * (first & second).total() / (first.total() + second.total())


def common_subsequence(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence: tokens of both in the same order, gaps allowed.

    Bit i of ``row`` is 0 if the best length grows at the i-th token of ``first``. One addition of integers computes a
    row of the usual table. (Hyyro 2004, Bit-parallel LCS-length computation revisited.)
    """
    positions: dict[Hashable, int] = {}
    for index, token in enumerate(first):
        positions[token] = positions.get(token, 0) | 1 << index
    all_ones = (1 << len(first)) - 1
    row = all_ones
    for token in second:
        matches = row & positions.get(token, 0)
        row = (row + matches | row - matches) & all_ones
    return len(first) - row.bit_count()


@lru_cache(maxsize=3)
def _sentence_chrf(word_order: int) -> CHRF:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(word_order=word_order)


@lru_cache(maxsize=2)
def _sentence_ter(chinese: bool) -> TER:
    from sacrebleu.metrics.ter import TER

    return TER(normalized=chinese, asian_support=chinese)


def tokenizer_for(references: Sequence[str]) -> str:
    """Return BLEU's tokenizer for most of the references: "13a", "zh" (Chinese) or "char" (others without spaces)."""
    unspaced = [text for text in references if mostly_unspaced(text)]
    if 2 * len(unspaced) <= len(references):
        return "13a"
    others = sum(not mostly_han_or_kana(text) or _KANA.search(text) is not None for text in unspaced)
    return "char" if 2 * others > len(unspaced) else "zh"


@lru_cache(maxsize=8)
def load_bleu(tokenize: str, *, effective_order: bool) -> BLEU:
    """Return sacrebleu's BLEU. Raises InputError if its tokenizer is unknown, or needs a package or a download."""
    from sacrebleu.metrics.bleu import BLEU

    known = sorted(BLEU.TOKENIZERS)
    if tokenize not in known:
        raise InputError(
            f"bleu: unknown tokenize = '{tokenize}'{nearest(tokenize, known)}; known: auto, {', '.join(known)}"
        )
    try:
        # force: no warning on standard error if many texts end in " .", as model text may.
        return BLEU(tokenize=tokenize, effective_order=effective_order, force=True)
    except (RuntimeError, ImportError, OSError) as error:
        raise InputError(
            f"bleu: tokenize = '{tokenize}' cannot be loaded ({one_line(error)}); '13a', 'zh' and 'char' need no "
            "further package"
        ) from error
