"""How every verb that trains begins and ends: a run folder made or taken up, Ctrl-C, and a recipe that means the same
wherever the run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from burnish.catalogue import entries
from burnish.errors import BurnishError, InputError
from burnish.protocols import Observer
from burnish.recipe.schema import Job, Recipe
from burnish.recipe.sections import OpenSection
from burnish.run.folder import Run
from burnish.run.interrupts import Interrupted, Interrupts
from burnish.system.environment import environment_record
from burnish.system.paths import expanded

BITS_HANG_ON = ("processor", "threads", "torch", "transformers", "tokenizers", "peft", "numpy", "sacrebleu", "burnish")
FILES_OF: Mapping[str, str] = {"reward_model": "path", "json_format": "schema_file", "jsonl": "path"}
"""Reward or source of rows -> its option that is the path of a file."""

J = TypeVar("J", bound=Job)
S = TypeVar("S", bound=OpenSection)
A = TypeVar("A")


def in_run(opened: Callable[[], Run], work: Callable[[Run], A], observer: Observer) -> A:
    """What the work in a run folder gives; the folder is closed behind it.

    Raises:
        Interrupted: on Ctrl-C, from the moment that the folder is there, with how to go on.
    """
    with Interrupts() as interrupts:
        interrupts.hold()
        run = opened()
        try:
            interrupts.release()
            return work(run)
        except KeyboardInterrupt:
            # Before the first step, while the report was written, or for the second time while a checkpoint was.
            raise Interrupted(f"stopped; resume with: {run.resume_command}") from None
        finally:
            observer.finish()
            run.close()


def run_of(
    recipe: object,
    chosen: Callable[[Any], Job],
    *,
    run_dir: str | Path | None,
    resume: str | Path | None,
    changed: bool,
    verb: str = "train",
) -> Run:
    """A new run folder with its recipe in it, or the one to resume.

    Args:
        recipe: what ``chosen`` reads; None where a run is taken up.
        changed: whether the call changes something of the recipe.
        verb: the command.
    """
    if resume is not None:
        if recipe is not None or changed or run_dir:
            raise InputError("a resumed run keeps its recipe and its folder: give resume alone")
        return Run.open(Path(resume), verb)
    if recipe is None:
        raise InputError("name a recipe, or a run folder to resume")
    job = chosen(recipe)
    return Run.create(
        job, Path(run_dir) if run_dir else None, environment_record(threads=job.threads, seed=job.seed), verb=verb
    )


@contextmanager
def discarded_on_failure(run: Run, *, fresh: bool) -> Iterator[None]:
    """A fresh run's folder is taken away again where what it needs cannot be built."""
    try:
        yield
    except BurnishError:
        if fresh:
            # Nothing was done yet, and the folder would stand in the way of the mended recipe.
            run.discard()
        raise


class Noting:
    """An observer that hands everything on, and notes what is a warning: what was said before the first step belongs to
    the run as much as what the steps say."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.warnings: list[str] = []

    def write(self, run: Run) -> None:
        """Adds to warnings.jsonl, under step 0, what does not stand there."""
        known = {row.get("text") for row in run.rows("warnings.jsonl")}
        if new := [text for text in dict.fromkeys(self.warnings) if text not in known]:
            # A kill may have left half a line, which nothing may be written behind.
            run.cut_back(next(reversed(run.checkpoints()), None))
            run.append("warnings.jsonl", [{"step": 0, "kind": "start", "text": text} for text in new])

    def message(self, text: str, *, level: str = "info") -> None:
        if level == "warning":
            self.warnings.append(text)
        self.observer.message(text, level=level)

    def start(self, *, name: str, steps: int, first_step: int) -> None:
        self.observer.start(name=name, steps=steps, first_step=first_step)

    def step(self, metrics: Mapping[str, Any]) -> None:
        self.observer.step(metrics)

    def progress(self, phase: str, done: int, total: int) -> None:
        self.observer.progress(phase, done, total)

    def finish(self) -> None:
        self.observer.finish()


def warn_of_changes(run: Run, now: Mapping[str, Any], observer: Observer) -> None:
    """Says which of the things that a run's bits hang on are no longer what they were."""
    path = run.folder / "environment.json"
    try:
        then = json.loads(path.read_text(encoding="utf-8"))
        changed = [f"{key} {then[key]} -> {now[key]}" for key in BITS_HANG_ON if key in then and then[key] != now[key]]
    except (OSError, ValueError, TypeError):
        observer.message(f"{path} cannot be read: whether this is the same machine is not known", level="warning")
        return
    if changed:
        text = f"resumed elsewhere than it began ({', '.join(changed)}): the bits may differ from a run never stopped"
        observer.message(text, level="warning")


def with_absolute_model(recipe: J) -> J:
    """A recipe that means the same models wherever the run is taken up again."""
    files = {key: expanded(value) for key in ("weights", "vocabulary") if (value := getattr(recipe.policy, key))}
    if found := {key: str(path.absolute()) for key, path in files.items() if path.exists()}:
        recipe = recipe.model_copy(update={"policy": recipe.policy.model_copy(update=found)})
    if isinstance(recipe, Recipe):
        rewards = [with_absolute_path(section) for section in recipe.reward]
        metrics = [with_absolute_path(section) for section in recipe.evaluation.metrics]
        evaluation = recipe.evaluation.model_copy(update={"metrics": metrics})
        recipe = recipe.model_copy(update={"reward": rewards, "evaluation": evaluation})
    model = recipe.policy.model
    folder = expanded(model)
    if recipe.policy.use != "causal_lm" or not model or model in entries.names("model") or not folder.is_dir():
        return recipe
    policy = recipe.policy.model_copy(update={"model": str(folder.absolute())})
    return recipe.model_copy(update={"policy": policy})


def with_absolute_path(section: S) -> S:
    """A section that means the same file wherever the run is taken up again, if it names one."""
    option = FILES_OF.get(section.use, "")
    path = section.options.get(option)
    if not isinstance(path, str) or not path:
        return section
    return type(section).model_validate({**section.model_dump(), option: str(expanded(path).absolute())})
