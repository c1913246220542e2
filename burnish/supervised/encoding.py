"""Token encoding of training rows, with a mask of the learnt tokens and a limit on length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from burnish.data.exchanges import unlearnt
from burnish.data.rows import (
    BrokenRow,
    Conversation,
    ConversationPair,
    LabelledConversation,
    PromptCompletion,
    TrainingRow,
)  # fmt: skip
from burnish.errors import InputError
from burnish.policies.causal_lm import CausalModel
from burnish.policies.chat_answers import answer_text
from burnish.types import Completion, FinishReason, Message, Prompt


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text as tokens.

    Attributes:
        unit: the unit of its row.
        prompt_ids, token_ids: tokens of the prompt, which are not learnt, and those after it.
        learnt: one flag per token of ``token_ids``; False outside the assistant's messages.
        cut: whether the text was longer than the limit.
    """

    unit: str
    prompt: str
    text: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    learnt: tuple[bool, ...]
    cut: bool

    @property
    def size(self) -> int:
        return len(self.prompt_ids) + len(self.token_ids)

    def completion(self) -> Completion:
        """Return the text as a completion. It was not sampled: its ``sampler_logprobs`` are placeholder zeros."""
        reason: FinishReason = "length" if self.cut else "stop"
        prompt, logprobs = Prompt(self.unit, self.prompt), (0.0,) * len(self.token_ids)
        return Completion(prompt, self.prompt_ids, self.token_ids, self.text, logprobs, reason)


