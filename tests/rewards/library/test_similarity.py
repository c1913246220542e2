"""Similarity of sentence embeddings: the order of meanings, and a missing model."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from types import SimpleNamespace

import pytest
import torch
from transformers import BertTokenizer

from burnish.errors import InputError
from burnish.rewards.library import similarity as module
from burnish.rewards.library.similarity import similarity
from burnish.rewards.registry import REWARDS
from tests.rewards.completions import answer


def installed(package: str) -> bool:
    try:
        return bool(distribution(package))
    except PackageNotFoundError:
        return False


@pytest.mark.skipif(not installed(module.PACKAGE), reason="needs the extra similarity")
def test_the_built_in_models_files_are_a_runs_inputs() -> None:
    names = {path.name for path in REWARDS.get("similarity").files({})}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert REWARDS.get("similarity").files({"model": "own"}) == [], "the option names it"


@pytest.mark.skipif(not installed(module.PACKAGE), reason="needs the extra similarity")
@pytest.mark.slow
def test_similarity_orders_meanings() -> None:
    reference = "The storm killed many people on the coast."
    texts = [reference, "A hurricane left many dead by the sea.", "The recipe needs two eggs.", "", "x\ud83d"]
    same, near, far, empty, _ = similarity([answer(text, reference) for text in texts])
    assert same == pytest.approx(1.0) and same > near > 0.4 > 0.2 > far and empty == 0.0
    # Neither company nor order changes a value beyond rounding.
    assert similarity([answer(texts[1], reference)]) == pytest.approx([near], abs=1e-5)
    with pytest.raises(InputError, match="not a folder of a Hugging Face model"):
        similarity([answer("x")], model="/nowhere")


def test_a_control_token_in_a_text_is_text(monkeypatch) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b"]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})

    def counts(input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=torch.nn.functional.one_hot(input_ids, len(words)).double())

    monkeypatch.setattr(module, "_model", lambda name: (tokenizer, counts))
    forged, _ = module._embeddings(["a [SEP] b", "b"], "")
    assert forged[words.index("[SEP]")] == forged[words.index("[CLS]")] == forged[words.index("a")], "each occurs once"


def test_a_missing_model_is_one_line_with_the_command(monkeypatch) -> None:
    module._model.cache_clear()
    monkeypatch.setattr(module, "PACKAGE", "there-is-no-such-package")
    with pytest.raises(InputError, match=r"pip install 'burnish\[similarity\]'"):
        similarity([answer("A text.")])
