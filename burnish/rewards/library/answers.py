"""Rewards that check an answer: its text, a number, a choice, or what the verifier of a task's generator accepts."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from burnish.errors import InputError
from burnish.rewards.library.choices import read_choice, reference_letter
from burnish.rewards.library.expressions import equal_answers
from burnish.rewards.library.quantities import Quantity, equal_quantities, read_quantity
from burnish.rewards.library.readings import (
    ANSWER_KINDS,
    LONGEST_ANSWER,
    check_kind,
    extract_answer,
    quantity_in,
    reference_answer,
)
from burnish.rewards.references import get_reference
from burnish.rewards.registry import check_choice, reward
from burnish.system.optional_packages import installed_path
from burnish.types import Completion

HALF_AN_ANSWER = "half an answer is neither right nor wrong"


def _extract(text: str, *, answer: str, **_: Any) -> str:
    return extract_answer(text, answer)


def _check_exact(*, answer: str) -> None:
    check_kind(answer)


@reward(needs_reference=True, check_options=_check_exact, judges_answers=True, read_answer=_extract)
def exact(completion: Completion, *, answer: str = "whole") -> float:
    """1.0 if the answer in the text equals the prompt's reference, apart from white space at either end, else 0.0.

    Fails by: giving no credit to what is nearly right, so a policy that never succeeds never learns. It knows no other
    spelling of an answer: 1,000 is not 1000 (see ``numeric``, ``math`` and ``choice``).

    Args:
        answer: the part of the text that is the answer: see ``extract_answer``. Unless it is "whole", the reference may
            have its answer after "####" or in its last ``\\boxed{}``.

    Source: exact match in question answering (Rajpurkar et al. 2016, arXiv 1606.05250), without its normalisation.
    """
    reference = get_reference(completion, "exact")
    expected = reference.strip() if answer == "whole" else reference_answer(reference)
    if answer == "last_number" and read_quantity(expected) is not None:
        expected = extract_answer(expected, answer)
    return float(extract_answer(completion.text, answer) == expected)


@reward(needs_whole=HALF_AN_ANSWER, judges_answers=True, read_answer=_extract)
def verifier(completion: Completion, *, answer: str = "last_number", partial: bool = False) -> float:
    """1.0 if the verifier of the prompt's generator accepts the answer, else 0.0 (task "reasoning").

    The entry's own answer is right. Some verifiers give partial credit to nonsense that resembles it. That counts as
    wrong, unless ``partial`` is set; the reward is then in [0, 1].

    Fails by: giving no credit to what is nearly right; rewarding a lucky guess, which is likely if there are few
    possible answers; and, with ``answer = "last_number"``, ignoring what surrounds the number. With ``partial``, by
    paying for letters in the right position and for texts that merely contain the answer.

    Args:
        answer: the part of the text that is the answer: see ``extract_answer``.
        partial: return the verifier's score unchanged.

    Source: reasoning-gym, arXiv 2505.24760.
    """
    from burnish.tasks.generators import get_verifier, reaches_verifier

    prompt = completion.prompt
    name, entry = prompt.metadata.get("generator"), prompt.metadata.get("entry")
    if not isinstance(name, str) or entry is None:
        raise InputError(
            f"reward 'verifier' is for the task \"reasoning\", but prompt '{prompt.id}' is of another task: use "
            "'numeric' or 'exact' instead, or measure a model on that task (burnish evaluate MODEL --recipe reasoning)"
        )
    text = extract_answer(completion.text, answer)
    right = str(entry["answer"]).strip()
    if text and text == right:
        # Whatever the verifier says: after JSON, those of ARC compare lists with tuples.
        return 1.0
    if not text or len(text) > max(LONGEST_ANSWER, 2 * len(right)) or not reaches_verifier(name, text, entry):
        return 0.0
    verify = get_verifier(name)
    try:
        score = float(verify(text, entry))
    except Exception:
        # A right answer does not make a verifier raise.
        return 0.0
    if not math.isfinite(score):
        return 0.0
    # Exactly 1: the letters of a right word with a suffix add up to 1 give or take a rounding error.
    return min(1.0, score) if partial else float(score == 1.0)


def _check_numeric(*, tolerance: float, answer: str) -> None:
    check_kind(answer)
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise InputError(f"numeric: tolerance = {tolerance}: must be a number of at least 0")


def _read_number(text: str, *, answer: str, **_: Any) -> Quantity | None:
    return quantity_in(text, answer)


def _same_number(first: Quantity, second: Quantity, *, tolerance: float, **_: Any) -> bool:
    return equal_quantities(first, second, Fraction(repr(float(tolerance))))


@reward(
    needs_reference=True, needs_whole=HALF_AN_ANSWER, check_options=_check_numeric, judges_answers=True,
    read_answer=_read_number, same_answer=_same_number,
)  # fmt: skip
def numeric(completion: Completion, *, tolerance: float = 0.0, answer: str = "last_number") -> float:
    """1.0 if the number in the text equals the reference's, else 0.0.

    Numbers are compared exactly: 3, 3.0 and 03 are equal, 1,000 is a thousand, and so are 1e3 and 10^3; 3/4, 0.75,
    ``\\frac{3}{4}`` and 75% are equal. A unit or currency may be missing on one side, but two must agree; common ones
    are converted. The reference must be one number: the whole text, what follows "####", or what its last
    ``\\boxed{}`` holds.

    Fails by: ignoring what surrounds the number, so a policy may omit all reasoning; rewarding lucky guesses; reading
    1,5 (decimal comma or list?), 2:30 and numbers in words as no number. With "last_number", only common units count.

    Args:
        tolerance: largest accepted difference, relative to the reference; absolute if that is 0.
        answer: the part of the text that is the answer: see ``extract_answer``. With "last_number", a number within an
            expression, as in ``2\\sqrt{3}``, is not an answer.

    Source: the evaluation of GSM8K (Cobbe et al. 2021, arXiv 2110.14168); units and the tolerance are our own.
    """
    _check_numeric(tolerance=tolerance, answer=answer)
    expected = _expected(completion)
    number = quantity_in(completion.text, answer)
    return float(number is not None and _same_number(number, expected, tolerance=tolerance))


def _expected(completion: Completion) -> Quantity:
    reference = get_reference(completion, "numeric")
    expected = read_quantity(reference_answer(reference))
    if expected is None:
        raise InputError(
            f"reward 'numeric' needs a reference that is one number, but that of prompt '{completion.prompt.id}' is "
            f"{reference[:60]!r}: use 'math' for expressions, 'choice' for letters, or 'exact'"
        )
    return expected


def _check_math(*, answer: str) -> None:
    check_kind(answer)
    installed_path("math-verify", "", "math", "reward 'math'")


def _same_expression(first: str, second: str, **_: Any) -> bool:
    return first == second or (max(len(first), len(second)) <= LONGEST_ANSWER and equal_answers(first, second))


@reward(
    name="math", needs_reference=True, needs_whole=HALF_AN_ANSWER, check_options=_check_math, judges_answers=True,
    read_answer=_extract, same_answer=_same_expression,
)  # fmt: skip
def math_answer(completion: Completion, *, answer: str = "boxed") -> float:
    """1.0 if the mathematical answer in a text equals the reference's, else 0.0.

    Numbers are compared as by ``numeric``, words without regard to case, lists and sets in any order, tuples, intervals
    and brackets as they are written, and expressions by math-verify, which simplifies them. The answer of a reference
    may lie within ``$...$``, in its last ``\\boxed{}``, or after "####".

    Fails by: accepting any equal form, so that "2+2" is right for 4; a comparison that takes more than 5 seconds counts
    as wrong, as does an expression with more than 12 brackets open at once, or one that math-verify cannot read, unless
    the two texts are equal.

    Args:
        answer: the part of the text that is the answer: see ``extract_answer``.

    Source: math-verify (Kydlicek 2025, Apache-2.0); the task of MATH (Hendrycks et al. 2021, arXiv 2103.03874).
    """
    gold = reference_answer(get_reference(completion, "math"))
    text = extract_answer(completion.text, answer)
    return float(0 < len(text) <= LONGEST_ANSWER and equal_answers(text, gold))


def _check_choice(*, answer: str) -> None:
    check_choice("choice", "answer", answer, [kind for kind in ANSWER_KINDS if kind != "last_number"])


def _read_letter(text: str, *, answer: str) -> str:
    return read_choice(extract_answer(text, answer))


@reward(
    needs_reference=True, needs_whole=HALF_AN_ANSWER, check_options=_check_choice, judges_answers=True,
    read_answer=_read_letter,
)  # fmt: skip
def choice(completion: Completion, *, answer: str = "whole") -> float:
    """1.0 if the text chooses the reference's letter, (A) to (J), else 0.0.

    A choice is a text that begins or ends with the letter ("(B)", "B.", "B) Paris"), or says it ("The answer is B").
    The last statement counts; "not B but C" is C. A text with several letters and no statement chooses none.

    Fails by: rewarding a lucky guess, of which one in four is right with four choices; reading no choice from a text
    that only repeats the words of an option.

    Args:
        answer: the part of the text that is read: see ``extract_answer``.

    Source: multiple-choice accuracy as in MMLU (Hendrycks et al. 2021, arXiv 2009.03300).
    """
    reference = get_reference(completion, "choice")
    expected = reference_letter(reference_answer(reference))
    if not expected:
        raise InputError(
            f"reward 'choice' needs a reference that is a letter from A to J, but that of prompt "
            f"'{completion.prompt.id}' is {reference[:60]!r}: use 'exact', or write letters into the data"
        )
    return float(_read_letter(completion.text, answer=answer) == expected)
