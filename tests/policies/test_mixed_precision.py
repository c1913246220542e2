"""bfloat16: float32 weights under it that all move, and log-probabilities near those of float32."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import burnish
from burnish.generation.engine import make_sampler
from burnish.policies.loading import load_model, load_policy
from burnish.policies.value_models import CausalValueModel
from burnish.recipe.schema import LoRA, Optimizer
from burnish.run.folder import read_lines
from burnish.run.interrupts import Interrupted
from burnish.training.optimizer import build_optimizer
from burnish.types import Completion, Prompt, SamplingParams
from tests.fakes import InterruptingObserver, RecordingObserver

TEXTS = [("The home team", " won the match"), ("The home team", " a"), ("a", "b"), ("Shares fell", " after it")]
SLOW = pytest.mark.slow
DORA = LoRA(rank=2, dora=True, modules_to_save=["input_layernorm"])


def completions(model) -> list[Completion]:
    rows = [(Prompt(prompt, prompt), model.encode(text)) for prompt, text in TEXTS]
    return [
        Completion(one, model.encode_prompt(one), tokens, "", (0.0,) * len(tokens), "length") for one, tokens in rows
    ]


def weigh(logprobs: torch.Tensor) -> torch.Tensor:
    return (logprobs * torch.randn(len(logprobs), generator=torch.Generator().manual_seed(3))).sum()


def backward(policy) -> None:
    """Leave the gradient of a random functional of the log-probabilities."""
    weigh(policy.logprobs(completions(policy), SamplingParams(1)).logprobs).backward()


def moved_share(policy, rate: float) -> dict[str, float]:
    """Return the share of each parameter's weights with a gradient that one AdamW step moves."""
    before = {name: weight.detach().clone() for name, weight in policy.trainable().items()}
    optimizer = build_optimizer(policy, Optimizer(learning_rate=rate))
    backward(policy)
    optimizer.step()
    shares = {}
    for name, weight in policy.trainable().items():
        if weight.grad is not None and (pushed := weight.grad != 0).any():
            shares[name] = float((weight != before[name])[pushed].float().mean())
    return shares


@pytest.mark.parametrize("rate", [1e-6, pytest.param(3e-6, marks=SLOW)])
@pytest.mark.parametrize("lora", [None, pytest.param(LoRA(rank=2, modules_to_save=["input_layernorm"]), marks=SLOW)])
@pytest.mark.parametrize("kind", ["llama", "lfm2"])
def test_as_many_weights_move_as_in_float32(tiny, kind, lora, rate):
    if lora is not None and kind == "lfm2":
        lora = LoRA(rank=2, modules_to_save=["ffn_norm"])
    policy = load_policy(tiny(kind), lora=lora, dtype="bfloat16")
    assert all(weight.dtype == torch.float32 for weight in policy.trainable().values())
    shares, expected = moved_share(policy, rate), moved_share(load_policy(tiny(kind), lora=lora), rate)
    assert shares.keys() == expected.keys()
    assert any("norm" in name for name in shares)
    assert min(expected.values()) > 0.9
    assert shares == pytest.approx(expected, abs=0.05)


