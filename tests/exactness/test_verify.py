"""The world whose every number is known: J, its gradients, and ``verify``, which must catch what is wrong."""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from burnish.algorithms import losses
from burnish.algorithms.advantages import reinforce
from burnish.algorithms.presets import PRESETS
from burnish.cli import app as cli
from burnish.exactness import verify as verification
from burnish.exactness import world as exact
from burnish.exactness.estimators import by_token
from burnish.exactness.verify import Estimator, estimators, targets, verify
from burnish.policies.tabular import VOCABULARY, known_world

pytestmark = pytest.mark.xdist_group("exact")  # what is sampled for all of them is sampled once

WORLD = known_world()
START = 4

# The policy again, by hand: P(我|start) = 0.5, P(爱|我) = 0.8, P(你|爱) = 0.6, P(。|你) = 1, the rest spread evenly.
# The row of 。 is never drawn from, for a text ends there.
POLICY = {
    "start": [1 / 2, 1 / 6, 1 / 6, 1 / 6],
    "我": [0.2 / 3, 0.8, 0.2 / 3, 0.2 / 3],
    "爱": [0.4 / 3, 0.4 / 3, 0.6, 0.4 / 3],
    "你": [0.0, 0.0, 0.0, 1.0],
}


def by_hand(tokens: str) -> float:
    states = ["start", *tokens[:-1]]
    return math.prod(POLICY[state][VOCABULARY.index(token)] for state, token in zip(states, tokens, strict=True))


def every_text() -> list[str]:
    """All texts of at most 4 characters that end with 。 or are cut at 4."""
    found = []
    for length in range(1, 5):
        for letters in itertools.product(VOCABULARY, repeat=length):
            text = "".join(letters)
            if "。" not in text[:-1] and (text[-1] == "。" or length == 4):
                found.append(text)
    return found


def text_of(row: int) -> str:
    tokens = WORLD.sequences.tokens[row][WORLD.sequences.mask[row]]
    return "".join(VOCABULARY[token] for token in tokens.tolist())


def finite_difference(function, logits: torch.Tensor, width: float = 1e-5) -> torch.Tensor:
    """Central differences; zero where the logit is minus infinity."""
    slope = torch.zeros_like(logits)
    for place in logits.isfinite().nonzero().tolist():
        moved = [logits.clone(), logits.clone()]
        moved[0][tuple(place)] += width
        moved[1][tuple(place)] -= width
        slope[tuple(place)] = (function(moved[0]) - function(moved[1])) / (2 * width)
    return slope


def bent(seed: int = 3) -> torch.Tensor:
    """Other logits without zeros of probability, so that nothing below holds by the known world's symmetry."""
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestWorld:
    def test_all_texts_are_there_once(self):
        # 1 + 3 + 9 + 27 texts that end in time and 81 that are cut.
        found = [text_of(row) for row in range(len(WORLD.sequences.tokens))]
        assert sorted(found) == sorted(every_text())
        assert len(found) == 121

    def test_probabilities_are_the_products_by_hand(self):
        found = exact.probabilities(WORLD.logits, WORLD.sequences)
        for row, value in enumerate(found.tolist()):
            assert value == pytest.approx(by_hand(text_of(row)), abs=1e-15)
        assert float(found.sum()) == pytest.approx(1.0, abs=1e-14)

    def test_j_is_0_24_and_only_one_text_pays(self):
        paid = [text_of(row) for row in WORLD.rewards.nonzero().flatten().tolist()]
        assert paid == ["我爱你。"]
        assert float(exact.expected_reward(WORLD.logits, WORLD.sequences, WORLD.rewards)) == pytest.approx(
            0.24, abs=1e-15
        )

    def test_logits_of_spreads_the_rest(self):
        table = exact.logits_from_probabilities({0: {1: 0.7}}, 3).exp()
        torch.testing.assert_close(table[0], torch.tensor([0.15, 0.7, 0.15], dtype=torch.float64))
        torch.testing.assert_close(table[1:], torch.full((3, 3), 1 / 3, dtype=torch.float64))


