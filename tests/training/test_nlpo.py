"""Masked actions (NLPO): samples, log-probabilities and gradients on an enumerable world, and resuming."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import burnish
from burnish.errors import InputError
from burnish.exactness.world import all_sequences
from burnish.generation.engine import make_sampler
from burnish.generation.modules import ModuleSampler
from burnish.policies.loading import load_model
from burnish.policies.lstm import LSTM
from burnish.policies.module import ModulePolicy
from burnish.policies.tabular import VOCABULARY, TablePolicy
from burnish.policies.vocabulary import build_vocabulary
from burnish.reports.terminal.progress import QuietProgress
from burnish.run.folder import comparable
from burnish.run.interrupts import Interrupted
from burnish.types import Completion, Prompt, SamplingParams
from tests.fakes import InterruptingObserver

MASKED = SamplingParams(max_new_tokens=3, temperature=0.8, lagged_top_p=0.8)
START = Prompt("start", "")


def tables() -> tuple[np.ndarray, np.ndarray]:
    """Return the logits [5, 4] of a policy and of its lagged policy."""
    generator = np.random.default_rng(6)
    return generator.normal(size=(5, 4)), generator.normal(size=(5, 4))


def table(logits: np.ndarray, lagged: np.ndarray) -> TablePolicy:
    policy = TablePolicy(torch.tensor(logits))
    policy.lagged = torch.tensor(lagged)
    return policy


def chances(logits: np.ndarray, lagged: np.ndarray) -> np.ndarray:
    """Return the masked policy [5, 4]: the tokens with the highest lagged probabilities, up to a total of 0.8."""
    masked = np.zeros(logits.shape)
    for row in range(len(logits)):
        old = np.exp(lagged[row] / 0.8) / np.exp(lagged[row] / 0.8).sum()
        kept, mass = [], 0.0
        for token in np.argsort(-old):
            if mass < 0.8:
                kept.append(token)
                mass += old[token]
        weights = np.exp(logits[row, kept] / 0.8)
        masked[row, kept] = weights / weights.sum()
    return masked


def world() -> tuple[list[Completion], np.ndarray]:
    """Return all sequences of up to three tokens, and random rewards."""
    everything = all_sequences(4, 3, end=3)
    texts = [
        Completion(START, (), tuple(int(t) for t, real in zip(tokens, mask, strict=True) if real), "", (), "stop")
        for tokens, mask in zip(everything.tokens, everything.mask, strict=True)
    ]
    return texts, np.random.default_rng(5).normal(size=len(texts))


def sequence_probability(text: Completion, masked: np.ndarray) -> float:
    return float(np.prod([masked[row, token] for row, token in itertools.pairwise((4, *text.token_ids))]))


class TestExactValues:
    def test_the_probability_of_every_sequence(self):
        masked = chances(*tables())
        assert ((masked == 0).sum(-1) > 0).any()
        policy, (texts, _) = table(*tables()), world()
        possible = [text for text in texts if sequence_probability(text, masked) > 0]
        assert sum(sequence_probability(text, masked) for text in possible) == pytest.approx(1, abs=1e-12)
        assert 1 < len(possible) < len(texts)
        for text in possible:
            logprob = float(policy.logprobs([text], MASKED).logprobs.detach().sum())
            assert np.exp(logprob) == pytest.approx(sequence_probability(text, masked), abs=1e-12)

    def test_the_estimators_mean_is_the_gradient_of_the_masked_return(self):
        logits, lagged = tables()
        texts, rewards = world()

        def masked_return(values: np.ndarray) -> float:
            masked = chances(values, lagged)
            return sum(sequence_probability(text, masked) * reward for text, reward in zip(texts, rewards, strict=True))

        # Central differences of J need no derivatives.
        step, exact = 1e-6, np.zeros(logits.shape)
        for index in np.ndindex(logits.shape):
            moved = [logits.copy(), logits.copy()]
            moved[0][index] += step
            moved[1][index] -= step
            exact[index] = (masked_return(moved[0]) - masked_return(moved[1])) / (2 * step)

        def mean_of_estimates(sampling: SamplingParams, earlier: np.ndarray) -> np.ndarray:
            policy, masked = table(logits, earlier), chances(logits, lagged)
            total = torch.zeros((), dtype=torch.float64)
            for text, reward in zip(texts, rewards, strict=True):
                if (chance := sequence_probability(text, masked)) > 0:
                    total = total + chance * reward * policy.logprobs([text], sampling).logprobs.sum()
            total.backward()
            return policy.parameter.grad.numpy()

        # The differences are accurate to 1e-10. The tolerance is a hundred times that, and the gradient a million times the
        # tolerance.
        tolerance = 1e-8
        assert np.abs(exact).max() > 1e6 * tolerance
        np.testing.assert_allclose(mean_of_estimates(MASKED, lagged), exact, atol=tolerance)
        # For samples drawn with the mask, log-probabilities without it are those of another policy: they miss the gradient
        # by 1.29 times its length. A mask that is updated too early misses it by 1.32 times.
        for sampling, earlier in ((SamplingParams(3, 0.8), lagged), (MASKED, logits)):
            wrong = mean_of_estimates(sampling, earlier)
            assert np.linalg.norm(wrong - exact) > np.linalg.norm(exact)


class TestSampling:
    @pytest.mark.slow
    def test_the_table_samples_from_the_masked_policy(self):
        policy, masked = table(*tables()), chances(*tables())
        (group,) = policy.sample([START], samples_per_prompt=4000, sampling=MASKED, seed=(1,))
        counts = np.bincount([one.token_ids[0] for one in group.completions], minlength=4)
        assert (counts[masked[4] == 0] == 0).all()
        kept = masked[4] > 0
        expected = 4000 * masked[4, kept]
        # Chi-square with up to three degrees of freedom exceeds 16.3 once in a thousand times.
        assert float(((counts[kept] - expected) ** 2 / expected).sum()) < 16.3
        recorded = torch.tensor([x for one in group.completions for x in one.sampler_logprobs], dtype=torch.float64)
        torch.testing.assert_close(policy.logprobs(group.completions, MASKED).logprobs.detach(), recorded)

    @pytest.mark.parametrize("recompute", [False, True])
    def test_a_module_samples_under_the_lagged_mask(self, recompute):
        torch.manual_seed(2)
        vocabulary = build_vocabulary("character", ["the minister said"], None)
        policy = ModulePolicy(
            LSTM(vocabulary.size, embedding=8, hidden=16, layers=1, dropout=0.0).double(), vocabulary, scores="logits"
        )
        with torch.no_grad():
            for parameter in policy.module.parameters():
                parameter.mul_(3)
        policy.update_lagged_policy()
        with torch.no_grad():
            for parameter in policy.module.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        sampling = SamplingParams(max_new_tokens=12, lagged_top_p=0.6)
        prompts = [Prompt("a", "the min"), Prompt("b", "said")]
        groups = ModuleSampler(policy, recompute=recompute).sample(
            prompts, samples_per_prompt=5, sampling=sampling, seed=(3,)
        )
        texts = [one for group in groups for one in group.completions]
        recorded = torch.tensor([x for one in texts for x in one.sampler_logprobs], dtype=torch.float64)
        logprobs = policy.logprobs(texts, sampling).logprobs.detach()
        torch.testing.assert_close(logprobs, recorded, rtol=0, atol=1e-10)
        assert policy.lagged is not None
        old, tokens = policy.lagged.completion_logits(texts)
        mass = old.softmax(-1)
        # A token is kept if the more probable ones sum to less than 0.6.
        above = (mass * (mass > mass.gather(-1, tokens[:, None]))).sum(-1)
        assert bool((above < 0.6).all())
        whole = policy.logprobs(texts, SamplingParams(12)).logprobs.detach()
        assert bool((logprobs >= whole - 1e-12).all()) and float((logprobs - whole).max()) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["tabular", "lstm"])
def test_the_lagged_policy_is_updated_and_restored(policy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes: dict[str, Any] = {"steps": 5, "checkpoint": {"every": 1}}
    if policy == "lstm":
        Path("vocabulary.txt").write_text(VOCABULARY, encoding="utf-8")
        changes["policy"] = {"use": "lstm", "lstm": {"embedding": 4, "hidden": 8}}
    overrides = ["sampling.nlpo_top_p=0.8", "sampling.nlpo_every=2"]
    whole = burnish.train("toy", run_dir="whole", observer=QuietProgress(), overrides=overrides, **changes)
    with pytest.raises(Interrupted):
        burnish.train("toy", run_dir="stopped", observer=InterruptingObserver(3), overrides=overrides, **changes)
    burnish.train(resume="stopped", observer=QuietProgress())
    rows = [json.loads(line) for line in Path("stopped/metrics.jsonl").read_text().splitlines()]
    assert [comparable(row) for row in rows] == [comparable(row) for row in whole.metrics]
    assert max(row["mismatch_kl"] for row in rows) < 1e-9
    # The policy changes at every step, the lagged one at every second step.
    from safetensors.torch import load_file

    def lagged(step: int) -> dict[str, torch.Tensor]:
        folder = Path(f"whole/checkpoints/step-{step}/model")
        tensors = load_file(folder / ("model.safetensors" if policy == "tabular" else "lagged.safetensors"))
        return {"lagged": tensors["lagged"]} if policy == "tabular" else tensors

    kept = sorted(int(path.name[5:]) for path in Path("whole/checkpoints").glob("step-*"))
    assert kept == [4, 5]
    first, second = lagged(4), lagged(5)
    assert all(torch.equal(first[name], second[name]) for name in first)
    weights = load_file("whole/checkpoints/step-4/model/model.safetensors")
    for name in first:
        assert torch.equal(first[name], weights["logits" if policy == "tabular" else name])


class TestRefused:
    def test_a_language_model_or_two_masks(self):
        with pytest.raises(InputError, match=r'sampling\.nlpo_top_p: not available with policy\.use = "causal_lm"'):
            burnish.load_recipe("news", ["sampling.nlpo_top_p=0.9"])
        with pytest.raises(InputError, match="together they may leave no token"):
            burnish.load_recipe("toy", ["sampling.nlpo_top_p=0.9", "sampling.top_p=0.5"])

    def test_a_sampler_without_a_lagged_policy(self, tiny):
        model = load_model(tiny("llama"))
        with pytest.raises(InputError, match="needs a lagged policy"):
            make_sampler(model).sample([Prompt("a", "Shares")], samples_per_prompt=1, sampling=MASKED, seed=(1,))
