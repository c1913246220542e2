"""The reward for English grammar, by an offline checker."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any

from burnish.errors import InputError
from burnish.registry import nearest
from burnish.rewards.registry import reward
from burnish.system.optional_packages import needed
from burnish.types import Completion

DIALECTS = ("american", "british", "australian", "canadian", "indian")
LONGEST_PROMPT = 1000
"""Characters of the prompt's end that the checker sees before the text."""
_WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*")


def _check_grammar(*, worst: float, dialect: str, spelling: bool) -> None:
    if dialect not in DIALECTS:
        raise InputError(
            f"grammar: unknown dialect = '{dialect}'{nearest(dialect, DIALECTS)}; known: {', '.join(DIALECTS)}"
        )
    if not (math.isfinite(worst) and worst > 0):
        raise InputError(f"grammar: worst = {worst}: must be above 0")


@reward(english_only=True, check_options=_check_grammar)
def grammar(completion: Completion, *, worst: float = 0.1, dialect: str = "american", spelling: bool = True) -> float:
    """How free of errors an English text is, in [0, 1]: 1 where the checker finds none, 0 from one in ten words on.

    ``1 - min(1, errors / words / worst)``. Harper, a checker of rules without a network, reads the text behind the end of
    its prompt, so that a continuation may begin within a sentence; errors that begin in the prompt are not counted,
    nor one in the last word of a text that was cut off. Spelling counts in words of small letters, since a name is in no
    list. A text without an English word scores 0; where references are Chinese, a recipe with it is refused. Fails by:
    finding few of a fluent text's errors, and none of sense: "The moon ate Tuesday." is flawless; favouring short plain
    sentences, which have nowhere to err; calling dialect and verse wrong.

    Args:
        completion: what was sampled.
        worst: errors a word at which it scores 0.
        dialect: "american", "british", "australian", "canadian" or "indian": "colour" is an error in the first.
        spelling: whether unknown words count.

    Raises:
        InputError: the package is not installed (``pip install 'burnish[grammar]'``), or an option is out of range.

    Source: Harper by Automattic, through harper-py, Apache-2.0.
    """
    _check_grammar(worst=worst, dialect=dialect, spelling=spelling)
    # Half an emoji, cut off at the token limit, is no text to the checker; the length stays.
    text = completion.text.encode("utf-8", "replace").decode("utf-8")
    words = list(_WORD.finditer(text))
    if not words:
        return 0.0
    # After a chat template the answer begins a text of its own.
    before = "" if completion.prompt.messages else completion.prompt.text[-LONGEST_PROMPT:]
    end = len(text)
    if completion.finish_reason == "length" and words[-1].end() == len(text):
        end = words[-1].start()
    errors = 0
    for lint in _linter(dialect).lint(before + text):
        start = lint.span.start - len(before)
        misspelt = lint.lint_kind == "Spelling"
        if 0 <= start < end and not (misspelt and (not spelling or not lint.problem_text[:1].islower())):
            errors += 1
    return 1.0 - min(1.0, errors / len(words) / worst)


@lru_cache(maxsize=len(DIALECTS))
def _linter(dialect: str) -> Any:
    harper = needed("harper", "grammar", "reward 'grammar'")
    return harper.Linter(harper.Dialect[dialect.upper()])