class TestGradients:
    def test_of_j_is_the_table_by_hand(self):
        # J is a product of one probability of each row, so dJ/dlogit(v|row) = J ([v is chosen] - p(v|row)):
        #   start: 0.24 (1 - 0.5) = 0.12,   others -0.24/6       = -0.04
        #   我:    0.24 (1 - 0.8) = 0.048,  others -0.24 0.2/3   = -0.016
        #   爱:    0.24 (1 - 0.6) = 0.096,  others -0.24 0.4/3   = -0.032
        #   你:    0.24 (1 - 1)   = 0;  。: never drawn from
        by_rows = [
            [-0.016, 0.048, -0.016, -0.016],
            [-0.032, -0.032, 0.096, -0.032],
            [0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0],
            [0.12, -0.04, -0.04, -0.04],
        ]
        found = targets(WORLD)["J"]
        torch.testing.assert_close(found, torch.tensor(by_rows, dtype=torch.float64), rtol=0, atol=1e-15)

    def test_of_j_is_the_finite_difference(self):
        rewards = torch.rand(121, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        logits = bent().requires_grad_()
        found = exact.gradient(exact.expected_reward(logits, WORLD.sequences, rewards), logits)
        slow = finite_difference(lambda moved: exact.expected_reward(moved, WORLD.sequences, rewards), logits.detach())
        torch.testing.assert_close(found, slow, rtol=0, atol=1e-9)

    def test_of_the_sequence_kl_is_the_finite_difference(self):
        logits, reference = bent(3).requires_grad_(), bent(4)
        value = exact.sequence_kl(logits, reference, WORLD.sequences)
        p = exact.probabilities(logits.detach(), WORLD.sequences)
        q = exact.probabilities(reference, WORLD.sequences)
        assert value.item() == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-12)
        slow = finite_difference(lambda moved: exact.sequence_kl(moved, reference, WORLD.sequences), logits.detach())
        torch.testing.assert_close(exact.gradient(value, logits), slow, rtol=0, atol=1e-8)

    @pytest.mark.parametrize("forward", [False, True])
    def test_of_the_kl_of_states_is_the_finite_difference_at_fixed_visits(self, forward):
        logits, reference = bent(3), bent(4)
        # How often each state is visited, from the definition: P(first t tokens end in the state), over all t.
        visits = [0.0] * 5
        probability = exact.probabilities(logits, WORLD.sequences).tolist()
        for row, chance in enumerate(probability):
            for state in ["start", *text_of(row)[:-1]]:
                visits[START if state == "start" else VOCABULARY.index(state)] += chance

        def value(moved: torch.Tensor) -> float:
            total = 0.0
            for state, often in enumerate(visits):
                p, q = moved[state].softmax(0), reference[state].softmax(0)
                first, second = (q, p) if forward else (p, q)
                total += often * float((first * (first / second).log()).sum())
            return total

        moving = logits.clone().requires_grad_()
        found = exact.state_kl(moving, reference, WORLD.sequences, forward=forward)
        assert found.item() == pytest.approx(value(logits), abs=1e-12)
        torch.testing.assert_close(exact.gradient(found, moving), finite_difference(value, logits), rtol=0, atol=1e-8)

    def test_chain_rule_of_kl_over_states_and_sequences(self):
        # The sequence's KL is the visited states' KL added up: the same value, but not the same gradient.
        logits, reference = bent(3).requires_grad_(), bent(4)
        whole = exact.sequence_kl(logits, reference, WORLD.sequences)
        states = exact.state_kl(logits, reference, WORLD.sequences, forward=False)
        assert whole.item() == pytest.approx(states.item(), abs=1e-12)
        difference = exact.gradient(whole, logits) - exact.gradient(states, logits)
        assert float(difference.abs().max()) > 0.01


@pytest.fixture(scope="module", params=[20_000, pytest.param(100_000, marks=pytest.mark.slow)])
def samples(request):
    return request.param


@pytest.fixture(scope="module")
def findings(samples):
    return {finding.estimator.name: finding for finding in verify(WORLD, samples=samples)}


