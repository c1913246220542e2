"""GRPO (arXiv 2402.03300) in one file: burnish's pure functions and a torch optimizer. Runs in seconds.

The policy is a table of logits, the next character given the last one. It starts in the known world of ``burnish
verify``, where 我爱你。 has probability 0.5 * 0.8 * 0.6 * 1.0 = 0.24, and is rewarded for writing exactly that.
"""

import torch
from torch import Tensor

from burnish.algorithms import advantages, kl, losses, ops
from burnish.exactness import world as exact

WANTED = "我爱你。"  # also the vocabulary; the full stop ends a text
START, END, LONGEST = 4, 3, 4
GROUPS, SAMPLES = 8, 8  # P and G
STEPS, UPDATES, RATE, KL_COEFFICIENT = 100, 2, 0.05, 0.02


def sample(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return N sequences: the state before each token [N, L], the token [N, L], and a mask [N, L], False past the end."""
    state, going = torch.full((count,), START), torch.ones(count, dtype=torch.bool)
    states, tokens, mask = [], [], []
    for _ in range(LONGEST):
        token = torch.multinomial(logits.softmax(-1)[state], 1).squeeze(-1)
        states.append(state)
        tokens.append(token)
        mask.append(going)
        state, going = token, going & (token != END)
    return torch.stack(states, 1), torch.stack(tokens, 1), torch.stack(mask, 1)


def reward(tokens: Tensor, mask: Tensor) -> float:
    return float("".join(WANTED[token] for token in tokens[mask].tolist()) == WANTED)


def main() -> None:
    torch.manual_seed(0)
    reference = exact.logits_from_probabilities({START: {0: 0.5}, 0: {1: 0.8}, 1: {2: 0.6}, 2: {3: 1.0}}, len(WANTED))
    policy = reference.clone().requires_grad_()
    optimizer = torch.optim.Adam([policy], lr=RATE)
    for step in range(1, STEPS + 1):
        states, tokens, mask = sample(policy.detach(), GROUPS * SAMPLES)
        lengths = mask.sum(-1)
        rewards = torch.tensor([reward(*pair) for pair in zip(tokens, mask, strict=True)], dtype=torch.float64)
        # From one number per sequence [N] to one per token [T].
        advantage = advantages.group_normalised(rewards.view(GROUPS, SAMPLES)).flatten().repeat_interleave(lengths)
        weights = ops.sequence_weights(lengths, "sequence_mean").repeat_interleave(lengths)
        old_logprobs = policy.detach().log_softmax(-1)[states, tokens][mask]
        reference_logprobs = reference.log_softmax(-1)[states, tokens][mask]
        for _ in range(UPDATES):  # from the second update on, the ratio differs from 1 and the clip can act
            logprobs = policy.log_softmax(-1)[states, tokens][mask]
            loss = losses.clipped_ratio(logprobs, logprobs - old_logprobs, advantage)
            loss = loss + KL_COEFFICIENT * kl.k3(logprobs, reference_logprobs)
            optimizer.zero_grad()
            (weights * loss).sum().backward()
            optimizer.step()
        if step == 1 or step % 10 == 0:
            print(f"step {step:3d}  mean reward {rewards.mean():.3f}")


if __name__ == "__main__":
    main()
