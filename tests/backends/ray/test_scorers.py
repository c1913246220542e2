"""Which scorer is asked about which completions."""

from __future__ import annotations

from burnish.backends.ray.scorers import shares
from burnish.rewards.part import Part
from burnish.rewards.registry import REWARDS, reward_function
from burnish.types import Completion, Prompt


def completions(*prompts: str) -> list[Completion]:
    return [Completion(Prompt(name, name), (1,), (2,), "text", (), "stop") for name in prompts]


TEXTS = completions("a", "a", "a", "b", "c", "c")


def test_a_function_of_one_completion_is_shared_out_by_prompts():
    part = Part("one", reward_function("one", lambda text: 1.0))
    assert shares(part, TEXTS, 2) == [[0, 1, 2, 3], [4, 5]]
    assert shares(part, TEXTS, 9) == [[0, 1, 2], [3], [4, 5]]


def test_a_batch_reward_of_the_library_is_shared_out_too():
    part = Part("same", REWARDS.get("group_diversity"))
    assert part.function.batch and shares(part, TEXTS, 2) == [[0, 1, 2, 3], [4, 5]]


def test_a_batch_reward_of_somebody_else_gets_everything():
    part = Part("all", reward_function("all", lambda texts: [1.0] * len(texts)))
    assert shares(part, TEXTS, 2) == [[0, 1, 2, 3, 4, 5]]
