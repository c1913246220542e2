"""Options and output that several verbs share, and the command behind every verb that trains."""

from __future__ import annotations

import json as json_module
import os
import sys
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from burnish.errors import InputError

if TYPE_CHECKING:
    from burnish.protocols import Observer
    from burnish.recipe.schema import Job
    from burnish.supervised.recipe import SupervisedRecipe
    from burnish.supervised.verbs import SupervisedResult

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Model = Annotated[str, typer.Argument(help="A run folder, a model folder, a catalogue name or a hub id.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and the result.")]


def _go_offline(offline: bool) -> bool:
    """Tell the packages of Hugging Face, too, which read this when they are imported."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    return offline


Offline = Annotated[
    bool, typer.Option("--offline", callback=_go_offline, help="Download nothing; fail if a file is missing.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, such as steps=50.")
]
RecipeName = Annotated[str | None, typer.Argument(help="The name of a built-in recipe, or a TOML file.")]
RunDir = Annotated[
    str | None, typer.Option(metavar="PATH", help="The folder to write to.  [default: runs/<name>-<time>]")
]
Resume = Annotated[str | None, typer.Option(metavar="PATH", help="A run folder to resume, instead of a recipe.")]
Extend = Annotated[int | None, typer.Option(min=1, metavar="STEPS", help="Add steps to the run that is resumed.")]
FromStep = Annotated[
    int | None,
    typer.Option(min=0, metavar="STEP", help="Go back to this checkpoint; newer ones are deleted. 0: begin again."),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Run the code that a run or a recipe from somebody else names; look at it first."),
]
Script = Annotated[
    str | None, typer.Option(metavar="COMMAND", help="The Python script whose rewards the run to resume was given.")
]
AcceptChangedInputs = Annotated[
    bool, typer.Option("--accept-changed-inputs", help="Resume although data, model or code have changed.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check the recipe and your data; print its keys (--json: all).")
]
Seed = Annotated[int, typer.Option(min=0, help="Random seed.")]


HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories of characters that are not seen, or change what is seen."""


def named_folder(name: str | None, option: str) -> Path | None:
    """Return the folder that an option names. Raises InputError if it names none, as an unset variable of a shell does."""
    if name is not None and not name.strip():
        raise InputError(f"{option} is empty: name a folder, or leave the option out")
    return None if name is None else Path(name)


def print_json(value: Any) -> None:
    """Print indented JSON, as ``shown_json`` writes it."""
    print(shown_json(value, indent=1))


def shown_json(value: Any, indent: int | None = None) -> str:
    """Return JSON that keeps letters, and escapes what a terminal would obey or hide.

    These are control characters, C1 ones included, and format characters, such as those that reverse the direction of
    a text; line separators; and surrogates without a partner.
    """
    text = json_module.dumps(value, ensure_ascii=False, indent=indent)
    # Outside of its texts JSON has ASCII alone, and no control character but the line break.
    return "".join(_escaped(letter) if letter > "~" else letter for letter in text)


def _escaped(letter: str) -> str:
    hidden = unicodedata.category(letter) in HIDDEN
    return "".join(f"\\u{unit:04x}" for unit in _units(letter)) if hidden else letter


def _units(letter: str) -> list[int]:
    """Return the UTF-16 code units of a character, as JSON's escapes write it."""
    data = letter.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[index : index + 2], "big") for index in range(0, len(data), 2)]


def standard_input() -> BinaryIO:
    """Return standard input as bytes. Raises InputError if it is closed."""
    if sys.stdin is None:
        raise InputError("standard input is closed")
    return sys.stdin.buffer


def read_standard_input() -> str:
    """Return the text on standard input. Raises InputError if it is closed, not UTF-8, or has more than 256 MiB."""
    from burnish.system.files import LARGEST_TEXT

    if sys.stdin is not None and (sys.stdin.isatty() or not hasattr(sys.stdin, "buffer")):
        return sys.stdin.read()
    try:
        data = standard_input().read(LARGEST_TEXT + 1)
    except OSError as error:
        raise InputError(f"standard input cannot be read: {error.strerror}") from error
    if len(data) > LARGEST_TEXT:
        raise InputError(f"standard input has more than {LARGEST_TEXT:,} bytes")
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text ({error.reason} at byte {error.start})") from error


def escape(text: str) -> str:
    """Return the text with unprintable characters escaped; an error message may quote model output."""
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)


