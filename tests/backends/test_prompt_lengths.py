"""Prompts that are too long are named by line before the first step, and refused, left out or cut."""

from __future__ import annotations

from typing import Any

import pytest

from burnish.backends.prompt_lengths import LongPrompts, check_lengths, cut_prompt, fit_prompts
from burnish.errors import InputError
from burnish.policies.chat_template import ChatSettings
from burnish.policies.loading import load_model
from burnish.recipe.schema import load_recipe
from burnish.types import Message, Prompt
from tests.fakes import RecordingObserver


@pytest.fixture(scope="module")
def model(tiny_chat):
    return load_model(tiny_chat)


def asked(name: str, *texts: str) -> Prompt:
    roles = ("system", "user", "assistant", "user")[-len(texts) :] if len(texts) != 1 else ("user",)
    messages = tuple(Message(role, text) for role, text in zip(roles, texts, strict=True))
    return Prompt(name, texts[-1], messages=messages, position=f"line {name}")


SHORT, LONG = asked("1", "one"), asked("2", " ".join(f"word{index}" for index in range(30)))
TALK = asked("3", "Be brief.", "first " * 40, "answer", "last question")


def fit(model: Any, choice: str, limit: int, *prompts: Prompt) -> tuple[list[Prompt], list[Any], RecordingObserver]:
    recipe = load_recipe("toy", [f"task.max_prompt_tokens={limit}", f"task.long_prompts={choice}"])
    observer = RecordingObserver()
    train, _, rows = check_lengths(recipe, model, prompts, [SHORT], observer)  # type: ignore[arg-type]
    return train, rows, observer


def size(model: Any, prompt: Prompt) -> int:
    return len(model.encode_prompt(prompt))


def test_a_long_prompt_is_refused_by_its_line(model) -> None:
    with pytest.raises(
        InputError, match=r"1 of 3 prompts are longer than 40 tokens \(task.max_prompt_tokens = 40\): line 2: its prompt "
        rf"has {size(model, LONG)} tokens; set task.long_prompts",
    ):  # fmt: skip
        fit(model, "refuse", 40, SHORT, LONG)
    kept, rows, _ = fit(model, "refuse", 250, SHORT, LONG)
    assert kept == [SHORT, LONG] and rows == []


def test_the_text_of_a_long_template_counts(tiny_chat) -> None:
    template = "{{ 'an instruction ' * 900 }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    model = load_model(tiny_chat, chat=ChatSettings(template))
    kept, (row,) = fit_prompts(LongPrompts(900, "", "drop"), model, [SHORT])
    assert kept == [] and row.reason == f"its prompt has {size(model, SHORT)} tokens"


def test_it_is_left_out_or_cut(model) -> None:
    kept, rows, observer = fit(model, "drop", 40, SHORT, LONG)
    assert kept == [SHORT] and [row.position for row in rows] == ["line 2"] and "left out" in rows[0].reason
    assert observer.messages[-1][0] == "warning"
    for choice, begins in (("cut_start", False), ("cut_end", True)):
        _, shorter = fit(model, choice, 40, SHORT, LONG)[0]
        assert size(model, shorter) <= 40 < size(model, LONG) and len(shorter.text) > 5
        assert shorter.id == LONG.id and shorter.messages[0].content == shorter.text
        assert LONG.text.startswith(shorter.text) if begins else LONG.text.endswith(shorter.text)
        one_more = LONG.text[: len(shorter.text) + 1] if begins else LONG.text[-len(shorter.text) - 1 :]
        assert size(model, asked("4", one_more)) > 40, "the longest part that fits"


def test_old_exchanges_go_before_the_last_message_is_cut(model) -> None:
    limit = size(model, asked("3", "Be brief.", "a", "b", "last question"))
    shorter = cut_prompt(TALK, True, lambda one: size(model, one) <= limit)
    assert shorter is not None
    assert [(one.role, one.content) for one in shorter.messages] == [("system", "Be brief."), ("user", "last question")]
    assert cut_prompt(TALK, False, lambda one: size(model, one) <= limit) is None, "its end alone is not enough"


def test_a_limit_that_leaves_nothing_is_refused(model) -> None:
    with pytest.raises(InputError, match="no training prompt is left: raise the limit"):
        recipe = load_recipe("toy", ["task.max_prompt_tokens=40", "task.long_prompts=drop"])
        check_lengths(recipe, model, [LONG], [SHORT], None)


def test_held_out_prompts_leave_room_for_their_own_length(model) -> None:
    positions = model.max_positions
    length = positions - size(model, SHORT) + 1
    recipe = load_recipe("toy", [f"evaluation.sampling.max_new_tokens={length}"])
    with pytest.raises(InputError, match=rf"less evaluation\.sampling\.max_new_tokens = {length}\): line 1"):
        check_lengths(recipe, model, [SHORT], [SHORT], RecordingObserver())  # type: ignore[arg-type]
    fitting = load_recipe("toy", [f"evaluation.sampling.max_new_tokens={length - 1}"])
    assert check_lengths(fitting, model, [SHORT], [SHORT], RecordingObserver())[2] == []  # type: ignore[arg-type]
