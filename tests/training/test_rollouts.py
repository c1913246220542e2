"""Groups that teach nothing give way to others: by hand, bounded, and the same each time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from burnish.backends.local import build
from burnish.recipe.schema import load_recipe
from burnish.training.rollouts import collect, flag_completion, refill_prompts, without_spread
from burnish.training.step import train_step
from burnish.types import Completion, Group, Prompt, Scores

POOL = [Prompt(f"p{place}", "") for place in range(6)]


class Script:
    """A sampler and a scorer that follow a script: for each round, the rewards of its groups."""

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
        # As many tokens as the number of the round says, so that texts can be told apart.
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


def rows(found) -> list[list[float]]:
    return found.scores.total.reshape(len(found.groups), -1).tolist()


def test_without_refills_everything_stays():
    script = Script([[1, 1], [0, 1]])
    found = script.collect(2, 0)
    assert rows(found) == [[1, 1], [0, 1]]
    assert (found.rounds, found.replaced, found.flat, found.wasted) == (0, 0, 1, 0)
    assert script.seeds == [(4, 9)]


def test_flat_groups_give_way_in_their_places():
    # Groups 0, 2 and 3 are flat. Round 1 brings one group with spread, for place 0; round 2 one for place 2.
    script = Script([[1, 1], [0, 1], [0, 0], [2, 2]], [[3, 3], [5, 6], [7, 7]], [[8, 8], [9, 0]])
    found = script.collect(4, 2)
    assert rows(found) == [[5, 6], [0, 1], [9, 0], [2, 2]]
    assert found.scores.parts["a"].tolist() == [2.5, 3, 0, 0.5, 4.5, 0, 1, 1]
    assert [len(group.completions[0].token_ids) for group in found.groups] == [2, 1, 3, 1]
    assert [group.prompt.id for group in found.groups] == [script.prompts[1][1], "p1", script.prompts[2][1], "p3"]
    assert (found.rounds, found.replaced, found.flat) == (2, 2, 1)
    # Two groups of two one-token texts left; two groups of round 1 (two tokens each) and one of round 2 came in vain.
    assert found.wasted == 2 * 2 * 1 + 2 * 2 * 2 + 1 * 2 * 3
    assert script.seeds == [(4, 9), (4, 9, 1), (4, 9, 2)]


def test_totals_without_normalisation_go_with_their_groups():
    script = Script([[1, 1], [0, 1]], [[5, 6]])
    inner = script.score
    script.score = lambda completions, flags: replace(inner(completions), unnormalised=inner(completions).total + 100)
    found = script.collect(2, 1)
    assert rows(found) == [[5, 6], [0, 1]]
    assert found.scores.unnormalised.tolist() == [105, 106, 100, 101]


def test_no_more_rounds_than_are_needed_or_allowed():
    assert Script([[0, 1], [2, 0]]).collect(2, 3).rounds == 0
    endless = [[1.0, 1.0]]
    found = Script(*[endless] * 4).collect(1, 3)
    assert (found.rounds, found.replaced, found.flat) == (3, 0, 1)


def test_the_prompts_of_a_refill_hang_on_seed_step_and_round_alone():
    def drawn(count, seed, number):
        return [prompt.id for prompt in refill_prompts(POOL, count, seed, number)]

    assert drawn(4, (1, 2), 1) == drawn(4, (1, 2), 1)
    assert len({tuple(drawn(4, *key)) for key in (((1, 2), 1), ((1, 2), 2), ((1, 3), 1), ((2, 2), 1))}) == 4
    assert sorted(drawn(6, (1, 2), 1)) == [prompt.id for prompt in POOL]
    assert len(drawn(9, (1, 2), 1)) == 9


def test_without_spread():
    total = np.array([1.0, 1.0, 0.0, 1e-300, 2.0, 2.0])
    assert without_spread(Scores(total, {}, {}), 3) == [0, 2]


class TestInAStep:
    @staticmethod
    def run(*keys: str, steps: int = 30) -> list[dict]:
        learner, _ = build(load_recipe("toy", ["optimizer.learning_rate=0.1", *keys]))
        return [train_step(learner).metrics for _ in range(steps)]

    def test_dapo_keeps_its_groups_apart_longer(self):
        """Near the end all samples of the toy are right, and most groups teach nothing."""
        refilled, plain = self.run("algorithm.use=dapo"), self.run("algorithm.use=dapo", "algorithm.refills=0")
        assert sum(row["refill/replaced"] for row in refilled) > 10
        assert max(row["refill/rounds"] for row in refilled) == 3
        assert sum(row["trained"] for row in refilled) > sum(row["trained"] for row in plain)
        assert "refill/rounds" not in plain[0]

    def test_overlong_texts_pay(self):
        # Of at most 4 tokens with share 0.5: nothing up to 2, half the weight for 3, all of it for 4.
        keys = ["algorithm.use=reinforce", "algorithm.overlong={weight = 0.6, share = 0.5}"]
        learner, _ = build(load_recipe("toy", keys))
        for row in train_step(learner).samples:
            cost = {1: 0.0, 2: 0.0, 3: 0.3, 4: 0.6}[row["tokens"]]
            assert row["advantage"] == pytest.approx(row["reward"] - cost, abs=1e-12)
