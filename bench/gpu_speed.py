"""Speed on a GPU: steps of GRPO by burnish and by TRL on one model, and the share of the card's arithmetic in learning."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.tiny_models import byte_tokenizer
from burnish.benchmark.model_check import Measured, make_learner
from burnish.planning.gpus import GPUS
from burnish.policies.causal_lm import CausalPolicy
from burnish.system.machine import peak_memory
from burnish.training.step import train_step
from burnish.types import Prompt

LLAMA = {"bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": True, "max_position_embeddings": 2048}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "SmolLM2-135M's shape": {
        **LLAMA, "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    "1.5 B, Qwen2.5's shape": {
        **LLAMA, "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Load:
    """The work of a step: prompts, samples of each, and at most so many tokens."""

    prompts: int = 8
    samples: int = 8
    tokens: int = 64

    def texts(self) -> list[Prompt]:
        return [
            Prompt(str(place), f"{place:02d} is a number, and this is a sentence.") for place in range(self.prompts)
        ]


SHORT, LONG = Load(), Load(samples=16, tokens=512)


def random_model(shape: str, dtype: str, device: str) -> Any:
    """Return a model of a shape with random weights, the same ones each time."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPES[shape])
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def check_speed(shape: str, dtype: str, device: str, load: Load = SHORT, *, steps: int = 4) -> Measured:
    """Seconds per step, and the share of the card's bfloat16 arithmetic that learning reaches (model FLOP utilisation).

    Forward and backward pass count 6 operations per weight and token (arXiv 2204.02311, appendix B), and attention is
    left out. Each prompt is computed once for its samples, and its tokens count once.
    """
    policy = CausalPolicy(random_model(shape, dtype, device), byte_tokenizer(SHAPES[shape]["vocab_size"]))
    prompts = load.texts()
    learner = make_learner(policy, prompts=prompts, group=load.samples, tokens=load.tokens, microbatch=16384)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rows = [train_step(learner).metrics for _ in range(steps)][1:]
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory()
    step, sampling, update, tokens = (
        statistics.median(row[name] for row in rows) for name in ("time/step", "time/generate", "time/update", "tokens")
    )
    read = tokens + sum(len(policy.encode_prompt(prompt)) for prompt in prompts)
    weights = sum(one.numel() for one in policy.trainable().values())
    share = 6 * weights * read / update / peak_arithmetic(device)
    note = (
        f"seconds per step: sampling {sampling:.2f} ({policy.sampler_kind}), update {update:.2f}; {tokens:.0f} tokens, "
        f"{tokens / step:.0f} per second, {tokens / sampling:.0f} per second while sampling; peak {peak / 1e9:.2f} GB; "
        f"learning reaches {share:.1%} of the bfloat16 arithmetic"
    )
    return Measured(step, True, "none", note=note)


def peak_arithmetic(device: str) -> float:
    """Return the published bfloat16 operations per second of the card, or those of a large product measured here."""
    if device == "cuda":
        name = torch.cuda.get_device_name().lower()
        known = [gpu for gpu in GPUS.values() if gpu.name in name.replace(" ", "")]
        if known:
            return max(known, key=lambda gpu: len(gpu.name)).flops
    size = 8192 if device == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    best = 0.0
    for _ in range(5):
        begin = time.perf_counter()
        total = (a @ a).sum()
        float(total)  # waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - begin))
    return best


def check_trl(shape: str, dtype: str, device: str, load: Load = SHORT, *, steps: int = 4) -> Measured:
    """Seconds per step of TRL's GRPOTrainer with transformers' generate, on the same prompts and limits."""
    if importlib.util.find_spec("trl") is None:
        return Measured(0.0, True, "none", note="not measured: TRL is not installed")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    ends = [time.perf_counter()]

    class Timed(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            ends.append(time.perf_counter())

    tokenizer = byte_tokenizer(SHAPES[shape]["vocab_size"])
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "model"  # TRL reads the configuration from where a model came from
        random_model(shape, "float32", device).save_pretrained(saved)
        tokenizer.save_pretrained(saved)
        count = load.prompts * load.samples
        arguments = GRPOConfig(
            output_dir=str(Path(folder)), use_cpu=device == "cpu", bf16=dtype == "bfloat16", loss_type="grpo", beta=0.01,
            gradient_checkpointing=False, temperature=1.0, top_k=0, top_p=1.0, learning_rate=1e-6,
            num_generations=load.samples, max_completion_length=load.tokens, per_device_train_batch_size=count,
            max_steps=steps, seed=0, report_to=[], save_strategy="no", disable_tqdm=True,
            model_init_kwargs={"dtype": "float32"},
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=str(saved), reward_funcs=lengths, args=arguments, callbacks=[Timed()],
            train_dataset=Dataset.from_dict({"prompt": [one.text for one in load.texts()]}), processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
    seconds = statistics.median(end - begin for begin, end in itertools.pairwise(ends[1:]))
    return Measured(seconds, True, "none", note=f"TRL {importlib.metadata.version('trl')}, {count} samples a step")


def lengths(completions: Sequence[str], **_: Any) -> list[float]:
    """A reward that differs between random texts."""
    return [len(set(text)) / max(1, len(text)) for text in completions]
