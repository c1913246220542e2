"""Rows of a model's head that belong to a token, and checks that a tokenizer fits its model."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from burnish.errors import one_line
from burnish.policies.special_tokens import is_tag

NEGLIGIBLE = -1e30
"""Logit of a row without a token. Its probability is exactly 0; unlike infinity, it leaves p log p a number."""

PROBE = "Don't STOP: it's 12345.67, e\u0301 naïve, isn't IT?  Two  blanks,\n\n\tif x>=10: return f(x)[1] # 我爱你。今天"
"""Text that shows how a tokenizer treats case, digits, marks, blanks, accents and Chinese."""


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of a head that belong to a token, if others do not: those are never sampled and have no gradient.

    Attributes:
        count: rows up to the one of the last token; the head is cut there.
        holes: [H], earlier rows without a token.
    """

    count: int
    holes: Tensor

    def fill(self, logits: Tensor) -> Tensor:
        """Remove the holes from logits [..., count], in place."""
        return logits.index_fill_(-1, self.holes, NEGLIGIBLE) if len(self.holes) else logits

    def select(self, logits: Tensor) -> Tensor:
        """Return logits [..., V] as [..., count], without the holes."""
        logits = logits[..., : self.count]
        return logits.index_fill(-1, self.holes, NEGLIGIBLE) if len(self.holes) else logits


def find_token_rows(model: Any, tokenizer: Any) -> TokenRows | None:
    """Return the rows of a model's head that belong to a token; None if all do."""
    ids, rows = _token_ids(tokenizer), _head_rows(model)
    last = max((token for token in ids if token < rows), default=-1)
    holes = sorted(set(range(last)) - ids)
    if last == rows - 1 and not holes:
        return None
    return TokenRows(last + 1, torch.tensor(holes, dtype=torch.long, device=model.device))


def count_rows(model: Any) -> int:
    """Return the number of token ids that a model can read and predict."""
    return min(int(model.get_input_embeddings().weight.shape[0]), _head_rows(model))


def check_token_rows(model: Any, tokenizer: Any) -> None:
    """Raise ValueError if a text may have a token that the model has no row for.

    Special tokens that no text is given by the tokenizer or the chat template are accepted: Gemma 3 1B comes with one
    for images, and copies of Llama 2 with one for padding.
    """
    rows = count_rows(model)
    missing = {index: token for token, index in tokenizer.get_vocab().items() if index >= rows}
    for index in _unused_tokens(tokenizer) if missing else ():
        missing.pop(index, None)
    if missing:
        names = ", ".join(f"{index} '{missing[index]}'" for index in sorted(missing)[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"its tokenizer has tokens beyond the model's {rows} rows of embeddings ({names}{more}): resize them with "
            f"model.resize_token_embeddings({max(missing) + 1}) and save the model, or use its own tokenizer"
        )


def load_tokenizer(source: str | Path, *, offline: bool) -> tuple[Any, str]:
    """Load a model's tokenizer; return it with a warning, "" if there is none to give.

    transformers rebuilds the tokenizer of the class that ``tokenizer_class`` or the model's type names, with rules of
    its own, and takes little but the vocabulary from tokenizer.json. Where the two encode text differently, the file is
    followed: it was saved with the model, and other programs read it.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    options: Any = {"local_files_only": offline, "trust_remote_code": False}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, **options)
        if type(tokenizer) is PreTrainedTokenizerFast:
            return tokenizer, ""  # read from tokenizer.json as it is
        file = _read_tokenizer_file(source, offline=offline)
        pair = None if file is None else _differing_tokens(tokenizer, file)
    except Exception as error:  # the class expects a vocabulary of another kind; tokenizers has no errors of its own
        if _read_tokenizer_file(source, offline=offline) is None:
            raise ValueError(
                f"its tokenizer_config.json and vocabulary give no tokenizer: {one_line(error)[:200]}"
            ) from error
        difference = f"its tokenizer_class cannot use its tokenizer.json ({one_line(error)[:120]})"
    else:
        if pair is None:
            return tokenizer, ""
        difference = (
            f"its tokenizer_class {type(tokenizer).__name__} and its tokenizer.json encode text differently ({pair[0]} "
            f"or {pair[1]} at one position)"
        )
    warning = f"model '{source}': {difference}; tokenizer.json is used. To use the class, remove the file"
    return PreTrainedTokenizerFast.from_pretrained(source, **options), warning


def _read_tokenizer_file(source: str | Path, *, offline: bool) -> Any:
    from tokenizers import Tokenizer
    from transformers.utils.hub import cached_file

    path = cached_file(
        str(source), "tokenizer.json", local_files_only=offline, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    try:
        return None if path is None else Tokenizer.from_file(str(path))
    except Exception as error:
        raise ValueError(f"its tokenizer.json cannot be read ({one_line(error)[:120]})") from error


def _differing_tokens(tokenizer: Any, file: Any) -> tuple[str, str] | None:
    """Return the first tokens in which a tokenizer and its file differ on the probe; None if they agree."""
    file.no_truncation()
    file.no_padding()
    # A blank before the first word is an option of its own, which tokenizer_config.json may set.
    for start in ("", " ") if "add_prefix_space" in tokenizer.init_kwargs else ("",):
        ids = list(tokenizer(start + PROBE, add_special_tokens=False)["input_ids"])
        expected = file.encode(start + PROBE, add_special_tokens=False).ids
        if ids == expected:
            return None
    own, read = next(pair for pair in zip_longest(ids, expected) if pair[0] != pair[1])
    return (
        "nothing" if own is None else f"'{tokenizer.convert_ids_to_tokens(own)}'",
        "nothing" if read is None else f"'{file.id_to_token(read)}'",
    )


def _token_ids(tokenizer: Any) -> set[int]:
    ids = set(tokenizer.get_vocab().values())
    # In a tokenizer written in Python, several ids may have one text, and the vocabulary has only one of them.
    return ids if getattr(tokenizer, "is_fast", False) else ids.union(range(tokenizer.vocab_size))


def _head_rows(model: Any) -> int:
    weight = getattr(model.get_output_embeddings(), "weight", None)
    return int((model.get_input_embeddings().weight if weight is None else weight).shape[0])


def _unused_tokens(tokenizer: Any) -> list[int]:
    """Return the special tokens that neither the tokenizer nor its chat template gives to a text."""
    added, template = tokenizer.added_tokens_decoder, str(tokenizer.chat_template or "")
    names = [token.content for token in added.values()]
    return [
        index
        for index, token in added.items()
        if token.special and index not in (tokenizer.bos_token_id, tokenizer.eos_token_id)
        if token.content not in template and not is_tag(token.content, names)
    ]