class Encoder:
    """Encoder of rows for one model; a prompt plus its completion has at most ``max_tokens`` tokens.

    Raises:
        InputError: ``max_tokens`` exceeds the model's positions, or the tokenizer has no end-of-text token.
    """

    def __init__(self, model: CausalModel, max_tokens: int) -> None:
        limit = model.max_positions
        if limit is not None and max_tokens > limit:
            raise InputError(
                f"batch.max_tokens = {max_tokens}: the model has {limit} positions; choose a smaller value"
            )
        end = model.text_end
        if end is None:
            raise InputError(
                "the model's tokenizer has no end-of-text token, so the model cannot learn to end an answer"
            )
        self.model, self.max_tokens, self.end = model, max_tokens, int(end)
        self._endless = False

    def text(self, unit: str, prompt: str, completion: str) -> Encoded:
        """Encode a prompt as for sampling, then the completion and the end-of-text token.

        Raises ValueError with the reason if the text cannot be used.
        """
        self._refuse_control_tokens(completion)
        prompt_ids = self._prompt_ids(Prompt(unit, prompt))
        tokens = (*self.model.encode(completion, begins=not prompt), self.end)
        return self._cut(unit, prompt, completion, prompt_ids, tokens, (True,) * len(tokens))

    def windows(self, row: PromptCompletion) -> list[Encoded]:
        """Encode a plain text as windows of at most ``max_tokens``; each token is in exactly one of them.

        Every window begins with the tokens of an empty prompt; only the last one has the end-of-text token.
        """
        self._refuse_control_tokens(row.completion)
        prompt_ids = self.model.encode_prompt(Prompt(row.unit, ""))
        tokens = (*self.model.encode(row.completion, begins=True), self.end)
        room = self.max_tokens - len(prompt_ids)
        windows = []
        for start in range(0, len(tokens), room):
            window = tokens[start : start + room]
            text = row.completion if len(tokens) <= room else self.model.decode(window)
            last = start + room >= len(tokens)
            windows.append(Encoded(row.unit, "", text, prompt_ids, window, (True,) * len(window), not last))
        return windows

    def conversation(self, row: Conversation) -> list[Encoded]:
        """Encode a conversation with the model's chat template; each answer is learnt with its end token.

        Each answer follows the very tokens that generation would have as its prompt. Answers share a sequence where the
        tokens before one begin with all tokens up to the one before. Where the template changes earlier messages as the
        conversation grows, as templates that remove thoughts do, an answer begins a new sequence.

        Raises:
            InputError: the model has no chat template.
            ValueError: the template rejects this conversation or loses a message, or an answer has a control token.
        """
        if not self.model.chat.source:
            raise InputError('the model has no chat template: use a chat model, or rows of format = "completion"')
        sequences: list[_Sequence] = []
        for index, message in enumerate(row.messages):
            if message.role != "assistant" or not message.learnt:
                continue
            answer = self._answer(row.messages, index)
            if answer is None:
                continue
            prompt_ids = self._prompt_ids(Prompt(row.unit, row.opening, messages=row.messages[:index]))
            if not sequences or not sequences[-1].extend(prompt_ids):
                sequences.append(_Sequence(prompt_ids))
            sequences[-1].append(*answer)
        if not sequences:
            raise ValueError("no answer to learn: each has weight 0, or the template's generation marks leave it out")
        answers = "\n".join(message.content for message in row.messages if message.role == "assistant")
        # A later answer has a longer prompt: what does not fit is cut, as it is within one sequence.
        fitting = [one for one in sequences if any(one.learnt[: max(0, self.max_tokens - len(one.prompt_ids))])]
        texts = [
            self._cut(row.unit, row.opening, answers, one.prompt_ids, tuple(one.token_ids), tuple(one.learnt))
            for one in fitting or sequences[:1]
        ]
        if len(fitting) < len(sequences):
            texts[-1] = replace(texts[-1], cut=True)
        return texts

    def continuation(self, row: ConversationPair | LabelledConversation, answer: tuple[Message, ...]) -> Encoded:
        """Encode a conversation and its continuation, of which the assistant's messages are learnt, as one text.

        Raises:
            ValueError: as ``conversation``, or the template writes the answer to one message differently after the next.
        """
        texts = self.conversation(Conversation((*unlearnt(row.prompt), *answer), row.unit))
        if len(texts) > 1:
            raise ValueError(
                "the chat template rewrites earlier messages, so an answer of several turns is not one text: keep only "
                "the last answer, and give the turns before it as the prompt"
            )
        asked, replied = (
            "\n".join(message.content for message in messages)
            for messages in (row.prompt, [one for one in answer if one.role == "assistant"])
        )
        return replace(texts[0], prompt=asked, text=replied)

    def notes(self, rows: Sequence[TrainingRow]) -> list[str]:
        """Return what the chat template does to conversations besides writing them."""
        prompts: list[Sequence[Message]] = []
        for row in rows:
            if isinstance(row, Conversation):
                last = max(index for index, message in enumerate(row.messages) if message.role == "assistant")
                prompts.append(row.messages[:last])
            elif isinstance(row, ConversationPair | LabelledConversation):
                prompts.append(row.prompt)
        endless = "the template's generation marks leave out the end of a turn, so ends of answers are not learnt"
        return [*self.model.chat.notes(prompts), *([endless] if self._endless else [])]

    def _answer(self, messages: Sequence[Message], index: int) -> tuple[list[int], list[bool]] | None:
        """Return an answer's tokens and which of them are learnt; None if the template's marks leave it out."""
        message = messages[index]
        self._refuse_control_tokens(message.content, message.reasoning)
        if message.extra:
            raise ValueError("an answer that is learnt has 'tool_calls': write them into content as the model does")
        text = answer_text(self.model.chat, self.model.turn_end, messages, index)
        if text is None:
            return None
        self._endless |= not text.end_learnt
        given, learnt = (self.model.encode_rendered(part) if part else () for part in (text.given, text.learnt))
        token = self.model.turn_end.token
        tokens = [*given, *learnt, self.end if token is None else token]
        return tokens, [False] * len(given) + [True] * len(learnt) + [text.end_learnt]

    def _prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        try:
            return self.model.encode_prompt(prompt)
        except InputError as error:
            raise ValueError(str(error).removeprefix(f"prompt '{prompt.id}': ")) from error

    def _cut(
        self, unit: str, prompt: str, text: str, prompt_ids: tuple[int, ...], token_ids: tuple[int, ...],
        learnt: tuple[bool, ...],
    ) -> Encoded:  # fmt: skip
        room = self.max_tokens - len(prompt_ids)
        if not any(learnt[: max(0, room)]):
            raise ValueError(
                f"its prompt has {len(prompt_ids)} tokens, which leaves no room for an answer within "
                f"batch.max_tokens = {self.max_tokens}"
            )
        kept = token_ids[:room]
        return Encoded(unit, prompt, text, prompt_ids, kept, learnt[:room], len(kept) < len(token_ids))

    def _refuse_control_tokens(self, *texts: str) -> None:
        """Raise ValueError for an answer with a control token, which could end it or forge a turn."""
        for text in texts:
            if token := self.model.controls.in_answer(text):
                raise ValueError(f"contains {token}, which the tokenizer reads as a control token")


@dataclass(slots=True)
class _Sequence:
    """Tokens of a conversation up to the answers so far."""

    prompt_ids: tuple[int, ...]
    token_ids: list[int] = field(default_factory=list)
    learnt: list[bool] = field(default_factory=list)

    def extend(self, prompt_ids: tuple[int, ...]) -> bool:
        """Append the tokens before the next answer, if they continue this sequence."""
        done = (*self.prompt_ids, *self.token_ids)
        if prompt_ids[: len(done)] != done:
            return False
        self.append(list(prompt_ids[len(done) :]), [False] * (len(prompt_ids) - len(done)))
        return True

    def append(self, token_ids: Sequence[int], learnt: Sequence[bool]) -> None:
        self.token_ids += token_ids
        self.learnt += learnt


def encode_rows(
    rows: Sequence[Any], encode: Callable[[Any], Any], positions: Sequence[str]
) -> tuple[list[Any], list[BrokenRow]]:
    """Return the results of ``encode`` and the rows for which it raised ValueError."""
    results, broken = [], []
    for row, position in zip(rows, positions, strict=True):
        try:
            results.append(encode(row))
        except ValueError as error:
            broken.append(BrokenRow(position, str(error)))
    return results, broken
