"""Flags of completions before they are scored."""

from __future__ import annotations

from burnish.backends.screening import completion_screen
from burnish.recipe.sections import RewardSection
from burnish.training.rollouts import flag_completion
from tests.rewards.completions import answer


def test_the_filter_of_a_reward_flags_completions_and_no_other_does(tmp_path) -> None:
    assert completion_screen([RewardSection(use="repetition")]) is flag_completion
    screen = completion_screen([RewardSection(use="content_filter", weight=0.0)])
    assert screen(answer("Bollocks, a@example.org.")) == ("filter:email", "filter:profanity")
    assert screen(answer("")) == ("empty",)
    (tmp_path / "p.toml").write_text('[categories.profanity]\naction = "allow"\n', encoding="utf-8")
    lenient = completion_screen([RewardSection(use="content_filter", policy=str(tmp_path / "p.toml"))])
    assert lenient(answer("Bollocks!")) == ()
