"""The verb that samples: ``generate``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from burnish.cli.options import AsJson, Model, Offline, Seed, print_json

verbs = typer.Typer(rich_markup_mode=None)


@verbs.command()
def generate(
    model: Model,
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue; without it, standard input is read.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Number of completions.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion, in tokens.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.01, help="Sampling temperature.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0, help="Nucleus sampling; 1 keeps every token.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Keep the k likeliest tokens; 0 keeps every token.")] = 0,
    seed: Seed = 0,
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Sample completions of a prompt."""
    from burnish.api import generate as run_generation
    from burnish.reports.wording import printable
    from burnish.types import SamplingParams

    completions = run_generation(
        model, sys.stdin.read() if prompt is None else prompt, samples=samples,
        sampling=SamplingParams(max_new_tokens, temperature, top_p, top_k), seed=seed, offline=offline,
    )  # fmt: skip
    if json:
        print_json(
            [{"text": c.text, "tokens": len(c.token_ids), "finish_reason": c.finish_reason} for c in completions]
        )
        return
    for number, completion in enumerate(completions, start=1):
        if samples > 1:
            print(f"--- {number}")
        # A model may write control characters, which must not reach the terminal.
        print("\n".join(printable(line) for line in completion.text.split("\n")))
