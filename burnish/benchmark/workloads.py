"""Benchmark workloads and their prompts, whose lengths are in tokens of SmolLM2's tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from burnish.benchmark.protocol import BenchmarkJob, Kind
from burnish.errors import InputError
from burnish.registry import nearest

Encode = Callable[[str], Sequence[int]]
Decode = Callable[[Sequence[int]], str]
Render = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the benchmark.

    Attributes:
        prompts, samples, max_new_tokens: P, G, and the length limit of an answer.
        prompt_tokens: length of each prompt; None for questions in the chat template, whose lengths vary.
        steps, warmup: measured steps of burnish, and steps before them.
        peer_steps, peer_warmup: the same for a peer, which may take minutes per step.
        peer_microbatch: sequences per backward pass of a peer, the largest number that fits into 24 GB.
    """

    name: str
    kind: Kind
    summary: str
    prompts: int
    samples: int
    max_new_tokens: int
    prompt_tokens: int | None = 39
    lora_rank: int | None = None
    steps: int = 3
    warmup: int = 1
    peer_steps: int = 1
    peer_warmup: int = 1
    peer_microbatch: int = 1

    @property
    def completions(self) -> int:
        """N = P * G."""
        return self.prompts * self.samples

    def job(
        self, model: str, prompts: Sequence[str], encode: Encode, *, peer: bool, seed: int, threads: int,
        options: Sequence[str] = (),
    ) -> BenchmarkJob:  # fmt: skip
        """Return the job of burnish or of a peer."""
        return BenchmarkJob(
            workload=self.name, kind=self.kind, model=model, prompts=tuple(prompts),
            prompt_ids=tuple(tuple(encode(prompt)) for prompt in prompts), samples_per_prompt=self.samples,
            max_new_tokens=self.max_new_tokens, steps=self.peer_steps if peer else self.steps,
            warmup=self.peer_warmup if peer else self.warmup, microbatch=self.peer_microbatch,
            lora_rank=self.lora_rank, seed=seed, threads=threads, options=() if peer else tuple(options),
            questions=QUESTIONS[: self.prompts] if self.prompt_tokens is None and not peer else (),
        )  # fmt: skip


WORKLOADS: tuple[Workload, ...] = (
    Workload("short", "grpo", "short prompts, short answers", 8, 8, 64, peer_microbatch=64),
    Workload(
        "ragged", "grpo", "questions whose answers mostly stop early", 8, 8, 256, prompt_tokens=None,
        steps=2, peer_warmup=0, peer_microbatch=16,
    ),
    Workload(
        "long", "grpo", "long prompts, short answers", 4, 16, 32, prompt_tokens=600, steps=2, peer_warmup=0,
        peer_microbatch=4,
    ),
    Workload("lora", "grpo", "short, with an adapter of rank 16", 8, 8, 64, lora_rank=16, peer_microbatch=64),
    Workload("sample32", "sampling", "sampling alone, 32 at once", 8, 4, 64, peer_steps=3),
    Workload("sample64", "sampling", "sampling alone, 64 at once", 8, 8, 64, peer_steps=3),
)  # fmt: skip

TINY = Workload("tiny", "grpo", "a random model, to try the benchmark itself", 2, 4, 8, 12, steps=2, peer_microbatch=8)
"""Only measured by name: it says nothing about speed."""

QUESTIONS = (
    "What is the capital of France? Answer in one word.",
    "Name three colours of the rainbow.",
    "What is 7 times 8? Give only the number.",
    "Is the sun a star or a planet? Answer in one sentence.",
    "Write a one-line greeting for a birthday card.",
    "Which animal says 'meow'? One word, please.",
    "Give me one synonym of 'happy'.",
    "How many days are there in a leap year? Just the number.",
)
"""Questions for the chat template. Most answers take a few tokens, some are long: a ragged batch."""


def workload(name: str) -> Workload:
    """Return the workload of this name. Raises InputError with the list of names if there is none."""
    for known in (*WORKLOADS, TINY):
        if known.name == name:
            return known
    names = [known.name for known in WORKLOADS]
    raise InputError(f"there is no workload named '{name}'{nearest(name, names)}; known: {', '.join(names)}")


def exact_prompts(texts: Sequence[str], count: int, tokens: int, encode: Encode, decode: Decode) -> list[str]:
    """Return the first ``count`` distinct heads of texts that encode to exactly ``tokens`` tokens.

    Short texts are joined with the following ones. A head that does not encode to the same tokens again (a word cut in
    two may merge differently) is skipped. Raises InputError if there are too few.
    """
    heads: dict[str, None] = {}
    for text in _joined(texts, tokens, encode):
        head = decode(list(encode(text))[:tokens])
        if list(encode(head)) == list(encode(text))[:tokens]:
            heads[head] = None
        if len(heads) == count:
            return list(heads)
    raise InputError(f"only {len(heads)} of {count} prompts of exactly {tokens} tokens can be made of these texts")


def _joined(texts: Sequence[str], tokens: int, encode: Encode) -> Iterator[str]:
    held = ""
    for text in texts:
        held = f"{held} {text}" if held else text
        if len(encode(held)) >= tokens:
            yield held
            held = ""


def prompts_for(
    work: Workload, texts: Sequence[str], encode: Encode, decode: Decode, render: Render | None
) -> list[str]:
    """Return the prompts of a workload: heads of the texts, or the questions through the chat template ``render``."""
    if work.prompt_tokens is not None:
        return exact_prompts(texts, work.prompts, work.prompt_tokens, encode, decode)
    if render is None:
        raise InputError(f"workload '{work.name}' needs a model with a chat template")
    return [render(question) for question in QUESTIONS[: work.prompts]]
