"""Special tokens in text: which are control tokens, which carry meaning, and text in the context of what precedes it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from burnish.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from burnish.policies.chat_template import ChatTemplate

BREAK = "\ufdd0"
"""A mark inside a control token that is text; Unicode reserves it, so that no text contains it."""
ANCHORS = ("\n", "a", "\u3002")
"""Texts after which a text is encoded as a continuation; the first is used that does not merge with it."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """An added token in a text: its id, its own text, and where it starts."""

    id: int
    text: str
    start: int


def find_added_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[AddedToken]:
    """Return the tokenizer's added tokens in a text, in order; the longest where several start."""
    ids = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
    if not ids:
        return []
    pattern = "|".join(map(re.escape, sorted(ids, key=len, reverse=True)))
    return [AddedToken(ids[match[0]], match[0], match.start()) for match in re.finditer(pattern, text)]


def is_tag(text: str, known: Sequence[str]) -> bool:
    """Return whether a token is one of a pair that carries meaning, such as ``<think>`` and ``</think>``."""
    for begin, end in (("<", "</"), ("[", "[/"), ("<|START_", "<|END_"), ("<|begin_of_", "<|end_of_")):
        for one, other in ((begin, end), (end, begin)):
            if text.startswith(one) and other + text.removeprefix(one) in known:
                return True
    return False


class ControlTokens:
    """The tokens that a text must not contain as such.

    In an answer these are the tokens that begin, end or structure a conversation, and those beyond the model's ``rows``:
    others, such as ``<think>`` or tool tags, may be learnt. In a prompt's text they are all special tokens but pairs of
    tags.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
        self.tokenizer, self.rows = tokenizer, rows
        self._key: object = None
        self.structural: frozenset[str] = frozenset()
        self._in_answers: re.Pattern[str] | None = None
        self._in_prompts: re.Pattern[str] | None = None

    def update(self, chat: ChatTemplate, ends: frozenset[int]) -> None:
        """Read the tokens again, if the template or the end tokens have changed."""
        key = chat.source, ends
        if key == self._key:
            return
        tokenizer, self._key = self.tokenizer, key
        added = {index: token for index, token in tokenizer.added_tokens_decoder.items() if token.content}
        known = [token.content for token in added.values()]
        ids = {*ends, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        structural = {token.content for index, token in added.items() if index in ids or index >= self.rows}
        if key[0]:
            user, answer = written_tokens(chat)
            structural |= user | {token for token in answer if not is_tag(token, known)}
        special = {token.content for token in added.values() if token.special and not is_tag(token.content, known)}
        self.structural = frozenset(structural)
        self._in_answers, self._in_prompts = _any_of(structural), _any_of(structural | special)

    def broken(self, text: str, *, answer: bool = False) -> str:
        """Return the text of a prompt or an answer with a break inside each control token, so that it is encoded as text."""
        pattern = self._in_answers if answer else self._in_prompts
        return pattern.sub(lambda match: match[0][:1] + BREAK + match[0][1:], text) if pattern else text

    def in_answer(self, text: str) -> str | None:
        """Return a control token in an answer, if there is one."""
        return next((token for token in sorted(self.structural) if token in text), None)


def _any_of(tokens: Collection[str]) -> re.Pattern[str] | None:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def written_tokens(chat: ChatTemplate) -> tuple[set[str], set[str]]:
    """Return the added tokens that a template writes around a user's message, and those around an answer."""
    user, answer = Message("user", "u"), Message("assistant", "a")
    for begin in ([Message("system", "s"), user], [user]):
        try:
            asked = chat.text(begin, begin_answer=False)
            whole = chat.text([*begin, answer, user], begin_answer=True)
        except ValueError:
            continue
        found = [{token.text for token in find_added_tokens(chat.tokenizer, text)} for text in (asked, whole)]
        return found[0], found[1]
    return set(), set()


class TextCodec:
    """Encoding and decoding of text that continues other text.

    Tokenizers with a word mark (Llama 2, Mistral) put a blank before the first word of a text and lose it again when they
    decode. A completion is no text of its own: its first word may continue the prompt's last.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str, *, begins: bool = False) -> tuple[int, ...]:
        """Return the token ids of a text, without special tokens around it.

        Args:
            begins: whether nothing precedes the text.
        """
        if not begins and self._depends_on_context:
            for anchor in ANCHORS:
                first, both = self._ids(anchor), self._ids(anchor + text)
                if both[: len(first)] == first:
                    return both[len(first) :]
        return self._ids(text)

    def decode(self, token_ids: Sequence[int], *, begins: bool = False) -> str:
        """Return the text of token ids, special ones included."""
        if begins or not self._depends_on_context:
            return self._text(token_ids)
        first = self._ids(ANCHORS[0])
        return self._text([*first, *token_ids])[len(self._text(first)) :]

    @cached_property
    def _depends_on_context(self) -> bool:
        """Whether a word has other tokens, or another text, at the beginning than after a line break."""
        rest = self._ids("\n word")[len(self._ids("\n")) :]
        return rest != self._ids(" word") or self._text(rest) != " word"

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text(self, token_ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )
