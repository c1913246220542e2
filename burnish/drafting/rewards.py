"""Guesses of the reward that fits the references of a user's data, and of the length of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median

from burnish.errors import InputError
from burnish.rewards.library.choices import reference_letter
from burnish.rewards.library.program_tests import canonical_tests, read_tests
from burnish.rewards.library.quantities import read_quantity
from burnish.rewards.library.readings import reference_answer
from burnish.types import Prompt

FITS = 0.99
"""Share of the references that a reward must be able to read; training refuses more that it cannot."""
SHORT = 60
"""Characters up to which a reference is compared by its words, and longer ones by their letters."""


@dataclass(frozen=True, slots=True)
class RewardGuess:
    """A reward with the reason, its options with theirs, and the limit of tokens with its reason."""

    use: str
    why: str
    max_new_tokens: int
    room: str
    options: tuple[tuple[str, str, str], ...] = ()


def guess_reward(prompts: Sequence[Prompt]) -> RewardGuess:
    """Return the reward that can read the references of prompts."""
    answered = [prompt for prompt in prompts if prompt.references]
    if len(answered) < len(prompts):
        why = (
            f"{len(prompts) - len(answered)} rows have no answer: replace this by what you want (burnish list rewards)"
        )
        return RewardGuess("repetition", why, 64, "the longest answer")
    references = [prompt.reference or "" for prompt in prompts]
    longest = share_tokens([estimated_tokens(one) for one in references], 0.95)
    measured = f"95% of the references have at most {longest} tokens by a rough count"

    def limit(least: int) -> int:
        return min(512, max(least, -(-longest * 3 // 2 // 16) * 16 + 16))

    if all(map(_has_tests, answered[:: max(1, len(answered) // 50)])):
        return RewardGuess("unit_tests", "the references are tests of a program", 256, "room for a program")
    if _fits(references, lambda text: read_quantity(reference_answer(text)) is not None):
        why = f"the references are numbers; the last number of an answer counts ({measured})"
        return RewardGuess("numeric", "the references are numbers", limit(96), why)
    if _fits(references, lambda text: bool(reference_letter(text))):
        why = "the references are letters from A to J; the prompt must show the options"
        return RewardGuess("choice", why, limit(64), "room for a sentence around the letter")
    if sum("\\" in text or "^" in text for text in references) >= 0.2 * len(references) and longest < 3 * SHORT:
        return _expressions(limit(256))
    size = median(map(len, references))
    if size <= SHORT:
        why = f"the references are short, with a median of {size:.0f} characters: words in common"
        return RewardGuess("word_f1", why, limit(32), measured)
    why = f"the references are long, with a median of {size:.0f} characters: letter n-grams in common"
    return RewardGuess("chrf", why, limit(64), measured)


def _expressions(tokens: int) -> RewardGuess:
    room = "room for the way to the answer"
    if find_spec("math_verify"):
        return RewardGuess("math", "the references are expressions", tokens, room)
    why = "the references are expressions; `math` compares their values (pip install 'burnish[math]')"
    return RewardGuess("exact", why, tokens, room, (("answer", "boxed", "what the last \\boxed{} holds"),))


def _fits(references: Sequence[str], reads: Callable[[str], bool]) -> bool:
    return sum(map(reads, references)) >= FITS * len(references)


def _has_tests(prompt: Prompt) -> bool:
    try:
        return bool(read_tests(prompt.id, canonical_tests(prompt)))
    except InputError:
        return False


def estimated_tokens(text: str) -> int:
    """Return roughly how many tokens a text has: a third of its bytes, on the safe side for English and Chinese."""
    return -(-len(text.encode("utf-8", "replace")) // 3)


def share_tokens(counts: Sequence[int], share: float) -> int:
    """Return the count that a share of some counts does not exceed."""
    return sorted(counts)[round(share * (len(counts) - 1))]
