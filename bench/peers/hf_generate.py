"""transformers' own ``generate`` on a sampling job of ``burnish bench``: one batch, each prompt once a sample."""

from __future__ import annotations

import time

from burnish.benchmark.protocol import (
    JobResult,
    Stage,
    Step,
    read_job,
    refuse_other_prompts,
    versions,
)
from burnish.system.machine import peak_memory


def main() -> None:
    job, stage = read_job(), Stage()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(job.threads)
    tokenizer = AutoTokenizer.from_pretrained(job.model, padding_side="left")
    refuse_other_prompts(job, tokenizer(text=list(job.prompts))["input_ids"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32).eval()
    batch = tokenizer(
        [p for p in job.prompts for _ in range(job.samples_per_prompt)], return_tensors="pt", padding=True
    )
    width = batch["input_ids"].shape[1]
    steps = []
    for number in range(job.warmup + job.steps):
        torch.manual_seed(job.seed + number)
        begin = time.perf_counter()
        done = model.generate(
            **batch, do_sample=True, temperature=job.temperature, top_k=0, top_p=1.0,
            max_new_tokens=job.max_new_tokens, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        ends = (done[:, width:] == tokenizer.eos_token_id).long()
        tokens = int(((ends.cumsum(1) - ends) == 0).sum())
        steps.append(Step(seconds, seconds, tokens))
    stage.answer(
        JobResult(
            "hf", tuple(steps[: job.warmup]), tuple(steps[job.warmup :]), peak_memory(),
            versions("transformers", "torch"),
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