def autocast_alone(source) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return log-probabilities [T] and gradient of the functional, by transformers under autocast, text by text."""
    alone, rows = load_policy(source), []
    for one in completions(alone):
        with torch.autocast("cpu", torch.bfloat16):
            logits = alone.model(input_ids=torch.tensor([one.prompt_ids + one.token_ids]), use_cache=False).logits[0]
        chosen = logits.float().log_softmax(-1)[len(one.prompt_ids) - 1 : -1]
        rows.append(chosen.gather(-1, torch.tensor(one.token_ids)[:, None]).squeeze(-1))
    logprobs = torch.cat(rows)
    weigh(logprobs).backward()
    return logprobs.detach(), {name: weight.grad for name, weight in alone.trainable().items()}


def apart(gradient, expected) -> float:
    """Return the largest difference as a share of the largest entry."""
    largest = max(float(grad.abs().max()) for grad in expected.values() if grad is not None)
    return (
        max(float((gradient[name] - grad).abs().max()) for name, grad in expected.items() if grad is not None) / largest
    )


@pytest.mark.parametrize(
    "kind", ["llama", *(pytest.param(kind, marks=SLOW) for kind in ("qwen3_moe", "lfm2", "mamba"))]
)
def test_as_near_to_float32_as_transformers_under_autocast(tiny, kind):
    exact, policy = load_policy(tiny(kind)), load_policy(tiny(kind), dtype="bfloat16")
    texts = completions(exact)
    expected, logprobs = (one.logprobs(texts, SamplingParams(1)).logprobs.detach() for one in (exact, policy))
    alone, alone_gradient = autocast_alone(tiny(kind))
    distance = float((logprobs - expected).abs().max())
    assert 1e-5 < distance < 1.5 * max(float((alone - expected).abs().max()), 0.02)
    assert torch.equal(policy.reference.token_logprobs(texts), policy.token_logprobs(texts))
    for one in (exact, policy):
        backward(one)
    gradient, measured = ({name: weight.grad for name, weight in one.trainable().items()} for one in (exact, policy))
    assert apart(measured, gradient) < 1.5 * max(apart(alone_gradient, gradient), 0.02)


@pytest.mark.parametrize(
    "lora", [None, *(pytest.param(one, marks=SLOW) for one in (LoRA(rank=2), DORA))], ids=["full", "lora", "dora"]
)
@pytest.mark.parametrize("kind", ["llama", "lfm2"])
def test_the_sampler_is_near_the_policy(tiny, kind, lora):
    if lora is not None and lora.dora and kind == "lfm2":
        lora = LoRA(rank=2, dora=True)
    policy = load_policy(tiny(kind), lora=lora, dtype="bfloat16")
    groups = make_sampler(policy).sample(
        [Prompt(prompt, prompt) for prompt, _ in TEXTS[1:]], samples_per_prompt=3, sampling=SamplingParams(8), seed=(1,)
    )
    sampled = [one for group in groups for one in group.completions]
    recorded = torch.tensor([value for one in sampled for value in one.sampler_logprobs])
    trained = policy.logprobs(sampled, SamplingParams(8)).logprobs.detach()
    assert float((recorded - trained).abs().max() / trained.abs().max()) < 5e-2


@pytest.mark.slow
def test_without_bfloat16_products_the_sampler_is_float32(tiny, monkeypatch):
    monkeypatch.setattr(
        "burnish.policies.kernels.mixed_precision.has_onednn_linear", lambda dtype: dtype != torch.bfloat16
    )
    policy, exact = load_policy(tiny("llama"), dtype="bfloat16"), load_policy(tiny("llama"))

    def sample(one):
        options = {"samples_per_prompt": 4, "sampling": SamplingParams(8), "seed": (1,)}
        return make_sampler(one).sample([Prompt("a", "a")], **options)

    assert sample(policy) == sample(exact)
    frozen = load_model(tiny("llama"), dtype="bfloat16")
    assert make_sampler(frozen)._repacked.dtype == torch.float32
    assert len(sample(frozen)[0].completions) == 4


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_a_saved_policy_has_the_same_bits(tiny, lora, tmp_path):
    policy = load_policy(tiny("llama"), lora=lora, dtype="bfloat16")
    moved_share(policy, 1e-6)
    policy.save(tmp_path)
    assert {tensor.dtype for tensor in load_file(next(tmp_path.glob("*.safetensors"))).values()} == {torch.float32}
    other = load_policy(tiny("llama"), lora=lora, dtype="bfloat16", seed=5)
    other.load(tmp_path)
    for name, weight in policy.trainable().items():
        assert torch.equal(other.trainable()[name], weight), name


def test_a_critic_and_gradient_checkpointing_train(tiny):
    policy = load_policy(tiny("llama"), dtype="bfloat16", gradient_checkpointing=True)
    backward(policy)
    plain = load_policy(tiny("llama"), dtype="bfloat16")
    backward(plain)
    for name, weight in plain.trainable().items():
        assert torch.equal(weight.grad, policy.trainable()[name].grad), name
    critic = CausalValueModel(plain)
    torch.nn.init.ones_(critic.head.weight)
    critic.values(completions(plain)).sum().backward()
    assert all(weight.dtype == torch.float32 for weight in critic.trainable().values())


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_resumed_run_has_the_same_bits(tiny, lora, tmp_path):
    model = load_policy(tiny("llama"))
    model.save_dtype = torch.bfloat16  # so that saving rounds the trained weights
    model.save(tmp_path / "base")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Text {n}:"}) + "\n" for n in range(24)))
    recipe = {
        "name": "small", "policy": {"model": str(tmp_path / "base"), "dtype": "bfloat16"}, "checkpoint": {"every": 1},
        "task": {"use": "data", "path": str(tmp_path / "prompts.jsonl"), "held_out_percent": 25, "chat": False},
        "sampling": {"prompts_per_step": 2, "samples_per_prompt": 4, "max_new_tokens": 6}, "steps": 2,
        "optimizer": {"learning_rate": 1e-6}, "evaluation": {"samples_per_prompt": 1},
        "reward": [{"use": "length_band"}],
    }  # fmt: skip
    if lora:
        recipe["policy"]["lora"] = lora
    burnish.train(recipe, run_dir=tmp_path / "whole", observer=RecordingObserver())
    with pytest.raises(Interrupted):
        burnish.train(recipe, run_dir=tmp_path / "cut", observer=InterruptingObserver(1))
    burnish.train(resume=tmp_path / "cut", observer=RecordingObserver())
    rows = [read_lines(tmp_path / name / "samples.jsonl") for name in ("whole", "cut")]
    assert list(rows[0]) == list(rows[1])
    for path in (tmp_path / "whole" / "checkpoints" / "step-2").rglob("*.safetensors"):
        other = load_file(str(path).replace("whole", "cut"))
        assert all(torch.equal(tensor, other[name]) for name, tensor in load_file(path).items()), path


def test_a_small_adapter_moves_what_the_sampler_records(tiny):
    """A weight of bfloat16 has 8 bits: rounded after the merge, an adapter of a thousandth of it would vanish."""
    policy = load_policy(tiny("llama"), dtype="bfloat16", lora=LoRA(rank=2, targets=["q_proj", "down_proj"]))
    prompts = [Prompt(text, text) for text in ("The home team", "Shares fell")]

    def recorded() -> torch.Tensor:
        groups = make_sampler(policy).sample(
            prompts, samples_per_prompt=4, sampling=SamplingParams(3, top_k=2), seed=(1,)
        )
        return torch.tensor([one.sampler_logprobs[0] for group in groups for one in group.completions])

    before = recorded()
    with torch.no_grad():
        for name, weight in policy.trainable().items():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)) * 1e-5)
    assert (recorded() != before).any()