@dataclass(frozen=True, slots=True)
class TrainCommand:
    """The arguments of a verb that trains; exactly one of ``recipe`` and ``resume`` is set."""

    recipe: str | None
    overrides: Sequence[str]
    run_dir: Path | None
    resume: Path | None
    dry_run: bool
    quiet: bool
    json: bool
    offline: bool
    accept_changed_inputs: bool = False
    extend: int | None = None
    from_step: int | None = None
    trust: bool = False

    @property
    def source(self) -> str | Path:
        """The recipe, or the recipe file of the run to resume."""
        return self.recipe or (self.resume or Path()) / "recipe.toml"

    def show(self, recipe: Job) -> None:
        """Print a checked recipe: as JSON with every default, as TOML without most."""
        from burnish.recipe.brief import brief_toml

        if self.json:
            print_json(recipe.model_dump(mode="json"))
        else:
            print(
                f"{brief_toml(recipe)}# Other keys have their defaults: --json prints all, recipe.toml of a run has all."
            )

    def observer(self) -> Observer:
        """Return the observer that prints progress."""
        from burnish.reports.terminal.progress import make_observer

        return make_observer(quiet=self.quiet, json=self.json, live=not self.dry_run)

    def code(self) -> AbstractContextManager[None]:
        """Return a context in which the code that the recipe names is looked up beside it; a dry run runs none."""
        from burnish.run.trust import code_of

        return code_of(self.recipe, self.resume, trust=self.trust, never="a dry run runs none" if self.dry_run else "")

    def prepare_threads(self, threads: int | None) -> None:
        """Choose how torch's threads wait, before it is loaded; their number is the recipe's."""
        from burnish.system.waiting import sleep_beside_busy_programs

        sleep_beside_busy_programs(lambda text: self.observer().message(text), threads)

    def run(self, train: Callable[..., Any]) -> Any:
        """Call ``burnish.train``, ``sft``, ``prefer`` or ``reward_model`` and return its result."""
        return train(
            self.recipe, overrides=self.overrides, run_dir=self.run_dir, resume=self.resume, offline=self.offline,
            accept_changed_inputs=self.accept_changed_inputs, extend=self.extend, from_step=self.from_step,
            trust=self.trust, observer=self.observer(),
        )  # fmt: skip

    def run_supervised(self, verb: str, kind: type[SupervisedRecipe]) -> SupervisedResult | None:
        """Run a function of ``burnish.supervised.verbs`` and print its result; return None on a dry run."""
        from burnish.supervised.recipe import load_supervised

        if self.dry_run:
            recipe = load_supervised(kind, self.source, self.overrides)
            if recipe.data.use in ("data", "jsonl"):
                from burnish.data.splits import left_out
                from burnish.supervised.reading import read_rows

                rows = read_rows(recipe.data, offline=self.offline)
                counts = left_out({"that cannot be used": len(rows.broken), "repeated": rows.repeats})
                self.observer().message(f"data: {len(rows.rows)} rows{counts}")
            self.show(recipe)
            return None
        # A mistake shows before torch is loaded.
        checked = None if self.recipe is None else load_supervised(kind, self.recipe, self.overrides)
        self.prepare_threads(checked.threads if checked else None)
        from burnish.supervised import verbs

        result: SupervisedResult = self.run(getattr(verbs, verb))
        self.print_result(result, report=result.report, model=result.model)
        return result

    def print_result(self, result: Any, **paths: Path) -> None:
        """Print the evaluation, the cost of training and the paths of what it wrote."""
        from burnish.reports.wording import duration, gigabytes, training_cost
        from burnish.run.folder import read_lines

        seconds, memory = training_cost(read_lines(result.run_dir / "metrics.jsonl"))
        if self.json:
            cost = {"seconds": seconds, "peak_memory_mb": memory}
            event = {"event": "result", "evaluation": result.evaluation, "cost": cost, "run_dir": str(result.run_dir)}
            event |= {name: str(path) for name, path in paths.items()}
            print(shown_json(event))
            return
        from burnish.reports.terminal.tables import print_evaluation

        print_evaluation(result.evaluation)
        print()
        peak = f", peak memory {gigabytes(memory)}" if memory else ""
        print(f"training  {duration(seconds)}{peak}")
        for name, path in sorted(paths.items()):
            print(f"{name:10}{path}{_saved_form(path)}")


def _saved_form(model: Path) -> str:
    """Return the data type of a saved model, or the base of an adapter, in parentheses; "" for any other path."""
    for name, key, text in (
        ("adapter_config.json", "base_model_name_or_path", "adapter of "),
        ("config.json", "dtype", ""),
    ):
        if (model / name).is_file():
            return f" ({text}{json_module.loads((model / name).read_text(encoding='utf-8')).get(key)})"
    return ""


def train_verb(app: typer.Typer) -> Callable[[Callable[[TrainCommand], None]], Callable[[TrainCommand], None]]:
    """Return a decorator that registers a function of a ``TrainCommand`` as a verb, under its name and docstring."""

    def register(work: Callable[[TrainCommand], None]) -> Callable[[TrainCommand], None]:
        def verb(
            recipe: RecipeName = None,
            overrides: Overrides = None,
            run_dir: RunDir = None,
            resume: Resume = None,
            extend: Extend = None,
            from_step: FromStep = None,
            trust: Trust = False,
            script: Script = None,
            accept_changed_inputs: AcceptChangedInputs = False,
            dry_run: DryRun = False,
            quiet: Quiet = False,
            json: AsJson = False,
            offline: Offline = False,
        ) -> None:
            if (recipe is None) == (resume is None):
                raise InputError("name either a recipe (see burnish list recipes) or a run folder with --resume")
            if script is not None:
                if resume is None:
                    raise InputError("--script belongs to --resume: run the script itself to begin a run")
                from burnish.run.script import collect_rewards

                collect_rewards(script)
            command = TrainCommand(
                recipe, overrides or [], named_folder(run_dir, "--run-dir"), named_folder(resume, "--resume"), dry_run,
                quiet, json, offline, accept_changed_inputs, extend, from_step, trust,
            )  # fmt: skip
            with command.code():
                work(command)

        app.command(work.__name__.replace("_", "-"), help=work.__doc__)(verb)
        return work

    return register
