"""The reward for correct English, by an offline grammar checker."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any

from burnish.errors import InputError
from burnish.rewards.registry import check_choice, reward
from burnish.system.optional_packages import needed
from burnish.types import Completion

DIALECTS = ("american", "british", "australian", "canadian", "indian")
LONGEST_PROMPT = 1000
"""Characters at the end of the prompt that the checker reads before the text."""
_WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*")


def _check_grammar(*, worst: float, dialect: str, spelling: bool) -> None:
    check_choice("grammar", "dialect", dialect, DIALECTS)
    if not (math.isfinite(worst) and worst > 0):
        raise InputError(f"grammar: worst = {worst}: must be above 0")


@reward(english_only=True, check_options=_check_grammar)
def grammar(completion: Completion, *, worst: float = 0.1, dialect: str = "american", spelling: bool = True) -> float:
    """How free of errors an English text is, in [0, 1]: 1 without errors, 0 from one error in ten words.

    ``1 - min(1, errors / words / worst)``. Harper, a rule-based offline checker, reads the text after the end of its
    prompt, so a continuation may begin inside a sentence. Errors that begin in the prompt do not count, nor does one in
    the last word of a truncated text. The text is read without markup, and its layout does not count.
    Spelling counts only in lower-case words, since names are not in the dictionary.
    A text without an English word scores 0. A recipe with Chinese references is refused.

    Fails by: finding few errors in fluent text, and none of meaning: "The moon ate Tuesday." is flawless; preferring
    short plain sentences, which leave no room for errors; and treating dialect and verse as wrong.

    Args:
        worst: errors per word at which the reward is 0.
        dialect: "american", "british", "australian", "canadian" or "indian"; "colour" is an error in the first.
        spelling: whether unknown words count.

    Source: Harper by Automattic, through harper-py, Apache-2.0.
    """
    _check_grammar(worst=worst, dialect=dialect, spelling=spelling)
    # The checker refuses half a surrogate pair, as of an emoji cut off at the token limit. The length stays the same.
    text = completion.text.encode("utf-8", "replace").decode("utf-8")
    words = list(_WORD.finditer(text))
    if not words:
        return 0.0
    # After a chat template, the answer is a text of its own.
    before = "" if completion.prompt.messages else completion.prompt.text[-LONGEST_PROMPT:]
    end = len(text)
    if completion.finish_reason == "length" and words[-1].end() == len(text):
        end = words[-1].start()
    errors = 0
    # As plain text: Markdown's code blocks, comments and formulas would not be checked.
    for lint in _linter(dialect).lint(before + text, language="plaintext"):
        if lint.lint_kind == "Formatting":  # spaces, dashes, marks: not English
            continue
        start = lint.span.start - len(before)
        misspelt = lint.lint_kind == "Spelling"
        if 0 <= start < end and not (misspelt and (not spelling or not lint.problem_text[:1].islower())):
            errors += 1
    return 1.0 - min(1.0, errors / len(words) / worst)


@lru_cache(maxsize=len(DIALECTS))
def _linter(dialect: str) -> Any:
    harper = needed("harper", "grammar", "reward 'grammar'")
    return harper.Linter(harper.Dialect[dialect.upper()])
