"""The combined rewards and metrics that a recipe describes."""

from __future__ import annotations

from collections.abc import Sequence

from burnish.protocols import LanguageModel
from burnish.recipe.evaluation import MetricSection
from burnish.recipe.sections import RewardSection
from burnish.rewards.combine import Combination
from burnish.rewards.part import Part
from burnish.rewards.registry import REWARDS
from burnish.rewards.token_credit import Decode


def combine_rewards(
    sections: Sequence[RewardSection], reference_policy: LanguageModel | None = None, *, decode: Decode | None = None
) -> Combination:
    """Return the combination of ``[[reward]]`` tables. Raises InputError as ``Combination`` does."""
    parts = [
        Part(
            section.part, REWARDS.get(section.use), section.weight, section.options,
            section.clip, section.gate, section.normalise, section.schedule, section.credit,
            section.max_errors, section.time_limit,
        )
        for section in sections
    ]  # fmt: skip
    return Combination(parts, reference_policy, decode=decode)


def combine_metrics(
    sections: Sequence[MetricSection], reference_policy: LanguageModel | None = None
) -> Combination | None:
    """Return the combination of ``evaluation.metrics``; None if it is empty. Raises InputError as ``Combination``."""
    parts = [Part(section.part, REWARDS.get(section.use), 1.0, section.options) for section in sections]
    # A metric of one kind of prompt applies to none of another held-out set.
    return Combination(parts, reference_policy, must_apply=False) if parts else None
