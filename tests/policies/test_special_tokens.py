"""Special tokens in completions and prompts, and text in the context of what precedes it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from burnish.policies.causal_lm import CausalModel
from burnish.policies.loading import load_model
from burnish.policies.special_tokens import TextCodec, find_added_tokens, is_tag
from burnish.types import Message, Prompt

TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


@pytest.fixture
def model(tiny):
    loaded = load_model(tiny("llama"))
    loaded.tokenizer.add_tokens(["<|turn|>", "<think>", "</think>", "<|tool|>"], special_tokens=True)
    loaded.model.resize_token_embeddings(len(loaded.tokenizer))
    loaded = CausalModel(loaded.model, loaded.tokenizer)
    loaded.tokenizer.chat_template = TEMPLATE
    return loaded


def test_only_beginning_end_and_padding_are_left_out_of_a_completion(model) -> None:
    text = "<|begin|><think>a</think><|tool|>b<|end|>"
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert model.decode(ids) == "<think>a</think><|tool|>b"


@pytest.mark.parametrize("token", ["<|end|>", "<|begin|>", "<|turn|>", "<|tool|>"])
def test_a_control_token_in_a_prompt_is_text(model, token: str) -> None:
    index = model.tokenizer.convert_tokens_to_ids(token)
    plain = model.encode_prompt(Prompt("p", f"a{token}b"))
    assert index not in plain and model.tokenizer.decode(plain) == f"a{token}b"
    chat = model.encode_prompt(Prompt("p", "", messages=(Message("user", f"a{token}b"),)))
    clean = model.encode_prompt(Prompt("p", "", messages=(Message("user", "ab"),)))
    assert chat.count(index) == clean.count(index)
    assert model.tokenizer.decode(chat) == f"<|turn|>user\na{token}b<|end|>\n<|turn|>assistant\n"


@pytest.mark.parametrize("token", ["<|end|>", "<|begin|>", "<|turn|>"])
def test_a_control_token_in_an_answer_is_text(model, token: str) -> None:
    index = model.tokenizer.convert_tokens_to_ids(token)
    ids = model.encode(f"a{token}b<think>")
    assert index not in ids and model.tokenizer.decode(ids) == f"a{token}b<think>"
    assert ids[-1] == model.tokenizer.convert_tokens_to_ids("<think>"), "tags carry meaning"
    assert index in model.encode_rendered(f"a{token}b")


def test_tags_in_a_prompt_stay_tokens(model) -> None:
    assert model.tokenizer.convert_tokens_to_ids("<think>") in model.encode_prompt(Prompt("p", "write <think> first"))


def test_tags_are_pairs(model) -> None:
    known = ["<think>", "</think>", "[THINK]", "[/THINK]", "<|START_X|>", "<|END_X|>", "<filename>"]
    assert [token for token in known if not is_tag(token, known)] == ["<filename>"]


def test_the_longest_added_token_wins() -> None:
    tokens = {7: SimpleNamespace(content="<a>"), 8: SimpleNamespace(content="<a><b>")}
    found = find_added_tokens(SimpleNamespace(added_tokens_decoder=tokens), "x<a><b><a>")
    assert [(token.id, token.start) for token in found] == [(8, 1), (7, 7)]


def word_marked(scheme: str):
    """A tokenizer of words with a mark in place of each blank, as those of Llama 2 and Mistral."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(["def add(a, b):\n    return a + b\n", "The end of it."] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("scheme", ["first", "always"])
@pytest.mark.parametrize("text", ["    return a", " b", "end", "\n    a"])
def test_a_completion_keeps_its_leading_blanks(scheme: str, text: str) -> None:
    tokenizer = word_marked(scheme)
    codec = TextCodec(tokenizer)
    ids = codec.encode(text)
    assert codec.decode(ids) == text
    # The prompt's text goes on: no blank is added, and none is lost.
    prompt = tokenizer("def add(a, b):\n", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode([*prompt, *ids]) == "def add(a, b):\n" + text
    assert codec.decode(codec.encode("end", begins=True), begins=True) == "end"


def test_a_tokenizer_of_bytes_needs_no_context(model) -> None:
    for text in (" of", "of", "\n", "", "我爱"):
        assert model.encode(text) == tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])
        assert model.decode(model.encode(text)) == text
    assert not model.codec._depends_on_context
