"""Text of a causal language model: prompts and answers as tokens, completions as text, and the tokens that end them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from burnish.errors import InputError
from burnish.policies.chat_answers import TurnEnd, find_turn_end
from burnish.policies.chat_template import ChatSettings, ChatTemplate
from burnish.policies.end_tokens import configured_ends, end_notes
from burnish.policies.sampling_distribution import check_token_ids
from burnish.policies.special_tokens import BREAK, ControlTokens, TextCodec
from burnish.policies.token_rows import count_rows
from burnish.types import Prompt, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ModelText:
    """A language model's tokenizer with its chat template and end tokens.

    Args:
        model: names end tokens in its configuration.
        tokenizer: its tokenizer.
        chat: how conversations become text.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chat: ChatSettings | None = None
    ) -> None:
        self.model: Any = model  # peft's models have methods of their own
        self.tokenizer = tokenizer
        self.chat = ChatTemplate(tokenizer, chat)
        self.codec = TextCodec(tokenizer)
        self._controls = ControlTokens(tokenizer, count_rows(model))
        self._turn_ends: dict[tuple[str, frozenset[int]], TurnEnd] = {}

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a text: those that the configuration names, and the one that ends a turn of the template."""
        turn = self.turn_end.token
        return self._configured_ends if turn is None else self._configured_ends | {turn}

    @property
    def _configured_ends(self) -> frozenset[int]:
        return frozenset(configured_ends(self.model, self.tokenizer))

    @property
    def text_end(self) -> int | None:
        """The token that ends a plain text: the tokenizer's, else the first that the model's files name."""
        return next(iter(configured_ends(self.model, self.tokenizer)), None)

    def end_notes(self) -> list[tuple[str, str]]:
        """Return messages about where a text ends, and about settings that are not applied: level and text of each."""
        return end_notes(self.model, self.tokenizer, self.turn_end.token)

    @property
    def turn_end(self) -> TurnEnd:
        """How an answer of a conversation ends."""
        key = self.chat.source, self._configured_ends
        if key not in self._turn_ends:
            self._turn_ends[key] = find_turn_end(self.chat, key[1]) if key[0] else TurnEnd()
        return self._turn_ends[key]

    @property
    def controls(self) -> ControlTokens:
        """The tokens that text must not contain, since they would forge a turn or an end."""
        self._controls.update(self.chat, self.end_ids)
        return self._controls

    @property
    def silent_ids(self) -> frozenset[int]:
        """Tokens that a completion's text leaves out: those for the beginning, the end and padding."""
        return self.end_ids.union(
            token for token in (self.tokenizer.bos_token_id, self.tokenizer.pad_token_id) if token is not None
        )

    def stop_ids(self, sampling: SamplingParams) -> frozenset[int]:
        """Return the tokens that end a sampled text: the model's own, those of ``sampling``, and stop texts that are tokens
        which the text leaves out."""
        check_token_ids(sampling.stop_token_ids, self.model.config.get_text_config().vocab_size)
        if not sampling.stop:
            return self.end_ids.union(sampling.stop_token_ids)
        silent = (token for token in self.silent_ids if self.tokenizer.convert_ids_to_tokens(token) in sampling.stop)
        return self.end_ids.union(sampling.stop_token_ids, silent)

    def encode(self, text: str, *, begins: bool = False) -> tuple[int, ...]:
        """Return the token ids of an answer or a text that continues a prompt, without special tokens around it.

        A control token inside the text is encoded as text; ``<think>`` and tool tags stay tokens.

        Args:
            begins: whether the prompt is empty.
        """
        return self._encode_pieces(self.controls.broken(text, answer=True), begins=begins)

    def encode_rendered(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text of the chat template: its control tokens are tokens where they are not broken."""
        return self._encode_pieces(text)

    def _encode_pieces(self, broken: str, *, begins: bool = False) -> tuple[int, ...]:
        first, *rest = broken.split(BREAK)
        ids = self.codec.encode(first, begins=begins)
        return (*ids, *(token for piece in rest for token in self.codec.encode(piece)))

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids of a prompt, with the beginning-of-text token if the model has one.

        A prompt with messages goes through the model's chat template, up to the start of the assistant's answer. A
        control token inside the prompt's text is encoded as text.

        Raises:
            InputError: the prompt is empty and the model has no token to begin with; or it has messages and the model
                has no chat template, or the template rejects them or leaves one out.
        """
        if prompt.messages:
            return self._encode_messages(prompt)
        first, *rest = self.controls.broken(prompt.text).split(BREAK)
        ids = list(self.tokenizer(first)["input_ids"])
        while ids and ids[-1] in self.end_ids and ids[-1] != self.tokenizer.bos_token_id:
            ids.pop()
        ids += [token for piece in rest for token in self.codec.encode(piece)]
        if not ids:
            begins = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
            ids = [token for token in begins if token is not None][:1]
            if not ids:
                raise InputError(f"prompt '{prompt.id}' is empty and the model has no token to begin a text with")
        return tuple(ids)

    def _encode_messages(self, prompt: Prompt) -> tuple[int, ...]:
        if not self.chat.source:
            raise InputError(
                f"prompt '{prompt.id}' is a conversation and the model has no chat template: set task.chat = false, or "
                "choose a model that was tuned for chat"
            )
        broken = self.controls.broken
        messages = [
            replace(one, content=broken(one.content), reasoning=broken(one.reasoning)) for one in prompt.messages
        ]
        try:
            text = self.chat.text(messages, begin_answer=True)
        except ValueError as error:
            raise InputError(
                f"prompt '{prompt.id}': the model's chat template refuses its messages ({error}): their roles are "
                f"{', '.join(message.role for message in prompt.messages)}"
            ) from error
        try:
            self.chat.refuse_lost(messages, text)
        except ValueError as error:
            raise InputError(f"prompt '{prompt.id}': {error}") from error
        return self._encode_pieces(text, begins=True)

    def decode(self, token_ids: Sequence[int], *, begins: bool = False) -> str:
        """Return the text of a completion. Only tokens for the beginning, the end and padding are left out.

        Args:
            begins: whether the prompt is empty.
        """
        silent = self.silent_ids
        return self.codec.decode([token for token in token_ids if token not in silent], begins=begins)
