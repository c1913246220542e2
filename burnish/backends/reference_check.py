"""Questions to rewards before training: whether references are right, and what constant answers earn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from burnish.errors import BurnishError, InputError
from burnish.protocols import Observer
from burnish.recipe.schema import Recipe
from burnish.rewards.forms import Context
from burnish.rewards.part import Part
from burnish.rewards.registry import REWARDS, RewardFunction
from burnish.types import Completion, Prompt

FORMS = ("{}", "The answer is {}.", "\\boxed{{{}}}", "#### {}", "<answer>{}</answer>")
"""Texts that give an answer, for the ways in which rewards find it."""
ASKED = 200
"""Prompts that are asked about, evenly spaced, so that the check takes seconds."""
CONSTANTS = 3
"""Commonest references that are tried as the answer to every prompt."""
MOST_WRONG = 0.01
"""Share of the references that a reward may call wrong; more are refused."""
WORTH_SAYING = 0.2
"""Share of prompts for which a constant answer is right that is reported."""


def check_answers(recipe: Recipe, prompts: Sequence[Prompt], observer: Observer | None = None, where: str = "") -> None:
    """Ask every reward that judges answers about the references, and about the commonest constants.

    Messages begin with ``where``. Raises InputError if a reward cannot read its references or calls them wrong, with
    their count and the first ones.
    """
    answered = [prompt for prompt in prompts if prompt.reference and prompt.reference.strip()]
    step = max(1, len(answered) // ASKED)
    asked = answered[::step][:ASKED]
    for key, sections in (("reward", recipe.reward), ("evaluation.metrics", recipe.evaluation.metrics)):
        for index, section in enumerate(sections):
            reward = REWARDS.get(section.use)
            if asked and reward.facts.judges_answers:
                texts = _check_reward(reward, section.options, asked, f"{where}{key}.{index}: '{section.use}'")
                for text in texts:
                    if observer is not None:
                        observer.message(text, level="warning")


def _check_reward(
    reward: RewardFunction, options: Mapping[str, Any], prompts: Sequence[Prompt], where: str
) -> list[str]:
    """Return warnings about a reward's references and about constant answers. Raises InputError as ``check_answers``."""
    single = [replace(prompt, alternatives=()) for prompt in prompts]
    wrong, reason, form = single, "", FORMS[0]
    for form in FORMS:
        left = []
        for prompt in wrong:
            accepted, problem = _accepts(reward, options, prompt, form.format(prompt.reference))
            if not accepted:
                left.append(prompt)
                reason = reason or problem
        wrong = left
        if len(wrong) <= MOST_WRONG * len(single):
            break
    warnings = []
    if wrong:
        shown = ", ".join(f"{prompt.position or prompt.id}: {prompt.reference!r:.60}" for prompt in wrong[:3])
        text = f"{where} gives no credit to {len(wrong)} of {len(single)} references themselves ({shown})"
        if len(wrong) > MOST_WRONG * len(single):
            raise InputError(f"{text}; {reason or 'choose another reading (answer = ...) or reward, or mend the data'}")
        warnings.append(f"{text}: mend these rows")
    readable = [prompt for prompt in single if prompt not in wrong]
    return warnings + _constants(reward, options, readable, where, form)


def _constants(
    reward: RewardFunction, options: Mapping[str, Any], prompts: Sequence[Prompt], where: str, form: str
) -> list[str]:
    """Return warnings about the commonest references, as the answer to every prompt."""
    warnings = []
    common = Counter(prompt.reference for prompt in prompts).most_common(CONSTANTS)
    for constant, count in common if len(common) > 1 else ():
        if count == 1:
            break
        right = sum(_accepts(reward, options, prompt, form.format(constant))[0] for prompt in prompts)
        if right >= WORTH_SAYING * len(prompts):
            warnings.append(
                f"{where}: the answer {constant!r:.60} is right for {right / len(prompts):.0%} of the prompts, so a "
                "policy that always gives it has that accuracy"
            )
    return warnings


def _accepts(reward: RewardFunction, options: Mapping[str, Any], prompt: Prompt, text: str) -> tuple[bool, str]:
    """Return whether the reward is 1 for a text, and why it has no value: its error, as for a reference that is odd."""
    part = Part(reward.name, reward, options=options)
    try:
        (value,), _ = part.values([Completion(prompt, (), (), text, (), "stop")], Context())
    except BurnishError as error:
        return False, str(error)
    return bool(value >= 1 - 1e-9), ""
