"""The verb that samples: ``generate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.cli.filtering import FilteredOutput, FilterPolicyName, chosen_filter, filtered_row, print_piece
from burnish.cli.options import AsJson, Model, Offline, Seed, Trust, escape, print_json, read_standard_input
from burnish.errors import InputError
from burnish.system.parsing import given_text

if TYPE_CHECKING:
    from burnish.model import LoadedModel
    from burnish.safety.filter.content_filter import ContentFilter
    from burnish.types import Group, Prompt

verbs = typer.Typer(rich_markup_mode=None)

System = Annotated[str, typer.Option(metavar="TEXT", help="A system message before the prompt.")]
MaxNewTokens = Annotated[
    int | None, typer.Option(min=1, help="Longest completion, in tokens.  [default: 256, or as many as fit]")
]
Temperature = Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 is --greedy.")]
TopP = Annotated[float, typer.Option(min=0.01, max=1.0, help="Nucleus sampling; 1 keeps every token.")]
TopK = Annotated[int, typer.Option(min=0, help="Keep the k likeliest tokens; 0 keeps every token.")]
MinP = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Keep tokens this many times as probable as the likeliest; 0 keeps all.")
]
Plain = Annotated[
    bool | None,
    typer.Option(
        "--plain/--chat",
        help="Continue the text as it is, or answer it through the model's chat template.  [default: --chat if the "
        "model has a template, except for a run that trained on plain text]",
    ),
]
Stream = Annotated[
    bool | None,
    typer.Option("--stream/--no-stream", help="Print the text as it is sampled.  [default: on a terminal]"),
]
Greedy = Annotated[bool, typer.Option("--greedy", help="Take the likeliest token each time.")]

StopTokenId = Annotated[list[int] | None, typer.Option(min=0, help="A token that ends a completion; may be repeated.")]


@verbs.command()
def generate(
    model: Model,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; without it, standard input is read.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Prompts instead: .txt, one per line, or .jsonl with 'prompt' or 'messages'.")
    ] = None,
    plain: Plain = None,
    system: System = "",
    samples: Annotated[int, typer.Option(min=1, help="Number of completions.")] = 1,
    max_new_tokens: MaxNewTokens = None,
    greedy: Greedy = False,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    min_new_tokens: Annotated[int, typer.Option(min=0, help="Tokens before a completion can end.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends a completion; may be repeated.")] = None,
    stop_token_id: StopTokenId = None,
    keep_stop: Annotated[bool, typer.Option("--keep-stop", help="Leave the stop text in the completion.")] = False,
    seed: Seed = 0,
    stream: Stream = None,
    filter_policy: FilterPolicyName = None,
    trust: Trust = False,
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Sample answers to a prompt, or continuations of it."""
    one = samples == 1 and file is None and not json
    if stream and not one:
        raise InputError("--stream prints one sample of one prompt as text: leave out --samples, --file and --json")
    if file is not None and prompt is not None:
        raise InputError("name either a prompt or --file")
    content_filter = chosen_filter(filter_policy)
    texts = [("prompt", read_prompt() if prompt is None else prompt)] if file is None else read_prompts(file)
    report_loading(model, quiet=json)
    from burnish.api import load

    loaded = load(model, trust=trust, offline=offline)
    prompts = [loaded.prompt(text, system=system, plain=plain, name=name) for name, text in texts]
    if prompt is None and file is None and prompts[0].messages:  # a line break at the end of a pipe is no question
        prompts = [loaded.prompt(texts[0][1].removesuffix("\n"), system=system, plain=plain)]
    if plain is None:
        _report_way(loaded, prompts)
    options: dict[str, Any] = {"temperature": 0.0 if greedy else temperature, "top_p": top_p, "top_k": top_k}
    options |= {"min_p": min_p, "min_new_tokens": min_new_tokens, "stop": stop or ()}
    options |= {"stop_token_ids": stop_token_id or (), "keep_stop": keep_stop}
    if max_new_tokens is not None:
        options["max_new_tokens"] = max_new_tokens
    streamed = one and (sys.stdout.isatty() if stream is None else stream)
    output = FilteredOutput(content_filter) if streamed else None
    groups = _sample(loaded, prompts, output, samples=samples, seed=seed, **options)
    if json:
        print_json([{**({"prompt": name} if file else {}), **row} for name, row in _rows(groups, content_filter)])
    elif not streamed:
        _print_texts(groups, samples, content_filter)
    _report_cut(groups)


