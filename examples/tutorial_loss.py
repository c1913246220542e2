"""A tutorials' loss, mean(log(all probabilities)) * reward, against the policy gradient, exactly, on 121 sentences.

The policy is a table of next-token logits over four characters. Every sentence is listed, so expectations are sums and no
number has noise. Run it: python examples/tutorial_loss.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from burnish.exactness.world import Sequences, all_sequences, expected_reward, logits_from_probabilities, probabilities

CHARACTERS = "我爱你。"
START = {4: {0: 0.5}, 0: {1: 0.8}, 1: {2: 0.6}, 2: {3: 0.97}}
"""P(我|start) = 0.5, P(爱|我) = 0.8, P(你|爱) = 0.6, P(。|你) = 0.97; the rest of each row is uniform."""


def world() -> tuple[Tensor, Sequences, Tensor]:
    """Return logits [5, 4], the 121 sentences, and their rewards [121]: 1 for 我爱你。, else 0."""
    sentences = all_sequences(4, max_length=4, end=3)
    wanted = torch.tensor([0, 1, 2, 3])
    rewards = ((sentences.tokens == wanted) & sentences.mask).all(-1).double()
    return logits_from_probabilities(START, 4), sentences, rewards


def sampled_tokens(logits: Tensor, sentences: Sequences) -> Tensor:
    """Return the sum of log pi(a_t|s_t) over each sentence's sampled tokens, [121]."""
    return sentences.token_logprobs(logits).sum(-1)


def all_tokens(logits: Tensor, sentences: Sequences) -> Tensor:
    """Return the tutorials' mean of log pi(v|s_t) over each sentence's steps and the whole vocabulary, [121]."""
    rows = logits.log_softmax(-1).mean(-1)[sentences.previous]
    return (rows * sentences.mask).sum(-1) / sentences.lengths


def expected_gradient(log_term, logits: Tensor, sentences: Sequences, rewards: Tensor) -> Tensor:
    """Return E[R(tau) d log_term / d logits] over all sentences, [5, 4]."""
    leaf = logits.clone().requires_grad_()
    weights = probabilities(logits, sentences)
    (gradient,) = torch.autograd.grad((weights * rewards * log_term(leaf, sentences)).sum(), leaf)
    return gradient


def policy_gradient(logits: Tensor, sentences: Sequences, rewards: Tensor) -> Tensor:
    """Return dJ / d logits, [5, 4], of J = sum of P(tau) R(tau)."""
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(expected_reward(leaf, sentences, rewards), leaf)
    return gradient


def climbed(log_term, logits: Tensor, sentences: Sequences, rewards: Tensor, steps: int, rate: float = 10.0) -> float:
    """Return J after so many steps along an expected gradient."""
    for _ in range(steps):
        logits = logits + rate * expected_gradient(log_term, logits, sentences, rewards)
    return float(expected_reward(logits, sentences, rewards))


def main() -> None:
    logits, sentences, rewards = world()
    exact = policy_gradient(logits, sentences, rewards)
    print(f"J at the start  {float(expected_reward(logits, sentences, rewards)):.4f}")
    print("                        dJ/d 爱|我   cosine   largest error   J after 10   J after 100 steps")
    print(f"exact                      {float(exact[0, 1]):+.4f}")
    for name, term in (("log of sampled tokens", sampled_tokens), ("mean log of all tokens", all_tokens)):
        gradient = expected_gradient(term, logits, sentences, rewards)
        cosine = float((gradient * exact).sum() / (gradient.norm() * exact.norm()))
        error = float((gradient - exact).abs().max())
        later = [climbed(term, logits, sentences, rewards, steps) for steps in (10, 100)]
        shown = "< 1e-15" if error < 1e-15 else f"{error:.3f}"
        print(
            f"{name:24}   {float(gradient[0, 1]):+.4f}   {cosine:+.3f}   {shown:>13}   {later[0]:10.4f}   {later[1]:17.4f}"
        )


if __name__ == "__main__":
    main()
