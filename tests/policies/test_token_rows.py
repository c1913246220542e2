"""Models whose vocabulary is not the tokenizer's: padding rows, missing rows, and a tokenizer class that contradicts
its file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from burnish.errors import InputError
from burnish.generation.engine import make_sampler
from burnish.policies.loading import load_model, load_policy
from burnish.recipe.schema import LoRA
from burnish.types import Completion, Prompt, SamplingParams
from tests.fakes import RecordingObserver

PROMPTS = [Prompt("p", "The home team"), Prompt("q", "我爱")]
HOLES = 3
"""Ids without a token before the last five tokens."""


def make_holes(folder: Path) -> set[int]:
    """Move the tokenizer's last five ids up, and return the ids that have a token."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first = max(vocabulary.values()) - 4
    tokenizer["model"]["vocab"] = {
        token: index + HOLES if index >= first else index for token, index in vocabulary.items()
    }
    path.write_text(json.dumps(tokenizer))
    return set(tokenizer["model"]["vocab"].values())


def padded_model(kind: str, tiny, folder: Path, *, holes: bool = True, rows: int = 40) -> tuple[Path, torch.Tensor]:
    """Write a model with padding rows that take most of the probability; return it with the ids of real tokens."""
    from transformers import AutoConfig, AutoModelForCausalLM, Gemma2Config

    shutil.copytree(tiny("llama"), folder)
    real = (
        make_holes(folder)
        if holes
        else set(range(len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])))
    )
    size = max(real) + 1 + rows
    if kind == "gemma2":  # a soft cap: its head is not a product
        config = Gemma2Config(
            vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, final_logit_softcapping=5.0, bos_token_id=0, eos_token_id=1,
        )  # fmt: skip
    else:
        config = AutoConfig.from_pretrained(tiny(kind), vocab_size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    return folder, torch.tensor(sorted(real))


def expected_logprobs(model, completions, real: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """Return the log-probabilities [T] under the softmax over real tokens, one text at a time, without burnish."""
    values = []
    for one in completions:
        ids = torch.tensor([one.prompt_ids + one.token_ids])
        logits = model.model(input_ids=ids, use_cache=False).logits[0][:, real] / sampling.temperature
        if sampling.top_k:
            edge = logits.topk(sampling.top_k, -1).values[:, -1:]
            logits = logits.masked_fill(logits < edge, -torch.inf)
        logprobs = logits.log_softmax(-1)
        first = len(one.prompt_ids) - 1
        columns = torch.searchsorted(real, torch.tensor(one.token_ids))
        values.append(logprobs[torch.arange(first, first + len(columns)), columns])
    return torch.cat(values)


def sampled(model, sampling: SamplingParams) -> list[Completion]:
    groups = make_sampler(model).sample(PROMPTS, samples_per_prompt=6, sampling=sampling, seed=(1,))
    return [completion for group in groups for completion in group.completions]


MORE = [
    ("llama", False, {}), ("qwen2", True, {}), ("gemma2", False, {"temperature": 0.7, "top_k": 20}),
    ("mamba", True, {"temperature": 0.7, "top_k": 20}),
]  # fmt: skip


class TestPadding:
    @pytest.mark.parametrize(
        ("kind", "holes", "options"),
        [
            ("llama", True, {"temperature": 0.7, "top_k": 20}),
            ("gemma2", True, {}),
            *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE),
        ],
    )
    def test_sampler_and_policy_know_real_tokens_only(self, tiny, tmp_path, kind, holes, options):
        folder, real = padded_model(kind, tiny, tmp_path / "model", holes=holes)
        policy, sampling = load_policy(folder), SamplingParams(12, **options)
        completions = sampled(policy, sampling)
        tokens = torch.tensor([token for one in completions for token in one.token_ids])
        assert torch.isin(tokens, real).all()
        recorded = torch.tensor([value for one in completions for value in one.sampler_logprobs])
        with torch.no_grad():
            expected = expected_logprobs(policy, completions, real, sampling)
        assert torch.allclose(recorded.float(), expected, atol=1e-4)
        stats = policy.logprobs(completions, sampling)
        assert torch.allclose(stats.logprobs, expected, atol=1e-4)
        assert torch.isfinite(stats.entropy).all()
        assert float(stats.entropy.max()) <= torch.tensor(float(sampling.top_k or len(real))).log() + 1e-4

    @pytest.mark.parametrize(
        "kind", ["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("qwen2", "gemma2"))]
    )
    def test_the_gradient_is_that_of_the_softmax_over_real_tokens(self, tiny, tmp_path, kind):
        folder, real = padded_model(kind, tiny, tmp_path / "model")
        policy, sampling = load_policy(folder), SamplingParams(6)
        completions = sampled(policy, sampling)
        weights = torch.linspace(-1, 1, sum(len(one.token_ids) for one in completions))
        gradients = []
        for logprobs in (
            policy.logprobs(completions, sampling).logprobs, expected_logprobs(policy, completions, real, sampling),
        ):  # fmt: skip
            policy.model.zero_grad()
            (weights * logprobs).sum().backward()
            gradients.append({name: weight.grad.clone() for name, weight in policy.trainable().items()})
        for name, gradient in gradients[0].items():
            distance = float((gradient - gradients[1][name]).abs().max())
            assert distance < 1e-4 * float(gradient.abs().max()), name
        head = gradients[0].get("lm_head.weight", gradients[0]["model.embed_tokens.weight"])
        padding = torch.ones(len(head), dtype=torch.bool).index_fill(0, real, False)
        assert padding.sum() == 40 + HOLES and not head[padding].any()

    def test_the_entropy_has_a_finite_gradient(self, tiny, tmp_path):
        folder, real = padded_model("llama", tiny, tmp_path / "model")
        policy, sampling = load_policy(folder, dtype="float64"), SamplingParams(6)
        completions = sampled(policy, sampling)
        policy.logprobs(completions, sampling, entropy_gradient=True).entropy.sum().backward()
        found = policy.model.lm_head.weight.grad.clone()
        policy.model.zero_grad()
        total = torch.zeros(())
        for one in completions:
            ids = torch.tensor([one.prompt_ids + one.token_ids])
            logits = policy.model(input_ids=ids).logits[0, len(one.prompt_ids) - 1 : -1][:, real]
            total = total + torch.special.entr(logits.softmax(-1)).sum()
        total.backward()
        assert torch.allclose(found, policy.model.lm_head.weight.grad, atol=1e-10)

    def test_an_adapter_and_its_reference(self, tiny, tmp_path):
        folder, real = padded_model("llama", tiny, tmp_path / "model")
        policy, sampling = load_policy(folder, lora=LoRA(rank=4)), SamplingParams(8)
        base = load_model(folder)
        for name, weight in policy.trainable().items():
            if "lora_B" in name:
                weight.data.normal_(0, 0.1)
        completions = sampled(policy, sampling)
        with torch.no_grad():
            expected = expected_logprobs(policy, completions, real, sampling)
            reference = expected_logprobs(base, completions, real, sampling)
        recorded = torch.tensor([value for one in completions for value in one.sampler_logprobs])
        assert torch.allclose(recorded.float(), expected, atol=1e-4)
        assert torch.allclose(policy.logprobs(completions, sampling).logprobs, expected, atol=1e-4)
        assert torch.allclose(policy.reference.token_logprobs(completions), reference, atol=1e-4)
        assert not torch.allclose(expected, reference, atol=1e-2)

    def test_the_reloaded_reference_of_a_whole_policy(self, tiny, tmp_path):
        folder, real = padded_model("llama", tiny, tmp_path / "model")
        policy, sampling = load_policy(folder), SamplingParams(8)
        completions = sampled(policy, sampling)
        with torch.no_grad():
            expected = expected_logprobs(load_model(folder), completions, real, sampling)
            policy.model.lm_head.weight.mul_(1.5)
        assert torch.allclose(policy.reference.token_logprobs(completions), expected, atol=1e-4)

    def test_nothing_is_computed_where_all_rows_are_real(self, tiny):
        assert load_model(tiny("llama")).token_rows is None


def change(folder: Path, file: str, **values: object) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def add_token(folder: Path, text: str, *, special: bool) -> int:
    """Add a token after the last, without a row."""
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(text, special=special)], special_tokens=special)
    tokenizer.save_pretrained(folder)
    return len(tokenizer) - 1


