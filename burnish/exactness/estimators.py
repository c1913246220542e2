"""Gradient estimators, the rows of ``burnish verify``, made of the functions of ``algorithms`` that train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from burnish.algorithms import losses
from burnish.algorithms.credit_assignment import generalised_advantages, potential_differences, reward_to_go, whiten
from burnish.algorithms.importance import Correction, Level, importance_weights
from burnish.algorithms.kl import KL_ESTIMATORS
from burnish.algorithms.ops import log_ratio, owners, sequence_weights, sum_by_sequence
from burnish.algorithms.presets import PRESETS, Preset
from burnish.algorithms.reward_shaping import RunningMoments, rank_in_group, standardise, standardise_by_moments
from burnish.exactness import world as exact

COEFFICIENT = 0.1
"""Coefficient b of the rows with a KL term or an entropy bonus."""
BASELINE = 0.1
"""Baseline of ``reinforce_baseline``: any number that does not depend on the samples."""
CAP = {"mask": 1e9, "truncate": 1.2}
"""Caps of the off-policy rows. Masking drops nothing there, so that the rows show the weights themselves."""
EARLIER = RunningMoments().after(torch.tensor([0.0, 0.4, 0.2, 1.0], dtype=torch.float64))
"""Moments of rewards that do not depend on the samples, as those of earlier steps."""


@dataclass(frozen=True, slots=True)
class World:
    """A tabular policy and its reference (logits [V+1, V]), and a reward [S] on each of all S sequences."""

    logits: Tensor
    reference: Tensor
    sequences: exact.Sequences
    rewards: Tensor
    vocabulary: tuple[str, ...]

    @property
    def behaviour(self) -> Tensor:
        """Logits [V+1, V] of another policy to sample from, halfway between the policy and its reference."""
        return ((self.logits.softmax(-1) + self.reference.softmax(-1)) / 2).log()


@dataclass(frozen=True, slots=True)
class Groups:
    """E sampled groups of G sequences: indices and rewards [E, G], and the mask [E*G, L], True on real tokens."""

    world: World
    index: Tensor
    rewards: Tensor
    mask: Tensor

    @property
    def terminal_rewards(self) -> Tensor:
        """[E*G, L], each sequence's reward on its last token."""
        last = self.mask.sum(-1, keepdim=True) - 1
        return torch.zeros(self.mask.shape, dtype=torch.float64).scatter(-1, last, self.rewards.view(-1, 1))


CreditFunction = Callable[[Groups], Tensor]
"""Groups -> token-level advantages [E*G, L]."""


@dataclass(frozen=True, slots=True)
class Estimator:
    """One row of the table.

    Attributes:
        target: the gradient its mean is compared with, a key of ``targets``.
        unbiased: whether it claims to meet the target; the others are listed with their bias and its reason.
        why: reason of a bias by design.
        credit: token-level advantages, if they are not those of the whole sequence.
        scale: G and L -> the factor of the target in its claim.
        importance: correction and level of the importance weights, for samples of ``World.behaviour``.
        entropy: whether an entropy bonus is added, with the coefficient of the KL term.
    """

    name: str
    preset: Preset
    target: str = "J"
    unbiased: bool = True
    why: str = ""
    kl_estimator: str | None = None
    where: str = "reward"
    credit: CreditFunction | None = None
    scale: Callable[[int, int], float] | None = None
    importance: tuple[Correction, Level] | None = None
    entropy: bool = False