class TestVerify:
    def test_every_unbiased_estimator_meets_its_target(self, findings):
        claimed = {name for name, finding in findings.items() if finding.estimator.unbiased}
        assert claimed == {
            "reinforce", "reinforce_baseline", "rloo", "kl k1 in reward", "kl k1 in loss", "kl k2 in loss", "kl k3 in loss",
            "dr_grpo, rescaled", "gae, lambda 1", "gae, true values", "gae, by token", "reinforce, by token",
            "reinforce, true potential", "reinforce_baseline, by token", "rloo, by token", "rloo, by sentence",
            "rloo, true potential", "dr_grpo, by token", "entropy bonus", "off-policy, sequence",
            "rloo, running rewards",
        }  # fmt: skip
        for name in claimed:
            finding = findings[name]
            assert finding.bias.abs().max() < 1e-9, name
            varies = finding.standard_error > 1e-9
            distance = (finding.mean - finding.exact)[varies].abs() / finding.standard_error[varies]
            # One number in every eleven estimators or so may pass 3 by chance among 12 to 20 components; none passes 4.
            assert float(distance.max()) <= finding.limit < 4.0, name
            assert float(distance.square().mean()) < 3.0, name
            assert finding.passed

    def test_the_first_component_is_within_three_standard_errors(self, findings):
        for name, finding in findings.items():
            if finding.estimator.target == "J" and finding.estimator.unbiased and finding.estimator.scale is None:
                found = float(finding.mean[START, 0])
                assert abs(found - 0.12) <= 3 * float(finding.standard_error[START, 0]), name

    def test_biased_estimators_show_their_bias(self, findings):
        for name in [name for name, finding in findings.items() if not finding.estimator.unbiased]:
            assert not findings[name].agrees, name
            assert findings[name].passed, f"{name} claims nothing"
            assert findings[name].deviation > 10, name

    def test_standard_errors_are_those_of_the_samples(self, findings, samples):
        # REINFORCE, component 我|start, G = 4: one sample gives R (1 - 0.5) where it says 我爱你。, so the mean of four
        # has variance (0.24 0.5^2 - 0.12^2) / 4 = 0.0114 (a sample without reward adds nothing).
        error = float(findings["reinforce"].standard_error[START, 0])
        assert error == pytest.approx(math.sqrt(0.0114 / samples), rel=0.02)

    def test_a_baseline_pays_where_the_reward_has_an_offset(self, findings):
        # Rewards of 1 and 2 in place of 0 and 1: J's gradient is the same, REINFORCE's variance is not.
        lifted = replace(WORLD, rewards=WORLD.rewards + 1)
        rows = [row for row in estimators() if row.name in ("reinforce", "rloo")]
        plain, compared = verify(lifted, rows, samples=5_000)
        torch.testing.assert_close(plain.exact, findings["rloo"].exact, rtol=0, atol=1e-12)
        assert plain.passed
        assert compared.passed
        assert compared.variance == pytest.approx(findings["rloo"].variance, rel=0.1)
        assert plain.variance > 5 * compared.variance

    @pytest.mark.slow
    def test_another_seed_agrees_too(self):
        assert all(finding.passed for finding in verify(WORLD, samples=20_000, seed=12345))

    @pytest.mark.slow
    def test_groups_of_two_and_of_nine(self):
        for group in (2, 9):
            assert all(finding.passed for finding in verify(WORLD, samples=5_000, group=group))


REINFORCE = PRESETS["reinforce"]


def minus_own_mean(rewards: torch.Tensor, baseline: float = 0.0) -> torch.Tensor:
    return rewards - rewards.mean(-1, keepdim=True)


def plus_log_likelihood(logprobs, log_ratio, advantages, limits):
    return advantages * logprobs


def probability_instead_of_logprob(logprobs, log_ratio, advantages, limits):
    return -advantages * logprobs.exp()


def first_token_only(groups):
    """Credit for no token after the first."""
    return groups.terminal_rewards.sum(-1, keepdim=True) * (torch.arange(groups.mask.shape[-1]) == 0)


