"""An enumerable world: all sequences, their probabilities, and exact objectives.

A tabular policy is a matrix of logits [V+1, V]. Row v holds the logits of the token after token v, the last row those
of the first token. A sequence ends with the end token or at ``max_length``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sequences:
    """S sequences: token ids (0 past the end), the row that each is drawn from, and the mask of real tokens, [S, L]."""

    tokens: Tensor
    previous: Tensor
    mask: Tensor

    @property
    def lengths(self) -> Tensor:
        return self.mask.sum(-1)

    def __getitem__(self, index: Tensor) -> Sequences:
        return Sequences(self.tokens[index], self.previous[index], self.mask[index])

    def token_logprobs(self, logits: Tensor) -> Tensor:
        """Return the log-probability of each token, [S, L]; zero past the end."""
        return logits.log_softmax(-1)[self.previous, self.tokens].masked_fill(~self.mask, 0.0)


def all_sequences(vocabulary: int, max_length: int, end: int) -> Sequences:
    """Return all possible sequences: those that end with ``end`` and those cut at ``max_length``."""
    others = [token for token in range(vocabulary) if token != end]
    rows = [(*body, end) for length in range(max_length) for body in itertools.product(others, repeat=length)] + list(
        itertools.product(others, repeat=max_length)
    )
    tokens = torch.zeros(len(rows), max_length, dtype=torch.long)
    mask = torch.zeros(len(rows), max_length, dtype=torch.bool)
    for row, sequence in enumerate(rows):
        tokens[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = True
    start = torch.full((len(rows), 1), vocabulary)
    return Sequences(tokens, torch.cat([start, tokens[:, :-1]], 1), mask)


def probabilities(logits: Tensor, sequences: Sequences) -> Tensor:
    """Return the probability of each sequence, [S], with gradient; they sum to 1 over ``all_sequences``."""
    return sequences.token_logprobs(logits).sum(-1).exp()


def expected_reward(logits: Tensor, sequences: Sequences, rewards: Tensor) -> Tensor:
    """Return J, the sum over sequences of P(tau) R(tau); a scalar with gradient."""
    return probabilities(logits, sequences) @ rewards


def sequence_kl(logits: Tensor, reference: Tensor, sequences: Sequences) -> Tensor:
    """Return KL(pi || reference) of whole sequences; a scalar with gradient, nats."""
    ratio = sequences.token_logprobs(logits).sum(-1) - sequences.token_logprobs(reference).sum(-1)
    probability = probabilities(logits, sequences)
    # An impossible sequence contributes 0 log 0 = 0, not NaN.
    possible = probability > 0
    return (probability[possible] * ratio[possible]).sum()


def prefix_values(logits: Tensor, sequences: Sequences, rewards: Tensor) -> Tensor:
    """Return V(s_t) = E[R | the tokens before t], [S, L], no gradient; 0 past the end and for impossible prefixes."""
    chance = probabilities(logits.detach(), sequences)
    values = torch.zeros(sequences.tokens.shape, dtype=logits.dtype)
    for position in range(sequences.tokens.shape[1]):
        # The tokens before a position as one number, unique for sequences that ended earlier.
        base = int(sequences.tokens.max()) + 2
        tokens = torch.where(sequences.mask, sequences.tokens, base - 1)[:, :position]
        key = (tokens * base ** torch.arange(position)).sum(-1)
        same = (key[:, None] == key[None, :]).to(logits.dtype)
        reached = same @ chance
        values[:, position] = torch.where(reached > 0, (same @ (chance * rewards)) / reached.clamp_min(1e-300), 0.0)
    return values.masked_fill(~sequences.mask, 0.0)


def visits(logits: Tensor, sequences: Sequences) -> Tensor:
    """Return the mean number of times that a sequence draws from each row of the table; [V+1], no gradient."""
    counts = torch.zeros(len(logits), dtype=logits.dtype)
    weight = (probabilities(logits, sequences).detach()[:, None] * sequences.mask).flatten()
    return counts.index_add(0, sequences.previous.flatten(), weight)


def state_entropy(logits: Tensor, sequences: Sequences) -> Tensor:
    """Return the sum over visited states of the next token's entropy, with the visits held fixed; nats."""
    surprise: Tensor = torch.special.entr(logits.softmax(-1)).sum(-1)
    return (visits(logits, sequences) * surprise).sum()


def state_kl(logits: Tensor, reference: Tensor, sequences: Sequences, *, forward: bool) -> Tensor:
    """Return the sum over visited states of the next token's KL, with the visits held fixed (no gradient); nats.

    With ``forward`` it is KL(reference || pi), else KL(pi || reference).
    """
    policy, other = logits.log_softmax(-1), reference.log_softmax(-1)
    first, second = (other, policy) if forward else (policy, other)
    terms = torch.where(first.isfinite(), first.exp() * (first - second), 0.0)
    return (visits(logits, sequences)[:, None] * terms).sum()


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    """Return d value / d logits, [V+1, V]; zero where the logit is minus infinity."""
    (slope,) = torch.autograd.grad(value, logits, retain_graph=True)
    return torch.nan_to_num(slope, nan=0.0)


def logits_from_probabilities(rows: dict[int, dict[int, float]], vocabulary: int) -> Tensor:
    """Return float64 logits [V+1, V] for row -> token -> probability; the first token's row is ``vocabulary``.

    The rest of a row is spread evenly over its other tokens; omitted rows are uniform.
    """
    table = torch.full((vocabulary + 1, vocabulary), 1 / vocabulary, dtype=torch.float64)
    for row, known in rows.items():
        left, others = 1 - sum(known.values()), vocabulary - len(known)
        table[row] = left / others if others else 0.0
        for token, probability in known.items():
            table[row, token] = probability
    return table.log()
