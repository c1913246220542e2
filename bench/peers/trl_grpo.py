"""TRL's GRPOTrainer on a job of ``burnish bench``: the same prompts, rewards, limits and learning rate as burnish.

What TRL leaves to its user is set to what is fastest on a CPU and fits into memory: float32 (bfloat16 is slower on most
CPUs), no gradient checkpointing, one backward pass of ``microbatch`` sequences, padding to the longest answer only.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from burnish.benchmark.protocol import (
    BenchmarkJob,
    JobResult,
    Stage,
    Step,
    read_job,
    refuse_other_prompts,
    versions,
)
from burnish.system.machine import peak_memory


def trainer_for(job: BenchmarkJob, folder: Path):
    """A GRPOTrainer that counts the seconds and the tokens of each generation in ``generations``."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    class Timed(GRPOTrainer):
        def _generate(self, prompts):
            begin = time.perf_counter()
            generated = super()._generate(prompts)
            self.generations.append((time.perf_counter() - begin, sum(map(len, generated[1]))))
            return generated

    tokenizer = AutoTokenizer.from_pretrained(job.model)
    refuse_other_prompts(job, tokenizer(text=list(job.prompts))["input_ids"])
    accumulation, rest = divmod(job.completions, job.microbatch)
    if rest:
        raise SystemExit(f"microbatch {job.microbatch} does not divide the {job.completions} completions of a step")
    arguments = GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, loss_type="grpo", beta=0.0,
        temperature=job.temperature, top_k=0, top_p=1.0, learning_rate=job.learning_rate,
        lr_scheduler_type="constant", num_generations=job.samples_per_prompt,
        max_completion_length=job.max_new_tokens, per_device_train_batch_size=job.microbatch,
        gradient_accumulation_steps=accumulation, steps_per_generation=accumulation,
        max_steps=job.warmup + job.steps, seed=job.seed, report_to=[], save_strategy="no", logging_steps=1,
        dataloader_pin_memory=False, disable_tqdm=True,
    )  # fmt: skip
    adapter = None
    if job.lora_rank is not None:
        adapter = LoraConfig(
            r=job.lora_rank, lora_alpha=2 * job.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    trainer = Timed(
        model=AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32),
        reward_funcs=lambda completions, **_: [job.reward(text) for text in completions],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": list(job.prompts)}),
        processing_class=tokenizer,
        peft_config=adapter,
    )
    trainer.generations = []
    return trainer


def main() -> None:
    job, stage = read_job(), Stage()
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(job.threads)
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            ends.append(time.perf_counter())

        def on_step_end(self, args, state, control, **_):
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_for(job, Path(folder))
        trainer.add_callback(Clock())
        trainer.train()
    if len(trainer.generations) != len(ends) - 1:
        raise SystemExit(f"{len(trainer.generations)} generations in {len(ends) - 1} steps: not one a step")
    steps = tuple(
        Step(end - begin, sampling, tokens)
        for begin, end, (sampling, tokens) in zip(ends[:-1], ends[1:], trainer.generations, strict=True)
    )
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    stage.answer(
        JobResult(
            "trl",
            steps[: job.warmup],
            steps[job.warmup :],
            peak_memory(),
            versions("trl", "transformers", "torch", "peft", "accelerate"),
            {"rewards": rewards},
        )
    )


if __name__ == "__main__":
    main()