def estimators() -> list[Estimator]:
    """Return all estimators: presets, token credit, normalised rewards, KL terms, off-policy samples."""
    rows = [
        Estimator(name, preset, unbiased=preset.unbiased, why=preset.why, credit=_CREDIT.get(name))
        for name, preset in PRESETS.items()
    ]
    base, moving, rloo = PRESETS["reinforce"], PRESETS["reinforce_baseline"], PRESETS["rloo"]
    grpo, dr_grpo = PRESETS["grpo"], PRESETS["dr_grpo"]
    clipped = replace(base, loss=losses.clipped_ratio, ratio="token")

    def shrunk(group: int, longest: int) -> float:
        return (group - 1) / group / longest

    return [
        *rows,
        Estimator("dr_grpo, rescaled", dr_grpo, scale=shrunk),
        Estimator("gae, lambda 1", clipped, credit=_gae(0.5, 1.0)),
        Estimator("gae, true values", clipped, credit=_gae(1.0, 0.95)),
        Estimator("gae, wrong values", clipped, "J", False, "lambda 0.95 relies on values half of the true ones",
                  credit=_gae(0.5, 0.95)),
        Estimator("gae, by token", clipped, credit=_gae_by_token),
        Estimator("reinforce, by token", base, credit=by_token(base)),
        Estimator("reinforce, true potential", base, credit=by_token(base, _true_values)),
        Estimator("reinforce_baseline, by token", moving, credit=by_token(moving)),
        Estimator("rloo, by token", rloo, credit=by_token(rloo)),
        Estimator("rloo, by sentence", rloo, credit=by_token(rloo, sentences=True)),
        Estimator("rloo, true potential", rloo, credit=by_token(rloo, _true_values)),
        Estimator("dr_grpo, by token", dr_grpo, credit=by_token(dr_grpo), scale=shrunk),
        Estimator("grpo, by token", grpo, "J", False, grpo.why, credit=by_token(grpo)),
        Estimator("rloo, running rewards", rloo, scale=lambda *_: 1 / EARLIER.deviation,
                  credit=_shaped(rloo, lambda rewards: standardise_by_moments(rewards, EARLIER))),
        Estimator("rloo, ranked rewards", rloo, "J", False, "only the order of a group's rewards counts",
                  credit=_shaped(rloo, rank_in_group)),
        Estimator("kl k1 in reward", base, "J - b KL", kl_estimator="k1"),
        Estimator("kl k2 in reward", base, "J - b KL", False, "the mean of k2 is not the KL", "k2"),
        Estimator("kl k3 in reward", base, "J - b KL", False, "the mean of k3 is the KL, its gradient is not", "k3"),
        Estimator("kl k1 in loss", base, "J", True, "meets J: the KL term has no effect", "k1", "loss"),
        Estimator("kl k2 in loss", base, "J - b KL of states", True, "", "k2", "loss"),
        Estimator("kl k3 in loss", base, "J - b forward KL of states", True, "", "k3", "loss"),
        Estimator("entropy bonus", base, "J + b entropy of states", entropy=True),
        Estimator("off-policy, no weights", base, "J", False, "samples of another policy, treated as its own",
                  importance=("none", "sequence")),
        Estimator("off-policy, sequence", base, importance=("mask", "sequence")),
        Estimator("off-policy, token", base, "J", False, "a token's weight ignores how its state was reached",
                  importance=("mask", "token")),
        Estimator("off-policy, truncated", base, "J", False, "the cap removes mass where the policies differ most",
                  importance=("truncate", "sequence")),
    ]  # fmt: skip


def _gae(share: float, trace: float) -> CreditFunction:
    """Return GAE of the trace lambda, from a critic whose values are a share of the true ones."""

    def credit(groups: Groups) -> Tensor:
        values = share * _true_values(groups.world)[groups.index.flatten()]
        return generalised_advantages(groups.terminal_rewards, values, groups.mask, trace=trace)

    return credit


Potential = Callable[[World], Tensor]
"""World -> potential of the text before each token, [S, L], starting with the empty text."""


def _arbitrary_potential(world: World) -> Tensor:
    """Return 0.7 and then a sum of token ids and positions, unrelated to the reward."""
    sums = (0.3 * world.sequences.tokens + 0.2).cumsum(-1).double()
    return 0.7 + sums.roll(1, -1).index_fill(-1, torch.tensor(0), 0.0)


def _true_values(world: World) -> Tensor:
    """Return the expected reward of each prefix, the best possible potential."""
    return exact.prefix_values(world.logits, world.sequences, world.rewards)


def _gained(groups: Groups, potential: Potential, *, sentences: bool = False) -> Tensor:
    """Return the reward [E*G, L] as ``reward.credit`` distributes it: the gains of a potential that ends at the reward.

    They add up to the reward minus the potential of the empty text. With ``sentences``, only every second token and the
    last one, as ends of sentences, get a reward.
    """
    world, before = groups.world, potential(groups.world)
    position = torch.arange(before.shape[-1])
    whole = position >= world.sequences.lengths[:, None] - 1
    # Past the end the potential is constant, so that nothing is gained there.
    scores = torch.where(whole, world.rewards[:, None], before.roll(-1, -1))
    if sentences:
        latest = torch.where(whole | (position % 2 == 1), position + 1, 0).cummax(-1).values
        scores = torch.cat([before[:, :1], scores], -1).gather(-1, latest)
    return potential_differences(scores, keep_total=True, empty=float(before[0, 0]))[groups.index.flatten()]


def by_token(preset: Preset, potential: Potential = _arbitrary_potential, *, sentences: bool = False) -> CreditFunction:
    """Return a preset's token-level advantages of the reward that ``_gained`` distributes."""

    def credit(groups: Groups) -> Tensor:
        shape = (len(groups.index), 1, groups.index.shape[1])
        to_go = reward_to_go(_gained(groups, potential, sentences=sentences))
        assert preset.token_level is not None
        advantages = preset.token_level(
            torch.zeros(shape, dtype=torch.float64), to_go.view(*shape, -1), groups.mask.view(*shape, -1), BASELINE
        )
        return advantages.view(groups.mask.shape)

    return credit


