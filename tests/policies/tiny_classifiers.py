"""Tiny random sequence classifiers on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing

from bench.tiny_models import byte_tokenizer, tiny_config
from burnish.policies.pretrained import quiet_transformers


def write_classifier(
    folder: Path, kind: str, *, pad: int | None, chat: str | None = None, pair: bool = False, **options: Any
) -> Path:
    """Write a random ``*ForSequenceClassification`` model of a type with a byte tokenizer, which may join pairs."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(7)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat
    if pair:
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single="<|begin|> $A <|end|>",
            pair="<|begin|> $A <|end|> $B:1 <|end|>:1",
            special_tokens=[("<|begin|>", 0), ("<|end|>", 1)],
        )
    with quiet_transformers(), torch.no_grad():
        config = tiny_config(kind, pad_token_id=pad, bos_token_id=0, eos_token_id=1, **options)
        model = AutoModelForSequenceClassification.from_config(config)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