WRONG = {
    "a baseline that holds the sample itself": Estimator("wrong", replace(REINFORCE, advantages=minus_own_mean)),
    "a mean over each length": Estimator("wrong", replace(REINFORCE, aggregation="sequence_mean")),
    "a mean over all tokens": Estimator("wrong", replace(REINFORCE, aggregation="token_mean")),
    "a sign error": Estimator("wrong", replace(REINFORCE, loss=plus_log_likelihood)),
    "p in place of log p": Estimator("wrong", replace(REINFORCE, loss=probability_instead_of_logprob)),
    "no credit after the first token": Estimator("wrong", REINFORCE, credit=first_token_only),
    "a KL that forgets how states are reached": Estimator("wrong", REINFORCE, "J - b KL", True, "", "k2", "loss"),
    "k1 in the loss taken for a KL": Estimator("wrong", REINFORCE, "J - b KL", True, "", "k1", "loss"),
    "k3 in the loss taken for the reverse KL": Estimator(
        "wrong", REINFORCE, "J - b KL of states", True, "", "k3", "loss"
    ),
    "k3 in the reward": Estimator("wrong", REINFORCE, "J - b KL", True, "", "k3", "reward"),
    "grpo that claims to be unbiased": Estimator("wrong", PRESETS["grpo"]),
}


class TestWrongEstimatorsAreCaught:
    @pytest.mark.parametrize("name", [name for name in WRONG if name != "a mean over each length"])
    def test_by_sampling_and_by_enumeration(self, name):
        (finding,) = verify(WORLD, [WRONG[name]], samples=50_000)
        assert not finding.passed
        assert finding.bias.abs().max() > 1e-4, "enumeration sees it"
        assert finding.deviation > finding.limit, "sampling sees it"

    def test_a_mean_over_lengths(self):
        # Only texts of four tokens pay: the whole gradient shrinks to a quarter, 0.12 to 0.03.
        (finding,) = verify(WORLD, [WRONG["a mean over each length"]], samples=20_000)
        assert not finding.passed
        assert float(finding.bias[START, 0]) == pytest.approx(0.03 - 0.12, abs=1e-12)

    def test_own_mean_shrinks_the_gradient_by_one_over_g(self):
        # E[(R_i - mean) s_i] = (1 - 1/G) dJ; by enumeration G = 2, so half of 0.12 is missing.
        (finding,) = verify(WORLD, [WRONG["a baseline that holds the sample itself"]], samples=2_000)
        assert float(finding.bias[START, 0]) == pytest.approx(-0.06, abs=1e-12)

    def test_a_bias_that_only_sampling_sees(self):
        # With G = 2 the pair's better one is what it is; this estimator is right for pairs and wrong for G = 4.
        def advantages(rewards, baseline=0.0):
            return rewards if rewards.shape[-1] == 2 else 0.5 * rewards

        (finding,) = verify(WORLD, [Estimator("wrong", replace(REINFORCE, advantages=advantages))], samples=20_000)
        assert finding.bias.abs().max() < 1e-12
        assert finding.deviation > finding.limit
        assert not finding.passed

    def test_mean_over_all_actions_instead_of_the_sampled_one(self, monkeypatch):
        # A mean over v of log p(v|s) has the slope 1/V - p(v|s) whatever was sampled.
        def estimates(world, estimator, index):
            count, group = index.shape
            picked = world.sequences[index.flatten()]
            reward = world.rewards[index].flatten()[:, None].expand_as(picked.mask)[picked.mask]
            rows = picked.previous[picked.mask]
            owner = torch.arange(count).repeat_interleave(group)[:, None].expand_as(picked.mask)[picked.mask]
            slope = (1 / 4 - world.logits.softmax(-1)[rows]) * reward[:, None] / group
            result = torch.zeros(count, world.logits.numel(), dtype=torch.float64)
            columns = rows[:, None] * 4 + torch.arange(4)
            return result.index_put_((owner[:, None].expand_as(columns), columns), slope, accumulate=True)

        monkeypatch.setattr(verification, "estimates", estimates)
        (finding,) = verify(WORLD, [Estimator("mean of all", REINFORCE)], samples=20_000)
        assert not finding.passed
        # J (1/4 - 1/2) instead of J (1 - 1/2).
        assert float(finding.bias[START, 0]) == pytest.approx(0.24 * -0.25 - 0.12, abs=1e-12)

    def test_an_estimate_that_never_varies_is_not_excused(self):
        # All rewards zero: nothing to estimate with, a standard error of zero, and yet the target is not met.
        def nothing(rewards, baseline=0.0):
            return torch.zeros_like(rewards)

        (finding,) = verify(WORLD, [Estimator("nothing", replace(REINFORCE, advantages=nothing))], samples=1_000)
        assert finding.deviation == math.inf
        assert not finding.passed

    def test_right_estimators_are_not_accused(self):
        right = [
            Estimator("right", REINFORCE),
            Estimator("right", replace(PRESETS["grpo"], advantages=reinforce, aggregation="sequence_sum")),
            Estimator("right", replace(REINFORCE, loss=losses.clipped_ratio, ratio="token")),
        ]
        assert [finding.passed for finding in verify(WORLD, right, samples=20_000)] == [True] * 3


