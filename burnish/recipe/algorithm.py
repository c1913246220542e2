"""The recipe's ``[algorithm]`` section: its keys, the checks across keys, and the preset it resolves to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from burnish.errors import InputError
from burnish.recipe.sections import RewardSection, Section
from burnish.registry import nearest

if TYPE_CHECKING:
    from burnish.algorithms.presets import Preset


class KL(Section):
    """KL penalty towards the reference policy. ``burnish.algorithms.kl`` derives the gradient of each combination."""

    coefficient: float = Field(0.0, ge=0, le=1e6)
    estimator: Literal["k1", "k2", "k3"] = "k3"
    where: Literal["loss", "reward"] = "loss"
    target: float | None = Field(None, gt=0, le=1e6)
    """KL per completion, in nats, that the coefficient adapts to; None keeps the coefficient fixed."""
    horizon: float | None = Field(None, gt=0, le=1e12)
    """Samples over which the coefficient adapts; None uses the paper's rate."""
    reset_every: int | None = Field(None, ge=1)
    """Steps after which the reference of the KL term is reset to the current policy; None never resets it."""

    @model_validator(mode="after")
    def _check_keys(self) -> KL:
        for key in ("target", "reset_every"):
            if getattr(self, key) is not None and self.coefficient == 0:
                raise ValueError(f"{key} has no effect while coefficient is 0; set coefficient above 0 or remove {key}")
        if self.horizon is not None and self.target is None:
            raise ValueError(
                "horizon is the rate at which the coefficient follows target; set target or remove horizon"
            )
        if self.coefficient > 0 and self.where == "loss" and self.estimator == "k1":
            raise ValueError(
                'estimator = "k1" with where = "loss" has a gradient whose mean is zero; '
                'use estimator "k2" or "k3", or where = "reward"'
            )
        return self


class Importance(Section):
    """Importance weights that correct the gap between the sampler's probabilities and the trained policy's."""

    form: Literal["none", "truncate", "mask"] | None = None
    """None becomes truncate where ``backend.max_staleness`` allows samples of older weights; else nothing is corrected."""
    level: Literal["token", "sequence"] = "token"
    limit: float = Field(2.0, gt=0, le=1e6)
    floor: float = Field(0.0, ge=0)
    """Of a mask: smaller weights are dropped too."""

    @model_validator(mode="after")
    def _check_floor(self) -> Importance:
        if self.floor and self.form != "mask":
            raise ValueError('floor belongs to form = "mask"; set it, or remove floor')
        if self.floor >= self.limit:
            raise ValueError(f"floor = {self.floor:g} is not below limit = {self.limit:g}, so every token is dropped")
        return self


class Overlong(Section):
    """Penalty for completions near the maximum length (DAPO, arXiv 2503.14476, equation 13)."""

    weight: float = Field(0.0, ge=0, le=1e6)
    """Penalty at the maximum length, in units of the reward; 0 turns it off."""
    share: float = Field(0.2, gt=0, le=1)
    """Share of ``sampling.max_new_tokens``, counted from the end, over which the penalty grows."""


