"""What fine-tuning learns of a conversation is what sampling would have to produce after the same prompt.

Each template here has one mechanism of those that models bring.
"""

from __future__ import annotations

import pytest

from burnish.data.rows import Conversation, ConversationPair
from burnish.policies.causal_lm import CausalModel
from burnish.policies.chat_template import ChatSettings, ChatTemplate
from burnish.policies.loading import load_model
from burnish.supervised.encoding import Encoder
from burnish.types import Message, Prompt

TOKENS = (
    "<|turn|>", "<|stop|>", "<|user|>", "<|assistant|>", "<|system|>", "<think>", "</think>", "<|final|>", "<|open|>",
)  # fmt: skip
ASK = "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
TRIM = "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content | trim }}<|end|>\n{% endfor %}" + ASK
PLAIN = TRIM.replace(" | trim", "")
# As Phi-3: one token ends each turn, and another one, which the tokenizer calls the end, the whole text.
TWO_ENDS = PLAIN.replace("<|end|>", "<|stop|>").replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
# As GLM-4: nothing ends an answer but the next turn.
NO_END = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As Apertus: the next message's text begins with the end of the answer.
LATE_END = (
    "{% for m in messages %}{% if loop.index0 and loop.previtem.role == 'assistant' %}<|stop|>{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As DeepSeek-R1: the prompt opens a thought, and thoughts are removed from all answers.
OPENS = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n<think>\n{% endif %}"
)
# As Nemotron 3: the prompt opens a thought, and an answer without one has an empty thought.
EMPTY = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n<think>\n{% endif %}"
)
# As GLM-4.7: the prompt opens a thought that the text of an answer without one only closes.
CLOSES = EMPTY.replace("<think></think>", "</think>").replace("<think>\n", "<think>")
# As Qwen 3: only answers after the last question have a thought, and it may be passed apart.
LAST = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|turn|>{{ m.role }}\n{% if m.role == 'assistant' and"
    " loop.index0 > ns.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# As Mistral Nemo: the system message is a part of the last question.
MOVED = (
    "{% for m in messages if m.role != 'system' %}<|turn|>{% if loop.last and m.role == 'user' and messages[0].role =="
    " 'system' %}{{ messages[0].content }} {% endif %}{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}"
    "<|turn|>{% endif %}"
)  # fmt: skip
# As gpt-oss: text between prompt and answer that the model writes itself.
CHANNEL = PLAIN.replace("{{ m.content }}", "{% if m.role == 'assistant' %}<|final|>{% endif %}{{ m.content }}")
MARKED = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{% if m.role == 'assistant' %}<|final|>{% generation %}{{ m.content }}"
    "<|end|>{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}" + ASK
)
ENDLESS = MARKED.replace("<|end|>{% endgeneration %}", "{% endgeneration %}<|end|>")
PARTS = PLAIN.replace("{{ m.content }}", "{% for part in m.content %}{{ part.text }}{% endfor %}")

TALK = (
    Message("system", "short"), Message("user", "one"), Message("assistant", "won"), Message("user", "two"),
    Message("assistant", "too"),
)  # fmt: skip


@pytest.fixture
def model(tiny):
    loaded = load_model(tiny("llama"))
    loaded.tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    loaded.model.resize_token_embeddings(len(loaded.tokenizer))
    loaded = CausalModel(loaded.model, loaded.tokenizer)
    return loaded


def use(model: CausalModel, template: str, **variables: object) -> None:
    model.tokenizer.chat_template = template
    model.chat = ChatTemplate(model.tokenizer, ChatSettings(variables=variables))


def learnt(model: CausalModel, messages: tuple[Message, ...] = TALK) -> list[tuple[str, str]]:
    """Return each answer's context and its learnt tokens, as text; the context is checked to be the prompt."""
    decode = model.tokenizer.decode
    texts = Encoder(model, 256).conversation(Conversation(messages, "u"))
    spans = []
    prompts = {
        model.encode_prompt(Prompt("p", "", messages=messages[:index]))
        for index, message in enumerate(messages)
        if message.role == "assistant"
    }
    for text in texts:
        ids, flags = [*text.prompt_ids, *text.token_ids], [False] * len(text.prompt_ids) + [*text.learnt]
        starts = [index for index, flag in enumerate(flags) if flag and not flags[index - 1]]
        for start in starts:
            stop = next((index for index in range(start, len(flags)) if not flags[index]), len(flags))
            assert any(tuple(ids[: len(prompt)]) == prompt and len(prompt) <= start for prompt in prompts)
            spans.append((decode(ids[:start]), decode(ids[start:stop])))
    return spans


def prompt_text(model: CausalModel, messages: tuple[Message, ...]) -> str:
    return model.tokenizer.decode(model.encode_prompt(Prompt("p", "", messages=messages)))


