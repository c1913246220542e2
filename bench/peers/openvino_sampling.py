"""OpenVINO GenAI's continuous batching on a sampling job of ``burnish bench``, in float32; it gives no log-probabilities.

The model is converted once, which takes a minute, and kept in a folder beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from burnish.benchmark.protocol import JobResult, Stage, Step, read_job, versions
from burnish.system.machine import peak_memory


def main() -> None:
    job, stage = read_job(), Stage()
    import openvino_genai
    from openvino import Tensor

    folder = converted(Path(job.model))
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs = job.completions
    scheduler.max_num_batched_tokens = 2048
    scheduler.enable_prefix_caching = True
    scheduler.cache_size = 1
    model = openvino_genai.ContinuousBatchingPipeline(
        str(folder), scheduler, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": job.threads}
    )
    steps = []
    for number in range(job.warmup + job.steps):
        sampling = openvino_genai.GenerationConfig()
        sampling.do_sample, sampling.temperature = True, job.temperature
        sampling.top_k, sampling.top_p = 0, 1.0
        sampling.max_new_tokens, sampling.num_return_sequences = job.max_new_tokens, job.samples_per_prompt
        sampling.rng_seed = job.seed + number
        sampling.apply_chat_template = False
        begin = time.perf_counter()
        done = model.generate([Tensor([list(ids)]) for ids in job.prompt_ids], [sampling] * len(job.prompt_ids))
        seconds = time.perf_counter() - begin
        steps.append(Step(seconds, seconds, sum(len(ids) for group in done for ids in group.m_generation_ids)))
    stage.answer(
        JobResult(
            "openvino", tuple(steps[: job.warmup]), tuple(steps[job.warmup :]), peak_memory(),
            versions("openvino", "openvino-genai"),
        )
    )  # fmt: skip


def converted(model: Path) -> Path:
    """The folder of the converted model, made where it is not there yet."""
    folder = model.with_name(f"{model.name}-openvino")
    if not (folder / "openvino_model.xml").exists():
        command = Path(sys.executable).with_name("optimum-cli")
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        subprocess.run(
            [str(command), "export", "openvino", "--task", "text-generation-with-past", "--weight-format", "fp32",
             "--model", str(model), str(unfinished)],
            check=True, stdout=sys.stderr,
        )  # fmt: skip
        unfinished.rename(folder)
    return folder


if __name__ == "__main__":
    main()
