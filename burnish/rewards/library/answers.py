"""Rewards that check an answer: against a number, or by the verifier of a task's generator."""

from __future__ import annotations

import math
import re
from decimal import Decimal, InvalidOperation

from burnish.errors import InputError
from burnish.registry import nearest
from burnish.rewards.registry import reward
from burnish.types import Completion

ANSWER_KINDS = ("whole", "first_line", "last_line", "last_number", "tag")
LONGEST_ANSWER = 1000
"""Characters; a longer answer is wrong. The time of some verifiers grows with the square of the length."""
HALF_AN_ANSWER = "half an answer is neither right nor wrong"
_NUMBER = re.compile(r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+\u2212]?\.\d+")
_TAG = re.compile(r"<answer>(.*?)</answer>", re.S)


def extract_answer(text: str, kind: str) -> str:
    """Return the answer in a text without surrounding white space; "" if there is none.

    The kind is one of ``ANSWER_KINDS``; "tag" is the text between <answer> and </answer>. The last answer counts if
    there are several, so that listing guesses wins nothing. Raises InputError for an unknown kind.
    """
    if kind == "whole":
        return text.strip()
    if kind in ("first_line", "last_line"):
        lines = [line for line in text.splitlines() if line.strip()] or [""]
        return lines[0 if kind == "first_line" else -1].strip()
    if kind == "last_number":
        # A full stop after a number ends the sentence, and the minus of "5-3" is not a sign.
        matches = list(_NUMBER.finditer(text))
        return _signed(text, matches[-1]) if matches else ""
    if kind == "tag":
        return str((_TAG.findall(text) or [""])[-1]).strip()
    raise InputError(f"unknown answer = '{kind}'{nearest(kind, ANSWER_KINDS)}; known: {', '.join(ANSWER_KINDS)}")


@reward(needs_whole=HALF_AN_ANSWER)
def verifier(completion: Completion, *, answer: str = "last_number", partial: bool = False) -> float:
    """1.0 if the verifier of the prompt's generator accepts the answer, else 0.0 (task "reasoning").

    Some verifiers give partial credit to nonsense that resembles the answer. That counts as wrong, unless ``partial``
    is set; the reward is then in [0, 1].

    Fails by: giving no credit to what is nearly right; rewarding a lucky guess, which is likely if there are few
    possible answers; and, with ``answer = "last_number"``, ignoring what surrounds the number. With ``partial``, by
    paying for letters in the right position and for texts that merely contain the answer.

    Args:
        answer: the part of the text that is the answer: see ``extract_answer``.
        partial: return the verifier's score unchanged.

    Source: reasoning-gym, arXiv 2505.24760.
    """
    from burnish.tasks.reasoning import create_generator

    prompt = completion.prompt
    name, entry = prompt.metadata.get("generator"), prompt.metadata.get("entry")
    if not isinstance(name, str) or entry is None:
        raise InputError(
            f"reward 'verifier' is for the task \"reasoning\", but prompt '{prompt.id}' is of another task: use "
            "'numeric' or 'exact' instead, or measure a model on that task (burnish evaluate MODEL --recipe reasoning)"
        )
    text = extract_answer(completion.text, answer)
    if not text or len(text) > LONGEST_ANSWER:
        return 0.0
    generator = create_generator(name)
    try:
        score = float(generator.score_answer(text, entry))
    except (ValueError, TypeError, ArithmeticError, IndexError, KeyError):
        # A right answer does not make a verifier raise.
        return 0.0
    if not math.isfinite(score):
        return 0.0
    # Exactly 1: the letters of a right word with a suffix add up to 1 give or take a rounding error.
    return min(1.0, score) if partial else float(score == 1.0)


@reward(needs_whole=HALF_AN_ANSWER)
def numeric(completion: Completion, *, tolerance: float = 0.0, answer: str = "last_number") -> float:
    """1.0 if the number in the text equals the reference's, else 0.0.

    Numbers are compared as decimals, so 3, 3.0 and 03 are equal, and 1,000 is a thousand.

    Fails by: ignoring what surrounds the number, so a policy may omit all reasoning; and rewarding lucky guesses.

    Args:
        tolerance: largest accepted difference, relative to the reference; absolute if that is 0.
        answer: the part of the text that is the answer: see ``extract_answer``.

    Source: the evaluation of GSM8K (Cobbe et al. 2021, arXiv 2110.14168); the tolerance is our own.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise InputError(f"numeric: tolerance = {tolerance}: must be a number of at least 0")
    expected = _decimal(extract_answer(completion.prompt.reference or "", "last_number"))
    if expected is None:
        raise InputError(
            f"reward 'numeric' needs a reference with a number, but that of prompt '{completion.prompt.id}' has none"
        )
    number = _decimal(extract_answer(completion.text, answer))
    if number is None:
        return 0.0
    allowed = Decimal(repr(float(tolerance))) * (abs(expected) if expected else Decimal(1))
    return float(abs(number - expected) <= allowed)


def _signed(text: str, match: re.Match[str]) -> str:
    # Typeset texts use the minus sign U+2212.
    number = match.group().replace(",", "").replace("\u2212", "-")
    before = text[match.start() - 1] if match.start() else ""
    return number[1:] if number[0] in "+-" and (before.isalnum() or before == ")") else number.removeprefix("+")


def _decimal(text: str) -> Decimal | None:
    if len(text) > LONGEST_ANSWER:
        return None
    try:
        number = Decimal(text.replace(",", "").strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() and abs(number.adjusted()) <= LONGEST_ANSWER else None
