"""The checks of a model: they pass on an exact one, see a fault, and name a refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from bench.tiny_models import byte_tokenizer, write_tiny_model
from burnish.benchmark.model_check import CheckResult, Measured, ModelCase, check_model, run_check, verdict
from burnish.cli.app import app
from burnish.errors import InputError


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("models"))


@pytest.mark.slow
def test_an_exact_model_passes_every_check(llama):
    done = CliRunner().invoke(app, ["check", str(llama), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["verdict"] == "exact"
    assert [row["check"] for row in report["checks"]] == [
        "loading", "log-probabilities", "large logits", "sampler", "gradient", "saved", "LoRA", "full step", "LoRA step",
    ]  # fmt: skip


# A type per mechanism, with its layout; llama above is the plain case.
MECHANISMS = {
    "gpt2": "packed",  # tied weights, transposed linear layers
    "mistral": "packed",  # a sliding window
    "olmoe": "packed",  # a mixture of experts
    "diffllama": "packed",  # layers that attend twice
    "emu3": "packed",  # the text model of a multimodal family
    "bloom": "plain",  # positions as a bias
    "doge": "plain",  # sparse attention
    "bart": "plain",  # the decoder of an encoder-decoder
    "mamba": "plain",  # a state space
    "rwkv": "plain",  # recurrent
    "lfm2": "plain",  # a hybrid of convolutions and attention
    "gemma2": "own head",  # a soft cap
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MECHANISMS)
def test_every_mechanism_is_exact(kind, tmp_path):
    results = list(check_model(write_tiny_model(kind, tmp_path), tmp_path))
    assert verdict(results) == "exact"
    assert results[0].measurement.note.partition(":")[0] == MECHANISMS[kind]


@pytest.mark.slow
def test_a_bidirectional_model_is_refused(tmp_path):
    results = list(check_model(write_tiny_model("bert", tmp_path), tmp_path))
    assert verdict(results).startswith("refused: the logits of this bert model change with the text that follows")


def test_a_changed_weight_is_seen(llama):
    case = ModelCase(llama)
    assert case.check_logprobs().passed and case.check_gradient().passed
    with torch.no_grad():
        case.policy.model.model.layers[1].self_attn.q_proj.weight.add_(0.01)
    assert not case.check_logprobs().passed
    assert not case.check_gradient().passed
    assert not case.check_sampler().passed


@pytest.mark.slow
def test_rows_without_a_token_are_no_fault(tmp_path):
    rows = len(byte_tokenizer()) + 40
    case = ModelCase(write_tiny_model("llama", tmp_path, vocab_size=rows))
    assert len(case.unused) == 40
    assert case.check_logprobs().passed and case.check_gradient().passed and case.check_sampler().passed


def test_the_verdict_names_the_worst():
    exact = CheckResult("gradient", Measured(1e-6, True, "0.0001"))
    wrong = CheckResult("sampler", Measured(3.14, False, "0.0001"))

    def refuse() -> Measured:
        raise InputError("it attends to later tokens")

    def crash() -> Measured:
        raise ValueError("two\nlines")

    refused, crashed = run_check("loading", refuse), run_check("LoRA", crash)
    assert verdict([exact]) == "exact"
    assert verdict([refused]) == "refused: it attends to later tokens"
    assert verdict([exact, refused, crashed]) == "crash: LoRA: ValueError: two lines"
    assert verdict([crashed, exact, wrong, refused]) == "wrong: sampler 3.1"
    assert wrong.line() == "sampler             WRONG   3.1 (limit 0.0001)"
    assert CheckResult("gradient", Measured(float("nan"), False, "0.0001")).passed is False


def test_a_folder_that_is_not_a_model_is_bad_input(tmp_path):
    assert CliRunner().invoke(app, ["check", str(tmp_path)]).exception.exit_status == 2
