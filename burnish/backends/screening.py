"""Screening of completions before they are scored."""

from __future__ import annotations

from collections.abc import Sequence

from burnish.recipe.sections import RewardSection
from burnish.training.rollouts import Flags, Screen, flag_completion
from burnish.types import Completion


def completion_screen(rewards: Sequence[RewardSection]) -> Screen:
    """Return what flags completions: their length, and what the filters of ``content_filter`` rewards find in them."""
    policies = [str(section.options.get("policy", "")) for section in rewards if section.use == "content_filter"]
    if not policies:
        return flag_completion
    from burnish.safety.filter.content_filter import load_filter

    filters = [load_filter(policy) for policy in policies]

    def screen(completion: Completion) -> Flags:
        categories = {category for one in filters for category in one.check(completion.text).categories}
        return (*flag_completion(completion), *(f"filter:{category}" for category in sorted(categories)))

    return screen
