"""``burnish.train``: a recipe in, a run folder with its proof out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.backends.local import build, environment
from burnish.errors import InputError
from burnish.loop import Session
from burnish.protocols import Observer
from burnish.recipe import Recipe, load_recipe
from burnish.reports.progress import make_observer
from burnish.rewards.registry import REWARDS
from burnish.run import Run

RewardName = str | Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Result:
    """What a run leaves behind.

    Attributes:
        run_dir: the run folder.
        report: its ``report.html``.
        evaluation: held-out metric -> before, after, difference, interval, p_value, n.
        metrics: one row a step.
    """

    run_dir: Path
    report: Path
    evaluation: Mapping[str, Mapping[str, Any]]
    metrics: Sequence[Mapping[str, Any]]

    @property
    def model(self) -> Path:
        """The trained model in Hugging Face form."""
        return self.run_dir / "model"


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    *,
    rewards: Mapping[RewardName, float] | None = None,
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
    offline: bool = False,
    observer: Observer | None = None,
    overrides: Sequence[str] = (),
    **changes: Any,
) -> Result:
    """Trains by a recipe, or takes up a run.

    Args:
        recipe: a shipped recipe's name, a TOML file, or a mapping of the same shape.
        rewards: instead of the recipe's: names or functions, each with its weight.
        run_dir: where to write; ``runs/<name>-<time>`` if left out.
        resume: a run folder to go on with, instead of a recipe.
        offline: fetch nothing; what is missing is refused with the command that brings it.
        observer: who watches; progress on standard error if left out.
        overrides: ``section.key=value`` texts, as on the command line.
        **changes: top-level keys of the recipe, such as ``steps`` and ``seed``.
    Raises:
        InputError: the recipe, the model, the data or the run folder cannot be used.
        BurnishError: training failed on the way; the run folder is whole up to the last checkpoint.
    """
    watcher = observer or make_observer()
    if resume is not None:
        if recipe is not None or rewards or overrides or changes or run_dir:
            raise InputError("a resumed run keeps its recipe and its folder: give resume alone")
        run = Run.open(Path(resume))
    else:
        if recipe is None:
            raise InputError("name a recipe, or a run folder to resume")
        run = Run.create(chosen := _recipe(recipe, rewards, overrides, changes), run_dir and Path(run_dir), environment(chosen))
    try:
        read = load_recipe(run.folder / "recipe.toml")
        learner, held_out = build(read, offline=offline, observer=watcher)
        evaluation = Session(learner, run, watcher, held_out).work()
        from burnish.reports.html import write_report

        return Result(run.folder, write_report(run.folder), evaluation, run.rows("metrics.jsonl"))
    finally:
        run.close()


def _recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    rewards: Mapping[RewardName, float] | None,
    overrides: Sequence[str],
    changes: Mapping[str, Any],
) -> Recipe:
    source = recipe.model_dump(mode="json", exclude_none=True) if isinstance(recipe, Recipe) else recipe
    changed: dict[str, Any] = dict(changes)
    if rewards:
        changed["reward"] = [{"use": _reward_name(key), "weight": float(weight)} for key, weight in rewards.items()]
    return load_recipe(source, overrides, changes=changed)


def _reward_name(key: RewardName) -> str:
    """The name a recipe can hold: the registered one; a function that is not registered is, under its own name."""
    if isinstance(key, str):
        return key
    name = key.__name__
    if name not in REWARDS or REWARDS.get(name).function is not key:
        from burnish.rewards.registry import reward

        reward(key)
    return name
