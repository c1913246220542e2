"""burnish's runner: ``python -m burnish.benchmark.runner JOB`` runs a job as a training run or a sampler."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from burnish.benchmark.protocol import BenchmarkJob, JobResult, Stage, Step, read_job, refuse_other_prompts, versions
from burnish.recipe.schema import Recipe, load_recipe
from burnish.system.machine import peak_memory
from burnish.training.learner import Learner
from burnish.training.step import train_step


def recipe_for(job: BenchmarkJob, path: Path) -> Recipe:
    """Return the recipe of a job saved at ``path``: the defaults, except for what the job fixes."""
    policy: dict[str, object] = {"model": job.model, "device": "cpu"}
    if job.lora_rank is not None:
        policy["lora"] = {"rank": job.lora_rank, "alpha": 2.0 * job.lora_rank}
    return load_recipe(
        {
            "name": f"bench-{job.workload}",
            "seed": job.seed,
            "steps": job.warmup + job.steps,
            "threads": job.threads,
            "policy": policy,
            "task": {"use": "burnish.benchmark.task:JobPrompts", "path": str(path)},
            "sampling": {
                "prompts_per_step": len(job.prompts),
                "samples_per_prompt": job.samples_per_prompt,
                "max_new_tokens": job.max_new_tokens,
                "temperature": job.temperature,
            },
            "algorithm": {"use": "grpo"},
            "reward": [{"use": "burnish.benchmark.task:letter_share", "letter": job.letter}],
            "optimizer": {"learning_rate": job.learning_rate},
        },
        list(job.options),
    ).resolved()


def grpo_step(learner: Learner) -> tuple[Step, dict[str, float]]:
    """Run one training step and return it with the metrics that show whether it was correct."""
    metrics = train_step(learner).metrics
    kept = {name: metrics[name] for name in ("reward/mean", "mismatch_kl", "grad_norm", "truncated", "time/update")}
    return Step(metrics["time/step"], metrics["time/generate"], metrics["tokens"]), kept


def sampling_step(learner: Learner, number: int) -> Step:
    """Sample all completions once, with log-probabilities and without training."""
    sampling = learner.recipe.sampling
    begin = time.perf_counter()
    groups = learner.sampler.sample(
        learner.prompts, samples_per_prompt=sampling.samples_per_prompt, sampling=sampling.params,
        seed=(learner.recipe.seed, number),
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    return Step(seconds, seconds, sum(len(done.token_ids) for group in groups for done in group.completions))


def main() -> None:
    job, stage = read_job(), Stage()
    from burnish.backends.local import build

    learner, _ = build(recipe_for(job, Path(sys.argv[1])), offline=True)
    refuse_other_prompts(job, [learner.policy.reference.encode_prompt(prompt) for prompt in learner.prompts])
    steps: list[Step] = []
    notes: list[dict[str, float]] = []
    for number in range(1, job.warmup + job.steps + 1):
        if job.kind == "grpo":
            step, kept = grpo_step(learner)
            notes.append(kept)
        else:
            step = sampling_step(learner, number)
        steps.append(step)
    packages = versions("burnish", "torch", "transformers", "peft")
    warmup, measured = tuple(steps[: job.warmup]), tuple(steps[job.warmup :])
    stage.answer(JobResult("burnish", warmup, measured, peak_memory(), packages, {"steps": notes}))


if __name__ == "__main__":
    main()
