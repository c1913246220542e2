"""Rewards that compare a completion with the true answer of its prompt."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from burnish.errors import InputError
from burnish.registry import nearest
from burnish.types import Completion

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU


def bleu(completion: Completion, *, tokenize: str = "13a") -> float:
    """Sentence BLEU against the prompt's reference, in [0, 1]: sacrebleu's score divided by 100.

    With exponential smoothing and effective order, so that a text of fewer than four words can score at all; an empty
    text scores 0. Fails by: rewarding shared word order and nothing else; a long continuation of open text has many
    good answers and shares few words with the one that happened to be true, so the scores are low and noisy.

    Args:
        completion: what was sampled; its prompt must have a reference.
        tokenize: sacrebleu's tokenizer: "13a" for languages with spaces, "zh" for Chinese, "char", "intl", "none", ...

    Raises:
        InputError: the prompt has no reference, or the tokenizer is unknown or cannot be loaded.

    Source: Papineni et al. 2002; Chen and Cherry 2014 (smoothing); Post 2018 (sacrebleu, arXiv 1804.08771).
    """
    reference = _reference(completion, "bleu")
    score = sentence_bleu(tokenize).sentence_score(completion.text, [reference]).score
    # A perfect match comes out as 100.00000000000004.
    return min(1.0, max(0.0, score / 100.0))


def exact(completion: Completion) -> float:
    """1.0 where the text equals the prompt's reference, white space at either end aside, else 0.0.

    Fails by: giving no hint of what is nearly right, so that a policy which never succeeds never learns.

    Raises:
        InputError: the prompt has no reference.
    """
    return float(completion.text.strip() == _reference(completion, "exact").strip())


# Said before anything is loaded, where some prompt has none (burnish.backends.local.check_references).
bleu.needs_reference = exact.needs_reference = True  # type: ignore[attr-defined]


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
        raise InputError(f"bleu: unknown tokenize = '{tokenize}'{nearest(tokenize, known)}; known: {', '.join(known)}")
    try:
        # force: no warning on standard error where many texts end in " ."; model text does what it likes.
        return BLEU(tokenize=tokenize, effective_order=effective_order, force=True)
    except (RuntimeError, ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"bleu: tokenize = '{tokenize}' cannot be loaded ({reason}); '13a', 'zh' and 'char' need nothing further"
        ) from error


def _reference(completion: Completion, reward: str) -> str:
    reference = completion.prompt.reference
    if reference is None or not reference.strip():
        raise InputError(
            f"reward '{reward}' needs a reference, but prompt '{completion.prompt.id}' has none: "
            "give the task's prompts a reference, or leave this reward out"
        )
    return reference