def _shaped(preset: Preset, shape: Callable[[Tensor], Tensor]) -> CreditFunction:
    """Return a preset's advantages of shaped rewards."""

    def credit(groups: Groups) -> Tensor:
        return preset.advantages(shape(groups.rewards).unsqueeze(-2), 0.0).view(-1, 1).expand(groups.mask.shape)

    return credit


def _gae_by_token(groups: Groups) -> Tensor:
    """Return GAE of lambda 1 over the same rewards, from a critic whose values are half of the true ones."""
    values = 0.5 * _true_values(groups.world)[groups.index.flatten()]
    return generalised_advantages(_gained(groups, _arbitrary_potential), values, groups.mask, trace=1.0)


def _by_part(groups: Groups) -> Tensor:
    """Return GDPO's advantages of two parts whose sum is the reward: the reward plus a length, and that length."""
    lengths = groups.mask.sum(-1).view_as(groups.rewards).double()
    parts = torch.stack([groups.rewards + 0.1 * lengths, lengths])
    rewards = torch.tensordot(parts.new_tensor([1.0, -0.1]), standardise(parts.unsqueeze(-2)), 1)
    return PRESETS["gdpo"].advantages(rewards, 0.0).view(-1, 1).expand(groups.mask.shape)


def _from_critic(groups: Groups) -> Tensor:
    """Return PPO's whitened advantages, from a critic whose values are half of the true ones."""
    advantages, count = _gae(0.5, 0.95)(groups), len(groups.index)
    return whiten(advantages.view(count, -1), groups.mask.view(count, -1)).view_as(advantages)


_CREDIT: dict[str, CreditFunction] = {"gdpo": _by_part, "ppo": _from_critic}
"""Credit functions of presets that need more than one reward per sample.

``online_dpo`` is not among them: it descends DPO's loss over pairs, which is not a return and not one of ``targets``.
Its row is the limit beta -> 0, divided by beta: a policy gradient from the order of the rewards alone."""


def estimates(world: World, estimator: Estimator, index: Tensor) -> Tensor:
    """Return one gradient estimate per group, [E, (V+1) * V], for groups of sequences by index [E, G]."""
    count, group = index.shape
    picked = world.sequences[index.flatten()]
    mask, lengths, preset = picked.mask, picked.lengths, estimator.preset
    logprobs = picked.token_logprobs(world.logits.detach())[mask].requires_grad_()
    reference = picked.token_logprobs(world.reference)[mask]
    rewards = world.rewards[index]
    kl = KL_ESTIMATORS[estimator.kl_estimator] if estimator.kl_estimator else None
    if kl and estimator.where == "reward":
        rewards = rewards - COEFFICIENT * sum_by_sequence(kl(logprobs.detach(), reference), lengths).view(count, group)
    advantages = _advantages(estimator, Groups(world, index, rewards, mask), lengths)
    ratio = log_ratio(logprobs, logprobs.detach(), lengths, preset.ratio or "token")
    loss = preset.loss(logprobs, ratio, advantages, preset.limits)
    if estimator.importance:
        correction, level = estimator.importance
        sampler = picked.token_logprobs(world.behaviour)[mask]
        loss = loss * importance_weights(
            logprobs, sampler, lengths, correction=correction, level=level, cap=CAP.get(correction, 1.0)
        )
    if kl and estimator.where == "loss":
        loss = loss + COEFFICIENT * kl(logprobs, reference)
    weights = sequence_weights(lengths.view(count, group), preset.aggregation, mask.shape[-1]).flatten()
    weights = weights.repeat_interleave(lengths)
    (slope,) = torch.autograd.grad((weights * loss).sum(), logprobs)
    # The chain rule from d loss / d log p to d objective / d logits: d log p(a|s) / d logit(v|s) = [v = a] - p(v|s).
    size, tokens = world.logits.numel(), world.logits.shape[1]
    owner = owners(lengths) // group
    row, token = picked.previous[mask], picked.tokens[mask]
    result = torch.zeros(count, size, dtype=torch.float64)
    result.index_put_((owner, row * tokens + token), -slope, accumulate=True)
    spread = world.logits.softmax(-1)[row] * slope[:, None]
    if estimator.entropy:
        # d entropy / d logit(v|s) = -p(v|s) (log p(v|s) + entropy).
        chance = world.logits.softmax(-1)
        surprise = torch.special.entr(chance)
        bend = surprise - chance * surprise.sum(-1, keepdim=True)
        spread = spread + COEFFICIENT * weights[:, None] * bend[row]
    columns = row[:, None] * tokens + torch.arange(tokens)
    result.index_put_((owner[:, None].expand_as(columns), columns), spread, accumulate=True)
    return result


def _advantages(estimator: Estimator, groups: Groups, lengths: Tensor) -> Tensor:
    """Return the advantages of all tokens, [T]."""
    if estimator.credit is not None:
        return estimator.credit(groups)[groups.mask]
    return estimator.preset.advantages(groups.rewards.unsqueeze(-2), BASELINE).flatten().repeat_interleave(lengths)