FIRST = "<|turn|>system\nshort<|end|>\n<|turn|>user\none<|end|>\n<|turn|>assistant\n"
SECOND = FIRST + "won<|end|>\n<|turn|>user\ntwo<|end|>\n<|turn|>assistant\n"
USER_1, USER_2 = (
    "<|system|>short<|user|>one<|assistant|>",
    "<|system|>short<|user|>one<|assistant|>won<|user|>two<|assistant|>",
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (PLAIN, [(FIRST, "won<|end|>"), (SECOND, "too<|end|>")]),
        (
            TWO_ENDS,
            [(one.replace("<|end|>", "<|stop|>"), text) for one, text in ((FIRST, "won<|stop|>"), (SECOND, "too<|stop|>"))],
        ),
        (NO_END, [(USER_1, "won<|end|>"), (USER_2, "too<|end|>")]),
        (LATE_END, [(USER_1, "won<|stop|>"), (USER_2.replace("won", "won<|stop|>"), "too<|stop|>")]),
        (CHANNEL, [(FIRST, "<|final|>won<|end|>"), (SECOND.replace("won", "<|final|>won"), "<|final|>too<|end|>")]),
        (EMPTY, [(FIRST + "<think>\n", "</think>won<|end|>"), (SECOND.replace("won", "<think></think>won") + "<think>\n",
                                                              "</think>too<|end|>")]),
        (CLOSES, [(FIRST + "<think>", "</think>won<|end|>"), (SECOND.replace("won", "</think>won") + "<think>",
                                                             "</think>too<|end|>")]),
        (LAST, [(FIRST, "<think>\n\n</think>\n\nwon<|end|>"), (SECOND, "<think>\n\n</think>\n\ntoo<|end|>")]),
        (MOVED, [("<|turn|>short one<|end|><|turn|>", "won<|end|>"),
                 ("<|turn|>one<|end|><|turn|>won<|end|><|turn|>short two<|end|><|turn|>", "too<|end|>")]),
        (PARTS, [(FIRST, "won<|end|>"), (SECOND, "too<|end|>")]),
    ],
    ids=["plain", "two ends", "no end", "late end", "channel", "empty thought", "closes", "last thought", "moved", "parts"],
)  # fmt: skip
def test_an_answer_is_learnt_after_its_prompt_and_ends_where_sampling_stops(model, template, expected) -> None:
    use(model, template)
    assert learnt(model) == expected
    for _, text in expected:
        assert model.tokenizer(text, add_special_tokens=False)["input_ids"][-1] in model.end_ids


def test_one_sequence_where_the_text_only_grows(model) -> None:
    use(model, PLAIN)
    assert len(Encoder(model, 256).conversation(Conversation(TALK, "u"))) == 1
    use(model, LAST)
    assert len(Encoder(model, 256).conversation(Conversation(TALK, "u"))) == 2


def test_the_next_turn_ends_an_answer_if_the_model_stops_there(model) -> None:
    use(model, NO_END)
    user = model.tokenizer.convert_tokens_to_ids("<|user|>")
    model.model.generation_config.eos_token_id = [1, user]
    assert learnt(model) == [(USER_1, "won<|user|>"), (USER_2, "too<|user|>")]
    assert user in model.end_ids


def test_blanks_at_the_ends_of_an_answer_are_learnt_where_the_template_strips_them(model) -> None:
    use(model, TRIM)
    talk = (
        Message("user", "  one\n"),
        Message("assistant", " \n won \n"),
        Message("user", "two"),
        Message("assistant", "\ttoo "),
    )
    user = "<|turn|>user\none<|end|>\n<|turn|>assistant\n"
    assert learnt(model, talk) == [
        (user, " \n won \n<|end|>"),
        (user + "won<|end|>\n<|turn|>user\ntwo<|end|>\n<|turn|>assistant\n", "\ttoo <|end|>"),
    ]
    assert model.chat.notes([talk[:3]]) == [
        "the chat template strips white space at the ends of messages in 1 of 1 conversations"
    ]


def test_an_empty_answer_is_the_end_alone(model) -> None:
    use(model, PLAIN)
    talk = (*TALK[:2], Message("assistant", ""), *TALK[3:])
    assert learnt(model, talk)[0] == (FIRST, "<|end|>")


