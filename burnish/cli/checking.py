"""The verbs ``check``, for a run, a model or data, and ``init``, which drafts a recipe from data."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.options import AsJson, Offline, escape, print_json
from burnish.errors import BurnishError, InputError

verbs = typer.Typer(rich_markup_mode=None)


@verbs.command()
def check(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="RUN | MODEL | DATA",
            help="A run folder; a model folder, a catalogue name or a hub id; or a file of data, a pattern of files, or "
            "datasets/OWNER/NAME of the hub.",
        ),
    ],
    model: Annotated[str, typer.Option(help="For data: the model whose tokenizer and chat template read it.")] = (
        "smollm2-135m"
    ),
    rows: Annotated[int, typer.Option(min=0, help="For data: how many rows to print.")] = 3,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="For data: an option, such as prompt=question."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, or float64 for a stricter comparison.")] = "float32",
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Prove a run, compare a model with transformers, or show data.

    For a run, prints its parts and what was lost or changed of them, and the exit status is 1 if anything was; RUN/model
    is its model. For data, prints counts, lengths in tokens, what is left out and why, and the first rows. For a model,
    prints a row per check, then 'exact' or what is not; the exit status is 1 if the model is not exact.
    """
    from burnish.data.files import is_data

    if is_data(subject) or subject.startswith("datasets/"):
        show_data(subject, model, rows, options or [], json=json, offline=offline)
        return
    if options:
        raise BurnishError("--set is for data: name a file of data")
    if (Path(subject) / "recipe.toml").is_file():
        show_run(Path(subject), json=json)
        return
    import tempfile

    from burnish.benchmark.model_check import check_model, verdict
    from burnish.catalogue.convert import resolve_model
    from burnish.reports.terminal.progress import make_observer

    if dtype not in ("float32", "float64"):
        raise BurnishError(f"--dtype {dtype}: write float32 or float64")
    source = resolve_model(subject, offline=offline, observer=make_observer(quiet=json))
    with tempfile.TemporaryDirectory() as scratch:
        results = []
        for result in check_model(source, Path(scratch), dtype=dtype, offline=offline):
            results.append(result)
            if not json:
                print(escape(result.line()), flush=True)
    outcome = verdict(results)
    if json:
        checks = [result.to_json() for result in results]
        print_json({"model": subject, "dtype": dtype, "checks": checks, "verdict": outcome})
    else:
        print(escape(outcome))
    if outcome != "exact":
        raise typer.Exit(1)


def show_run(run: Path, *, json: bool) -> None:
    """Print every part of a run folder with what is wrong with it. Exits with 1 if anything is."""
    from burnish.run.proof import examine

    parts = examine(run)
    wrong = sum(len(part.problems) for part in parts)
    outcome = f"{wrong} wrong" if wrong else "whole"
    if json:
        print_json({"run": str(run), "parts": [part.to_json() for part in parts], "verdict": outcome})
    else:
        for line in (line for part in parts for line in part.lines()):
            print(escape(line))
        print(outcome)
    if wrong:
        raise typer.Exit(1)


def show_data(subject: str, model: str, rows: int, settings: list[str], *, json: bool, offline: bool) -> None:
    """Print what the verbs that train would read of some data."""
    from burnish.catalogue.convert import resolve_model
    from burnish.data.files import is_data
    from burnish.drafting.columns import guess_fields
    from burnish.policies.loading import load_model
    from burnish.recipe.reading import read_override
    from burnish.reports.terminal.progress import make_observer
    from burnish.supervised.data_check import check_data
    from burnish.tasks.data import DataTask
    from burnish.tasks.registry import check_task_options

    hub = subject.startswith("datasets/") and not is_data(subject)
    options: dict[str, object] = {"dataset": subject.removeprefix("datasets/")} if hub else {"path": subject}
    for setting in settings:
        key, value = read_override(setting)
        options[key.removeprefix("task.")] = value
    check_task_options(DataTask, options)
    if not options.keys() & {"prompt", "template", "messages", "reference"}:
        options |= guess_fields(options)
    source = resolve_model(model, offline=offline, observer=make_observer(quiet=json))
    readings = check_data(options, load_model(source, offline=offline), rows=rows, offline=offline)
    if json:
        print_json({"data": subject, "model": model, "readings": [reading.to_json() for reading in readings]})
        return
    for line in (line for reading in readings for line in reading.lines()):
        print(escape(line))


@verbs.command()
def init(
    data: Annotated[str, typer.Argument(help="A file of data, a pattern of files, or datasets/OWNER/NAME of the hub.")],
    prompt: Annotated[str, typer.Option(help="The column of the prompt, if it cannot be guessed.")] = "",
    reference: Annotated[str, typer.Option(help="The column of the true answer, if it cannot be guessed.")] = "",
    kind: Annotated[str, typer.Option(help="train, sft, prefer or reward-model; the columns decide if left out.")] = "",
    model: Annotated[str, typer.Option(help="The model to train.")] = "smollm2-135m",
    to: Annotated[Path | None, typer.Option(help="The file to write.  [default: the data's name with .toml]")] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the data, such as delimiter=;")
    ] = None,
) -> None:
    """Write a commented recipe for a file of data.

    Prints the recipe's path and the next two commands; nothing is overwritten.
    """
    from burnish.drafting.recipe import draft_recipe
    from burnish.recipe.reading import read_override
    from burnish.system.files import explained

    settings = dict(read_override(option) for option in options or [])
    stem = Path(data.rstrip("/*")).name.partition(".")[0]
    target = to or Path(f"{re.sub(r'[-_]?[*?]', '', stem) or 'mine'}.toml")
    if target.exists():
        raise InputError(f"{target} exists: name another file with --to, or delete it")
    verb, text, note = draft_recipe(data, kind=kind, prompt=prompt, reference=reference, model=model, settings=settings)
    with explained(f"cannot write {target}"), target.open("x", encoding="utf-8") as file:
        file.write(text)
    if note:
        print(f"burnish: {escape(note)}", file=sys.stderr)
    shown = f"./{target}" if str(target).startswith("-") else str(target)  # not an option
    print(escape(shown))
    command = escape(f"burnish {verb} {shlex.quote(shown)}")
    print(f"next:\n  {command} --dry-run\n  {command} --run-dir {shlex.quote(f'runs/{target.stem}')}")