class CriticSection(Section):
    """Value model (critic) settings, for algorithms that have one."""

    rate: float = Field(10.0, gt=0, le=1e6)
    """Learning rate of the critic, as a multiple of ``optimizer.learning_rate``."""
    clip: float = Field(0.2, ge=0, le=1e6)
    """Largest change of a value per step, in units of the reward; 0 turns clipping off."""
    discount: float = Field(1.0, gt=0, le=1)
    """Discount factor per token."""
    trace: float = Field(0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation: 1 uses the observed return, 0 the critic's next value."""


class Algorithm(Section):
    """The algorithm and its settings. ``resolve_algorithm`` replaces None by the paper's value."""

    use: str = "grpo"
    kl: KL = KL()
    baseline: Literal["batch", "prompt"] | None = None
    """The moving mean subtracted from rewards: over all prompts, or per prompt."""
    aggregation: Literal["sequence_sum", "sequence_mean", "token_mean", "constant_length"] | None = None
    """How per-token losses are reduced to one number."""
    clip_low: float | None = Field(None, gt=0, le=1)
    clip_high: float | None = Field(None, gt=0, le=1e6)
    """The ratio of new to old policy is clipped to [1 - clip_low, 1 + clip_high]."""
    dual_clip: float | None = Field(None, gt=1, le=1e6)
    """Upper limit of the ratio for negative advantages; None, the default of every preset, sets no limit."""
    entropy: float = Field(0.0, ge=0, le=1e6)
    """Coefficient of the entropy bonus, per nat and token."""
    epochs: int = Field(1, ge=1, le=1000)
    """Passes over the samples of a step."""
    minibatches: int = Field(1, ge=1)
    """Updates per epoch."""
    importance: Importance = Importance()
    overlong: Overlong = Overlong()
    length_cost: float = Field(0.0, ge=0, le=1e6)
    """Penalty at the maximum length, in units of the reward, proportional to length; 0 turns it off."""
    mask_truncated: bool = False
    """Whether completions that were cut at ``sampling.max_new_tokens`` are left out of the loss."""
    critic: CriticSection | None = None
    refills: int | None = Field(None, ge=0)
    """Rounds in which groups whose rewards are all equal are replaced by groups of other prompts."""
    beta: float | None = Field(None, gt=0, le=1e6)
    """Strength of the pull towards the reference in ``online_dpo``."""


def check_algorithm(section: Algorithm, prompts: int, group: int) -> None:
    """Raise InputError unless the algorithm works with P prompts per step and G samples per prompt."""
    from burnish.algorithms.presets import PRESETS

    name = section.use
    if name not in PRESETS:
        raise InputError(f"algorithm.use = '{name}'{nearest(name, PRESETS)}: known algorithms are {', '.join(PRESETS)}")
    preset = PRESETS[name]
    if preset.needs_group and group < 2:
        raise InputError(
            f"algorithm.use = '{name}' compares the samples of one prompt, "
            "so sampling.samples_per_prompt must be at least 2"
        )
    if preset.needs_batch and prompts * group < 2:
        raise InputError(
            f"algorithm.use = '{name}' compares the samples of one step, "
            "so sampling.samples_per_prompt or sampling.prompts_per_step must be at least 2"
        )
    _check_parts(section, preset)
    _check_clips(section, preset)
    _check_updates(section, preset, prompts * group)
    if section.refills and not preset.needs_group:
        raise InputError(
            f"algorithm.refills = {section.refills}: '{name}' does not compare the samples of one prompt, so it can "
            "learn from groups of equal rewards; remove refills"
        )
    if section.mask_truncated and preset.paired:
        raise InputError(
            f"algorithm.mask_truncated: '{name}' trains on pairs of samples, of which it would leave out one; remove it"
        )
    if section.kl.horizon is not None and section.kl.horizon < prompts * group:
        raise InputError(
            f"algorithm.kl.horizon = {section.kl.horizon:g}: one step alone has {prompts * group} samples; "
            "use a few thousand"
        )


def _check_parts(section: Algorithm, preset: Preset) -> None:
    name = section.use
    if section.baseline is not None and not preset.has_baseline:
        others = _algorithms(lambda other: other.has_baseline)
        raise InputError(
            f"algorithm.baseline = \"{section.baseline}\": '{name}' has no moving baseline; remove it or use {others}"
        )
    if section.critic is not None and not preset.critic:
        raise InputError(f"algorithm.critic: '{name}' does not use a critic; remove [algorithm.critic] or use ppo")
    if section.beta is not None and not preset.paired:
        others = _algorithms(lambda other: other.paired)
        raise InputError(
            f"algorithm.beta = {section.beta:g}: '{name}' does not train on pairs; remove it or use {others}"
        )


def _check_clips(section: Algorithm, preset: Preset) -> None:
    for key in ("clip_low", "clip_high"):
        if getattr(section, key) is not None and not preset.clips:
            others = _algorithms(lambda other: other.clips)
            raise InputError(
                f"algorithm.{key}: the loss of '{section.use}' does not clip; remove it or use one of {others}"
            )
    if section.dual_clip is None:
        return
    if not preset.has_dual_clip:
        others = _algorithms(lambda other: other.has_dual_clip)
        raise InputError(
            f"algorithm.dual_clip: the loss of '{section.use}' is not PPO's clipped ratio; remove it or use one of "
            f"{others}"
        )
    high = preset.limits.high if section.clip_high is None else section.clip_high
    if section.dual_clip <= 1 + high:
        raise InputError(
            f"algorithm.dual_clip = {section.dual_clip}: must be above 1 + clip_high = {1 + high:g}, the limit of the "
            "ordinary clip"
        )


def _check_updates(section: Algorithm, preset: Preset, samples: int) -> None:
    key = "epochs" if section.epochs > 1 else "minibatches"
    if section.epochs * section.minibatches > 1 and preset.ratio is None:
        others = _algorithms(lambda other: other.ratio is not None)
        raise InputError(
            f"algorithm.{key} = {getattr(section, key)}: the loss of '{section.use}' has no ratio of new to old policy "
            f"to correct a second update on the same samples; leave it at 1 or use one of {others}"
        )
    if section.minibatches > samples:
        raise InputError(
            f"algorithm.minibatches = {section.minibatches}: one step has only {samples} samples; use at most {samples}"
        )


def check_normalisation(section: Algorithm, rewards: Sequence[RewardSection]) -> None:
    """Raise InputError unless the algorithm allows each reward's ``normalise``."""
    preset = resolve_preset(section)
    for index, reward in enumerate(rewards):
        key = f'reward.{index}.normalise = "{reward.normalise}"'
        if reward.normalise not in (None, "group") and preset.by_part:
            raise InputError(f"{key}: '{section.use}' already normalises each part within its group; remove it")
        if reward.normalise == "batch" and preset.refills:
            raise InputError(
                f"{key}: groups drawn as refills would be normalised among themselves and not with the rest of their "
                'step; use "group", or algorithm.refills = 0'
            )


def check_credit(section: Algorithm, rewards: Sequence[RewardSection]) -> None:
    """Raise InputError unless the algorithm can use each reward's ``credit``."""
    from burnish.algorithms.presets import PRESETS

    preset = PRESETS[section.use]
    for index, reward in enumerate(rewards):
        if reward.credit != "completion" and not preset.supports_token_rewards:
            others = _algorithms(lambda other: other.supports_token_rewards)
            raise InputError(
                f"reward.{index}.credit = \"{reward.credit}\": '{section.use}' cannot tell tokens apart, since "
                f"{preset.why_completion_level}; remove it or use one of {others}"
            )


def _algorithms(condition: Callable[[Preset], bool]) -> str:
    """List the algorithms whose preset meets a condition, for a message."""
    from burnish.algorithms.presets import PRESETS

    return ", ".join(name for name, preset in PRESETS.items() if condition(preset))


def resolve_algorithm(section: Algorithm) -> Algorithm:
    """Return the section with the paper's values written out."""
    preset = resolve_preset(section)
    clips = {"clip_low": preset.limits.low, "clip_high": preset.limits.high} if preset.clips else {}
    refills = {"refills": preset.refills} if preset.needs_group else {}
    baseline = {"baseline": section.baseline or "batch"} if preset.has_baseline else {}
    critic = {"critic": critic_settings(section)} if preset.critic else {}
    beta = {"beta": pair_beta(section)} if preset.paired else {}
    update = {"aggregation": preset.aggregation, **clips, **refills, **baseline, **critic, **beta}
    return section.model_copy(update=update)


def resolve_preset(section: Algorithm) -> Preset:
    """Return the preset that ``algorithm.use`` names, with the recipe's own values in place of the paper's."""
    from burnish.algorithms.presets import PRESETS

    preset = PRESETS[section.use]
    limits = {"low": section.clip_low, "high": section.clip_high, "dual": section.dual_clip}
    return replace(
        preset,
        limits=replace(preset.limits, **{key: value for key, value in limits.items() if value is not None}),
        aggregation=section.aggregation or preset.aggregation,
        refills=preset.refills if section.refills is None else section.refills,
    )


def resolve_rewards(section: Algorithm, rewards: Sequence[RewardSection]) -> list[RewardSection]:
    """Return the rewards as the algorithm scores them: ``gdpo`` normalises each part within its group."""
    if not resolve_preset(section).by_part:
        return list(rewards)
    return [reward.model_copy(update={"normalise": "group"}) for reward in rewards]


def critic_settings(section: Algorithm) -> CriticSection:
    """Return the critic's settings, for an algorithm that has a critic."""
    return section.critic or CriticSection()


def pair_beta(section: Algorithm) -> float:
    """Return DPO's beta, for an algorithm that trains on pairs."""
    return 0.1 if section.beta is None else section.beta