class TestMissingRows:
    @pytest.fixture
    def folder(self, tiny, tmp_path) -> Path:
        return shutil.copytree(tiny("llama"), tmp_path / "model")

    @pytest.mark.parametrize("load", [load_model, load_policy])
    def test_a_token_of_texts_without_a_row_is_refused(self, folder, load):
        index = add_token(folder, "<think>", special=False)
        with pytest.raises(InputError, match=rf"beyond the model's {index} rows .*\({index} '<think>'\)") as error:
            load(folder)
        assert f"resize_token_embeddings({index + 1})" in str(error.value)
        assert "\n" not in str(error.value)

    def test_ordinary_tokens_are_refused_too(self, tiny, folder):
        make_holes(folder)
        with pytest.raises(InputError, match=r"beyond the model's 300 rows .*300 '.*', 301 '.*', 302 '"):
            load_model(folder)

    def test_a_special_token_that_the_template_writes_is_refused(self, folder):
        add_token(folder, "<|user|>", special=True)
        (folder / "chat_template.jinja").write_text("{% for m in messages %}<|user|>{{ m.content }}{% endfor %}")
        with pytest.raises(InputError, match=r"<\|user\|>"):
            load_model(folder)

    def test_an_unused_special_token_is_accepted_and_is_text_in_a_prompt(self, folder):
        index = add_token(folder, "<image_soft_token>", special=True)
        model = load_model(folder)
        assert index not in model.encode_prompt(Prompt("p", "an <image_soft_token>"))
        assert model.controls.in_answer("an <image_soft_token>") == "<image_soft_token>"  # sft refuses the row
        assert max(max(one.token_ids) for one in sampled(model, SamplingParams(4))) < index

    def test_special_tags_are_refused(self, folder):
        add_token(folder, "<tool>", special=True)
        add_token(folder, "</tool>", special=True)
        with pytest.raises(InputError, match=r"300 '<tool>', 301 '</tool>'\)"):
            load_model(folder)


