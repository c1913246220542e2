"""The verb that alternates attacks and training: ``harden``."""

from __future__ import annotations

import json as json_module
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.cli.options import AsJson, Model, Offline, Quiet, Seed, escape, print_json
from burnish.cli.redteaming import red_team
from burnish.errors import InputError, one_line

if TYPE_CHECKING:
    from burnish.protocols import Observer

verbs = typer.Typer(rich_markup_mode=None)
RECORD = "harden.json"
STEPS = {"warm": "safety_warm", "train": "safety"}
"""Step of a round that trains -> its recipe."""
OWN_KEYS = {"seed": "--seed", "policy.model": "the model of the round before", "data.path": "the attacks of the round"}
"""Recipe keys that the command sets, and from what."""
SHOWN = ("families", "all", "over-refusal", "learned")
"""Kinds of the rows that are printed."""
COLUMNS = frozenset({"name", "share", "before", "difference", "interval"})


@verbs.command()
def harden(
    model: Model,
    run_dir: Annotated[Path, typer.Option(help="The folder to write to, or to continue.")],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, each from the model of the one before.")] = 2,
    attacker: Annotated[str | None, typer.Option(help="A run of recipe attacker, which attacks too.")] = None,
    find: Annotated[int, typer.Option(min=2, help="Requests per family to find attacks with.")] = 70,
    rehearse: Annotated[int, typer.Option(min=0, help="Headlines and conversations to fine-tune on as well.")] = 0,
    each: Annotated[int, typer.Option(min=2, help="Held-out requests per family to measure with.")] = 40,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STEP.KEY=VALUE", help="Override a key of step warm or train: train.steps=50."),
    ] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Find attacks, train a model to refuse them, and measure; repeat.

    A command that was stopped continues when it is repeated. Needs the extra 'safety'.
    """
    from burnish.catalogue.convert import resolve_model
    from burnish.reports.terminal.progress import make_observer
    from burnish.run.interrupts import Interrupted
    from burnish.system.waiting import sleep_beside_busy_programs

    settings = {
        "model": model, "seed": seed, "find": find, "rehearse": rehearse, "each": each, "set": overrides or [],
        "attacker": attacker,
    }  # fmt: skip
    observer = make_observer(quiet=quiet or json)
    keys = step_overrides(overrides or [])
    _check_recipes(keys)
    sleep_beside_busy_programs(observer.message)
    for name in filter(None, (model, attacker)):
        resolve_model(name, offline=offline, observer=observer)
    _open_folder(run_dir, settings)
    try:
        record = Hardening(run_dir, settings, keys, offline, observer).run(rounds)
    except Interrupted as stopped:
        stopped.args = (f"stopped; repeat the command to continue {run_dir}",)
        raise
    if json:
        print_json(record)
    else:
        print_rounds(record)


@dataclass(frozen=True, slots=True)
class Hardening:
    """The rounds in a folder. A step is not repeated once the file that ends it exists; a stopped run is resumed."""

    folder: Path
    settings: Mapping[str, Any]
    overrides: Mapping[str, Sequence[str]]
    offline: bool
    observer: Observer

    def run(self, rounds: int) -> dict[str, Any]:
        """Return the record of the rounds, which ``harden.json`` has too. Ends early if no attack succeeds."""
        from burnish.system.files import write_json

        model = str(self.settings["model"])
        done: list[dict[str, Any]] = []
        record: dict[str, Any] = {**self.settings, "rounds": done}
        for number in range(1, rounds + 1):
            row = self._round(number, model)
            if row is None:
                self.observer.message(f"round {number}: no attack succeeded, so there is nothing to train on")
                break
            done.append(row)
            write_json(self.folder / RECORD, record)
            model = str(row["trained"])
        return record

    def _round(self, number: int, model: str) -> dict[str, Any] | None:
        from burnish.api import train
        from burnish.run.folder import read_lines
        from burnish.safety.redteam.families import TRAINED
        from burnish.supervised.verbs import sft
        from burnish.system.files import write_json

        folder = self.folder / f"round-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        found, warm, trained, result = (folder / name for name in ("found.jsonl", "warm", "trained", "redteam.json"))
        if not found.exists():
            finding = {"each": self.settings["find"], "rehearse": self.settings["rehearse"], "families": TRAINED}
            self._red_team(model, side="train", export=found, **finding)
        families = [row.get("family") if isinstance(row, dict) else None for row in read_lines(found)]
        harmless = families.count("harmless")
        if len(families) == harmless:
            return None
        self._train(sft, "warm", warm, f"policy.model={_toml(model)}", f"data.path={_toml(found)}")
        self._train(train, "train", trained, f"policy.model={_toml(warm)}")
        if not result.exists():
            options = {"side": "held_out", "each": self.settings["each"], "against": self.settings["model"]}
            write_json(result, self._red_team(str(trained), **options))
        return {
            "round": number, "model": model, "attacks": len(families) - harmless, "harmless": harmless,
            "trained": str(trained), "rows": _read_rows(result), "evaluation": _read(trained / "evaluation.json"),
        }  # fmt: skip

    def _red_team(self, model: str, **options: Any) -> dict[str, Any]:
        attacker, seed = self.settings["attacker"], self.settings["seed"]
        return red_team(
            model, attacker=attacker, seed=seed, offline=self.offline, observer=self.observer, **options
        )  # fmt: skip

    def _train(self, verb: Callable[..., Any], step: str, folder: Path, *own: str) -> None:
        """Train by the step's recipe, or resume its run; do nothing if it is finished."""
        options = {"offline": self.offline, "observer": self.observer}
        if (folder / "evaluation.json").exists():
            return
        if (folder / "recipe.toml").exists():
            verb(resume=folder, **options)
            return
        shutil.rmtree(folder, ignore_errors=True)  # killed before it was a run
        overrides = [f"seed={self.settings['seed']}", *own, *self.overrides[step]]
        verb(STEPS[step], overrides=overrides, run_dir=folder, **options)


