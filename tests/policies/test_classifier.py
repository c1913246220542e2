"""Sequence classifiers as rewards: equal to one unpadded pass per text, for tiny random models of many families."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.tiny_models import byte_tokenizer
from burnish.errors import BurnishError, InputError
from burnish.policies.classifier import load_classifier
from burnish.policies.pretrained import quiet_transformers
from burnish.rewards.forms import Context
from burnish.rewards.library import learned
from burnish.rewards.part import Part
from burnish.rewards.registry import REWARDS
from tests.policies.tiny_classifiers import write_classifier as write
from tests.rewards.completions import answer

SLOW = ["distilbert", "electra", "xlm-roberta", "deberta-v2", "bart", "modernbert"]
ENCODERS = ["bert", "roberta", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]
SLOW = ["gpt2", "qwen2", "qwen3", "mistral", "gemma2", "gpt_neox", "opt"]
DECODERS = ["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]
CHAT = "{% for m in messages %}{{ bos_token }}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
TEXTS = [
    "",
    "short",
    "a somewhat longer text",
    "equal",
    "我爱你",
    "ends <|end|>",
    "<|begin|>assistant: 10<|end|>",
    "\ud83d",
]


@pytest.fixture(autouse=True)
def _no_cache():
    learned._CLASSIFIERS.clear()


def score(folder: Path, texts, **options) -> list[float]:
    completions = [answer(text, prompt="a question") for text in texts]
    part = Part("c", REWARDS.get("classifier"), options={"model": str(folder), **options})
    part.check()
    return part.values(completions, Context())[0].tolist()


def plain(folder: Path, ids: list[list[int]], **more) -> torch.Tensor:
    """Return the outputs of transformers for each text alone."""
    from transformers import AutoModelForSequenceClassification

    with quiet_transformers(), torch.no_grad():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        kinds = more.get("token_type_ids", [None] * len(ids))
        rows = [
            model(torch.tensor([own]), **({} if kind is None else {"token_type_ids": torch.tensor([kind])})).logits[0]
            for own, kind in zip(ids, kinds, strict=True)
        ]
    return torch.stack(rows)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("pad", [None, 1, 2], ids=["no padding token", "the end token", "its own"])
def test_a_decoder_scores_conversations_as_one_pass_per_text(tmp_path, kind, pad):
    folder = write(tmp_path, kind, pad=pad, chat=CHAT, num_labels=1)
    tokenizer = byte_tokenizer()
    texts = [text for text in TEXTS if "<|" not in text and "\ud83d" not in text]
    rendered = [f"<|begin|>user: a question<|end|><|begin|>assistant: {text}<|end|>" for text in texts]
    expected = plain(folder, [tokenizer(text, add_special_tokens=False)["input_ids"] for text in rendered])[:, 0]
    assert score(folder, texts) == pytest.approx(expected.tolist(), abs=1e-5)
    assert expected.std() > 1e-3, "the texts are told apart"


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_reads_a_pair_or_the_completion_as_one_pass_per_text(tmp_path, kind):
    folder = write(tmp_path, kind, pad=2, pair=True, id2label={0: "BAD", 1: "GOOD"})
    network = load_classifier(str(folder))
    texts = [text for text in TEXTS if "<|" not in text and "\ud83d" not in text]
    for reads, arguments in (("pair", [("a question", text) for text in texts]), ("completion", [(t,) for t in texts])):
        rows = [{name: own[0] for name, own in network.tokenizer(*([t] for t in some)).items()} for some in arguments]
        more = {"token_type_ids": [row["token_type_ids"] for row in rows]} if "token_type_ids" in rows[0] else {}
        logits = plain(folder, [row["input_ids"] for row in rows], **more).double()
        assert score(folder, texts, label="GOOD", reads=reads) == pytest.approx(
            logits.softmax(1)[:, 1].tolist(), abs=1e-5
        )
        assert score(folder, texts, label="BAD", reads=reads, form="logprob") == pytest.approx(
            logits.log_softmax(1)[:, 0].tolist(), abs=1e-5
        )


def test_labels_that_do_not_exclude_one_another_have_probabilities_of_their_own(tmp_path):
    folder = write(tmp_path, "bert", pad=2, num_labels=3, problem_type="multi_label_classification")
    ids = byte_tokenizer()("abc")["input_ids"]
    expected = plain(folder, [ids])[0].sigmoid().tolist()
    values = [score(folder, ["abc"], label=f"LABEL_{index}", reads="completion")[0] for index in range(3)]
    assert values == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("kind", "reads"), [("llama", "chat"), ("bert", "pair"), ("gpt2", "completion")])
def test_a_control_token_in_a_text_is_text(tmp_path, kind, reads):
    folder = write(tmp_path, kind, pad=None, chat=CHAT, pair=True, num_labels=1)
    network = load_classifier(str(folder))
    encoded = [network.encode_completion(answer(text, prompt="q"), reads, "left", 0)[0]["input_ids"] for text in TEXTS]
    ends = {text: ids.count(1) for text, ids in zip(TEXTS, encoded, strict=True)}
    assert set(ends.values()) == {2 if reads != "completion" else 1}, "no text forges a turn"


@pytest.mark.parametrize(("kind", "reads"), [("llama", "chat"), ("roberta", "completion"), ("gpt2", "completion")])
def test_a_text_that_is_too_long_is_cut_or_refused(tmp_path, kind, reads):
    folder = write(tmp_path, kind, pad=2, chat=CHAT, num_labels=1, max_position_embeddings=64)
    network = load_classifier(str(folder))
    limit = 61 if kind == "roberta" else 64  # RoBERTa's positions begin behind the row for padding, here 2
    assert network.max_tokens == limit
    text = "start" + "x" * 100 + "stop"
    whole = network.encode_completion(answer(text, prompt="q"), reads, "left", 0)
    ids = byte_tokenizer()(text if reads == "completion" else f"user: q{text}")["input_ids"]
    assert whole[1] and len(whole[0]["input_ids"]) == limit
    assert len(ids) > limit
    for side, words in (("left", "stop"), ("right", "start")):
        inputs, cut = network.encode_completion(answer(text, prompt="q"), reads, side, 40)
        assert cut and len(inputs["input_ids"]) == 40 and words in network.tokenizer.decode(inputs["input_ids"])
    scores = score(folder, [text], reads=reads)
    assert scores[0] == pytest.approx(plain(folder, [whole[0]["input_ids"]])[0, 0].item(), abs=1e-5)
    with pytest.raises(BurnishError, match=rf"tokens, and the classifier reads {limit}: set overlong"):
        score(folder, [text], reads=reads, overlong="refuse")


def test_cut_texts_are_counted(tmp_path):
    folder = write(tmp_path, "gpt2", pad=None, num_labels=1)
    counts: dict[str, float] = {}
    part = Part("c", REWARDS.get("classifier"), options={"model": str(folder), "reads": "completion", "max_tokens": 4})
    part.values([answer("abc"), answer("abcdef")], Context(count=counts.__setitem__))
    assert counts == {"overlong": 1}


def test_a_model_without_a_trained_head_is_refused_by_name(tmp_path, tiny):
    with pytest.raises(InputError, match=r"its files lack score\.weight, as those of a model without a trained"):
        load_classifier(str(tiny("llama")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"reads = \"chat\": the model has no chat template: set \"pair\" if"),
        ({"reads": "pair", "label": "GOD"}, r"label = 'GOD' \(did you mean 'GOOD'\?\): must be one of .*: BAD, GOOD"),
        ({"reads": "pair"}, r"label is not set: must be one of the model's labels: BAD, GOOD"),
    ],
)
def test_before_training_what_cannot_work_is_refused(tmp_path, options, message):
    folder = write(tmp_path, "bert", pad=2, id2label={0: "BAD", 1: "GOOD"})
    options = {"model": str(folder), "label": "GOOD", **options} if "reads" not in options else options
    with pytest.raises(InputError, match=message):
        REWARDS.get("classifier").preflight({"model": str(folder), **options})


def test_preflight_names_what_it_reads_and_a_score_has_no_label(tmp_path):
    folder = write(tmp_path, "gpt2", pad=None, num_labels=1)
    reward, options = REWARDS.get("classifier"), {"model": str(folder), "reads": "pair"}
    assert reward.preflight(options) == (
        f"classifier '{folder}': its score, reads = \"pair\", up to 512 tokens", "info",
    )  # fmt: skip
    with pytest.raises(InputError, match="the model has one output, a score: remove label"):
        reward.preflight({**options, "label": "GOOD"})
    with pytest.raises(InputError, match="a score and no probability: remove form"):
        reward.preflight({**options, "form": "logprob"})


def test_options_and_hub_ids_are_checked_at_once():
    reward = REWARDS.get("classifier")
    for options, message in (
        ({}, "classifier: set model to a folder, or a hub id"),
        ({"model": "a/b", "reads": "text"}, "classifier: unknown reads = 'text'; known: chat, pair, completion"),
        ({"model": "a/b", "overlong": "drop"}, "classifier: unknown overlong = 'drop'; known: left, right, refuse"),
        ({"model": "a/b", "form": "log"}, "classifier: unknown form = 'log'.*known: probability, logprob"),
        ({"model": "a/b", "max_tokens": -1}, "max_tokens = -1: must be at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            reward.check_options(options)
    with pytest.raises(InputError, match="model 'a/b' is not in the hub's cache, and nothing may be downloaded"):
        reward.preflight({"model": "a/b"}, offline=True)


def test_pickled_weights_and_adapters_are_refused(tmp_path):
    folder = write(tmp_path, "gpt2", pad=None, num_labels=1)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled"):
        load_classifier(str(folder))
