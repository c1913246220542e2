"""The verb ``check``: a model against a plain forward pass of transformers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.options import AsJson, Offline, escape, print_json
from burnish.errors import BurnishError

verbs = typer.Typer(rich_markup_mode=None)


@verbs.command()
def check(
    subject: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run folder, a model folder, a catalogue name or a hub id.")
    ],
    dtype: Annotated[str, typer.Option(help="float32, or float64 for a stricter comparison.")] = "float32",
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Compare a model in burnish with transformers alone.

    Prints a row per check, then 'exact' or what is not; the exit status is 1 if the model is not exact.
    """
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
        rows = [result.to_json() for result in results]
        print_json({"model": subject, "dtype": dtype, "checks": rows, "verdict": outcome})
    else:
        print(escape(outcome))
    if outcome != "exact":
        raise typer.Exit(1)
