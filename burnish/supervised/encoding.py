"""Token encoding of training rows, with a mask of the learnt tokens and a limit on length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.data.rows import BrokenRow, Conversation, PromptCompletion
from burnish.errors import InputError, one_line
from burnish.policies.causal_lm import CausalModel
from burnish.types import Completion, FinishReason, Prompt


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
        end = model.tokenizer.eos_token_id
        if end is None:
            raise InputError(
                "the model's tokenizer has no end-of-text token, so the model cannot learn to end an answer"
            )
        self.model, self.max_tokens, self.end = model, max_tokens, int(end)
        tokens = model.tokenizer.added_tokens_decoder.values()
        self._special = tuple(token.content for token in tokens if token.special)

    def text(self, unit: str, prompt: str, completion: str) -> Encoded:
        """Encode a prompt as for sampling, then the completion and the end-of-text token.

        Raises ValueError with the reason if the text cannot be used.
        """
        self._refuse_special(prompt, completion)
        try:
            prompt_ids = self.model.encode_prompt(Prompt(unit, prompt))
        except InputError as error:
            raise ValueError(str(error)) from error
        tokens = (*self.model.encode(completion), self.end)
        return self._cut(unit, prompt, completion, prompt_ids, tokens, (True,) * len(tokens))

    def windows(self, row: PromptCompletion) -> list[Encoded]:
        """Encode a plain text as windows of at most ``max_tokens``; each token is in exactly one of them.

        Every window begins with the tokens of an empty prompt; only the last one has the end-of-text token.
        """
        self._refuse_special(row.completion)
        prompt_ids = self.model.encode_prompt(Prompt(row.unit, ""))
        tokens = (*self.model.encode(row.completion), self.end)
        room = self.max_tokens - len(prompt_ids)
        windows = []
        for start in range(0, len(tokens), room):
            window = tokens[start : start + room]
            text = row.completion if len(tokens) <= room else self.model.decode(window)
            last = start + room >= len(tokens)
            windows.append(Encoded(row.unit, "", text, prompt_ids, window, (True,) * len(window), not last))
        return windows

    def conversation(self, row: Conversation) -> Encoded:
        """Encode a conversation with the model's chat template; each answer is learnt with its end token.

        The template is applied to growing prefixes of the conversation, so that an answer is tokenized separately from
        the template's text before it, as in generation.

        Raises:
            InputError: the model has no chat template.
            ValueError: the template rejects this conversation, or changes earlier messages as it grows.
        """
        if not self.model.tokenizer.chat_template:
            raise InputError('the model has no chat template: use a chat model, or rows of format = "completion"')
        self._refuse_special(*(message.content for message in row.messages))
        pieces = self._pieces(row)
        first = next(index for index, (_, learnt) in enumerate(pieces) if learnt)
        prompt_ids = self.model.encode("".join(text for text, _ in pieces[:first]))
        tokens: list[int] = []
        learnt: list[bool] = []
        for text, answer in pieces[first:]:
            ids = self.model.encode(text)
            tokens += ids
            learnt += self._until_end(ids) if answer else [False] * len(ids)
        # Nothing is learnt after the last answer.
        length = max(index for index, is_learnt in enumerate(learnt) if is_learnt) + 1
        answers = "\n".join(message.content for message in row.messages if message.role == "assistant")
        return self._cut(row.unit, row.opening, answers, prompt_ids, tuple(tokens[:length]), tuple(learnt[:length]))

    def _pieces(self, row: Conversation) -> list[tuple[str, bool]]:
        """Split the conversation's text into pieces; return each with whether it is an answer."""
        messages = [{"role": message.role, "content": message.content} for message in row.messages]
        pieces: list[tuple[str, bool]] = []
        done = ""
        for index, message in enumerate(row.messages):
            if message.role != "assistant":
                continue
            before = self._templated(messages[:index], begin_answer=True)
            after = self._templated(messages[: index + 1], begin_answer=False)
            if not (before.startswith(done) and after.startswith(before)):
                raise ValueError(
                    "the chat template changes earlier messages as the conversation grows: write one row per answer"
                )
            pieces += [(before[len(done) :], False), (after[len(before) :], True)]
            done = after
        return pieces

    def _templated(self, messages: Sequence[dict[str, str]], *, begin_answer: bool) -> str:
        from jinja2 import TemplateError

        apply: Callable[..., Any] = self.model.tokenizer.apply_chat_template
        try:
            return str(apply(list(messages), tokenize=False, add_generation_prompt=begin_answer))
        except TemplateError as error:
            raise ValueError(f"the chat template rejects it ({one_line(error)[:80]})") from error

    def _until_end(self, ids: Sequence[int]) -> list[bool]:
        """Return which tokens of an answer are learnt: those up to the last end token, or all without one."""
        ends = [index for index, token in enumerate(ids) if token in self.model.end_ids]
        last = ends[-1] if ends else len(ids) - 1
        return [index <= last for index in range(len(ids))]

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

    def _refuse_special(self, *texts: str) -> None:
        """Raise ValueError for a text that contains a control token: a user's message could forge the answer."""
        for special in self._special:
            if any(special in text for text in texts):
                raise ValueError(f"contains {special}, which the tokenizer reads as a control token")


def encode_rows(rows: Sequence[Any], encode: Callable[[Any], Any]) -> tuple[list[Any], list[BrokenRow]]:
    """Return the results of ``encode`` and the rows for which it raised ValueError."""
    results, broken = [], []
    for number, row in enumerate(rows, start=1):
        try:
            results.append(encode(row))
        except ValueError as error:
            broken.append(BrokenRow(f"usable row {number}", str(error)))
    return results, broken
