"""TRL's own losses and their gradients on given log-probabilities: one JSON array of cases in, one of answers out.

``GRPOTrainer._compute_loss`` is TRL's code as installed, called on an object that has what it reads and nothing else; the
model's log-probabilities are the case's.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from types import SimpleNamespace

import torch
from trl import GRPOConfig, GRPOTrainer


class Trainer(SimpleNamespace):
    """What the loss reads of a trainer that makes one update on one batch."""

    def _get_per_token_logps_and_entropies(self, *args, **options):
        return self.logprobs, torch.zeros_like(self.logprobs), None


def answered(case):
    options = GRPOConfig(output_dir="unused", report_to=[], use_cpu=True, bf16=False, **case["options"])
    mask = torch.tensor(case["mask"], dtype=torch.float64)
    logprobs = torch.tensor(case["logprobs"], dtype=torch.float64, requires_grad=True)
    trainer = Trainer(
        logprobs=logprobs, args=options, beta=options.beta, loss_type=options.loss_type,
        epsilon_low=options.epsilon, epsilon_high=options.epsilon_high or options.epsilon,
        importance_sampling_level=options.importance_sampling_level, top_entropy_quantile=1.0, aux_loss_enabled=False,
        off_policy_mask_threshold=None, use_vllm=False, _entropy_bonus_enabled=False, current_gradient_accumulation_steps=1,
        max_completion_length=options.max_completion_length, model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda found: found, reduce=lambda found, reduction: found),
        _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    trainer.args.steps_per_generation = 1
    ids = torch.zeros(mask.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids, "completion_mask": mask,
        "advantages": torch.tensor(case["advantages"], dtype=torch.float64), "num_items_in_batch": mask.sum(),
        "old_per_token_logps": torch.tensor(case["old_logprobs"], dtype=torch.float64),
        "ref_per_token_logps": torch.tensor(case["reference_logprobs"], dtype=torch.float64),
    }  # fmt: skip
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    return {"loss": float(loss), "gradient": logprobs.grad.tolist()}


if __name__ == "__main__":
    print(json.dumps([answered(case) for case in json.load(sys.stdin)]))
