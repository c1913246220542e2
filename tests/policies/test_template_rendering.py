"""Chat templates in a process of their own: the text of transformers, and bounds on whatever a template does."""

from __future__ import annotations

import json
import os
import signal
import threading
from datetime import datetime
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from burnish.errors import InputError
from burnish.policies.chat_template import ChatTemplate
from burnish.policies.template_rendering import TemplateError, _process, render_template
from burnish.types import Message
from tests.conftest import CHAT_TEMPLATE

NOW = datetime(2025, 3, 4, 5, 6)
USER = {"role": "user", "content": 'What is "2+2"?\u2028我 <&> \ud800'}
ANSWER = {
    "role": "assistant",
    "content": " Four.\n",
    "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "年", "parameters": {"b": [None, True, 0.5]}}}]
SAME = (
    CHAT_TEMPLATE,
    "{% for m in messages %}\n    {% if m.role == 'user' %}\n{{ m.content }}\n    {% else %}\n{% generation %}"
    "{{ m.content }}{% endgeneration %}{% break %}{% endif %}\n{% endfor %}",
    "{% set ns = namespace(n=0, self=1) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% continue %}"
    "{% endfor %}{{ ns.n }}",
    "{{ tools | tojson }}{{ tools | tojson(indent=2, sort_keys=true) }}{{ documents is none }}{{ messages | tojson }}",
    "{{ dict(a=1).items() | list }}{{ messages[0].content[::-1] | trim | upper }}{{ messages[-1]['tool_calls'] }}",
    "{{ bos_token }}{%- if add_generation_prompt %}{{ '<a>' }}{% endif -%}  {{ messages[1].thinking }}!",
)


def named(template: Any) -> ChatTemplate:
    class Tokenizer:
        chat_template = template
        special_tokens_map: dict[str, str] = {}  # noqa: RUF012

        def get_chat_template(self) -> Any:
            return template

    return ChatTemplate(Tokenizer())  # type: ignore[arg-type]


@pytest.mark.parametrize("template", SAME)
def test_the_text_is_that_of_transformers(template: str) -> None:
    values = {"tools": TOOLS, "documents": None, "add_generation_prompt": True, "bos_token": "<s>"}
    marks = "generation %}" in template
    texts, spans = render_jinja_template(
        [[USER, ANSWER]], chat_template=template, return_assistant_tokens_mask=marks, **values
    )
    assert texts[0].strip()
    for _ in range(2):  # the second time from the template that the process keeps
        text, found = render_template(template, NOW, {"messages": [USER, ANSWER], **values})
        assert text == texts[0]
        assert found == (spans[0] if marks else [])


def test_a_date_is_the_one_given() -> None:
    assert render_template("{{ strftime_now('%d %b %Y') }}", NOW, {})[0] == "04 Mar 2025"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% set s = namespace(x='ab') %}{% for i in range(99) %}{% set s.x = s.x ~ s.x %}{% endfor %}", "too much memory"),
        ("{{ messages[0].content | center(10**12) }}", "too much memory"),
        ("{{ '%9000000000d' % 1 }}", "too much memory"),
        ("{% for i in range(90000) %}{{ 'x' * 900 }}{% endfor %}", "writes more than 4,"),
        ("{% for i in range(10**7) %}{% endfor %}", "Range too big"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable|is unsafe"),
        ("{{ ().__class__.__base__ }}", "unsafe"),
        ("{% for m in messages %}", "end of template"), ("{{ 1 | nofilter }}", "nofilter"),
        (" {# nothing #} \n", "writes nothing"), ("You are helpful.", "ignores a user's message"),
        (5, "a chat template is text"), ({"default": ["x"]}, "a chat template is text"),
    ],
)  # fmt: skip
def test_a_useless_template_is_refused_by_name(template: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        named(template).check("model 'm': chat_template.jinja")
    text = str(caught.value)
    assert text.startswith("model 'm': chat_template.jinja: ") and "\n" not in text


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content[0].text }}{% endfor %}",
        "{% if not tools %}{{ raise_exception('no tools') }}{% endif %}",
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[1].content }}",
        "{{ messages[-1].content }}{{ undefined_here }}",
    ],
)
def test_a_template_with_conditions_is_accepted(template: str) -> None:
    named(template).check("x")


def test_a_template_that_loops_for_one_message_ends_with_an_error() -> None:
    loop = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    chat = named("{% if 'now' in messages[-1].content %}" + loop + "{% endif %}{{ messages[-1].content }}")
    chat.check("x")
    with pytest.raises(TemplateError, match="takes too long"):
        chat.text([Message("user", "now")], begin_answer=True)
    assert chat.text([Message("user", "later")], begin_answer=True) == "later"


def test_threads_and_a_killed_process() -> None:
    texts: dict[int, set[str]] = {}

    def ask(number: int) -> None:
        texts[number] = {render_template("{{ n }}" * 9, NOW, {"n": number})[0] for _ in range(40)}

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert texts == {number: {str(number) * 9} for number in range(4)}
    assert _process.process is not None
    os.kill(_process.process.pid, signal.SIGKILL)
    _process.process.wait()
    assert render_template("{{ 1 + 1 }}", NOW, {})[0] == "2"


def test_values_that_are_no_json_are_not_shown() -> None:
    assert render_template("{{ v }}", NOW, {"v": NOW})[0] == "<datetime>"
    assert json.loads(render_template("{{ v | tojson }}", NOW, {"v": (1, {"a": None})})[0]) == [1, {"a": None}]
