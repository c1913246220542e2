"""Rows as tokens: what is read, what is learnt, and where a text is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.data.rows import Broken, Dialogue, Text
from burnish.errors import InputError
from burnish.policies.causal_lm import CausalModel
from burnish.types import Completion, FinishReason, Prompt


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text ready for the model.

    Attributes:
        unit: of the row it came from.
        prompt_ids: read, not learnt.
        token_ids: what follows.
        learnt: one a token: False for what others than the assistant said in between.
        cut: whether the text was longer.
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
        """As the policy sees it. Nobody sampled it: its ``sampler_logprobs`` say nothing."""
        reason: FinishReason = "length" if self.cut else "stop"
        return Completion(
            Prompt(self.unit, self.prompt), self.prompt_ids, self.token_ids, self.text, (0.0,) * len(self.token_ids),
            reason,
        )  # fmt: skip


class Encoder:
    """Encodes rows for one model.

    Args:
        model: whose tokenizer, beginning and end of text are used.
        max_tokens: of a prompt with its completion; not more than the model's positions.
    """

    def __init__(self, model: CausalModel, max_tokens: int) -> None:
        if model.max_positions is not None and max_tokens > model.max_positions:
            raise InputError(
                f"batch.max_tokens = {max_tokens}: the model has {model.max_positions} positions: choose no more"
            )
        end = model.tokenizer.eos_token_id
        if end is None:
            raise InputError(
                "the model's tokenizer has no end-of-text token, so an answer could never be learnt to end"
            )
        self.model, self.max_tokens, self.end = model, max_tokens, int(end)
        tokens = model.tokenizer.added_tokens_decoder.values()
        self._special = tuple(token.content for token in tokens if token.special)

    def text(self, unit: str, prompt: str, completion: str) -> Encoded:
        """A prompt as it is given when sampling, then the completion and the end-of-text token.

        Raises:
            ValueError: it cannot be used; the message says why.
        """
        self._refuse_special(prompt, completion)
        try:
            prompt_ids = self.model.encode_prompt(Prompt(unit, prompt))
        except InputError as error:
            raise ValueError(str(error)) from error
        tokens = (*self.model.encode(completion), self.end)
        return self._cut(unit, prompt, completion, prompt_ids, tokens, (True,) * len(tokens))

    def windows(self, row: Text) -> list[Encoded]:
        """A plain text as windows of at most ``max_tokens``, each begun anew; only the last one ends.

        A text that fits is one window. The windows share no token, and none is left out.
        """
        self._refuse_special(row.completion)
        prompt_ids = self.model.encode_prompt(Prompt(row.unit, ""))
        tokens = (*self.model.encode(row.completion), self.end)
        room = self.max_tokens - len(prompt_ids)
        found = []
        for start in range(0, len(tokens), room):
            window = tokens[start : start + room]
            text = row.completion if len(tokens) <= room else self.model.decode(window)
            last = start + room >= len(tokens)
            found.append(Encoded(row.unit, "", text, prompt_ids, window, (True,) * len(window), not last))
        return found

    def dialogue(self, row: Dialogue) -> Encoded:
        """A dialogue through the model's chat template: the assistant's turns are learnt, each with the token that ends it.

        The template is applied to growing parts of the dialogue, so that a turn is encoded by itself after what the
        template writes before an answer, as it is when the model answers.

        Raises:
            InputError: the model has no chat template.
            ValueError: the template refuses this dialogue or rewrites its earlier turns.
        """
        if not self.model.tokenizer.chat_template:
            raise InputError('the model has no chat template: use a chat model, or rows of format = "completion"')
        self._refuse_special(*(turn.content for turn in row.turns))
        pieces = self._pieces(row)
        first = next(place for place, (_, learnt) in enumerate(pieces) if learnt)
        prompt_ids = self.model.encode("".join(text for text, _ in pieces[:first]))
        tokens: list[int] = []
        learnt: list[bool] = []
        for text, answer in pieces[first:]:
            ids = self.model.encode(text)
            tokens += ids
            learnt += self._until_end(ids) if answer else [False] * len(ids)
        # What comes after the last answer teaches nothing.
        length = max(place for place, wanted in enumerate(learnt) if wanted) + 1
        answers = "\n".join(turn.content for turn in row.turns if turn.role == "assistant")
        head = "\n".join(turn.content for turn in row.turns[: self._first_answer(row)])
        return self._cut(row.unit, head, answers, prompt_ids, tuple(tokens[:length]), tuple(learnt[:length]))

    @staticmethod
    def _first_answer(row: Dialogue) -> int:
        return next(place for place, turn in enumerate(row.turns) if turn.role == "assistant")

    def _pieces(self, row: Dialogue) -> list[tuple[str, bool]]:
        """The dialogue's text in pieces, and whether each is an answer."""
        messages = [{"role": turn.role, "content": turn.content} for turn in row.turns]
        pieces: list[tuple[str, bool]] = []
        done = ""
        for place, turn in enumerate(row.turns):
            if turn.role != "assistant":
                continue
            before = self._templated(messages[:place], begin_answer=True)
            after = self._templated(messages[: place + 1], begin_answer=False)
            if not (before.startswith(done) and after.startswith(before)):
                raise ValueError(
                    "the chat template rewrites earlier turns as the dialogue grows: give one row for each answer"
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
            raise ValueError(f"the chat template refuses it ({' '.join(str(error).split())[:80]})") from error

    def _until_end(self, ids: Sequence[int]) -> list[bool]:
        """Which tokens of an answer are learnt: all up to the one that ends it; all where none does."""
        ends = [place for place, token in enumerate(ids) if token in self.model.end_ids]
        last = ends[-1] if ends else len(ids) - 1
        return [place <= last for place in range(len(ids))]

    def _cut(
        self,
        unit: str,
        prompt: str,
        text: str,
        prompt_ids: tuple[int, ...],
        token_ids: tuple[int, ...],
        learnt: tuple[bool, ...],
    ) -> Encoded:
        room = self.max_tokens - len(prompt_ids)
        if not any(learnt[: max(0, room)]):
            raise ValueError(
                f"its prompt has {len(prompt_ids)} tokens, which leaves no room for an answer within "
                f"batch.max_tokens = {self.max_tokens}"
            )
        kept = token_ids[:room]
        return Encoded(unit, prompt, text, prompt_ids, kept, learnt[:room], len(kept) < len(token_ids))

    def _refuse_special(self, *texts: str) -> None:
        """A text that spells a control token would be read as one: a user's turn could end itself and answer."""
        for special in self._special:
            if any(special in text for text in texts):
                raise ValueError(f"holds {special}, which the tokenizer reads as a control token")


def each(rows: Sequence[Any], encode: Callable[[Any], Any]) -> tuple[list[Any], list[Broken]]:
    """What ``encode`` makes of each row, and the rows it could not take."""
    found, broken = [], []
    for place, row in enumerate(rows, start=1):
        try:
            found.append(encode(row))
        except ValueError as error:
            broken.append(Broken(f"usable row {place}", str(error)))
    return found, broken
