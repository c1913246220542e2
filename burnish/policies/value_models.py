"""Value models: V(s), the reward still to come, before each token of a completion. Each is a copy of a policy as it was when
training started, with a head of one number whose first weights are zero, so that V is 0 before anything is learnt."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from burnish.policies.causal_lm import CausalPolicy
from burnish.policies.kernels.attention import UnsupportedAttention
from burnish.policies.kernels.packing import get_backbone, get_linear_head, padded_states
from burnish.policies.module import ModuleModel, ModulePolicy, frozen_copy, named_weights
from burnish.policies.tabular import TablePolicy
from burnish.types import Completion


class TableValueModel:
    """One number a state of a tabular policy."""

    def __init__(self, policy: TablePolicy) -> None:
        self._policy = policy
        self.parameter = nn.Parameter(torch.zeros(len(policy.logits), dtype=torch.float64))

    def values(self, completions: Sequence[Completion]) -> Tensor:
        """[T], with gradient."""
        return self.parameter[self._policy.states(completions)[0]]

    def trainable(self) -> Mapping[str, nn.Parameter]:
        return {"values": self.parameter}


class CausalValueModel:
    """A copy of a language model's trunk with a linear head on the state that each token was drawn from.

    What is trained of the policy is trained of the copy: all of it, or an adapter. Completions are laid out as the policy
    lays them out, each distinct prompt run once.
    """

    def __init__(self, policy: CausalPolicy) -> None:
        self._policy = policy
        self.model = copy.deepcopy(policy.model)
        product = get_linear_head(self.model)
        width = self.model.config.get_text_config().hidden_size if product is None else product[0].shape[1]
        self.head = _head(width, policy.model.dtype, policy.device)

    def values(self, completions: Sequence[Completion]) -> Tensor:
        """[T], float64, with gradient, on the CPU."""
        layout = self._policy.layout or padded_states
        try:
            states, _ = layout(self.model, completions, None)
        except UnsupportedAttention:  # texts longer than the window that its attention sees
            states, _ = padded_states(self.model, completions)
        return self.head(states).squeeze(-1).double().cpu()  # type: ignore[no-any-return]

    def trainable(self) -> Mapping[str, nn.Parameter]:
        trunk = {name: weight for name, weight in get_backbone(self.model).named_parameters() if weight.requires_grad}
        return {**{f"trunk.{name}": weight for name, weight in trunk.items()}, **_named(self.head)}


class ModuleValueModel:
    """A copy of a module with a linear head on the scores of all tokens: what a module's states are, it does not say."""

    def __init__(self, policy: ModulePolicy) -> None:
        module = frozen_copy(policy.module)
        weights = named_weights(module)
        for name in policy.trainable():
            weights[name].requires_grad_(True)
        self.model = ModuleModel(module, policy.vocabulary, scores=policy.scores, batch=policy.batch, check=False)
        first = next(iter(policy.trainable().values()))
        kind = torch.promote_types(first.dtype, torch.float32)
        self.head = _head(policy.vocabulary.size, kind, policy.device)

    def values(self, completions: Sequence[Completion]) -> Tensor:
        """[T], float64, with gradient, on the CPU."""
        scores, _ = self.model.completion_logits(completions)
        return self.head(scores).squeeze(-1).double().cpu()  # type: ignore[no-any-return]

    def trainable(self) -> Mapping[str, nn.Parameter]:
        weights = named_weights(self.model.module)
        kept = {
            name: tensor
            for name, tensor in weights.items()
            if isinstance(tensor, nn.Parameter) and tensor.requires_grad
        }
        return {**{f"trunk.{name}": weight for name, weight in kept.items()}, **_named(self.head)}


def _head(width: int, dtype: torch.dtype, device: torch.device) -> nn.Linear:
    made = nn.Linear(width, 1, dtype=dtype, device=device)
    nn.init.zeros_(made.weight)
    nn.init.zeros_(made.bias)
    return made


def _named(module: nn.Module) -> dict[str, nn.Parameter]:
    return {f"head.{name}": weight for name, weight in module.named_parameters()}
