"""How text is scored: rewards, their registry, their combination, and guards against their being gamed."""

from burnish.rewards.registry import REWARDS, RewardFunction, reward

# ``combine`` is not lifted up here: it would hide the module of that name.
__all__ = ["REWARDS", "RewardFunction", "reward"]