class TestThoughts:
    def test_a_thought_that_the_prompt_opens_is_continued(self, model) -> None:
        use(model, OPENS)
        talk = (
            *TALK[1:2],
            Message("assistant", "<think>\nhm\n</think>\n\nwon"),
            TALK[3],
            Message("assistant", "<think>so</think>too"),
        )
        first = "<|turn|>user\none<|end|>\n<|turn|>assistant\n"
        assert learnt(model, talk) == [
            (first + "<think>\n", "hm\n</think>\n\nwon<|end|>"),
            # Earlier thoughts are gone, in training as in use.
            (first + "\n\nwon<|end|>\n<|turn|>user\ntwo<|end|>\n<|turn|>assistant\n<think>\n", "so</think>too<|end|>"),
        ]

    def test_an_answer_without_it_names_the_cause(self, model) -> None:
        use(model, OPENS)
        with pytest.raises(
            ValueError, match=r"begins each answer with '<think>', and message 3 does not: .* template_kwargs"
        ):
            learnt(model)

    def test_reasoning_content_is_learnt_as_the_template_writes_it(self, model) -> None:
        use(model, LAST)
        talk = (*TALK[:4], Message("assistant", "too", reasoning="two, so"))
        assert learnt(model, talk)[-1] == (SECOND, "<think>\ntwo, so\n</think>\n\ntoo<|end|>")

    def test_reasoning_content_that_is_left_out_is_refused(self, model) -> None:
        use(model, PLAIN)
        with pytest.raises(ValueError, match="leaves out the reasoning_content of message 5"):
            learnt(model, (*TALK[:4], Message("assistant", "too", reasoning="two, so")))

    def test_a_variable_turns_thinking_off(self, model) -> None:
        use(model, LAST, enable_thinking=False)
        assert prompt_text(model, TALK[:2]) == FIRST + "<think>\n\n</think>\n\n"
        assert [text for _, text in learnt(model)] == ["won<|end|>", "too<|end|>"]


class TestGenerationMarks:
    def test_text_outside_of_the_marks_is_not_learnt(self, model) -> None:
        use(model, MARKED)
        first = "<|turn|>system\nshort<|end|><|turn|>user\none<|end|><|turn|>assistant\n<|final|>"
        second = first + "won<|end|><|turn|>user\ntwo<|end|><|turn|>assistant\n<|final|>"
        assert learnt(model) == [(first, "won<|end|>"), (second, "too<|end|>")]

    def test_an_end_outside_of_them_is_not_learnt(self, model) -> None:
        use(model, ENDLESS)
        assert [text for _, text in learnt(model)] == ["won", "too"]
        encoder = Encoder(model, 256)
        encoder.conversation(Conversation(TALK, "u"))
        (note,) = encoder.notes([])
        assert "marks leave out the end of a turn" in note


class TestRefusals:
    def test_a_message_that_is_left_out_is_named(self, model) -> None:
        use(model, "{% for m in messages if m.role != 'system' %}<|turn|>{{ m.content }}<|end|>{% endfor %}<|turn|>")
        with pytest.raises(ValueError, match=r"leaves out message 1, of role 'system'"):
            learnt(model)

    def test_a_short_message_is_not_found_by_chance(self, model) -> None:
        # "t" is in "<|turn|>", so looking for the text alone would miss that the template drops it.
        use(model, "{% for m in messages if m.role != 'system' %}<|turn|>{{ m.content }}<|end|>{% endfor %}<|turn|>")
        with pytest.raises(ValueError, match=r"leaves out message 1"):
            learnt(model, (Message("system", "t"), *TALK[1:]))

    def test_a_control_token_in_an_answer_is_refused_and_a_tag_is_learnt(self, model) -> None:
        use(model, PLAIN)
        for token in ("<|end|>", "<|turn|>", "<|begin|>"):
            with pytest.raises(
                ValueError, match=r"contains <\|(end|turn|begin)\|>, which the tokenizer reads as a control"
            ):
                learnt(model, (*TALK[:4], Message("assistant", f"a{token}b")))
        tagged = learnt(model, (*TALK[:4], Message("assistant", "<think>a</think>b<|open|>")))
        assert tagged[-1][1] == "<think>a</think>b<|open|><|end|>"
        assert model.tokenizer.convert_tokens_to_ids("<think>") in model.encode("<think>a")

    def test_nothing_to_learn_is_named(self, model) -> None:
        use(model, PLAIN)
        with pytest.raises(ValueError, match="no answer to learn"):
            learnt(model, (*TALK[:2], Message("assistant", "won", learnt=False)))


def test_an_answer_with_weight_0_is_read_only(model) -> None:
    use(model, PLAIN)
    assert learnt(model, (*TALK[:2], Message("assistant", "won", learnt=False), *TALK[3:])) == [(SECOND, "too<|end|>")]


def test_a_preference_shows_its_whole_prompt_and_its_own_answer(model) -> None:
    use(model, PLAIN)
    row = ConversationPair(TALK[:4], TALK[4:], (Message("assistant", "to"),), "u")
    texts = [Encoder(model, 256).continuation(row, answer) for answer in (row.chosen, row.rejected)]
    assert [(text.prompt, text.text) for text in texts] == [("short\none\nwon\ntwo", one) for one in ("too", "to")]


def test_what_does_not_fit_is_cut(model) -> None:
    use(model, LAST)
    room = len(model.encode_prompt(Prompt("p", "", messages=TALK[:2]))) + 8
    (text,) = Encoder(model, room).conversation(Conversation(TALK, "u"))
    assert text.cut and text.size <= room
