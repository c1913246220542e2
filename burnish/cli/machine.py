"""The verbs for this machine: ``doctor`` and ``sandbox``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.options import AsJson, Overrides, Trust, escape, print_json
from burnish.errors import BurnishError, InputError

verbs = typer.Typer(rich_markup_mode=None)


@verbs.command()
def doctor(
    recipe: Annotated[
        str | None, typer.Argument(help="With --ray: a built-in recipe or a TOML file.  [default: news]")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Check a Ray cluster against a recipe instead.")] = False,
    overrides: Overrides = None,
    trust: Trust = False,
    long: Annotated[bool, typer.Option("--long", help="Measure every library and bfloat16, for a minute.")] = False,
    json: AsJson = False,
) -> None:
    """Show what this machine can do and what is installed.

    Facts are printed at once, then the speed of matrix products, measured for some tenths of a second. With --ray, check
    the machines of a cluster before a long run; see docs/en/cluster.md.
    """
    if ray:
        return _check_cluster(recipe or "news", overrides or [], trust, json)
    if recipe is not None or overrides:
        raise InputError("doctor reads a recipe with --ray only: burnish doctor --ray RECIPE")
    from burnish.benchmark import doctor as doctor_report

    known = doctor_report.facts()
    if not json:
        _print_now(doctor_report.fact_lines(known))
    known["sandbox"] = doctor_report.sandbox()
    if not json:
        _print_now([f"sandbox      {known['sandbox']}"])
    measured = doctor_report.measure_speeds(long=long)
    if json:
        print_json({**known, **measured})
    else:
        _print_now(doctor_report.speed_lines(measured))


def _check_cluster(recipe: str, overrides: Sequence[str], trust: bool, json: bool) -> None:
    """Print what is seen of a recipe's cluster. Raises BurnishError if a run would fail on it, or be open to others."""
    from dataclasses import asdict

    from burnish.backends.preflight import check_backend_package, check_backend_trust
    from burnish.recipe.schema import load_recipe
    from burnish.run.launch import resolve_recipe_paths
    from burnish.run.trust import code_of

    with code_of(recipe, None, never="doctor runs none"):
        read = resolve_recipe_paths(load_recipe(recipe, ["backend.use=ray", *overrides]))
    with code_of(recipe, None, trust=trust):
        check_backend_trust(read.backend)
        check_backend_package(read)
    from burnish.backends.ray.cluster_check import check_cluster

    lines = []
    for line in check_cluster(read):
        lines.append(line)
        if not json:
            _print_now([f"{line.subject:<22} {'PROBLEM: ' if line.fault else ''}{line.text}"])
    if json:
        print_json([asdict(line) for line in lines])
    if faults := sum(line.fault for line in lines):
        raise BurnishError(f"the cluster has {faults} problem{'s' if faults > 1 else ''}")


def _print_now(lines: Iterable[str]) -> None:
    for line in lines:
        print(escape(line), flush=True)


@verbs.command()
def sandbox(
    file: Annotated[Path, typer.Argument(help="A Python file; it can import only the standard library.")],
    seconds: Annotated[float, typer.Option(help="Wall-clock limit.")] = 10.0,
    memory: Annotated[int, typer.Option(help="Address-space limit, MB.")] = 256,
    layer: Annotated[
        str, typer.Option(help="namespaces, landlock, wasm, the strongest of them, or none.")
    ] = "strongest",
    json: AsJson = False,
) -> None:
    """Run an untrusted Python file in a sandbox.

    The program has no network and no files, and limited time and memory; see docs/en/sandbox.md.
    """
    from dataclasses import asdict

    from burnish.reports.wording import printable
    from burnish.sandbox.run import Limits, run

    try:
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise InputError(f"{file}: {reason}; name a Python file") from error
    verdict = run(source, limits=Limits(seconds=seconds, memory=memory), name=file.name, layer=layer)
    if json:
        print_json(asdict(verdict))
    elif verdict.status != "refused":
        for text, stream in ((verdict.stdout, sys.stdout), (verdict.stderr, sys.stderr)):
            print("\n".join(printable(line) for line in text.split("\n")), end="", file=stream)
        used = "" if verdict.memory is None else f", {verdict.memory:g} MB"
        reason = f" ({verdict.reason})" if verdict.reason else ""
        print(f"burnish: {verdict.status}{reason}, {verdict.seconds:.2f} s{used}; {verdict.layer}", file=sys.stderr)
    if verdict.status == "refused":
        raise BurnishError(f"not run: {verdict.reason}")
    if verdict.status != "ok":
        raise typer.Exit(1)
