"""Parts of a step on hand-made inputs, and errors before the weights change."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from burnish.algorithms.presets import PRESETS
from burnish.errors import BurnishError
from burnish.policies.tabular import TablePolicy
from burnish.training.batching import StepTensors
from burnish.training.learner import Learner
from burnish.training.optimizer import learning_rate, refuse_non_finite
from burnish.training.reinforcement import flat_warnings
from burnish.training.rollouts import flag_completion
from burnish.training.step import draw_prompts, train_step
from burnish.types import Completion, Group, Prompt
from tests.fakes import FixedSampler, FixedScorer, FunctionScorer, toy_learner, toy_recipe

PROMPTS = [Prompt(f"p{place}", "") for place in range(5)]
MORE = [Prompt(f"p{place}", "") for place in range(10)]


class TestDrawPrompts:
    def test_every_epoch_has_every_prompt_once(self):
        drawn = [prompt.id for step in range(1, 16) for prompt in draw_prompts(PROMPTS, 3, seed=7, step=step)]
        epochs = [drawn[start : start + 5] for start in range(0, 45, 5)]
        assert all(sorted(epoch) == [prompt.id for prompt in PROMPTS] for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 4, "each in an order of its own"

    def test_prompts_depend_only_on_seed_and_step(self):
        def ids(seed: int, step: int) -> list[str]:
            return [prompt.id for prompt in draw_prompts(MORE, 4, seed, step)]

        assert ids(1, 9) == ids(1, 9)
        assert ids(1, 9) != ids(2, 9)

    def test_more_prompts_per_step_than_prompts(self):
        counts = Counter(prompt.id for prompt in draw_prompts(PROMPTS, 12, seed=0, step=1))
        assert set(counts.values()) <= {2, 3}
        assert sum(counts.values()) == 12


class TestLearningRate:
    def test_warm_up_then_constant(self):
        chosen = toy_recipe("optimizer.learning_rate=0.8", "optimizer.warmup_steps=4", steps=6)
        assert [learning_rate(chosen, step) for step in range(1, 7)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])

    def test_warm_up_then_linear_decay_to_the_last_step(self):
        chosen = toy_recipe(
            "optimizer.schedule=linear", "optimizer.learning_rate=0.8", "optimizer.warmup_steps=2", steps=6
        )
        # The 4 steps after the warm-up have 4/4, 3/4, 2/4, 1/4; zero would follow the last step.
        assert [learning_rate(chosen, step) for step in range(1, 7)] == pytest.approx([0.4, 0.8, 0.8, 0.6, 0.4, 0.2])

    def test_a_warm_up_as_long_as_the_run(self):
        chosen = toy_recipe(
            "optimizer.schedule=linear", "optimizer.learning_rate=1.0", "optimizer.warmup_steps=9", steps=3
        )
        assert [learning_rate(chosen, step) for step in (1, 2, 3)] == pytest.approx([1 / 9, 2 / 9, 3 / 9])


def completion(tokens: int, text: str = "我", reason: str = "stop") -> Completion:
    return Completion(PROMPTS[0], (), (0,) * tokens, text, (-1.0,) * tokens, reason)  # type: ignore[arg-type]


class TestStepTensors:
    def test_values_follow_their_tokens(self):
        tensors = StepTensors(
            [completion(2), completion(1), completion(3)], torch.tensor([2, 1, 3]),
            torch.tensor([10.0, 10, 20, 30, 30, 30]), torch.arange(6.0), torch.arange(6.0) + 100, torch.arange(6.0) - 100,
        )  # fmt: skip
        weights = torch.tensor([0.1, 0.2, 0.3])
        batches = [tensors.select(indices, weights) for indices in ([2, 0], [1])]
        assert [[len(one.token_ids) for one in batch.completions] for batch in batches] == [[3, 2], [1]]
        assert [batch.advantages.tolist() for batch in batches] == [[30, 30, 30, 10, 10], [20]]
        torch.testing.assert_close(batches[0].weights, torch.tensor([0.3, 0.3, 0.3, 0.1, 0.1]))
        assert [batch.sampler_logprobs.tolist() for batch in batches] == [[3, 4, 5, 0, 1], [2]]
        assert [batch.reference_logprobs.tolist() for batch in batches] == [[103, 104, 105, 100, 101], [102]]
        assert [batch.old_logprobs.tolist() for batch in batches] == [[-97, -96, -95, -100, -99], [-98]]

    def test_without_a_reference(self):
        batch = StepTensors([completion(1)], torch.tensor([1]), torch.zeros(1), torch.zeros(1)).select(
            [0], torch.ones(1)
        )
        assert batch.reference_logprobs is batch.old_logprobs is None


def test_flags():
    assert flag_completion(completion(1)) == ()
    assert flag_completion(completion(1, " \n")) == ("empty",)
    assert flag_completion(completion(1, "", "length")) == ("empty", "truncated")


SMALL = ["algorithm.use=reinforce", "sampling.prompts_per_step=1", "sampling.samples_per_prompt=4"]


class TestStep:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_non_finite_reward_changes_no_weights(self, value):
        learner = toy_learner(*SMALL, rewards=[1.0, 0.0, value, 0.0])
        before = learner.policy.parameter.detach().clone()
        with pytest.raises(
            BurnishError, match=r"step 1: the advantage of prompt 'toy/train/\d+', sample 3 .*unchanged"
        ):
            train_step(learner)
        assert torch.equal(learner.policy.parameter.detach(), before)
        assert (learner.step, learner.credit.baseline.mean) == (0, 0.0)

    def test_samples_of_earlier_weights_are_stale(self):
        learner = toy_learner(*SMALL, rewards=[1.0, 2.0, 3.0, 2.0])
        groups = learner.sampler.sample(
            learner.prompts[:1], samples_per_prompt=4, sampling=learner.recipe.sampling.params, seed=(0, 1)
        )
        assert train_step(learner).metrics["staleness"] == 0
        learner.sampler = FixedSampler(groups)
        # Sampled with the weights of step 0, trained in steps 2 and 3.
        assert [train_step(learner).metrics["staleness"] for _ in range(2)] == [1, 2]

    def test_refuse_non_finite(self):
        refuse_non_finite(3, 1e300, 0.0)
        with pytest.raises(BurnishError, match="gradient norm is inf"):
            refuse_non_finite(3, 1.0, math.inf)

    def test_the_moving_baseline(self):
        learner = toy_learner(*SMALL, "algorithm.use=reinforce_baseline", rewards=[1.0, 2.0, 3.0, 2.0])
        first = train_step(learner)
        # In step 1 the baseline b is 0. After step 1 it is the mean reward, then 0.9 b + 0.1 mean.
        assert [row["advantage"] for row in first.samples] == [1.0, 2.0, 3.0, 2.0]
        assert learner.credit.baseline.mean == pytest.approx(2.0)
        learner.scorer = FixedScorer([0.0, 4.0, 8.0, 4.0])
        second = train_step(learner)
        assert [row["advantage"] for row in second.samples] == [-2.0, 2.0, 6.0, 2.0]
        assert learner.credit.baseline.mean == pytest.approx(0.9 * 2.0 + 0.1 * 4.0)

    def test_metrics_and_samples_by_hand(self):
        learner = toy_learner(*SMALL, rewards=[1.0, 2.0, 3.0, 6.0])
        report = train_step(learner)
        assert report.metrics["reward/mean"] == report.metrics["reward/fixed"] == 3.0
        assert report.metrics["reward/std"] == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 4))
        lengths = [row["tokens"] for row in report.samples]
        assert report.metrics["length/mean"] == sum(lengths) / 4
        assert report.metrics["tokens"] == sum(lengths)
        assert report.metrics["truncated"] == sum(row["finish_reason"] == "length" for row in report.samples) / 4
        assert report.metrics["mismatch_kl"] < 1e-15
        assert [row["reward"] for row in report.samples] == [1.0, 2.0, 3.0, 6.0]
        assert all(row["step"] == 1 for row in report.samples)

    def test_the_loss_and_the_update_by_hand(self):
        # REINFORCE with one completion 我爱你。 of reward 1: loss = -log P = -log 0.24, and dlogP/dlogit(我|start) = 0.5.
        chosen = toy_recipe(*SMALL, "sampling.samples_per_prompt=1", "optimizer.max_grad_norm=100.0")
        policy = TablePolicy()
        one = Completion(
            Prompt("p", ""), (), (0, 1, 2, 3), "我爱你。", tuple(map(math.log, (0.5, 0.8, 0.6, 1.0))), "stop"
        )
        sampler, scorer = FixedSampler([Group(one.prompt, (one,))]), FixedScorer([1.0])
        optimizer = torch.optim.SGD([policy.parameter], lr=1.0)
        learner = Learner(chosen, policy, sampler, scorer, PROMPTS, PRESETS["reinforce"], optimizer)
        before = policy.parameter.detach().clone()
        report = train_step(learner)
        assert report.metrics["loss"] == pytest.approx(-math.log(0.24), abs=1e-12)
        moved = (policy.parameter.detach() - before).nan_to_num(0.0)
        rate = chosen.optimizer.learning_rate
        # Row start: 1 - 1/2 and three times -1/6; row 我: 爱 1 - 0.8, others -0.2/3; row 爱: 你 0.4, others -0.4/3.
        expected = torch.tensor([
            [-0.2 / 3, 0.2, -0.2 / 3, -0.2 / 3],
            [-0.4 / 3, -0.4 / 3, 0.4, -0.4 / 3],
            [0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0],
            [0.5, -1 / 6, -1 / 6, -1 / 6],
        ], dtype=torch.float64)  # fmt: skip
        torch.testing.assert_close(moved, rate * expected, rtol=0, atol=1e-12)
        assert report.metrics["grad_norm"] == pytest.approx(float(expected.norm()), abs=1e-9)

    def test_the_gradient_is_clipped_to_the_limit(self):
        learner = toy_learner(*SMALL, "optimizer.max_grad_norm=0.001", rewards=[9.0] * 4)
        seen: list[float] = []
        step = learner.optimizer.step
        learner.optimizer.step = lambda: [seen.append(float(learner.policy.parameter.grad.norm())), step()]
        report = train_step(learner)
        assert report.metrics["grad_norm"] > 0.1, "the metric is the norm before clipping"
        assert seen == [pytest.approx(0.001, rel=1e-3)]

    def test_kl_in_the_reward_lowers_the_advantage(self):
        plain = toy_learner(*SMALL, rewards=[1.0] * 4)
        kl = '{coefficient = 0.5, estimator = "k1", where = "reward"}'
        pulled = toy_learner(*SMALL, f"algorithm.kl={kl}", rewards=[1.0] * 4)
        for learner in (plain, pulled):
            with torch.no_grad():
                learner.policy.parameter[4, 0] += 1.0
        for without, with_kl in zip(train_step(plain).samples, train_step(pulled).samples, strict=True):
            assert without["completion"] == with_kl["completion"]
            # log pi - log reference, of the first token only: from 1/2 to e/(e+1), and from 1/6 to (1/3)/(e+1).
            first = math.e / (math.e + 1) / 0.5 if with_kl["completion"][0] == "我" else 1 / (3 * (math.e + 1)) * 6
            assert with_kl["advantage"] == pytest.approx(1.0 - 0.5 * math.log(first), abs=1e-12)
            assert with_kl["reward"] == with_kl["advantage"], "samples show what was trained on"

    def test_samples_show_the_reward_with_its_length_penalties(self):
        learner = toy_learner(*SMALL, "algorithm.length_cost=0.5", rewards=[1.0] * 4)
        limit = learner.recipe.sampling.max_new_tokens
        for row in train_step(learner).samples:
            assert row["reward"] == row["advantage"] == pytest.approx(1.0 - 0.5 * row["tokens"] / limit)
            assert row["parts"] == {"fixed": 1.0}


GROUPS = ["sampling.prompts_per_step=2", "sampling.samples_per_prompt=3"]


class TestFlatGroups:
    @pytest.mark.parametrize("algorithm", ["rloo", "grpo", "dr_grpo", "dapo", "gspo", "online_dpo"])
    def test_equal_rewards_have_no_gradient(self, algorithm):
        # The mean of three numbers 0.1 is not 0.1.
        learner = toy_learner(
            *GROUPS, f"algorithm.use={algorithm}", "algorithm.refills=0", rewards=[0.1] * 3 + [0.7] * 3
        )
        metrics = train_step(learner).metrics
        assert (metrics["flat_groups"], metrics["trained"], metrics["grad_norm"]) == (1.0, 0.0, 0.0)
        assert metrics["reward/std"] == pytest.approx(0.3)

    def test_a_constant_reward_has_no_deviation(self):
        learner = toy_learner(*GROUPS, "algorithm.use=reinforce", rewards=[0.1] * 6)
        metrics = train_step(learner).metrics
        assert (metrics["reward/std"], metrics["flat_groups"], metrics["trained"]) == (0.0, 1.0, 1.0)

    def test_rewards_of_tokens_are_a_difference_too(self):
        learner = toy_learner(*GROUPS, "algorithm.use=rloo", rewards=[0.0] * 6)
        groups = learner.sampler.sample(
            learner.prompts[:2], samples_per_prompt=3, sampling=learner.recipe.sampling.params, seed=(0, 1)
        )
        lengths = [len(one.token_ids) for group in groups for one in group.completions]
        earned = [[0.0] * length for length in lengths]
        earned[0] = [1.0] * (lengths[0] - 1) + [1.0 - lengths[0]]  # adds up to 0, like the others
        learner.sampler, learner.scorer = FixedSampler(groups), FixedScorer([0.0] * 6, earned)
        assert train_step(learner).metrics["flat_groups"] == 0.5

    def test_one_sample_per_prompt_is_no_group(self):
        learner = toy_learner(*SMALL, "sampling.samples_per_prompt=1", rewards=[1.0])
        assert "flat_groups" not in train_step(learner).metrics

    def test_groups_that_stay_flat_are_not_trained_on_their_lengths(self):
        keys = [*GROUPS, "algorithm.use=dapo", "algorithm.length_cost=1.0", "sampling.max_new_tokens=8"]
        refilled, plain = toy_learner(*keys), toy_learner(*keys, "algorithm.refills=0")
        refilled.scorer = plain.scorer = FunctionScorer(lambda completion: 1.0)
        report = train_step(refilled)
        assert report.metrics["trained"] == 0.0
        assert all((row["reward"], row["advantage"]) == (1.0, 0.0) for row in report.samples)
        assert all(row["reward"] < 1.0 for row in train_step(plain).samples)

    def test_warnings_say_only_what_is_true(self):
        row = {"reward/std": 0.0, "flat_groups": 1.0, "trained": 0.0}
        (text,) = flat_warnings([row] * 5, first=False).values()
        assert text.startswith("every sample of the last 5 steps had the same reward, so these steps had no gradient")
        (text,) = flat_warnings([row, row | {"trained": 1.0}], first=False).values()
        assert "no gradient" not in text
        differing = row | {"reward/std": 0.3}
        (text,) = flat_warnings([differing] * 5, first=False).values()
        assert text.startswith(
            "in each group of the last 5 steps all samples had the same reward, so these steps had no"
        )
        partly = differing | {"flat_groups": 0.8}
        assert "80% of the groups" in flat_warnings([partly], first=True)["flat groups"]
        assert not flat_warnings([partly], first=False), "prompts that were learnt"
        assert not flat_warnings([differing | {"flat_groups": 0.5}], first=True)


class TestMaskTruncated:
    KEYS = (*GROUPS, "algorithm.use=rloo", "sampling.max_new_tokens=2", "algorithm.mask_truncated=true")

    @pytest.mark.parametrize("aggregation", ["sequence_sum", "sequence_mean", "token_mean", "constant_length"])
    def test_cut_samples_have_no_gradient(self, aggregation):
        keys = [*self.KEYS, f"algorithm.aggregation={aggregation}"]
        rewards = [float(number) for number in range(6)]
        learner = toy_learner(*keys, rewards=rewards)
        groups = learner.sampler.sample(
            learner.prompts[:2], samples_per_prompt=3, sampling=learner.recipe.sampling.params, seed=(0, 1)
        )
        reasons = ["stop", "length", "stop", "length", "length", "stop"]
        every = iter(reasons)
        groups = [
            replace(group, completions=tuple(replace(one, finish_reason=next(every)) for one in group.completions))
            for group in groups
        ]
        learner.sampler = FixedSampler(groups)
        metrics = train_step(learner).metrics
        assert (metrics["truncated"], metrics["trained"]) == (0.5, 0.5)
        # loss = -sum of weight * advantage * log-probability over the completions that ended by themselves.
        loss = 0.0
        completions = [one for group in groups for one in group.completions]
        kept = [index for index, reason in enumerate(reasons) if reason == "stop"]
        for index in kept:
            members = rewards[index // 3 * 3 : index // 3 * 3 + 3]
            advantage = rewards[index] - (sum(members) - rewards[index]) / 2
            length = len(completions[index].token_ids)
            tokens = sum(len(completions[one].token_ids) for one in kept)
            weight = {"sequence_sum": 1 / 6, "sequence_mean": 1 / 6 / length, "token_mean": 1 / tokens}
            scale = weight.get(aggregation, 1 / 12)
            loss -= scale * advantage * sum(completions[index].sampler_logprobs)
        assert metrics["loss"] == pytest.approx(loss)

    def test_all_samples_cut(self):
        learner = toy_learner(*self.KEYS, "sampling.max_new_tokens=1", rewards=[0.0, 1.0, 2.0] * 2)
        with torch.no_grad():
            learner.policy.parameter[4, 3] = -50.0  # the text does not end with its first token
        before = learner.policy.parameter.detach().clone()
        metrics = train_step(learner).metrics
        assert (metrics["trained"], metrics["grad_norm"], metrics["loss"]) == (0.0, 0.0, 0.0)
        assert torch.equal(learner.policy.parameter.detach(), before)
