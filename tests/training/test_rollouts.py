"""Replacement of groups without spread: by hand, bounded, and deterministic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from burnish.backends.local import build
from burnish.recipe.schema import load_recipe
from burnish.training.rollouts import collect, flag_completion, refill_prompts, without_spread
from burnish.training.step import train_step
from burnish.types import Completion, Group, Prompt, Scores

POOL = [Prompt(f"p{index}", "") for index in range(6)]


class Script:
    """A scripted sampler and scorer: the rewards of the groups of each round."""

    def __init__(self, *rounds: list[list[float]]) -> None:
        self.rounds = list(rounds)
        self.seeds: list[tuple[int, ...]] = []
        self.prompts: list[list[str]] = []
        self.now: list[list[float]] = []

    def sample(self, prompts, seed) -> list[Group]:
        self.seeds.append(tuple(seed))
        self.prompts.append([prompt.id for prompt in prompts])
        number = len(self.seeds)
        self.now = self.rounds[number - 1]
        assert len(prompts) == len(self.now)
        # Texts of round n have n tokens, so that rounds can be told apart.
        return [
            Group(prompt, tuple(Completion(prompt, (), (0,) * number, "", (0.0,) * number, "stop") for _ in rewards))
            for prompt, rewards in zip(prompts, self.now, strict=True)
        ]

    def score(self, completions, step=None, flags=None) -> Scores:
        total = np.array([reward for rewards in self.now for reward in rewards])
        assert len(total) == len(completions)
        return Scores(total, {"a": total / 2, "b": total * 0}, {"a": 2.0, "b": 1.0})

    def collect(self, prompts: int, refills: int):
        return collect(self.sample, flag_completion, self.score, POOL[:prompts], POOL, (4, 9), refills)


def rows(rollouts) -> list[list[float]]:
    return rollouts.scores.total.reshape(len(rollouts.groups), -1).tolist()


def test_without_refills_all_groups_are_kept():
    script = Script([[1, 1], [0, 1]])
    rollouts = script.collect(2, 0)
    assert rows(rollouts) == [[1, 1], [0, 1]]
    assert (rollouts.rounds, rollouts.replaced, rollouts.flat, rollouts.wasted) == (0, 0, [0], 0)
    assert script.seeds == [(4, 9)]


def test_flat_groups_are_replaced_in_place():
    # Groups 0, 2 and 3 are flat. Round 1 has one group with spread, for index 0; round 2 has one for index 2.
    script = Script([[1, 1], [0, 1], [0, 0], [2, 2]], [[3, 3], [5, 6], [7, 7]], [[8, 8], [9, 0]])
    rollouts = script.collect(4, 2)
    assert rows(rollouts) == [[5, 6], [0, 1], [9, 0], [2, 2]]
    assert rollouts.scores.parts["a"].tolist() == [2.5, 3, 0, 0.5, 4.5, 0, 1, 1]
    assert [len(group.completions[0].token_ids) for group in rollouts.groups] == [2, 1, 3, 1]
    assert [group.prompt.id for group in rollouts.groups] == [script.prompts[1][1], "p1", script.prompts[2][1], "p3"]
    assert (rollouts.rounds, rollouts.replaced, rollouts.flat) == (2, 2, [3])
    # Wasted: two replaced groups of two one-token texts, two flat groups of round 1 and one of round 2.
    assert rollouts.wasted == 2 * 2 * 1 + 2 * 2 * 2 + 1 * 2 * 3
    assert script.seeds == [(4, 9), (4, 9, 1), (4, 9, 2)]


def test_unnormalised_totals_follow_their_groups():
    script = Script([[1, 1], [0, 1]], [[5, 6]])
    inner = script.score
    script.score = lambda completions, flags: replace(inner(completions), unnormalised=inner(completions).total + 100)
    rollouts = script.collect(2, 1)
    assert rows(rollouts) == [[5, 6], [0, 1]]
    assert rollouts.scores.unnormalised.tolist() == [105, 106, 100, 101]


def test_rounds_stop_when_done_or_at_the_limit():
    assert Script([[0, 1], [2, 0]]).collect(2, 3).rounds == 0
    endless = [[1.0, 1.0]]
    rollouts = Script(*[endless] * 4).collect(1, 3)
    assert (rollouts.rounds, rollouts.replaced, rollouts.flat) == (3, 0, [0])


def test_the_prompts_of_a_refill_depend_only_on_seed_step_and_round():
    def drawn(count, seed, number):
        return [prompt.id for prompt in refill_prompts(POOL, count, seed, number)]

    assert drawn(4, (1, 2), 1) == drawn(4, (1, 2), 1)
    assert len({tuple(drawn(4, *key)) for key in (((1, 2), 1), ((1, 2), 2), ((1, 3), 1), ((2, 2), 1))}) == 4
    assert sorted(drawn(6, (1, 2), 1)) == [prompt.id for prompt in POOL]
    assert len(drawn(9, (1, 2), 1)) == 9


def test_groups_without_spread_are_listed():
    total = np.array([1.0, 1.0, 0.0, 1e-300, 2.0, 2.0])
    assert without_spread(Scores(total, {}, {}), 3) == [0, 2]


class TestInAStep:
    @staticmethod
    def run(*keys: str, steps: int = 30) -> list[dict]:
        learner, _ = build(load_recipe("toy", ["optimizer.learning_rate=0.1", *keys]))
        return [train_step(learner).metrics for _ in range(steps)]

    @pytest.mark.slow
    def test_dapo_trains_on_more_samples_with_refills(self):
        """Near the end almost all samples of the toy task are right, so most groups have no spread."""
        refilled, plain = self.run("algorithm.use=dapo"), self.run("algorithm.use=dapo", "algorithm.refills=0")
        assert sum(row["refill/replaced"] for row in refilled) > 10
        assert max(row["refill/rounds"] for row in refilled) == 3
        assert sum(row["trained"] for row in refilled) > sum(row["trained"] for row in plain)
        assert "refill/rounds" not in plain[0]

    def test_overlong_texts_are_penalised(self):
        # With a limit of 4 tokens and share 0.5: no penalty up to 2, half the weight for 3, all of it for 4.
        keys = ["algorithm.use=reinforce", "algorithm.overlong={weight = 0.6, share = 0.5}"]
        learner, _ = build(load_recipe("toy", keys))
        for row in train_step(learner).samples:
            cost = {1: 0.0, 2: 0.0, 3: 0.3, 4: 0.6}[row["tokens"]]
            assert row["advantage"] == row["reward"] == pytest.approx(sum(row["parts"].values()) - cost, abs=1e-12)
