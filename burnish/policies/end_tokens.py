"""End tokens of a model, and settings of its files that burnish does not apply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED: Mapping[str, Any] = {
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "diversity_penalty": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0, "top_h": None, "guidance_scale": 1.0, "penalty_alpha": None, "dola_layers": None,
    "bad_words_ids": None, "sequence_bias": None, "suppress_tokens": None, "begin_suppress_tokens": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "forced_decoder_ids": None,
    "exponential_decay_length_penalty": None, "watermarking_config": None, "min_length": 0, "min_new_tokens": 0,
    "stop_strings": None,
}  # fmt: skip
"""Settings of generation_config.json that would change sampled tokens, with the value that changes nothing."""


def configured_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[int, list[str]]:
    """Return the end tokens that the model's files name, the tokenizer's first: token id -> the files.

    A config class fills in a number of its own where config.json has none. Such a number counts only if it is one of the
    tokenizer's added tokens.
    """
    config: Any = model.config
    ends: dict[int, list[str]] = {}
    for source, value in (
        ("tokenizer", tokenizer.eos_token_id),
        ("generation_config", getattr(getattr(model, "generation_config", None), "eos_token_id", None)),
        ("config", getattr(config, "eos_token_id", None)),
        ("config", getattr(config.get_text_config(), "eos_token_id", None)),
    ):
        for token in value if isinstance(value, list | tuple) else [value]:
            if token is None or token < 0:
                continue
            if token not in ends and source == "config" and token not in tokenizer.added_tokens_decoder:
                continue
            if source not in ends.setdefault(token, []):
                ends[token].append(source)
    return ends


def end_notes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, turn_end: int | None
) -> list[tuple[str, str]]:
    """Return messages about where a text ends, and about settings that are not applied: level and text of each.

    ``turn_end`` is the token that the chat template writes after an answer.
    """
    ends = configured_ends(model, tokenizer)
    if turn_end is not None:
        ends.setdefault(turn_end, []).append("chat template")
    names = [f"{tokenizer.convert_ids_to_tokens(token)} ({', '.join(sources)})" for token, sources in ends.items()]
    notes = [("info", f"a text ends at {' or '.join(names)}")]
    if not names:
        notes = [("warning", "no token ends a text: the model's files name none, so set sampling.stop_token_ids")]
    if ignored := _ignored_settings(model):
        notes.append((
            "warning",
            f"the model's generation_config asks for {', '.join(ignored)}, which burnish does not apply: other programs "
            "will sample from another distribution than the trained one",
        ))  # fmt: skip
    return notes


def _ignored_settings(model: PreTrainedModel) -> list[str]:
    """Return the names of the settings of generation_config.json that change what is sampled and are not applied."""
    config = model.generation_config
    settings = ((name, getattr(config, name, None), neutral) for name, neutral in IGNORED.items())
    return [name for name, value, neutral in settings if value not in (None, [], {}, neutral)]
