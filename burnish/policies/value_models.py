"""Value models: V(s), the expected return, before each token of a completion.

Each is a copy of the policy before training, with a linear head of one output that starts at zero.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from burnish.policies.causal_lm import CausalPolicy
from burnish.policies.kernels.packing import get_backbone, get_linear_head, hidden_states
from burnish.policies.module import ModulePolicy, named_weights, trainable_weights
from burnish.policies.tabular import TablePolicy
from burnish.types import Completion


class TableValueModel:
    """Value model of a tabular policy: one number per state."""

    def __init__(self, policy: TablePolicy) -> None:
        self._policy = policy
        self.parameter = nn.Parameter(torch.zeros(len(policy.logits), dtype=torch.float64))

    def values(self, completions: Sequence[Completion]) -> Tensor:
        """Return V(s) before each token, [T], float64, with gradient."""
        return self.parameter[self._policy.states(completions)[0]]

    def trainable(self) -> Mapping[str, nn.Parameter]:
        return {"values": self.parameter}


class CausalValueModel:
    """Value model of a causal language model: a copy of its backbone and a linear head on the state before each token.

    The copy trains the same weights as the policy (all, or an adapter) and arranges completions as the policy does.
    """

    def __init__(self, policy: CausalPolicy) -> None:
        self._policy = policy
        self.model = copy.deepcopy(policy.model)
        head = get_linear_head(self.model)
        width = self.model.config.get_text_config().hidden_size if head is None else head[0].shape[1]
        self.head = _zero_head(width, torch.promote_types(policy.model.dtype, torch.float32), policy.device)

    def values(self, completions: Sequence[Completion]) -> Tensor:
        """Return V(s) before each token, [T], float64, with gradient, on the CPU."""
        states, _ = hidden_states(self._policy.layout, self.model, completions)
        return self.head(states.to(self.head.weight.dtype)).squeeze(-1).double().cpu()  # type: ignore[no-any-return]

    def trainable(self) -> Mapping[str, nn.Parameter]:
        trunk = get_backbone(self.model).named_parameters()
        return _named({name: weight for name, weight in trunk if weight.requires_grad}, self.head)


class ModuleValueModel:
    """Value model of a module: a copy and a linear head on its V scores, as a module exposes no hidden states."""

    def __init__(self, policy: ModulePolicy) -> None:
        self.model = policy.frozen_copy()
        weights = named_weights(self.model.module)
        for name in policy.trainable():
            weights[name].requires_grad_(True)
        first = next(iter(policy.trainable().values()))
        dtype = torch.promote_types(first.dtype, torch.float32)
        self.head = _zero_head(policy.vocabulary.size, dtype, policy.device)

    def values(self, completions: Sequence[Completion]) -> Tensor:
        """Return V(s) before each token, [T], float64, with gradient, on the CPU."""
        scores, _ = self.model.completion_logits(completions)
        return self.head(scores).squeeze(-1).double().cpu()  # type: ignore[no-any-return]

    def trainable(self) -> Mapping[str, nn.Parameter]:
        return _named(trainable_weights(self.model.module), self.head)


def _zero_head(width: int, dtype: torch.dtype, device: torch.device) -> nn.Linear:
    head = nn.Linear(width, 1, dtype=dtype, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _named(trunk: Mapping[str, nn.Parameter], head: nn.Linear) -> dict[str, nn.Parameter]:
    return {f"trunk.{name}": weight for name, weight in trunk.items()} | {
        f"head.{name}": weight for name, weight in head.named_parameters()
    }
