"""The KL term of a step: adaptive coefficient and moving reference; and importance weights."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from burnish.policies.loading import load_policy
from burnish.policies.tabular import TablePolicy
from burnish.recipe.algorithm import KL
from burnish.recipe.schema import LoRA
from burnish.run.checkpoint import Checkpointer
from burnish.run.folder import Run
from burnish.training.kl_reference import KLTerm, PolicySnapshot
from burnish.training.step import train_step
from burnish.types import Completion, Prompt
from tests.fakes import FixedScorer, toy_learner


def learner(*keys: str):
    small = ["sampling.prompts_per_step=2", "sampling.samples_per_prompt=4"]
    return toy_learner(*small, *(f"algorithm.{key}" for key in keys))


def adapted(settings: KL, distance: float, samples: int) -> float:
    term = KLTerm(settings, TablePolicy())
    term.finish_step(1, distance, samples=samples)
    return term.coefficient


class TestCoefficient:
    def test_the_controller_by_hand(self):
        kl = KL(coefficient=0.5, target=2.0, horizon=100.0)
        # (2.2 - 2) / 2 = 0.1; 10 of 100 samples: 0.5 * (1 + 0.1 * 0.1).
        assert adapted(kl, 2.2, samples=10) == pytest.approx(0.505, abs=1e-12)
        # The error is clipped at 0.2: 0.5 * (1 - 0.1 * 0.2).
        assert adapted(kl, -7.0, samples=10) == pytest.approx(0.49, abs=1e-12)
        # Without a horizon the rate is 0.1 for any step size.
        assert adapted(KL(coefficient=0.5, target=2.0), 9.0, samples=7) == pytest.approx(0.51, abs=1e-12)
        assert adapted(KL(coefficient=0.5), 9.0, samples=10) == 0.5

    def test_it_follows_the_metric_from_step_to_step(self):
        one = learner("kl={coefficient = 0.1, target = 0.05, where = 'reward', estimator = 'k1'}")
        rows = [train_step(one).metrics for _ in range(12)]
        for now, then in itertools.pairwise(rows):
            error = max(-0.2, min(0.2, (now["kl/completion"] - 0.05) / 0.05))
            assert then["kl/coefficient"] == pytest.approx(now["kl/coefficient"] * (1 + 0.1 * error), rel=1e-12)
        assert rows[0]["kl/completion"] == pytest.approx(0.0, abs=1e-12)
        assert len({row["kl/coefficient"] for row in rows}) > 5

    def test_a_checkpoint_restores_it(self, tmp_path):
        key = "kl={coefficient = 0.1, target = 0.05, where = 'reward', estimator = 'k1'}"
        one = learner(key)
        train_step(one)
        kept = one.kl.coefficient
        assert kept != 0.1
        run = Run(tmp_path)
        Checkpointer(run, one, keep=1).save()
        (saved,) = run.checkpoints()
        train_step(one)
        assert one.kl.coefficient != kept
        other = learner(key)
        for restored in (one, other):
            Checkpointer(run, restored, keep=1).restore(saved)
            assert restored.kl.coefficient == kept

    @pytest.mark.slow
    def test_a_low_target_holds_the_policy_back(self):
        def moved(target: str) -> float:
            one = learner(f"kl={{coefficient = 0.05, where = 'reward', estimator = 'k1'{target}}}")
            rows = [train_step(one).metrics["kl/completion"] for _ in range(80)]
            return sum(rows[-20:]) / 20

        # 1.18 and 0.23 nats when this was written; always writing 我爱你。 is log(1/0.24) = 1.43 nats away.
        assert moved(", target = 0.1, horizon = 8.0") < moved("") / 3


class TestReset:
    def test_the_new_reference_is_the_policy_of_that_step(self):
        one = learner("kl={coefficient = 0.1, reset_every = 3}")
        rows = [train_step(one).metrics for _ in range(5)]
        # Step 4 samples from the policy after step 3, which is its reference too.
        assert abs(rows[2]["kl/completion"]) > 1e-3
        assert rows[3]["kl/completion"] == pytest.approx(0.0, abs=1e-12)
        assert abs(rows[4]["kl/completion"]) > 1e-6

    @pytest.mark.parametrize("lora", [None, LoRA(rank=4)], ids=["full", "lora"])
    def test_a_snapshot_keeps_the_weights_of_its_time(self, tiny, lora):
        policy = load_policy(tiny("llama"), lora=lora)
        one = Completion(Prompt("p", "The home"), policy.encode("The home"), (5, 9, 17), "", (0.0,) * 3, "length")
        with torch.no_grad():
            for parameter in policy.trainable().values():
                parameter.add_(0.05)
        before = policy.token_logprobs([one])
        snapshot = PolicySnapshot.take(policy)
        with torch.no_grad():
            for parameter in policy.trainable().values():
                parameter.add_(0.1)
        after = policy.token_logprobs([one])
        pointers = [parameter.data_ptr() for parameter in policy.trainable().values()]
        assert torch.equal(snapshot.token_logprobs([one]), before)
        assert not torch.equal(after, before)
        assert torch.equal(policy.token_logprobs([one]), after), "the policy's weights are restored"
        assert [parameter.data_ptr() for parameter in policy.trainable().values()] == pointers

    def test_a_checkpoint_from_before_the_first_reset_has_no_snapshot(self, tmp_path):
        # Guards that stop a run restore a model from before the alarm.
        one = learner("kl={coefficient = 0.1, reset_every = 2}")
        train_step(one)
        run = Run(tmp_path)
        checkpointer = Checkpointer(run, one, keep=1)
        checkpointer.save()
        (kept,) = run.checkpoints()
        train_step(one)
        assert one.kl.snapshot is not None
        checkpointer.restore(kept)
        assert one.step == 1 and one.kl.snapshot is None and one.kl.reference is one.policy.reference

    def test_the_policys_weights_are_restored_after_an_error(self):
        policy = TablePolicy()
        snapshot = PolicySnapshot.take(policy)
        with torch.no_grad():
            policy.parameter.add_(1.0)
        kept = policy.parameter.detach().clone()
        policy.token_logprobs = None
        with pytest.raises(TypeError):
            snapshot.token_logprobs([])
        assert torch.equal(policy.parameter.detach(), kept)


class Stale:
    """A sampler that reports half of the true probability of every first token."""

    def __init__(self, inner) -> None:
        self.inner = inner

    def sample(self, prompts, **options):
        groups = self.inner.sample(prompts, **options)
        return [replace(group, completions=tuple(self.halved(one) for one in group.completions)) for group in groups]

    @staticmethod
    def halved(one: Completion) -> Completion:
        first, *rest = one.sampler_logprobs
        return replace(one, sampler_logprobs=(first - math.log(2), *rest))


class TestImportance:
    @staticmethod
    def metrics(key: str) -> dict:
        one = learner("use=reinforce", f"importance={{{key}}}")
        # All rewards differ, and none is 0.
        one.sampler, one.scorer = Stale(one.sampler), FixedScorer(range(8, 0, -1))
        return train_step(one).metrics

    def test_weights_by_hand(self):
        # pi/mu is 2 for the first token of each of the 8 completions and 1 for all others.
        plain = self.metrics("form = 'none'")
        assert "importance/mean" not in plain
        share = 8 / plain["tokens"]
        wide = self.metrics("form = 'truncate', limit = 3.0")
        assert wide["importance/mean"] == pytest.approx(1 + share, abs=1e-12)
        near = self.metrics("form = 'truncate', limit = 1.5")
        assert near["importance/mean"] == pytest.approx(1 + share / 2, abs=1e-12)
        masked = self.metrics("form = 'mask', limit = 1.5")
        assert masked["importance/mean"] == pytest.approx(1 - share, abs=1e-12)
        assert masked["importance/dropped"] == pytest.approx(share, abs=1e-12)

    def test_sequence_weights_by_hand(self):
        plain = self.metrics("form = 'none'")
        whole = self.metrics("form = 'truncate', level = 'sequence', limit = 3.0")
        assert whole["importance/mean"] == pytest.approx(2.0, abs=1e-12)
        # Every completion counts twice or, if masked, not at all.
        assert whole["loss"] == pytest.approx(2 * plain["loss"], abs=1e-12)
        assert whole["grad_norm"] == pytest.approx(2 * plain["grad_norm"], abs=1e-12)
        assert self.metrics("form = 'mask', level = 'sequence', limit = 1.5")["grad_norm"] == 0.0

    def test_a_stale_sampler_lowers_the_effective_sample_size(self):
        metrics = self.metrics("form = 'none'")
        n, k = metrics["tokens"], 8
        # The weights are 2 for k of n tokens and 1 for the rest: (n + k)^2 / (n (n + 3 k)).
        assert metrics["effective_sample_size"] == pytest.approx((n + k) ** 2 / (n * (n + 3 * k)), abs=1e-12)
        # k3 of the halved tokens: log mu - log pi = -log 2, so 2 - 1 - log 2 for k of n tokens.
        assert metrics["mismatch_kl"] == pytest.approx(k / n * (1 - math.log(2)), abs=1e-12)
