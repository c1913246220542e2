"""``[algorithm]`` of a recipe: its keys, what they may be together, and the preset that comes out of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from burnish.errors import InputError
from burnish.recipe.sections import RewardSection, Section
from burnish.registry import nearest

if TYPE_CHECKING:
    from burnish.algorithms.presets import Preset


class KL(Section):
    """The pull towards the reference. See ``burnish.algorithms.kl`` for what each pairing's gradient really is."""

    coefficient: float = Field(0.0, ge=0)
    estimator: Literal["k1", "k2", "k3"] = "k3"
    where: Literal["loss", "reward"] = "loss"
    target: float | None = Field(None, gt=0)
    """KL of whole completions, nats, that the coefficient is adapted to; None holds the coefficient."""
    horizon: float | None = Field(None, gt=0)
    """Samples over which it is adapted; None is the paper's rate."""
    reset_every: int | None = Field(None, ge=1)
    """Steps after which the policy as it is becomes the reference of the KL term; None keeps the first one."""

    @model_validator(mode="after")
    def _keys_without_a_term(self) -> KL:
        for key in ("target", "reset_every"):
            if getattr(self, key) is not None and self.coefficient == 0:
                raise ValueError(
                    f"{key} is of no use without a KL term: give coefficient a value above 0 to begin with"
                )
        if self.horizon is not None and self.target is None:
            raise ValueError(
                "horizon says how fast the coefficient follows its target: give target too, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _no_useless_gradient(self) -> KL:
        if self.coefficient > 0 and self.where == "loss" and self.estimator == "k1":
            raise ValueError(
                'estimator = "k1" with where = "loss" has a gradient whose mean is zero, so it pulls nowhere: '
                'use "k2" or "k3" in the loss, or where = "reward"'
            )
        return self


class Importance(Section):
    """Weights for samples whose recorded probabilities are not quite those of the trained policy."""

    form: Literal["none", "truncate", "mask"] = "none"
    level: Literal["token", "sequence"] = "token"
    limit: float = Field(2.0, gt=0)


class Overlong(Section):
    """A punishment of completions near the longest length; DAPO, arXiv 2503.14476, equation 13."""

    weight: float = Field(0.0, ge=0)
    """What the longest length costs, in units of the reward; 0 is off."""
    share: float = Field(0.2, gt=0, le=1)
    """Of ``sampling.max_new_tokens``: where the punishment begins, counted from the end."""


class CriticSection(Section):
    """What says how much reward is still to come, of an algorithm that has it."""

    rate: float = Field(10.0, gt=0)
    """Its learning rate, as a multiple of ``optimizer.learning_rate``."""
    clip: float = Field(0.2, ge=0)
    """How far a value may move in a step from what it was, in units of the reward; 0 is off."""
    discount: float = Field(1.0, gt=0, le=1)
    """What a reward is worth that comes one token later."""
    trace: float = Field(0.95, ge=0, le=1)
    """Lambda of the advantages: 1 trusts what came in the end, 0 the critic's next value."""


class Algorithm(Section):
    """How rewards become a gradient. A key that is None is what the preset's paper does; ``resolved`` writes that out."""

    use: str = "grpo"
    kl: KL = KL()
    baseline: Literal["batch", "prompt"] | None = None
    """The moving mean that rewards are compared with: of all, or of each prompt's own."""
    aggregation: Literal["sequence_sum", "sequence_mean", "token_mean", "constant_length"] | None = None
    """How token losses become one number."""
    clip_low: float | None = Field(None, gt=0, le=1)
    clip_high: float | None = Field(None, gt=0)
    """The ratio of new to old policy is clipped to [1 - clip_low, 1 + clip_high]."""
    dual_clip: float | None = Field(None, gt=1)
    """For A < 0 the ratio counts as at most this; None is off in every preset."""
    entropy: float = Field(0.0, ge=0)
    """How much a nat of entropy a token is worth, in the loss."""
    epochs: int = Field(1, ge=1, le=1000)
    """How often a step goes over its samples."""
    minibatches: int = Field(1, ge=1)
    """Updates in each epoch."""
    importance: Importance = Importance()
    overlong: Overlong = Overlong()
    length_cost: float = Field(0.0, ge=0, le=1e6)
    """What the longest length costs, in units of the reward, and a shorter one in proportion; 0 is off."""
    critic: CriticSection | None = None
    refills: int | None = Field(None, ge=0)
    """Rounds in which groups whose rewards are all equal give way to others."""
    beta: float | None = Field(None, gt=0)
    """Of ``online_dpo``: the strength of its pull towards the reference."""


def check_algorithm(section: Algorithm, prompts: int, group: int) -> None:
    """Refuses what cannot work with P prompts and G samples of each. Raises InputError, which names the key."""
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
    if section.baseline is not None and not preset.has_baseline:
        others = ", ".join(name for name, one in PRESETS.items() if one.has_baseline)
        raise InputError(
            f"algorithm.baseline = \"{section.baseline}\": '{name}' has no moving baseline: leave it out, or use {others}"
        )
    if section.critic is not None and not preset.critic:
        raise InputError(
            f"algorithm.critic: '{name}' reckons advantages without one, so nothing would ask or train it: leave it out, "
            "or use ppo"
        )
    if section.beta is not None and not preset.paired:
        others = ", ".join(name for name, one in PRESETS.items() if one.paired)
        raise InputError(f"algorithm.beta = {section.beta:g}: '{name}' makes no pairs: leave it out, or use {others}")
    _check_clips(section, preset)
    _check_updates(section, preset, prompts * group)
    if section.refills and not preset.needs_group:
        raise InputError(
            f"algorithm.refills = {section.refills}: '{name}' does not compare the samples of one prompt, so a group of "
            "equal rewards teaches it no less than another: leave it out"
        )
    if section.kl.horizon is not None and section.kl.horizon < prompts * group:
        raise InputError(
            f"algorithm.kl.horizon = {section.kl.horizon:g}: a step alone has {prompts * group} samples; give thousands"
        )


def scored_by(section: Algorithm, rewards: Sequence[RewardSection]) -> list[RewardSection]:
    """The reward parts as the algorithm wants them scored: for ``gdpo``, each normalised within its group."""
    if not preset_of(section).by_part:
        return list(rewards)
    return [reward.model_copy(update={"normalise": "group"}) for reward in rewards]


def check_normalised(section: Algorithm, rewards: Sequence[RewardSection]) -> None:
    """Refuses a normalisation of parts that the algorithm cannot have. Raises InputError, which names the key."""
    preset = preset_of(section)
    for index, reward in enumerate(rewards):
        where = f'reward.{index}.normalise = "{reward.normalise}"'
        if reward.normalise not in (None, "group") and preset.by_part:
            raise InputError(f"{where}: '{section.use}' normalises each part within its group: leave it out")
        if reward.normalise == "batch" and preset.refills:
            raise InputError(
                f"{where}: groups that are drawn anew would be compared with one another and not with the step they come "
                'into: use "group", or algorithm.refills = 0'
            )


def check_credit(section: Algorithm, rewards: Sequence[RewardSection]) -> None:
    """Refuses credit within completions where the algorithm cannot use it. Raises InputError, which names the key."""
    from burnish.algorithms.presets import PRESETS

    preset = PRESETS[section.use]
    for index, reward in enumerate(rewards):
        if reward.credit != "completion" and not preset.takes_tokens:
            others = ", ".join(name for name, one in PRESETS.items() if one.takes_tokens)
            raise InputError(
                f"reward.{index}.credit = \"{reward.credit}\": '{section.use}' cannot tell tokens apart, since "
                f"{preset.coarse}: leave it out, or use one of {others}"
            )


def _check_clips(section: Algorithm, preset: Preset) -> None:
    from burnish.algorithms.presets import PRESETS

    for key in ("clip_low", "clip_high"):
        if getattr(section, key) is not None and not preset.clips:
            others = ", ".join(name for name, one in PRESETS.items() if one.clips)
            raise InputError(
                f"algorithm.{key}: the loss of '{section.use}' clips nothing: leave it out, or use one of {others}"
            )
    if section.dual_clip is None:
        return
    if not preset.clips_dually:
        others = ", ".join(name for name, one in PRESETS.items() if one.clips_dually)
        raise InputError(
            f"algorithm.dual_clip: the loss of '{section.use}' is not PPO's clipped ratio: leave it out, or use one of "
            f"{others}"
        )
    high = preset.limits.high if section.clip_high is None else section.clip_high
    if section.dual_clip <= 1 + high:
        raise InputError(
            f"algorithm.dual_clip = {section.dual_clip}: must be above 1 + clip_high = {1 + high:g}, where the usual "
            "clip ends"
        )


def _check_updates(section: Algorithm, preset: Preset, samples: int) -> None:
    from burnish.algorithms.presets import PRESETS

    key = "epochs" if section.epochs > 1 else "minibatches"
    if section.epochs * section.minibatches > 1 and preset.ratio is None:
        others = ", ".join(name for name, one in PRESETS.items() if one.ratio)
        raise InputError(
            f"algorithm.{key} = {getattr(section, key)}: the loss of '{section.use}' has no ratio of new to old policy, so "
            f"a second update would take old samples for new ones: leave it at 1, or use one of {others}"
        )
    if section.minibatches > samples:
        raise InputError(
            f"algorithm.minibatches = {section.minibatches}: a step has {samples} samples, and none would be left for some: "
            f"at most {samples}"
        )


def resolved(section: Algorithm) -> Algorithm:
    """The section with what its preset's paper does written out."""
    preset = preset_of(section)
    clips = {"clip_low": preset.limits.low, "clip_high": preset.limits.high} if preset.clips else {}
    refills = {"refills": preset.refills} if preset.needs_group else {}
    baseline = {"baseline": section.baseline or "batch"} if preset.has_baseline else {}
    critic = {"critic": critic_of(section)} if preset.critic else {}
    beta = {"beta": beta_of(section)} if preset.paired else {}
    return section.model_copy(
        update={"aggregation": preset.aggregation, **clips, **refills, **baseline, **critic, **beta}
    )  # fmt: skip


def beta_of(section: Algorithm) -> float:
    """How hard DPO's pairs are pulled towards the reference, of an algorithm that makes pairs."""
    return 0.1 if section.beta is None else section.beta


def critic_of(section: Algorithm) -> CriticSection:
    """The critic's settings, of an algorithm that has one."""
    return section.critic or CriticSection()


def preset_of(section: Algorithm) -> Preset:
    """The preset that ``algorithm.use`` names, with the recipe's own choices in it."""
    from burnish.algorithms.presets import PRESETS

    preset = PRESETS[section.use]
    own = {"low": section.clip_low, "high": section.clip_high, "dual": section.dual_clip}
    limits = replace(preset.limits, **{key: value for key, value in own.items() if value is not None})
    refills = preset.refills if section.refills is None else section.refills
    return replace(preset, limits=limits, aggregation=section.aggregation or preset.aggregation, refills=refills)