class TestTokenizerClass:
    @pytest.mark.parametrize("name", ["GemmaTokenizer", "T5Tokenizer", "ByT5Tokenizer"])
    def test_the_file_is_followed_where_the_class_contradicts_it(self, tiny, tmp_path, name):
        folder = shutil.copytree(tiny("llama"), tmp_path / "model")
        change(folder, "tokenizer_config.json", tokenizer_class=name)
        observer = RecordingObserver()
        model = load_model(folder, observer=observer)
        text = "It's 12, no? 我爱"
        assert model.encode(text) == load_model(tiny("llama")).encode(text)
        (warning,) = observer.warnings
        assert "tokenizer_class" in warning and "tokenizer.json" in warning and "\n" not in warning
        assert warning.endswith("tokenizer.json is used. To use the class, remove the file")

    def test_the_class_that_transformers_chooses_by_the_models_type(self, tiny):
        # A Qwen2 gets a Qwen2Tokenizer, which normalises accents, whatever its configuration and its file say.
        observer = RecordingObserver()
        model = load_model(tiny("qwen2"), observer=observer)
        assert "tokenizer_class Qwen2Tokenizer and its tokenizer.json encode text differently" in observer.warnings[0]
        assert model.decode(model.encode("e\u0301")) == "e\u0301"

    @pytest.mark.parametrize("name", ["GPT2Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"])
    def test_a_class_that_agrees_is_used(self, tiny, tmp_path, name):
        folder = shutil.copytree(tiny("llama"), tmp_path / "model")
        change(folder, "tokenizer_config.json", tokenizer_class=name)
        observer = RecordingObserver()
        load_model(folder, observer=observer)
        assert observer.warnings == []
