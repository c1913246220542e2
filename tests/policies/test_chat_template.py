"""Prompts that are conversations are encoded with the model's chat template."""

from __future__ import annotations

import pytest

from burnish.errors import InputError
from burnish.evaluation.held_out import measure
from burnish.policies.loading import load_model
from burnish.types import Message, Prompt, SamplingParams

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "<{{ message['role'] }}>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = Prompt(
    "talk", "hi\nhello\nbye",
    messages=(Message("user", "hi"), Message("assistant", "hello"), Message("user", "bye")),
)  # fmt: skip


def test_the_prompt_holds_all_turns_and_the_start_of_the_answer(tiny) -> None:
    model = load_model(tiny("llama"))
    model.tokenizer.chat_template = TEMPLATE
    ids = model.encode_prompt(TALK)
    # Token 1 is <|end|>, which ends each turn. It stays in the prompt, unlike an end token that a tokenizer appends.
    written = model.tokenizer.decode(list(ids), skip_special_tokens=False)
    assert written == "<user>hi<|end|><assistant>hello<|end|><user>bye<|end|><assistant>"
    assert ids.count(1) == 3


def test_the_template_is_not_used_without_messages(tiny) -> None:
    model = load_model(tiny("llama"))
    bare = model.encode_prompt(Prompt("p", "hi"))
    model.tokenizer.chat_template = TEMPLATE
    assert model.encode_prompt(Prompt("p", "hi")) == bare


def test_the_error_for_a_missing_template_names_the_recipe_key(tiny) -> None:
    model = load_model(tiny("llama"))
    with pytest.raises(InputError, match=r"prompt 'talk' is a conversation .* set task.chat = false"):
        model.encode_prompt(TALK)


def test_an_error_of_the_template_is_reported_in_one_line(tiny) -> None:
    model = load_model(tiny("llama"))
    model.tokenizer.chat_template = TEMPLATE
    told = Prompt("told", "hi", messages=(Message("system", "be brief"), Message("user", "hi")))
    with pytest.raises(InputError, match=r"'told'.*refuses its messages \(no system here\).*system, user"):
        model.encode_prompt(told)


def test_a_reference_after_a_template_begins_without_a_space(tiny) -> None:
    # The reference is "yes" after "<assistant>", but " yes" after the plain text "hi".
    from burnish.generation.engine import make_sampler
    from burnish.rewards.combine import combine

    model = load_model(tiny("llama"))
    model.tokenizer.chat_template = TEMPLATE
    plain = Prompt("plain", "hi", "yes")
    chat = Prompt("chat", "hi", "yes", messages=(Message("user", "hi"),))
    found = measure(
        model, make_sampler(model), combine({"repetition": 1.0}), [plain, chat],
        sampling=SamplingParams(4), samples_per_prompt=1, seed=0,
    )  # fmt: skip
    lengths = {truth.prompt_id: truth.tokens for truth in found.truths}
    assert lengths == {"plain": len(model.encode(" yes")), "chat": len(model.encode("yes"))}
    assert lengths["plain"] == lengths["chat"] + 1


@pytest.mark.model
def test_the_built_in_model_answers_a_question() -> None:
    from burnish.catalogue.convert import resolve_model
    from burnish.generation.engine import make_sampler

    model = load_model(resolve_model("smollm2-135m", offline=True), offline=True)
    asked = Prompt("q", "What is the capital of France?", messages=(Message("user", "What is the capital of France?"),))
    (group,) = make_sampler(model).sample(
        [asked], samples_per_prompt=1, sampling=SamplingParams(24, temperature=0.01), seed=(0,)
    )
    assert "Paris" in group.completions[0].text
    assert group.completions[0].finish_reason == "stop"