class TestTokenwise:
    def test_a_potential_that_knows_is_a_baseline(self, findings):
        # Rewards of 1 and 2 in place of 0 and 1: what a beginning is worth takes the offset away, as rloo's others do.
        lifted = replace(WORLD, rewards=WORLD.rewards + 1)
        rows = [row for row in estimators() if row.name in ("reinforce", "reinforce, true potential")]
        plain, shaped = verify(lifted, rows, samples=5_000)
        assert plain.passed
        assert shaped.passed
        assert shaped.variance == pytest.approx(findings["reinforce, true potential"].variance, rel=0.1)
        assert plain.variance > 5 * shaped.variance

    @pytest.mark.parametrize("name", ["reinforce", "rloo"])
    def test_a_reward_that_comes_bit_by_bit_is_told_apart_better(self, name):
        # The number of 我, under a uniform policy; dealt out, a token does not get those before it.
        def so_far(world):
            count = (world.sequences.tokens == 0).double() * world.sequences.mask
            return count.cumsum(-1) - count

        uniform, preset = torch.zeros_like(WORLD.logits), PRESETS[name]
        count = ((WORLD.sequences.tokens == 0) & WORLD.sequences.mask).sum(-1).double()
        world = replace(WORLD, logits=uniform, reference=uniform, rewards=count)
        rows = [Estimator("whole", preset), Estimator("by token", preset, credit=by_token(preset, so_far))]
        whole, dealt = verify(world, rows, samples=5_000)
        assert whole.passed
        assert dealt.passed
        assert dealt.variance < 0.7 * whole.variance


def run_cli(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["burnish", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code or 0


class TestCommand:
    def test_exits_0_and_shows_the_exact_numbers(self, monkeypatch, capsys):
        assert run_cli(monkeypatch, "verify", "--samples", "2000", "--no-train") == 0
        out = capsys.readouterr().out
        for estimator in estimators():
            assert estimator.name in out

    @pytest.mark.slow
    def test_exits_1_and_names_the_estimator_that_is_wrong(self, monkeypatch, capsys):
        wrong = replace(WRONG["a sign error"], name="backwards")
        monkeypatch.setattr(verification, "estimators", lambda: [*estimators(), wrong])
        assert run_cli(monkeypatch, "verify", "--samples", "2000", "--no-train") == 1
        captured = capsys.readouterr()
        assert "backwards" in captured.err
        assert "reinforce" not in captured.err
        assert len(captured.err.strip().splitlines()) == 1

    @pytest.mark.slow
    def test_json(self, monkeypatch, capsys):
        assert run_cli(monkeypatch, "verify", "--samples", "2000", "--json", "--seed", "5") == 0
        found = json.loads(capsys.readouterr().out)
        assert [row["estimator"] for row in found["estimators"]] == [row.name for row in estimators()]
        first = next(row for row in found["components"] if row["component"] == "我|start")
        assert first["exact"] == pytest.approx(0.12, abs=1e-12)
        assert all(row["passed"] for row in found["estimators"])
