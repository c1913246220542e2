"""Text of an answer after its prompt, as the chat template means it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from burnish.policies.chat_template import CLOSING_TAG, ChatTemplate
from burnish.policies.special_tokens import find_added_tokens
from burnish.types import Message

BEFORE, ANSWER = "\ue000\ue001\ue002", "\ue003\ue004\ue005"
"""Marks in probes, which no template and no text contains."""


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """How an answer ends: text of the template, then one token.

    Attributes:
        text: what the template writes between an answer and the end token.
        token: the end token; None if the template writes none, so that the tokenizer's end-of-text token ends a turn.
    """

    text: str = ""
    token: int | None = None


@dataclass(frozen=True, slots=True)
class AnswerText:
    """The text of an answer after its prompt.

    Attributes:
        given: text of the template before the answer that its generation marks leave out.
        learnt: what the model has to write, without the end token.
        end_learnt: whether the end token is learnt, which generation marks may leave out.
    """

    given: str
    learnt: str
    end_learnt: bool = True


def find_turn_end(template: ChatTemplate, ends: frozenset[int]) -> TurnEnd:
    """Return how the template ends an answer.

    An answer that is the last message is compared with one that is not: some templates end the whole text, too
    (Phi-3), or end an answer only by the next message's beginning (GLM-4).

    Args:
        ends: the end tokens that the model's configuration names; they come first.
    """
    user, answer = Message("user", BEFORE), Message("assistant", ANSWER)
    for begin in ([user], [Message("system", "s"), user]):
        try:
            last = template.text([*begin, answer], begin_answer=False)
            inner = template.text([*begin, answer, user], begin_answer=False)
        except ValueError:
            continue
        after, between = last.rpartition(ANSWER)[2], inner.rpartition(ANSWER)[2].partition(BEFORE)[0]
        return _choose_end(template, ends, last.partition(BEFORE)[0], after, between)
    return TurnEnd()


def _choose_end(template: ChatTemplate, ends: frozenset[int], before: str, after: str, between: str) -> TurnEnd:
    last, inner = find_added_tokens(template.tokenizer, after), find_added_tokens(template.tokenizer, between)
    shared = [one for one, other in zip(last, inner, strict=False) if one == other]
    named = next((one for one in (*shared, *last) if one.id in ends), None)
    if named is None or (shared and named not in shared):
        # A token that ends every turn comes before one that only ends the whole text.
        named = next(
            (one for one in shared if one.id in ends), shared[-1] if shared else named or next(iter(last), None)
        )
    if named is not None:
        return TurnEnd(after[: named.start], named.id)
    # The next message's first token ends the answer, if the model stops at it or if it begins no message.
    if inner and (inner[0].id in ends or inner[0].text not in before):
        return TurnEnd(between[: inner[0].start], inner[0].id)
    return TurnEnd()


def answer_text(template: ChatTemplate, end: TurnEnd, messages: Sequence[Message], index: int) -> AnswerText | None:
    """Return what the model has to write for the answer ``messages[index]`` after the messages before it.

    The answer is learnt as it is in the row, also where the template strips it. Thoughts are learnt as the template
    writes them. None: the template's generation marks leave the answer out.

    Raises:
        ValueError: the template rejects, loses or cannot begin this answer.
    """
    answer, previous = messages[index], messages[index - 1]
    before = [*messages[: index - 1], replace(previous, content=previous.content + BEFORE)]
    head = _after(template.text(before, begin_answer=True), BEFORE, index)
    probe, spans = template.marked_text([*before, replace(answer, content=ANSWER, reasoning="")])
    lead, _, close = _after(probe, BEFORE, index).partition(ANSWER)
    if ANSWER not in probe:
        raise ValueError(f"the chat template leaves out message {index + 1}, of role 'assistant'")
    real = _after(template.text([*before, answer], begin_answer=False), BEFORE, index)
    rendered = real[len(lead) : len(real) - len(close)]
    plain = real.startswith(lead) and real.endswith(close) and rendered.strip() == answer.content.strip()
    start = _start(head, lead) if plain and not answer.reasoning else None
    written = (
        _thoughts(head, lead, real.removesuffix(close), answer, index) if start is None else start + answer.content
    )
    if spans is None:
        return AnswerText("", written + end.text)
    first = probe.rindex(ANSWER)
    span = next(((begin, stop) for begin, stop in spans if begin <= first < stop), None)
    if span is None:
        return None
    # The marks before and after the answer, in characters.
    unmarked = max(0, len(start or "") - (first - span[0]))
    ended = span[1] - first - len(ANSWER) >= len(end.text) + (1 if close else 0)
    return AnswerText(written[:unmarked], written[unmarked:] + (end.text if ended else ""), ended)


def _after(text: str, mark: str, index: int) -> str:
    if mark not in text:
        raise ValueError(f"the chat template leaves out message {index}, or writes it behind the answer to it")
    return text.rpartition(mark)[2]


def _start(head: str, lead: str) -> str | None:
    """Return the text of the template between a prompt and an answer without thoughts; None if a thought is open.

    Args:
        head: what the prompt ends with, after the last message.
        lead: what the whole conversation has between that message and the answer.
    """
    if lead.startswith(head):
        return lead[len(head) :]
    opened = _opened(head, lead)
    rest = lead[len(head) - len(opened) :]
    if not opened.strip() or (CLOSING_TAG.match(rest.lstrip()) and not CLOSING_TAG.search(opened)):
        return rest
    if CLOSING_TAG.search(opened):
        return "" if opened.rstrip().endswith(rest.strip()) else rest
    return None


def _opened(head: str, lead: str) -> str:
    """Return what a prompt begins an answer with and the whole conversation does not, in whole tokens."""
    pairs = zip(head, lead, strict=False)
    common = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return head[len(re.sub(r"[<\[][^<>\[\]]*$", "", common)) :]


def _thoughts(head: str, lead: str, real: str, answer: Message, index: int) -> str:
    """Return the text of an answer that has thoughts, or that a template's open thought waits for."""
    parts = [part.strip() for part in (answer.reasoning, *CLOSING_TAG.split(answer.content))]
    if real.startswith(head) and all(part in real[len(head) :] for part in parts):
        return real[len(head) :]
    if answer.reasoning:
        raise ValueError(
            f"the chat template leaves out the reasoning_content of message {index + 1}: write the thoughts into content, "
            "or remove them"
        )
    opened, content = _opened(head, lead).strip(), answer.content.lstrip()
    if opened and content.startswith(opened):
        return content.removeprefix(opened).removeprefix("\n")
    if not opened and (real.startswith(head) or not content):
        return answer.content
    if not opened:
        raise ValueError(f"the chat template writes message {index + 1} in another form: set an own template")
    raise ValueError(
        f"the chat template begins each answer with {opened!r}, and message {index + 1} does not: give it its thoughts, "
        "turn thinking off with template_kwargs, or set an own template"
    )
