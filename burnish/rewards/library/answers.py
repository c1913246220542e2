"""Rewards with a right and a wrong: a number that matches, and the verdict of a generator's own verifier."""

from __future__ import annotations

import math
import re
from decimal import Decimal, InvalidOperation
from typing import Any

from burnish.errors import InputError
from burnish.registry import nearest
from burnish.rewards.registry import reward
from burnish.types import Completion

READINGS = ("whole", "first_line", "last_line", "last_number", "tag")
LONGEST_ANSWER = 1000
"""Characters; a longer one is wrong. Some verifiers take time that grows with the square of the answer's length."""
HALF_AN_ANSWER = "half an answer is neither right nor wrong"
_NUMBER = re.compile(r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+\u2212]?\.\d+")
_TAG = re.compile(r"<answer>(.*?)</answer>", re.S)


def answer_in(text: str, reading: str) -> str:
    """The answer that a text gives, white space aside: all of it, a line, its last number, or what <answer> tags hold.

    "" where there is none. The last one counts where there are several, so that listing guesses wins nothing.

    Raises:
        InputError: an unknown reading.
    """
    if reading == "whole":
        return text.strip()
    if reading in ("first_line", "last_line"):
        lines = [line for line in text.splitlines() if line.strip()] or [""]
        return lines[0 if reading == "first_line" else -1].strip()
    if reading == "last_number":
        # A full stop after a number ends the sentence, and the minus of "5-3" is no sign.
        found = [match for match in _NUMBER.finditer(text)]
        return _signed(text, found[-1]) if found else ""
    if reading == "tag":
        return str((_TAG.findall(text) or [""])[-1]).strip()
    raise InputError(f"unknown answer = '{reading}'{nearest(reading, READINGS)}; known: {', '.join(READINGS)}")


@reward(needs_whole=HALF_AN_ANSWER)
def verifier(completion: Completion, *, answer: str = "last_number", partial: bool = False) -> float:
    """1.0 where the generator's own verifier calls the answer right, else 0.0 (task "reasoning").

    Some verifiers give a share of the credit to nonsense that resembles the answer; that counts as wrong unless
    ``partial`` asks for it, and then in [0, 1].

    Fails by: giving no hint of what is nearly right; by rewarding a lucky guess (a small range of answers is guessed
    often); and with ``answer = "last_number"`` by not caring what surrounds the number. With ``partial``, by paying for
    letters in the right place and for texts that merely contain the answer.

    Args:
        completion: of a prompt of the task "reasoning".
        answer: what of the text is the answer: "whole", "first_line", "last_line", "last_number", or "tag" (what stands
            between <answer> and </answer>).
        partial: hand on the verifier's score as it is.

    Raises:
        InputError: the prompt is of another task, or an unknown ``answer``.

    Source: reasoning-gym, arXiv 2505.24760.
    """
    from burnish.tasks.reasoning import create_generator

    prompt = completion.prompt
    name, entry = prompt.metadata.get("generator"), prompt.metadata.get("entry")
    if not isinstance(name, str) or entry is None:
        raise InputError(
            f"reward 'verifier' judges the task \"reasoning\", and prompt '{prompt.id}' is of another one: use 'numeric' or "
            "'exact' here, or measure a model by it (burnish evaluate MODEL --recipe reasoning)"
        )
    given = answer_in(completion.text, answer)
    if not given or len(given) > LONGEST_ANSWER:
        return 0.0
    score = _verdict(create_generator(name), given, entry)
    # Exactly 1: the letters of a right word with something behind it add up to 1 but for a rounding error, either way.
    return min(1.0, score) if partial else float(score == 1.0)


@reward(needs_whole=HALF_AN_ANSWER)
def numeric(completion: Completion, *, tolerance: float = 0.0, answer: str = "last_number") -> float:
    """1.0 where the text's last number is the reference's, else 0.0.

    Numbers are compared as decimals, so 3, 3.0 and 03 are one number, and 1,000 is a thousand. Fails by: not caring what
    stands around the number, so a policy may leave all reasoning out; and by rewarding lucky guesses.

    Args:
        completion: of a prompt whose reference holds a number.
        tolerance: largest difference that still counts, relative to the reference (absolute where that is 0).
        answer: as in ``verifier``.

    Raises:
        InputError: the reference holds no number, or an option is out of range.

    Source: how answers to GSM8K are judged (Cobbe et al. 2021, arXiv 2110.14168); the tolerance is our own.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise InputError(f"numeric: tolerance = {tolerance} must be a number of at least 0")
    wanted = _decimal(answer_in(completion.prompt.reference or "", "last_number"))
    if wanted is None:
        raise InputError(f"reward 'numeric': the reference of prompt '{completion.prompt.id}' holds no number")
    given = _decimal(answer_in(completion.text, answer))
    if given is None:
        return 0.0
    allowed = Decimal(repr(float(tolerance))) * (abs(wanted) if wanted else Decimal(1))
    return float(abs(given - wanted) <= allowed)


def _verdict(judge: Any, given: str, entry: Any) -> float:
    try:
        score = float(judge.score_answer(given, entry))
    except (ValueError, TypeError, ArithmeticError, IndexError, KeyError):
        # A verifier that stumbles over a text was not given a right answer.
        return 0.0
    return score if math.isfinite(score) else 0.0


def _signed(text: str, match: re.Match[str]) -> str:
    # Typeset texts write a minus of their own, U+2212.
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
