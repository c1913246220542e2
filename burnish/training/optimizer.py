"""AdamW over a policy's trainable parameters, its learning-rate schedule, and the checks before an update."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from burnish.errors import BurnishError
from burnish.protocols import ParameterOptimizer, Trainable, ValueModel
from burnish.recipe.schema import Job


class FusedAdamW:
    """AdamW (arXiv 1711.05101) by torch's fused kernel: one pass over the moments, and no temporary copies.

    ``torch.optim.AdamW`` computes the same bits, but its constructor imports torch's compiler, which takes two seconds.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], **options: Any) -> None:
        self.param_groups: list[dict[str, Any]] = [{**options, **group} for group in groups]
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in (one for group in self.param_groups for one in group["params"]):
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            parameters = [one for one in group["params"] if one.grad is not None]
            for one in parameters:
                if not self.state[one]:
                    moments = {name: torch.zeros_like(one) for name in ("exp_avg", "exp_avg_sq")}
                    self.state[one] = {"step": torch.zeros((), dtype=torch.float32, device=one.device), **moments}
            states = [self.state[one] for one in parameters]
            averages, squares, steps = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
            beta1, beta2 = group["betas"]
            rows = [own_rows(some) for some in (parameters, [one.grad for one in parameters], averages, squares)]
            adamw(
                rows[0], rows[1], rows[2], rows[3], [], steps, fused=True, amsgrad=False,
                beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
                maximize=False,
            )  # fmt: skip


def own_rows(tensors: Iterable[Any]) -> list[Any]:
    """Return tensors as they are, but of those that are split among processes (DTensor) the rows of this one."""
    return [one.to_local() if hasattr(one, "to_local") else one for one in tensors]


def build_optimizer(
    model: Trainable | ValueModel, settings: Any, rates: Mapping[str, float] | None = None
) -> FusedAdamW:
    """Return AdamW over the trainable parameters, with the recipe's ``[optimizer]``.

    ``rates`` are learning rates of single parameters, by name; they follow the schedule in proportion.
    """
    rates, parameters = rates or {}, model.trainable()
    others = [parameter for name, parameter in parameters.items() if name not in rates]
    groups = [{"params": [parameters[name]], "factor": rate / settings.learning_rate} for name, rate in rates.items()]
    return FusedAdamW(
        [{"params": others}, *groups], lr=settings.learning_rate, betas=settings.betas, eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )  # fmt: skip


def learning_rate(recipe: Job, step: int) -> float:
    """Return the rate of a step, from 1: a linear warm-up, then constant, or linear to zero after the last step."""
    optimizer = recipe.optimizer
    if step <= optimizer.warmup_steps:
        return optimizer.learning_rate * step / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return optimizer.learning_rate
    remaining = recipe.steps - optimizer.warmup_steps
    return optimizer.learning_rate * (recipe.steps - step + 1) / remaining


def set_learning_rate(optimizer: ParameterOptimizer, rate: float) -> None:
    """Set the rate of every parameter group, times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)


def clip_gradient(parameters: Iterable[nn.Parameter], limit: float | None) -> float:
    """Clip the gradient to a norm of ``limit`` (None: no limit) and return its norm before."""
    trained = [one for one in parameters if one.grad is not None]
    norm = torch.nn.utils.get_total_norm([one.grad for one in trained if one.grad is not None])
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of gradients that are split among processes
    torch.nn.utils.clip_grads_with_norm_(trained, math.inf if limit is None else limit, norm)
    return float(norm)


def refuse_non_finite(
    step: int, loss: float, grad_norm: float, *, update: int = 1, of: str = "", rewarded: bool = True
) -> None:
    """Raise BurnishError where an update would make a weight not-a-number.

    ``of`` says whose loss it is, such as "critic's "; ``rewarded`` says whether rewards may be the cause.
    """
    advice = ", and look in samples.jsonl for rewards that diverge" if rewarded else ""
    for name, value in (("loss", loss), ("gradient norm", grad_norm)):
        if not math.isfinite(value):
            where, weights = f"step {step}", "the weights are unchanged"
            if update > 1:
                where, weights = f"step {step}, update {update}", "the earlier updates of this step are discarded"
            raise BurnishError(
                f"{where}: the {of}{name} is {value}; {weights}. Resuming would fail in the same way: "
                f"start again with a lower optimizer.learning_rate{advice}"
            )