def _sample(model: LoadedModel, prompts: list[Prompt], output: FilteredOutput | None, **options: Any) -> list[Group]:
    """Sample the prompts, and print the one text while it is made if there is an output; Ctrl-C ends its line."""
    if output is None:
        return model.sample(prompts, **options)
    try:
        groups = model.sample(prompts, on_text=output.update, **options)
    except KeyboardInterrupt:
        output.finish()
        print()
        raise
    output.finish()
    print()
    return groups


def report_loading(model: str, *, quiet: bool = False) -> None:
    """Report on standard error that a model is being loaded, before the imports that take most of that time."""
    if not quiet:
        print(f"burnish: loading {escape(model)} ...", file=sys.stderr, flush=True)


def read_prompt() -> str:
    """Return the text on standard input."""
    if sys.stdin is not None and sys.stdin.isatty():
        print("burnish: reading the prompt from the terminal; Ctrl-D on an empty line ends it", file=sys.stderr)
    return read_standard_input()


def read_prompts(file: Path) -> list[tuple[str, Any]]:
    """Return the prompts of a file, each with its line as its name. Raises InputError if one cannot be used."""
    from burnish.data.text_files import read_json_lines

    if file.suffix.lower() not in (".jsonl", ".ndjson"):
        try:
            lines = given_text(file, encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{file} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}"
            ) from error
        prompts: list[tuple[str, Any]] = [(f"line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    else:
        prompts = []
        for row in read_json_lines(file):
            values = row.values or {}
            if not isinstance(value := values.get("prompt", values.get("messages")), str | list):
                reason = row.reason or "it has neither 'prompt' (a text) nor 'messages' (a list)"
                raise InputError(f"{file}, {row.position}: {reason}")
            prompts.append((row.position, value))
    if not prompts:
        raise InputError(f"{file} holds no prompts")
    return prompts


def _report_way(model: LoadedModel, prompts: list[Prompt]) -> None:
    """Report on standard error whether the prompts went through the chat template, if both ways exist."""
    if not model.has_chat_template:
        return
    if any(prompt.messages for prompt in prompts):
        way = "through the chat template; --plain continues the text instead"
    else:
        way = "continuing the text, as this run trained on; --chat goes through the chat template instead"
    print(f"burnish: {way}", file=sys.stderr, flush=True)


def _report_cut(groups: list[Group]) -> None:
    """Report on standard error how many answers reached the limit; a continuation has no end of its own."""
    completions = [one for group in groups if group.prompt.messages for one in group.completions]
    cut = [one for one in completions if one.finish_reason == "length"]
    if cut:
        which = "the answer was" if len(completions) == 1 else f"{len(cut)} of {len(completions)} answers were"
        tokens = max(len(one.token_ids) for one in cut)
        print(f"burnish: {which} cut off after {tokens} tokens; see --max-new-tokens", file=sys.stderr)


def _rows(groups: list[Group], content_filter: ContentFilter | None) -> list[tuple[str, dict[str, Any]]]:
    return [
        (
            group.prompt.id,
            {
                **filtered_row(one.text, content_filter),
                "tokens": len(one.token_ids),
                "finish_reason": one.finish_reason,
            },
        )
        for group in groups
        for one in group.completions
    ]


def _print_texts(groups: list[Group], samples: int, content_filter: ContentFilter | None) -> None:
    for group in groups:
        for number, completion in enumerate(group.completions, start=1):
            heading = [*([group.prompt.id] if len(groups) > 1 else []), *([str(number)] if samples > 1 else [])]
            if heading:
                print(f"--- {', '.join(heading)}")
            print_piece(filtered_row(completion.text, content_filter)["text"])
            print()
