"""Vocabularies for models without a tokenizer: characters, bytes, or byte pairs learnt from the training text.

A vocabulary is built from texts deterministically and saved beside the weights as ``vocabulary.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from burnish.errors import InputError, one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from burnish.types import Prompt

FILE = "vocabulary.json"
KINDS = ("character", "byte", "bpe")
END, UNKNOWN = "<end>", "<unknown>"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def refuse_messages(prompt: Prompt) -> None:
    """Raise InputError if a prompt is a conversation: a bare vocabulary has no chat template."""
    if prompt.messages:
        raise InputError(
            f"prompt '{prompt.id}' is a conversation, and this policy has no chat template: set task.chat = false, or "
            "give the task's prompts no messages"
        )


class Vocabulary(Protocol):
    """Mapping between text and token ids."""

    @property
    def size(self) -> int:
        """V, the number of tokens."""
        ...

    @property
    def begin(self) -> int | None:
        """The token before every text; None if texts begin with their first character."""
        ...

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a text."""
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """Return token ids, without special tokens. Raises InputError if a character has no token."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that ``read_vocabulary`` reads."""
        ...


@dataclass(frozen=True)
class CharacterVocabulary:
    """One token per character. Raises InputError if a token occurs twice or is empty, or an id is out of range.

    Args:
        tokens: the tokens, by id. A single character is text; a longer token, such as ``<end>``, is a special token
            that no text contains.
        begin, end: ids of the tokens that begin and end a text, if any. A single character (a full stop) ends the text
            and is part of it.
        unknown: id of the token for characters without a token; if None, they raise InputError.
    """

    tokens: tuple[str, ...]
    begin: int | None = None
    end: int | None = None
    unknown: int | None = None
    _ids: dict[str, int] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if "" in self.tokens or len(set(self.tokens)) < len(self.tokens) or len(self.tokens) < 2:
            raise InputError("vocabulary: it needs at least two tokens, all different and not empty")
        for name in ("begin", "end", "unknown"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < len(self.tokens):
                raise InputError(
                    f"vocabulary: {name} = {token} is not a token id: write a number below {len(self.tokens)}"
                )
        self._ids.update({token: index for index, token in enumerate(self.tokens) if len(token) == 1})

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> CharacterVocabulary:
        """Return the texts' characters by code point, after ``<end>`` (which also begins texts) and ``<unknown>``."""
        characters = sorted({character for text in texts for character in text})
        return cls((END, UNKNOWN, *characters), begin=0, end=0, unknown=1)

    @property
    def size(self) -> int:
        return len(self.tokens)

    @property
    def ends(self) -> frozenset[int]:
        return frozenset() if self.end is None else frozenset((self.end,))

    def encode(self, text: str) -> tuple[int, ...]:
        if self.unknown is not None:
            return tuple(self._ids.get(character, self.unknown) for character in text)
        try:
            return tuple(self._ids[character] for character in text)
        except KeyError as error:
            raise InputError(
                f"the vocabulary has no token for {error.args[0]!r}: remove the character, or give the vocabulary an "
                "unknown token"
            ) from error

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self._token_text(token) for token in token_ids)

    def _token_text(self, token: int) -> str:
        if len(self.tokens[token]) == 1:
            return self.tokens[token]
        return REPLACEMENT if token == self.unknown else ""

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "character", "tokens": list(self.tokens),
            "begin": self.begin, "end": self.end, "unknown": self.unknown,
        }  # fmt: skip


class ByteVocabulary:
    """Bytes and frequent pairs of them (byte-level BPE, Sennrich et al. 2016, arXiv 1508.07909): any text has tokens.

    Token 0 begins and ends a text. The tokenizer has no special tokens, so that no text is mistaken for one.
    """

    begin = 0
    ends = frozenset((0,))

    def __init__(self, tokenizer: Tokenizer, kind: Literal["byte", "bpe"] = "bpe") -> None:
        self.tokenizer = tokenizer
        self.kind = kind

    @classmethod
    def from_texts(cls, texts: Iterable[str], size: int | None = None) -> ByteVocabulary:
        """Learn byte pairs from the texts until there are ``size`` tokens, at least 257; None: the 256 bytes only."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if size is not None and size < 257:
            raise InputError(f"policy.vocabulary_size = {size}: 256 bytes and the end token need 257 or more")
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        if size is not None:
            trainer = trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False)
            tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer, "byte" if size is None else "bpe")

    @property
    def size(self) -> int:
        return 1 + int(self.tokenizer.get_vocab_size())

    def encode(self, text: str) -> tuple[int, ...]:
        # A lone surrogate cannot be encoded in UTF-8.
        clean = text.encode("utf-8", "replace").decode("utf-8")
        return tuple(1 + token for token in self.tokenizer.encode(clean, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode([token - 1 for token in token_ids if token > 0], skip_special_tokens=False))

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "tokenizer": json.loads(self.tokenizer.to_str())}


def build_vocabulary(kind: str, texts: Iterable[str], size: int | None = None) -> Vocabulary:
    """Return a vocabulary of one of ``KINDS`` from texts; only a "bpe" vocabulary has a size."""
    if kind == "character":
        return CharacterVocabulary.from_texts(texts)
    return ByteVocabulary.from_texts(texts, size if kind == "bpe" else None)


def write_vocabulary(vocabulary: Vocabulary, folder: Path) -> None:
    """Write ``vocabulary.json`` into a folder."""
    text = json.dumps(vocabulary.to_json(), ensure_ascii=False, indent=1) + "\n"
    (folder / FILE).write_text(text, encoding="utf-8")


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a file of ``write_vocabulary``. Raises InputError if it is missing or invalid."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["kind"] == "character":
            return CharacterVocabulary(tuple(data["tokens"]), data.get("begin"), data.get("end"), data.get("unknown"))
        if data["kind"] in ("byte", "bpe"):
            from tokenizers import Tokenizer

            return ByteVocabulary(Tokenizer.from_str(json.dumps(data["tokenizer"])), data["kind"])
        raise ValueError(f"kind = {data['kind']!r}; known: {', '.join(KINDS)}")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # tokenizers raises Exception itself
        reason = one_line(error)[:200]
        raise InputError(f"{path}: not a vocabulary ({type(error).__name__}: {reason})") from error
