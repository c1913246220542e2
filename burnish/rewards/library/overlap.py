"""Rewards that compare a completion with the true answer of its prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from burnish.errors import InputError, one_line
from burnish.registry import nearest
from burnish.rewards.registry import reward
from burnish.text import mostly_han_or_kana, mostly_unspaced, words
from burnish.types import Completion

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa]")
LONGEST_TER = 2000
"""Characters of a text that ``ter`` reads. Its search for shifts grows faster than the square of the words."""


@reward(needs_reference=True)
def bleu(completion: Completion, *, tokenize: str = "auto") -> float:
    """Sentence BLEU against the prompt's reference, in [0, 1]: sacrebleu's score divided by 100.

    With exponential smoothing and effective order, so that a text of fewer than four words can score at all; an empty
    text scores 0. Fails by: rewarding shared word order and nothing else; a long continuation of open text has many
    good answers and shares few words with the one that happened to be true, so the scores are low and noisy.

    Args:
        completion: what was sampled; its prompt must have a reference.
        tokenize: sacrebleu's tokenizer: "13a" for languages with spaces, "zh" for Chinese, "char", "intl", "none", ...;
            "auto" takes the one for the reference: "zh" where it is Chinese, "char" where Japanese or Thai, else "13a".

    Raises:
        InputError: the prompt has no reference, or the tokenizer is unknown or cannot be loaded.

    Source: Papineni et al. 2002; Chen and Cherry 2014 (smoothing); Post 2018 (sacrebleu, arXiv 1804.08771).
    """
    reference = reference_of(completion, "bleu")
    score = (
        sentence_bleu(tokenizer_for([reference]) if tokenize == "auto" else tokenize)
        .sentence_score(completion.text, [reference])
        .score
    )
    # A perfect match comes out as 100.00000000000004.
    return min(1.0, max(0.0, score / 100.0))


@reward(needs_reference=True)
def chrf(completion: Completion, *, word_order: int = 0) -> float:
    """chrF against the prompt's reference, in [0, 1]: overlap of runs of one to six characters, order within them kept.

    sacrebleu's sentence score divided by 100; white space is left out, so Chinese needs no setting. An empty text
    scores 0. Fails by: counting recall four times as much as precision (beta is 2), so that padding is cheap: a text
    that holds the whole reference within three times as much else still earns about a half.

    Args:
        completion: what was sampled; its prompt must have a reference.
        word_order: also runs of up to so many words, 0 to 2; 2 is chrF++.

    Raises:
        InputError: the prompt has no reference, or ``word_order`` is out of range.

    Source: Popovic 2015; Popovic 2017 (chrF++).
    """
    if word_order not in (0, 1, 2):
        raise InputError(f"chrf: word_order = {word_order}: must be 0, 1 or 2")
    reference = reference_of(completion, "chrf")
    score: float = _sentence_chrf(word_order).sentence_score(completion.text, [reference]).score
    return min(1.0, max(0.0, score / 100.0))


@reward(needs_reference=True)
def ter(completion: Completion, *, chinese: bool = False) -> float:
    """1 minus the translation edit rate against the prompt's reference, in [0, 1]: 1 where the words are the same.

    The rate is the number of words inserted, deleted, replaced, and of runs of words shifted, divided by the
    reference's words; from as many edits as words on, and for an empty text, the reward is 0. Case does not count. A
    text of more than ``LONGEST_TER`` characters is cut there. Fails by: favouring short texts, since leaving a word out
    costs one edit and a wrong word costs one too; and, where most texts are far off, by being 0 for all of them.

    Args:
        completion: what was sampled; its prompt must have a reference.
        chinese: count every Chinese or Japanese character and every punctuation mark as a word; else words lie between
            spaces. On by default where the reference is mostly such characters. In a reference that is mostly Thai, Lao,
            Khmer or Burmese, words are those of ``burnish.text``.

    Raises:
        InputError: the prompt has no reference.

    Source: Snover et al. 2006.
    """
    reference, text = reference_of(completion, "ter"), completion.text[:LONGEST_TER]
    chinese = chinese or mostly_han_or_kana(reference)
    if not chinese and mostly_unspaced(reference):
        reference, text = " ".join(words(reference)), " ".join(words(text))
    score: float = _sentence_ter(chinese).sentence_score(text, [reference]).score
    return min(1.0, max(0.0, 1.0 - score / 100.0))


@reward(needs_reference=True)
def exact(completion: Completion) -> float:
    """1.0 where the text equals the prompt's reference, white space at either end aside, else 0.0.

    Fails by: giving no hint of what is nearly right, so that a policy which never succeeds never learns.

    Raises:
        InputError: the prompt has no reference.

    Source: the exact match of question answering (Rajpurkar et al. 2016, arXiv 1606.05250), without its normalisation.
    """
    return float(completion.text.strip() == reference_of(completion, "exact").strip())


@lru_cache(maxsize=3)
def _sentence_chrf(word_order: int) -> CHRF:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(word_order=word_order)


@lru_cache(maxsize=2)
def _sentence_ter(chinese: bool) -> TER:
    from sacrebleu.metrics.ter import TER

    return TER(normalized=chinese, asian_support=chinese)


def tokenizer_for(references: Sequence[str]) -> str:
    """Return BLEU's tokenizer for most of the references: "13a", or without spaces "zh" (Chinese) or "char" (others)."""
    unspaced = [text for text in references if mostly_unspaced(text)]
    if 2 * len(unspaced) <= len(references):
        return "13a"
    others = sum(not mostly_han_or_kana(text) or _KANA.search(text) is not None for text in unspaced)
    return "char" if 2 * others > len(unspaced) else "zh"


@lru_cache(maxsize=8)
def sentence_bleu(tokenize: str) -> BLEU:
    """sacrebleu's BLEU for single sentences. Raises InputError for a tokenizer that it does not have."""
    return load_bleu(tokenize, effective_order=True)


def load_bleu(tokenize: str, *, effective_order: bool) -> BLEU:
    """sacrebleu's BLEU with one of its tokenizers.

    Raises:
        InputError: the tokenizer is unknown, or cannot be loaded (some need a package or a download).
    """
    from sacrebleu.metrics.bleu import BLEU

    known = sorted(BLEU.TOKENIZERS)
    if tokenize not in known:
        raise InputError(
            f"bleu: unknown tokenize = '{tokenize}'{nearest(tokenize, known)}; known: auto, {', '.join(known)}"
        )
    try:
        # force: no warning on standard error where many texts end in " ."; model text does what it likes.
        return BLEU(tokenize=tokenize, effective_order=effective_order, force=True)
    except (RuntimeError, ImportError, OSError) as error:
        reason = one_line(error)
        raise InputError(
            f"bleu: tokenize = '{tokenize}' cannot be loaded ({reason}); '13a', 'zh' and 'char' need nothing further"
        ) from error


def reference_of(completion: Completion, reward: str) -> str:
    """The true answer of a completion's prompt. Raises InputError that names the reward where there is none."""
    reference = completion.prompt.reference
    if reference is None or not reference.strip():
        raise InputError(
            f"reward '{reward}' needs a reference, but prompt '{completion.prompt.id}' has none: "
            "give the task's prompts a reference, or leave this reward out"
        )
    return reference
