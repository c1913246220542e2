"""PPO: per-token advantages from a critic, the critic's updates, and resuming."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch

import burnish
from burnish.algorithms.credit_assignment import whiten
from burnish.algorithms.presets import PRESETS
from burnish.backends.local import build_critic
from burnish.errors import BurnishError, InputError
from burnish.policies.kernels.packing import packed_states, padded_states
from burnish.policies.loading import load_policy
from burnish.policies.lstm import LSTM
from burnish.policies.module import ModulePolicy
from burnish.policies.tabular import TablePolicy
from burnish.policies.value_models import CausalValueModel, ModuleValueModel
from burnish.policies.vocabulary import build_vocabulary
from burnish.recipe.algorithm import CriticSection
from burnish.recipe.schema import LoRA, load_recipe
from burnish.reports.terminal.progress import make_observer
from burnish.run.checkpoint import Checkpointer
from burnish.run.folder import Checkpoint, Run
from burnish.training.critic import explained_variance, token_credit
from burnish.training.learner import Learner
from burnish.training.step import train_step
from burnish.types import Completion, Group, Prompt
from tests.fakes import toy_recipe, uniform_learner


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: torch.Tensor, expected: list[float], tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, tensor(*expected), rtol=0, atol=tolerance)


class TestTokenCredit:
    LENGTHS = torch.tensor([2, 1])

    def test_gae_by_hand(self):
        settings = CriticSection(discount=0.5, trace=0.8)
        # Text 1: reward 2, values 0.5 and 1, penalty 0.1 on the first token: d_1 = -0.1 + 0.5*1 - 0.5 = -0.1, d_2 = 2 - 1
        # = 1, A_2 = 1, A_1 = -0.1 + 0.4*1 = 0.3. Text 2: reward -1, value 0.25, penalty 0.2: A = -1 - 0.2 - 0.25 = -1.45.
        advantages, returns = token_credit(
            tensor(2, -1), tensor(0.1, 0, 0.2), tensor(0.5, 1, 0.25), self.LENGTHS, settings
        )
        raw = [0.3, 1.0, -1.45]
        close(returns, [0.3 + 0.5, 1.0 + 1.0, -1.45 + 0.25])
        # Whitened: the mean is -0.05 and the variance (0.35^2 + 1.05^2 + 1.4^2) / 2 = 3.185 / 2.
        close(advantages, [(value + 0.05) / math.sqrt(3.185 / 2 + 1e-8) for value in raw])

    def test_with_discount_and_trace_1_returns_are_the_rewards(self):
        settings = CriticSection(discount=1.0, trace=1.0)
        _, returns = token_credit(tensor(2, -1), tensor(0, 0, 0), tensor(0.5, 1, 0.25), self.LENGTHS, settings)
        close(returns, [2, 2, -1])

    def test_the_arguments_are_not_modified(self):
        rewards, penalties = tensor(2, -1), tensor(0.1, 0, 0.2)
        token_credit(rewards, penalties, tensor(0.5, 1, 0.25), self.LENGTHS, CriticSection())
        assert (rewards.tolist(), penalties.tolist()) == ([2, -1], [0.1, 0, 0.2])

    def test_whitening_is_per_row(self):
        values = torch.tensor([[1.0, 2, 3, 99], [5, 5, 0, 0], [7, 0, 0, 0]], dtype=torch.float64)
        mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
        expected = torch.tensor([[-1.0, 0, 1, 0], [0] * 4, [0] * 4], dtype=torch.float64)
        torch.testing.assert_close(whiten(values, mask), expected, rtol=0, atol=1e-7)

    def test_explained_variance(self):
        assert explained_variance(tensor(1, 2), tensor(1, 2)) == 1
        assert explained_variance(tensor(5, 5), tensor(1, 2)) == 0
        # Errors 0 and 2 have variance 1; returns 0 and 1 have variance 1/4.
        assert explained_variance(tensor(0, -1), tensor(0, 1)) == pytest.approx(1 - 4)
        assert explained_variance(tensor(0, 1), tensor(3, 3)) == 0


def completion(*tokens: int) -> Completion:
    return Completion(Prompt("p", ""), (), tokens, "x", (-math.log(4),) * len(tokens), "length")


GROUP = Group(Prompt("p", ""), (completion(0, 1), completion(2)))


def learner(rewards=(1.0, 0.0), **algorithm) -> Learner:
    sampling = {"prompts_per_step": 1, "samples_per_prompt": 2, "max_new_tokens": 4}
    optimizer = {"learning_rate": 0.5, "max_grad_norm": None}
    algorithm = {"use": "ppo", **algorithm}
    return uniform_learner(toy_recipe(sampling=sampling, optimizer=optimizer, algorithm=algorithm), [GROUP], rewards)


class TestStep:
    def test_a_step_by_hand(self):
        one = learner(critic={"rate": 2.0, "clip": 0.0, "trace": 1.0})
        report = train_step(one)
        # V = 0, so the returns are the rewards: 1, 1 and 0. The loss is the mean of R^2/2 over 3 tokens.
        assert report.metrics["critic/loss"] == pytest.approx(2 / 6)
        assert report.metrics["critic/explained_variance"] == 0
        # d/dV(start) = (-1 - 0) / 3, d/dV(after 0) = -1/3; the rate is 2 * 0.5 = 1.
        close(one.critic.model.parameter.detach(), [1 / 3, 0, 0, 0, 1 / 3])
        assert report.metrics["critic/grad_norm"] == pytest.approx(math.sqrt(2) / 3)
        # Advantages 1, 1, 0 whitened: mean 2/3, variance (1/9 + 1/9 + 4/9) / 2 = 1/3, so 1/sqrt 3 twice and -2/sqrt 3.
        root = math.sqrt(1 / 3 + 1e-8)
        high, low = (1 / 3) / root, (-2 / 3) / root
        assert [row["advantage"] for row in report.samples] == pytest.approx([high, low])
        # Each logit moves by 0.5 / 3 times the sum of A ([v = a] - 1/4): tokens 0 and 2 at the start, token 1 after 0.
        start = torch.tensor([high, 0, low, 0], dtype=torch.float64) - (high + low) / 4
        after = torch.tensor([0, high, 0, 0], dtype=torch.float64) - high / 4
        expected = torch.zeros(5, 4, dtype=torch.float64)
        expected[4], expected[0] = start / 6, after / 6
        torch.testing.assert_close(one.policy.parameter.detach(), expected, rtol=0, atol=1e-9)

    def test_values_move_no_further_than_the_clip(self):
        """From the second update on, a value beyond the clip has no gradient; the first update may pass the clip."""
        one = learner(critic={"rate": 2.0, "clip": 0.1, "trace": 1.0}, epochs=5)
        train_step(one)
        # At V = 0 both branches agree: V(start), with targets 1 and 0, goes to 1/3, and so does V(after 0), with target 1.
        # Beyond 0.1 the clipped error for target 1 is larger and flat. Target 0 pulls V(start) back: 1/3, 2/9, 4/27,
        # 8/81. Below 0.1 both targets count again: 8/81 + (1 - 16/81) / 3 = 89/243.
        after_start, after_zero = one.critic.model.parameter.detach()[[4, 0]].tolist()
        assert after_zero == pytest.approx(1 / 3)
        assert after_start == pytest.approx(89 / 243)

    def test_kl_in_the_reward_is_per_token(self):
        kl = {"coefficient": 0.5, "estimator": "k1", "where": "reward"}
        one = learner(kl=kl, critic={"trace": 1.0, "clip": 0.0})
        with torch.no_grad():
            one.policy.reference.logits[4, 0] = 3.0
        report = train_step(one)
        table = torch.zeros(5, 4, dtype=torch.float64)
        table[4, 0] = 3.0
        drawn = table.log_softmax(-1)[[4, 0, 4], [0, 1, 2]]
        first, second, third = (0.5 * (-math.log(4) - drawn)).tolist()
        # Returns: the rewards from each token on.
        returns = [1 - first - second, 1 - second, -third]
        assert report.metrics["critic/loss"] == pytest.approx(sum(value**2 for value in returns) / 6)

    def test_a_non_finite_critic_loss_changes_no_weights(self):
        one = learner(rewards=(1e200, 0.0))
        with pytest.raises(BurnishError, match=r"step 1: the return of prompt 'p', sample 1 .* is 9\.5e\+199"):
            train_step(one)
        assert one.critic.model.parameter.tolist() == [0] * 5
        assert one.policy.parameter.detach().abs().max() == 0
        assert one.step == 0

    def test_a_learner_has_a_critic_exactly_if_its_algorithm_uses_one(self):
        one = learner()
        with pytest.raises(ValueError, match="critic"):
            Learner(one.recipe, one.policy, one.sampler, one.scorer, one.prompts, PRESETS["grpo"], one.optimizer,
                    critic=one.critic)  # fmt: skip
        with pytest.raises(ValueError, match="critic"):
            Learner(one.recipe, one.policy, one.sampler, one.scorer, one.prompts, PRESETS["ppo"], one.optimizer)


PROMPTS = [(2, 3, 4), (2, 3, 4), (5, 6)]
ANSWERS = [(5, 6, 7), (8,), (3, 9)]
TEXTS = [
    Completion(Prompt("p", ""), prompt, answer, "", (0.0,) * len(answer), "length")
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
]


def perturb(model) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.trainable().values():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype), alpha=0.1)


class TestValues:
    @pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
    @pytest.mark.parametrize("kind", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
    def test_values_of_a_language_model(self, tiny, kind, lora):
        policy = load_policy(tiny(kind), dtype="float64", lora=lora)
        before = {name: weight.detach().clone() for name, weight in policy.trainable().items()}
        model = CausalValueModel(policy)
        assert model.values(TEXTS).tolist() == [0.0] * 6, "all values are zero before training"
        perturb(model)
        together = model.values(TEXTS)
        alone = torch.cat([model.values([text]) for text in TEXTS])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
        policy.layout = padded_states if policy.layout is packed_states else packed_states
        torch.testing.assert_close(together, model.values(TEXTS), rtol=0, atol=1e-6)
        # A value depends only on the tokens before its own, so the last token of a text does not matter.
        changed = [
            Completion(t.prompt, t.prompt_ids, (*t.token_ids[:-1], 1), "", t.sampler_logprobs, "stop") for t in TEXTS
        ]
        torch.testing.assert_close(model.values(changed), model.values(TEXTS), rtol=0, atol=1e-12)
        together.sum().backward()
        assert {name for name, weight in model.trainable().items() if weight.grad is not None} == set(model.trainable())
        assert all(torch.equal(weight, before[name]) for name, weight in policy.trainable().items())
        assert all(weight.grad is None for weight in policy.trainable().values())

    def test_values_of_a_module(self):
        vocabulary = build_vocabulary("character", ["abcdefgh"], None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = LSTM(vocabulary.size, embedding=4, hidden=8, layers=1, dropout=0.0)
        policy = ModulePolicy(module, vocabulary, scores="logits")
        model = ModuleValueModel(policy)
        texts = [
            Completion(t.prompt, tuple(i % vocabulary.size for i in t.prompt_ids),
                       tuple(i % vocabulary.size for i in t.token_ids), "", t.sampler_logprobs, "length")
            for t in TEXTS
        ]  # fmt: skip
        assert model.values(texts).tolist() == [0.0] * 6
        perturb(model)
        alone = torch.cat([model.values([text]) for text in texts])
        torch.testing.assert_close(model.values(texts), alone, rtol=0, atol=1e-6)
        model.values(texts).sum().backward()
        assert all(weight.grad is not None for weight in model.trainable().values())
        assert all(weight.grad is None for weight in policy.trainable().values())


KEYS = [
    "algorithm.use=ppo", "algorithm.epochs=2", "algorithm.minibatches=2", "checkpoint.every=3", "checkpoint.keep=9",
    "evaluation.resamples=100",
]  # fmt: skip


class TestResume:
    @pytest.mark.slow
    def test_a_resumed_run_equals_an_uninterrupted_one(self, tmp_path):
        def files(run: Path) -> dict[str, bytes]:
            contents = {
                str(p.relative_to(run)): p.read_bytes() for p in sorted((run / "checkpoints/step-6").rglob("*.*"))
            }
            return {**contents, "samples": (run / "samples.jsonl").read_bytes()}

        run = burnish.train("toy", run_dir=tmp_path / "a", steps=6, overrides=KEYS, observer=make_observer(quiet=True))
        whole = files(run.run_dir)
        assert {"checkpoints/step-6/critic/model.safetensors", "checkpoints/step-6/critic/optimizer.safetensors"} < set(
            whole
        )
        shutil.rmtree(run.run_dir / "checkpoints" / "step-6")
        burnish.train(resume=run.run_dir, observer=make_observer(quiet=True))
        assert files(run.run_dir) == whole

    def test_the_critic_of_another_policy_is_rejected(self, tmp_path):
        chosen = load_recipe("toy", ["algorithm.use=ppo"])
        from burnish.backends.local import build

        one, _ = build(chosen)
        train_step(one)
        (tmp_path / "model").mkdir()
        checkpointer = Checkpointer(Run(tmp_path), one, keep=1)
        checkpointer.write(tmp_path)
        (tmp_path / "state.json").write_text('{"step": 1, "baseline": 0.0, "kl_coefficient": 0.0}')
        one.critic.model.parameter = torch.nn.Parameter(torch.zeros(7, dtype=torch.float64))
        with pytest.raises(InputError, match="holds the critic of another policy"):
            checkpointer.restore(Checkpoint(1, tmp_path))


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                "algorithm.use=grpo algorithm.critic.rate=1.0",
                r"algorithm\.critic: 'grpo' does not use a critic",
            ),
            ("algorithm.critic.trace=1.5", r"algorithm\.critic\.trace = 1\.5"),
            ("algorithm.critic.clip=-1.0", r"algorithm\.critic\.clip = -1\.0"),
            ("algorithm.refills=2", r"algorithm\.refills = 2: 'ppo' does not compare"),
        ],
    )
    def test_invalid_recipes(self, change, message):
        with pytest.raises(InputError, match=message):
            load_recipe("toy", ["algorithm.use=ppo", *change.split()])

    def test_other_algorithms_have_no_critic(self):
        assert build_critic(TablePolicy(), load_recipe("toy")) is None
