"""Prompts that are too long in tokens, found before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from burnish.data.files import RawRow
from burnish.errors import InputError
from burnish.policies.causal_lm import CausalModel
from burnish.protocols import Observer
from burnish.recipe.schema import Recipe
from burnish.types import Message, Prompt

LISTED = 5
"""The most long prompts that a message lists."""
_TEMPLATE_TOKENS = 256
"""More tokens than most chat templates write around a message; a longer template is measured."""


@dataclass(frozen=True, slots=True)
class LongPrompts:
    """How a run treats long prompts.

    Attributes:
        limit: the most tokens of a prompt; None if there is no limit.
        key: where the limit comes from, for messages.
        choice: "refuse", "drop", "cut_start" or "cut_end".
    """

    limit: int | None
    key: str
    choice: str

    @classmethod
    def of_recipe(cls, recipe: Recipe, model: CausalModel, *, held_out: bool = False) -> LongPrompts:
        """Return the recipe's limit for a side, or what the model's positions leave beside the new tokens."""
        own, positions = recipe.task.max_prompt_tokens, model.max_positions
        new = recipe.held_out_sampling.max_new_tokens if held_out else recipe.sampling.max_new_tokens
        section = "evaluation.sampling" if new != recipe.sampling.max_new_tokens else "sampling"
        room = None if positions is None else positions - new
        if own is not None and (room is None or own <= room):
            return cls(own, f"task.max_prompt_tokens = {own}", recipe.task.long_prompts)
        key = f"{positions} positions of the model less {section}.max_new_tokens = {new}"
        return cls(room, key, recipe.task.long_prompts)


def fit_prompts(rule: LongPrompts, model: CausalModel, prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[RawRow]]:
    """Return the prompts that fit, cut where the rule says so, and a row for each one that did not fit."""
    limit = rule.limit
    if limit is None:
        return list(prompts), []
    fitting: list[Prompt] = []
    long: list[RawRow] = []

    def fits(prompt: Prompt) -> bool:
        return len(model.encode_prompt(prompt)) <= limit

    shortest = next((replace(one, text="a", messages=(Message("user", "a"),)) for one in prompts if one.messages), None)
    around = max(_TEMPLATE_TOKENS, 0 if shortest is None else len(model.encode_prompt(shortest)))
    for prompt in prompts:
        if _surely_fits(prompt, limit, around) or (size := len(model.encode_prompt(prompt))) <= limit:
            fitting.append(prompt)
            continue
        long.append(RawRow(prompt.position or f"prompt '{prompt.id}'", None, f"its prompt has {size} tokens"))
        cut = rule.choice.startswith("cut")
        if cut and (shorter := cut_prompt(prompt, rule.choice == "cut_start", fits)) is not None:
            fitting.append(shorter)
    return fitting, long


def check_lengths(
    recipe: Recipe, model: CausalModel, train: Sequence[Prompt], held_out: Sequence[Prompt],
    observer: Observer | None,
) -> tuple[list[Prompt], list[Prompt], list[RawRow]]:  # fmt: skip
    """Return the training and the held-out prompts that fit, and a row for each one that did not.

    Raises:
        InputError: a prompt is too long and ``task.long_prompts`` is "refuse", or no prompt is left on a side.
    """
    rule, rule_held_out = (LongPrompts.of_recipe(recipe, model, held_out=side) for side in (False, True))
    kept, long = fit_prompts(rule, model, train)
    kept_held_out, more = fit_prompts(rule_held_out, model, held_out)
    broken = [one for one, rows in ((rule, long), (rule_held_out, more)) if rows]
    limits = " and ".join(dict.fromkeys(f"{one.limit} tokens ({one.key})" for one in broken))
    long += more
    if not long:
        return kept, kept_held_out, []
    listed = "; ".join(f"{row.position}: {row.reason}" for row in long[:LISTED]) + (
        "; ..." if len(long) > LISTED else ""
    )
    total = len(train) + len(held_out)
    summary = f"{len(long)} of {total} prompts are longer than {limits}: {listed}"
    if rule.choice == "refuse":
        raise InputError(f'{summary}; set task.long_prompts to "drop", "cut_start" or "cut_end", or shorten them')
    lost = total - len(kept) - len(kept_held_out)
    if (train and not kept) or not kept_held_out:
        raise InputError(
            f"{summary}; no {'held-out' if kept or not train else 'training'} prompt is left: raise the limit"
        )
    if observer is not None:
        counts = {"cut": len(long) - lost if rule.choice != "drop" else 0, "left out": lost}
        done = " and ".join(f"{count} {how}" for how, count in counts.items() if count)
        observer.message(f"{summary}; {done}", level="warning")
    outcome = "left out" if rule.choice == "drop" else "cut, or left out if its last message alone is too long"
    return kept, kept_held_out, [replace(row, reason=f"{row.reason}; {outcome}") for row in long]


def cut_prompt(prompt: Prompt, start: bool, fits: Callable[[Prompt], bool]) -> Prompt | None:
    """Return the prompt cut to fit, at its start or at the end of its last message; None if it cannot.

    At the start, whole exchanges before the last message go first; system messages stay.
    """
    if not prompt.messages:
        return _cut_text(prompt.text, start, lambda text: replace(prompt, text=text), fits)
    messages = list(prompt.messages)
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    first = next((index for index, message in enumerate(messages) if message.role != "system"), 0)
    for begin in users[1:] if start else ():
        shorter = replace(prompt, messages=(*messages[:first], *messages[begin:]))
        if fits(shorter):
            return shorter
    kept = [*messages[:first], *messages[users[-1] :]] if start and users else messages

    def with_last(text: str) -> Prompt:
        last: Message = replace(kept[-1], content=text)
        return replace(prompt, text=text, messages=(*kept[:-1], last))

    return _cut_text(kept[-1].content, start, with_last, fits)


def _cut_text(text: str, start: bool, make: Callable[[str], Prompt], fits: Callable[[Prompt], bool]) -> Prompt | None:
    """Return the prompt with the longest part of a text that fits, by bisection; None if not even a word does."""
    least, most = 0, len(text)
    while least < most:
        size = (least + most + 1) // 2
        part = text[len(text) - size :] if start else text[:size]
        least, most = (size, most) if not part.strip() or fits(make(part)) else (least, size - 1)
    part = text[len(text) - least :] if start else text[:least]
    return make(part) if part.strip() else None


def _surely_fits(prompt: Prompt, limit: int, around: int) -> bool:
    """Whether a prompt fits even with two tokens for each byte of its text, and ``around`` for each message."""
    texts = [message.content + message.reasoning + message.extra for message in prompt.messages] or [prompt.text]
    return 2 * sum(len(text.encode("utf-8", "replace")) for text in texts) + around * (1 + len(texts)) <= limit
