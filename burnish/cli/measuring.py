"""The verbs that measure: ``evaluate``, ``score``, ``verify`` and ``bench``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from burnish.cli.options import (
    AsJson,
    Model,
    Offline,
    Overrides,
    Quiet,
    Seed,
    Trust,
    escape,
    print_json,
    read_standard_input,
)
from burnish.errors import BurnishError, InputError

verbs = typer.Typer(rich_markup_mode=None)


@verbs.command()
def evaluate(
    model: Model,
    against: Annotated[str | None, typer.Option(help="A second model to compare with, shown as 'before'.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="The recipe that sets the task, sampling and rewards.  [default: the run's own, or news]"),
    ] = None,
    overrides: Overrides = None,
    trust: Trust = False,
    quiet: Quiet = False,
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Measure a model on held-out prompts.

    With --against, compare two models on the same prompts.
    """
    from burnish.api import evaluate as run_evaluation
    from burnish.reports.terminal.progress import make_observer
    from burnish.reports.terminal.tables import print_evaluation
    from burnish.reports.wording import short, title

    observer = make_observer(quiet=quiet or json)
    evaluation = run_evaluation(
        model,
        against=against,
        recipe=recipe,
        overrides=overrides or [],
        trust=trust,
        offline=offline,
        observer=observer,
    )
    if json:
        print_json(evaluation)
    elif against is not None:
        print_evaluation(evaluation)
    else:
        for name, value in evaluation.items():
            print(f"{title(name):28s}{short(value)}")


@verbs.command()
def score(
    texts: Annotated[list[str] | None, typer.Argument(help="The texts; without any, lines of standard input.")] = None,
    use: Annotated[
        list[str] | None, typer.Option("--use", help="A reward, by name or module:object.  [default: repetition]")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="REWARD.OPTION=VALUE", help="A reward option, such as regex.pattern='[0-9]+'."),
    ] = None,
    prompt: Annotated[str, typer.Option(help="The prompt that each text continues.")] = "",
    reference: Annotated[
        list[str] | None, typer.Option(help="The reference answer; give it again for each further one.")
    ] = None,
    model: Annotated[str, typer.Option(help="The reference model, for rewards that need one.")] = "smollm2-135m",
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Score texts with one or more rewards."""
    from burnish.run.interrupts import Interrupts
    from burnish.scoring import score as run_scoring

    given = texts or read_standard_input().removesuffix("\n").split("\n")
    with Interrupts():  # so that a reward's own KeyboardInterrupt is told from Ctrl-C
        rows = run_scoring(
            given, rewards=use or ["repetition"], options=reward_options(settings or []), prompt=prompt,
            reference=reference, model=model, offline=offline,
        )  # fmt: skip
    if json:
        print_json(rows)
        return
    for row in rows:
        values = "  ".join(f"{name} {value:.4g}" for name, value in row["parts"].items())
        print(f"{values}  {escape(row['text'][:60])}")


def reward_options(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return reward -> its options from ``REWARD.OPTION=VALUE`` texts. Raises InputError if one has another form."""
    options: dict[str, dict[str, Any]] = {}
    for setting in settings:
        from burnish.recipe.reading import read_override

        key, value = read_override(setting)
        # The last dot, because a reward may be named package.module:object.
        name, _, option = key.rpartition(".")
        if not name or not option:
            raise InputError(f"--set {setting}: write REWARD.OPTION=VALUE, as in repetition.n=3")
        options.setdefault(name, {})[option] = value
    return options


@verbs.command()
def verify(
    samples: Annotated[int, typer.Option(min=1000, help="Independent estimates of each gradient.")] = 100_000,
    group: Annotated[int, typer.Option(min=2, help="Samples per estimate.")] = 4,
    seed: Seed = 0,
    train_policy: Annotated[
        bool, typer.Option("--train/--no-train", help="Also train a tabular policy and plot its reward.")
    ] = True,
    json: AsJson = False,
) -> None:
    """Check every gradient estimator against the exact gradient.

    The exact gradient comes from a world small enough to enumerate.
    """
    from burnish.api import train_toy
    from burnish.exactness.verify import verify as run_verification
    from burnish.policies.tabular import known_world
    from burnish.reports.terminal.exactness import findings_json, plot_rewards, print_findings

    world = known_world()
    findings = run_verification(world, samples=samples, group=group, seed=seed)
    if json:
        print_json(findings_json(findings, world, samples=samples, group=group, seed=seed))
    else:
        print_findings(findings, world, samples=samples, group=group)
        if train_policy:
            rewards = train_toy(seed)
            plot_rewards(rewards)
            if sum(rewards[-10:]) < 9:
                raise BurnishError("the tabular policy says 我爱你。 in fewer than 9 of 10 samples after training")
    wrong = [finding.estimator.name for finding in findings if not finding.passed]
    if wrong:
        raise BurnishError(f"estimators that claim to be unbiased but are biased: {', '.join(wrong)}")


@verbs.command()
def bench(
    workloads: Annotated[
        list[str] | None, typer.Argument(help="short, ragged, long, lora, sample32, sample64.  [default: all]")
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option("--peer", help="trl, hf, vllm or openvino.  [default: all that are built]")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each measurement is repeated.")] = 1,
    out: Annotated[Path, typer.Option(help="The folder for the table, the plot and the numbers.")] = Path(
        "bench/results"
    ),
    threads: Annotated[int | None, typer.Option(min=1, help="Threads per runner.  [default: all cores]")] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure even if other processes load the machine.")] = False,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Compare speed and memory with other libraries.

    Also measures the limit of this machine. A peer can take minutes per step.
    """
    from burnish.benchmark.harness import PEERS, peer_python, run_benchmark
    from burnish.benchmark.workloads import WORKLOADS
    from burnish.reports.terminal.progress import make_observer
    from burnish.system.machine import cores

    results = run_benchmark(
        workloads or [work.name for work in WORKLOADS],
        peers=peer if peer is not None else [name for name in PEERS if peer_python(name)],
        rounds=rounds, out=out, threads=threads or cores(), force=force, observer=make_observer(quiet=quiet),
    )  # fmt: skip
    if json:
        print_json(results)
    else:
        print((out / "bench.md").read_text(encoding="utf-8"), end="")
