"""burnish's own runner: ``python -m burnish.benchmark.runner ORDER`` does an order as a training run or a sampler would."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from burnish.benchmark.protocol import (
    Answer,
    Order,
    Stage,
    Step,
    order_of_this_process,
    refuse_other_prompts,
    versions,
)
from burnish.recipe.schema import Recipe, load_recipe
from burnish.system.machine import peak_memory
from burnish.training.learner import Learner
from burnish.training.step import train_step


def recipe_for(order: Order, path: Path) -> Recipe:
    """The recipe of an order that lies at ``path``: every default, but for what the order fixes."""
    policy: dict[str, object] = {"model": order.model, "device": "cpu"}
    if order.lora_rank is not None:
        policy["lora"] = {"rank": order.lora_rank, "alpha": 2.0 * order.lora_rank}
    return load_recipe(
        {
            "name": f"bench-{order.workload}",
            "seed": order.seed,
            "steps": order.warmup + order.steps,
            "threads": order.threads,
            "policy": policy,
            "task": {"use": "burnish.benchmark.task:Ordered", "path": str(path)},
            "sampling": {
                "prompts_per_step": len(order.prompts),
                "samples_per_prompt": order.samples_per_prompt,
                "max_new_tokens": order.max_new_tokens,
                "temperature": order.temperature,
            },
            "algorithm": {"use": "grpo"},
            "reward": [{"use": "burnish.benchmark.task:letter_share", "letter": order.letter}],
            "optimizer": {"learning_rate": order.learning_rate},
        },
        list(order.options),
    )


def grpo_step(learner: Learner) -> tuple[Step, dict[str, float]]:
    """One training step, and the metrics that say whether it was right."""
    metrics = train_step(learner).metrics
    kept = {name: metrics[name] for name in ("reward/mean", "mismatch_kl", "grad_norm", "truncated", "time/update")}
    return Step(metrics["time/step"], metrics["time/generate"], metrics["tokens"]), kept


def sampling_step(learner: Learner, number: int) -> Step:
    """One draw of all samples with log-probabilities, the weights as they are."""
    sampling = learner.recipe.sampling
    begin = time.perf_counter()
    groups = learner.sampler.sample(
        learner.prompts, samples_per_prompt=sampling.samples_per_prompt, sampling=sampling.params,
        seed=(learner.recipe.seed, number),
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    return Step(seconds, seconds, sum(len(done.token_ids) for group in groups for done in group.completions))


def main() -> None:
    order, stage = order_of_this_process(), Stage()
    from burnish.backends.local import build

    learner, _ = build(recipe_for(order, Path(sys.argv[1])), offline=True)
    refuse_other_prompts(order, [learner.policy.reference.encode_prompt(prompt) for prompt in learner.prompts])
    steps: list[Step] = []
    notes: list[dict[str, float]] = []
    for number in range(1, order.warmup + order.steps + 1):
        if order.kind == "grpo":
            step, kept = grpo_step(learner)
            notes.append(kept)
        else:
            step = sampling_step(learner, number)
        steps.append(step)
    stage.answer(
        Answer(
            "burnish",
            tuple(steps[: order.warmup]),
            tuple(steps[order.warmup :]),
            peak_memory(),
            versions("burnish", "torch", "transformers", "peft"),
            {"steps": notes},
        )
    )


if __name__ == "__main__":
    main()
