"""The fixed pieces of work that are measured, and the prompts they are made of.

All lengths are in tokens of SmolLM2's tokenizer. The prompts are a function of the data alone, so every runner on every
machine gets the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from burnish.benchmark.protocol import Kind, Order
from burnish.errors import InputError
from burnish.registry import nearest

Encode = Callable[[str], Sequence[int]]
Decode = Callable[[Sequence[int]], str]
Render = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the benchmark.

    Attributes:
        prompts, samples, max_new_tokens: P, G, and where an answer is cut.
        prompt_tokens: length of each prompt; None for questions in the chat template, which have lengths of their own.
        steps, warmup: measured steps and those before them, for burnish.
        peer_steps, peer_warmup: the same for a peer, which may take minutes a step.
        peer_microbatch: sequences of one backward pass of a peer: the most that fits into 24 GB.
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

    def order(
        self, model: str, prompts: Sequence[str], encode: Encode, *, peer: bool, seed: int, threads: int,
        options: Sequence[str] = (),
    ) -> Order:  # fmt: skip
        """The order of burnish or of a peer."""
        return Order(
            workload=self.name, kind=self.kind, model=model, prompts=tuple(prompts),
            prompt_ids=tuple(tuple(encode(prompt)) for prompt in prompts), samples_per_prompt=self.samples,
            max_new_tokens=self.max_new_tokens, steps=self.peer_steps if peer else self.steps,
            warmup=self.peer_warmup if peer else self.warmup, microbatch=self.peer_microbatch,
            lora_rank=self.lora_rank, seed=seed, threads=threads, options=() if peer else tuple(options),
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
"""Not measured unless asked for by name: it says nothing about speed."""

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
"""Asked through the chat template, most are answered in a few tokens, some at length: a ragged batch."""


def workload(name: str) -> Workload:
    """The workload of that name. Raises InputError that lists them where there is none."""
    for known in (*WORKLOADS, TINY):
        if known.name == name:
            return known
    names = [known.name for known in WORKLOADS]
    raise InputError(f"there is no workload named '{name}'{nearest(name, names)}; known: {', '.join(names)}")


def exact_prompts(texts: Sequence[str], count: int, tokens: int, encode: Encode, decode: Decode) -> list[str]:
    """Heads of texts that encode to exactly so many tokens, the first ``count`` of different ones.

    Texts that are too short are joined with those that follow. A head whose text does not encode to itself again (a
    word cut in two may merge otherwise) is left out.

    Raises:
        InputError: there are not enough.
    """
    found: dict[str, None] = {}
    for text in _joined(texts, tokens, encode):
        head = decode(list(encode(text))[:tokens])
        if list(encode(head)) == list(encode(text))[:tokens]:
            found[head] = None
        if len(found) == count:
            return list(found)
    raise InputError(f"only {len(found)} of {count} prompts of exactly {tokens} tokens can be made of these texts")


def _joined(texts: Sequence[str], tokens: int, encode: Encode) -> Iterator[str]:
    """Texts of at least so many tokens: each is joined with those after it until it is long enough."""
    held = ""
    for text in texts:
        held = f"{held} {text}" if held else text
        if len(encode(held)) >= tokens:
            yield held
            held = ""


def prompts_for(
    work: Workload, texts: Sequence[str], encode: Encode, decode: Decode, render: Render | None
) -> list[str]:
    """The prompts of a workload: heads of the texts, or the questions through the chat template ``render``."""
    if work.prompt_tokens is not None:
        return exact_prompts(texts, work.prompts, work.prompt_tokens, encode, decode)
    if render is None:
        raise InputError(f"workload '{work.name}' needs a model with a chat template")
    return [render(question) for question in QUESTIONS[: work.prompts]]