def step_overrides(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Return step -> ``KEY=VALUE`` of ``STEP.KEY=VALUE`` texts. Raises InputError for another step, or an own key."""
    keys: dict[str, list[str]] = {step: [] for step in STEPS}
    for text in overrides:
        step, _, rest = text.partition(".")
        key = rest.partition("=")[0]
        if step not in STEPS or "=" not in rest:
            raise InputError(f"--set {text}: write the step first, {' or '.join(STEPS)}, as in train.steps=50")
        if key in OWN_KEYS:
            raise InputError(f"--set {text}: burnish harden sets {key} from {OWN_KEYS[key]}; leave it out")
        keys[step].append(rest)
    return keys


def _check_recipes(overrides: Mapping[str, Sequence[str]]) -> None:
    """Raise InputError for a mistake in the overrides, before anything is loaded."""
    from burnish.recipe.schema import load_recipe
    from burnish.supervised.recipe import SFTRecipe, load_supervised

    load_supervised(SFTRecipe, STEPS["warm"], overrides["warm"])
    load_recipe(STEPS["train"], overrides["train"])


def _open_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder with its record. Raises InputError if it holds something else, or was begun otherwise."""
    from burnish.system.files import explained, write_json

    record = folder / RECORD
    if record.is_file():
        earlier = _read(record)
        for key, value in settings.items():
            if earlier.get(key) != value:
                raise InputError(
                    f"{folder} was begun with {key} = {earlier.get(key)!r}, not {value!r}: repeat the options, or choose "
                    "another --run-dir"
                )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds something else than rounds of burnish harden: choose another --run-dir")
    with explained(f"cannot make {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(record, {**settings, "rounds": []})


def _read(path: Path) -> dict[str, Any]:
    """Return the table of a JSON file. Raises InputError if it holds something else."""
    try:
        table = json_module.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read ({one_line(error)}): delete it, or choose another --run-dir"
        ) from error
    if not isinstance(table, dict):
        raise InputError(f"{path} is not of burnish harden: choose another --run-dir")
    return table


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a measurement. Raises InputError if they are not those that the command writes."""
    rows = _read(path).get("rows")
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and "kind" in row and (row["kind"] not in SHOWN or row.keys() >= COLUMNS) for row in rows
    ):
        raise InputError(f"{path} has rows that burnish harden did not write: delete it to measure again")
    return rows


def _toml(value: str | Path) -> str:
    """Return a text of TOML, which an override would read as plain text without quotes unless it looks like a value."""
    return json_module.dumps(str(value), ensure_ascii=False)


def print_rounds(record: Mapping[str, Any]) -> None:
    """Print a table per round: held-out rates before all rounds and after this one, and the run's own metrics."""
    from burnish.reports.terminal.tables import print_evaluation

    for one in record["rounds"]:
        print(f"round {one['round']}: {one['attacks']} attacks found, {escape(one['trained'])}")
        print(f"  {'held-out requests':24s}before  after  difference [95%]")
        for row in one["rows"]:
            if row["kind"] in SHOWN:
                low, high = row["interval"]
                rates = f"{row['before']['share']:6.3f}  {row['share']:.3f}"
                print(f"  {_label(row):24s}{rates}  {row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]")
        print_evaluation(one["evaluation"])


def _label(row: Mapping[str, Any]) -> str:
    """Return the name of a row in the table."""
    names = {"families": f"{row['name']} families", "all": "all attacks", "over-refusal": "over-refusal"}
    return names.get(row["kind"], "trained attacker")
