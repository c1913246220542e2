"""Options that several verbs of the command line share, and what the verbs that train by a recipe do with theirs."""

from __future__ import annotations

import json as json_module
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from burnish.errors import BurnishError, InputError

if TYPE_CHECKING:
    from burnish.protocols import Observer
    from burnish.recipe.schema import Job
    from burnish.supervised.recipe import SupervisedRecipe
    from burnish.supervised.verbs import SupervisedResult

INTERRUPTED = 130
"""Exit status after Ctrl-C."""
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


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody asked of a verb that trains by a recipe; one of ``recipe`` and ``resume`` is given."""

    recipe: str | None
    overrides: Sequence[str]
    run_dir: Path | None
    resume: Path | None
    dry_run: bool
    quiet: bool
    json: bool
    offline: bool

    @property
    def source(self) -> str | Path:
        """The recipe, or that of the run."""
        return self.recipe or (self.resume or Path()) / "recipe.toml"

    def show(self, recipe: Job) -> None:
        """Prints a checked recipe, every default written out."""
        if self.json:
            print_json(recipe.model_dump(mode="json"))
        else:
            print(recipe.toml(), end="")

    def run(self, train: Callable[..., Any]) -> Any:
        """What ``train`` or one of its siblings returns."""
        from burnish.reports.terminal.progress import make_observer

        observer: Observer = make_observer(quiet=self.quiet, json=self.json)
        return train(
            self.recipe, overrides=self.overrides, run_dir=self.run_dir, resume=self.resume, offline=self.offline,
            observer=observer,
        )  # fmt: skip

    def from_rows(
        self, train: Callable[..., SupervisedResult], kind: type[SupervisedRecipe]
    ) -> SupervisedResult | None:
        """What the verbs for rows of text do; None where nothing was to be trained."""
        if self.dry_run:
            from burnish.supervised.recipe import load_supervised

            self.show(load_supervised(kind, self.source, self.overrides))
            return None
        result: SupervisedResult = self.run(train)
        self.conclude(result, model=result.model)
        return result

    def conclude(self, result: Any, **paths: Path) -> None:
        """Prints the evaluation, what the steps cost, and where things lie."""
        from burnish.reports.wording import duration, gigabytes, spent
        from burnish.run.folder import read_lines

        seconds, memory = spent(read_lines(result.run_dir / "metrics.jsonl"))
        if self.json:
            named = {name: str(path) for name, path in paths.items()}
            cost = {"seconds": seconds, "peak_memory_mb": memory}
            event = {"event": "result", "evaluation": result.evaluation, "cost": cost, "run_dir": str(result.run_dir)}
            event |= named
            print(json_module.dumps(event, ensure_ascii=False))
            return
        from burnish.reports.terminal.tables import print_evaluation

        print_evaluation(result.evaluation)
        print()
        most = f", peak memory {gigabytes(memory)}" if memory else ""
        print(f"{'cost':8}{duration(seconds)} for the steps{most}")
        for name, path in sorted(paths.items()):
            print(f"{name:8}{path}")


def trains_by_recipe(app: typer.Typer) -> Callable[[Callable[[Order], None]], Callable[[Order], None]]:
    """Makes a verb of a function that takes an order: its name and first line are the function's own."""

    def register(work: Callable[[Order], None]) -> Callable[[Order], None]:
        def verb(
            recipe: RecipeName = None,
            overrides: Overrides = None,
            run_dir: RunDir = None,
            resume: Resume = None,
            dry_run: DryRun = False,
            quiet: Quiet = False,
            json: AsJson = False,
            offline: Offline = False,
        ) -> None:
            if (recipe is None) == (resume is None):
                raise InputError("name a recipe (burnish list recipes) or a run with --resume, one of the two")
            work(Order(recipe, overrides or [], run_dir, resume, dry_run, quiet, json, offline))

        app.command(work.__name__.replace("_", "-"), help=work.__doc__)(verb)
        return work

    return register


def print_json(value: Any) -> None:
    """Indented, every letter as it is."""
    print(json_module.dumps(value, ensure_ascii=False, indent=1))


def reward_options(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Reward -> its options, out of ``REWARD.OPTION=VALUE`` texts. Raises InputError where one is written otherwise."""
    from burnish.recipe.reading import read_override

    options: dict[str, dict[str, Any]] = {}
    for setting in settings:
        key, value = read_override(setting)
        # The last dot: a reward may be named package.module:object.
        name, _, option = key.rpartition(".")
        if not name or not option:
            raise InputError(f"--set {setting}: write the reward and its option, as in repetition.n=3")
        options.setdefault(name, {})[option] = value
    return options


def plain(text: str) -> str:
    """Without control characters: an error may quote what a model wrote."""
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)


def tell(error: BurnishError) -> NoReturn:
    """Says what went wrong in one line or two, and ends with the error's own status."""
    # A second Ctrl-C has nothing left to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("\n".join(f"burnish: {plain(line)}" for line in str(error).split("\n")[:2]), file=sys.stderr)
    sys.exit(error.exit_status)


def cut_off(end: SystemExit) -> BurnishError | None:
    """What a first Ctrl-C had to say when a second one took its place; None where this end has nothing to do with one."""
    error: BaseException | None = end if end.code == INTERRUPTED else None
    while error is not None:
        # Of all errors that lie behind this one, handled ones too, only such a one was still on its way.
        if isinstance(error, BurnishError) and error.exit_status == INTERRUPTED:
            return error
        error = error.__cause__ or error.__context__
    return None
