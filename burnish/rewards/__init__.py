"""Scoring of text: the reward contract and registry, the combination of rewards, and the built-in library."""

from burnish.rewards.registry import REWARDS, RewardFunction, reward

# ``combine`` is not exported here: it would hide the module of that name.
__all__ = ["REWARDS", "RewardFunction", "reward"]
