"""Start and end of every command that trains: the run folder, Ctrl-C, and the recipe's paths made absolute."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from burnish.catalogue import entries
from burnish.catalogue.model_files import in_run, link_model, pinned
from burnish.errors import InputError
from burnish.policies.chat_template import fixed_time
from burnish.protocols import Observer
from burnish.recipe.backend import BackendSection
from burnish.recipe.schema import Job, Recipe
from burnish.recipe.sections import ChatSection, OpenSection
from burnish.run.folder import BEST_MODEL, START, Run
from burnish.run.interrupts import Interrupted, Interrupts
from burnish.run.own_rows import create_with_rows, with_own_rows
from burnish.run.proof import prove_resumable
from burnish.run.trust import trust_run
from burnish.system.environment import environment_record
from burnish.system.files import explained, new_folder
from burnish.system.paths import expanded

REPRODUCIBILITY_KEYS = (
    "processor", "threads", "torch", "transformers", "tokenizers", "peft", "numpy", "numba", "sacrebleu", "burnish",
)  # fmt: skip
"""Entries of environment.json on which the bits of a run depend."""
FILE_OPTIONS: Mapping[str, str] = {
    "reward_model": "path", "json_format": "schema_file", "jsonl": "path", "data": "path", "translation": "folder",
    "similarity": "model", "classifier": "model", "content_filter": "policy",
    "burnish.safety.redteam.attacker_rewards:complied": "model",
    "burnish.safety.redteam.attacker_rewards:novelty": "archive",
}  # fmt: skip
"""Name of a reward or data source -> its option that holds a file path."""

J = TypeVar("J", bound=Job)
S = TypeVar("S", bound=OpenSection)
A = TypeVar("A")


def work_in_run(open_run: Callable[[], Run], work: Callable[[Run], A], observer: Observer) -> A:
    """Open a run folder, return the result of the work in it, and close the folder.

    Raises Interrupted, which names the command to resume, on Ctrl-C or SIGTERM after the folder was opened.
    """
    with Interrupts() as interrupts:
        interrupts.hold()
        run = open_run()
        try:
            interrupts.release()
            with fixed_time(run.began):
                return work(run)
        except KeyboardInterrupt as stopped:
            # Before the first step, during the report, or a second Ctrl-C during a checkpoint.
            raise Interrupted(f"stopped; resume with: {run.resume_command}", stopped) from None
        except Exception:
            run.undo_extension()
            raise
        finally:
            observer.finish()
            run.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resuming:
    """The run that a call resumes, None for a new one, and how.

    Attributes:
        extend: steps to add.
        from_step: the checkpoint to go back to (``prove_resumable``).
        accept: resume although an input has changed.
        trust: run the code that the run's recipe names, although the run was not begun here (``burnish.run.trust``).
    """

    run: str | Path | None
    extend: int | None = None
    from_step: int | None = None
    accept: bool = False
    trust: bool = False

    @property
    def fresh(self) -> bool:
        """Whether the call begins a new run."""
        return self.run is None

    def check(self) -> None:
        """Raise InputError if an option of a run to resume comes with a new run."""
        if self.from_step is not None:
            raise InputError("--from-step belongs to --resume: a new run has no checkpoint to go back to")
        if self.extend is not None:
            raise InputError("--extend belongs to --resume: set the steps of a new run in its recipe")
        if self.accept:
            raise InputError(
                "--accept-changed-inputs belongs to --resume: a new run has no inputs that could have changed"
            )


def create_or_open_run(
    recipe: object,
    read: Callable[[Any], Job],
    resuming: Resuming,
    observer: Observer,
    *,
    run_dir: str | Path | None,
    changed: bool,
    moved: bool = False,
    verb: str = "train",
    rows: Any = None,
) -> Run:
    """Create a run folder for the recipe that ``read`` makes of ``recipe``, or open the one to resume.

    ``rows`` are kept in a new run's folder. ``moved`` resumes a run on another backend, which ``read`` sets. Raises
    InputError if a run to resume comes with a recipe, changes or a folder, if there is neither, if an option of a run
    to resume comes with a new one, if the folder is not what its run wrote, or if the run cannot be extended.
    """
    for name, given in (("resume", resuming.run), ("run_dir", run_dir)):
        if isinstance(given, str) and not given.strip():
            raise InputError(f"{name} is empty: name a folder, or leave it out")
    if resuming.run is not None:
        if recipe is not None or changed or run_dir:
            raise InputError(
                "a resumed run keeps its recipe and its folder: pass resume alone, or with keys of [backend]"
            )
        run = Run.open(Path(resuming.run), verb)
        try:
            prove_resumable(run, observer, from_step=resuming.from_step)
            if resuming.trust:
                trust_run(run.folder)
            if moved:
                run.change_recipe(read(run.folder / "recipe.toml"))
            if resuming.extend is not None:
                extend_run(run, read(run.folder / "recipe.toml"), resuming.extend)
        except BaseException:
            run.close()
            raise
        return run
    resuming.check()
    if recipe is None:
        raise InputError("name a recipe, or a run folder to resume")
    job = read(recipe)
    environment = environment_record(threads=job.threads, seed=job.seed)
    new: dict[str, Any] = {"folder": Path(run_dir) if run_dir else None, "environment": environment, "verb": verb}
    return Run.create(job, **new) if rows is None else create_with_rows(job, rows, new)


def sets_backend(override: str) -> bool:
    """Return whether an override sets a key of the backend that a resumed run may change: no result depends on it."""
    key = override.partition("=")[0].strip()
    return key.startswith("backend.") and key != "backend.engine"


def extend_run(run: Run, recipe: Job, steps: int) -> None:
    """Add steps to a run, so that resuming it gives the bits of one run of that length.

    Raises InputError if these bits would differ: under a schedule that ends with the run, after a guard ended it, or
    where a model that the longer run would still need was replaced after the last step.
    """
    if steps < 1:
        raise InputError(f"--extend {steps}: name at least one step")
    if recipe.optimizer.schedule != "constant":
        raise InputError(
            f'--extend: optimizer.schedule = "{recipe.optimizer.schedule}" brought the learning rate to zero at step '
            f'{recipe.steps}; start a new run with policy.model = "{run.folder}"'
        )
    if any(row.get("kind") == "stop" for row in run.rows("warnings.jsonl")):
        raise InputError(
            f"--extend: a guard ended {run.folder}; start a new run from its model, or without guards.stop"
        )
    if isinstance(recipe, Recipe) and recipe.guards.stop and recipe.steps % recipe.evaluation.every:
        _forget_last_measurement(run, recipe)
    longer = recipe.model_copy(update={"steps": recipe.steps + steps})
    run.extend(type(recipe).model_validate(longer.model_dump()))


def _forget_last_measurement(run: Run, recipe: Recipe) -> None:
    """Drop the measurement after the last step, which ``guards.stop`` adds and a longer run does not make there.

    Without the extension the run makes it again. Raises InputError if the best model before it is no longer saved, or
    the measurement before training cannot be read.
    """
    rows = run.rows("held_out.jsonl")
    kept = [row for row in rows if row["step"] != recipe.steps]
    if len(kept) == len(rows):
        return
    path = run.folder / "evaluation" / "before.json"
    try:
        before = [one["reward"] for one in json.loads(path.read_text(encoding="utf-8"))["samples"]]
        rewards = {0: sum(before) / len(before)} | {row["step"]: row["reward"] for row in kept}
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(
            f"--extend: {path} is missing or damaged ({type(error).__name__}), so nothing can be compared: start a new run "
            f'with policy.model = "{run.folder}"'
        ) from error
    best, saved = max(rewards, key=rewards.__getitem__), {one.step for one in run.checkpoints()}
    if best not in saved or run.linked_step(BEST_MODEL) == recipe.steps:
        raise InputError(
            f"--extend: guards.stop measured the last step, {recipe.steps}, which is not a multiple of evaluation.every "
            f"= {recipe.evaluation.every}, and its model replaced the best one before it, so the bits would not be those "
            f'of one long run: start a new run with policy.model = "{run.folder}"'
        )
    run.put("held_out.jsonl", "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in kept))


@contextmanager
def discard_on_failure(run: Run, *, fresh: bool) -> Iterator[None]:
    """Delete the folder of a fresh run if building its parts fails."""
    try:
        yield
    except Exception:
        if fresh:
            # Nothing was trained yet, and the folder would block the corrected recipe.
            run.discard()
        raise


class WarningRecorder:
    """Observer that forwards everything and records warnings, so that early ones reach the run folder."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.warnings: list[str] = []

    def write(self, run: Run) -> None:
        """Append the warnings that warnings.jsonl does not have yet, under step 0."""
        known = {row.get("text") for row in run.rows("warnings.jsonl")}
        if new := [text for text in dict.fromkeys(self.warnings) if text not in known]:
            # A kill may have left half a line, which must be removed before appending.
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


def warn_if_environment_changed(run: Run, now: Mapping[str, Any], observer: Observer) -> None:
    """Warn about the changes since the run began that may change its bits."""
    path = run.folder / "environment.json"
    try:
        then = json.loads(path.read_text(encoding="utf-8"))
        keys = [key for key in REPRODUCIBILITY_KEYS if key in then and then[key] != now[key]]
        changed = [f"{key} {then[key]} -> {now[key]}" for key in keys]
    except (OSError, ValueError, TypeError):
        observer.message(f"{path} cannot be read: unable to check for changes of the environment", level="warning")
        return
    if changed:
        observer.message(
            f"the environment has changed since the run began ({', '.join(changed)}): results may differ from those of "
            "an uninterrupted run",
            level="warning",
        )


def _resolve_python(backend: BackendSection) -> BackendSection:
    """Return the backend with an absolute path of its Python, which keeps its links: they name the environment."""
    python = expanded(backend.python or "")
    if backend.python is None or not python.exists():
        return backend
    return backend.model_copy(update={"python": str(python.absolute())})


def resolve_recipe_paths(recipe: J) -> J:
    """Return the recipe with absolute paths, so that the run can be resumed from any directory."""
    files = {key: expanded(value) for key in ("weights", "vocabulary") if (value := getattr(recipe.policy, key))}
    if paths := {key: str(path.absolute()) for key, path in files.items() if path.exists()}:
        recipe = recipe.model_copy(update={"policy": recipe.policy.model_copy(update=paths)})
    if isinstance(recipe, Recipe):
        recipe = recipe.model_copy(update={"task": resolve_section_path(recipe.task)})
        rewards = [resolve_section_path(section) for section in recipe.reward]
        metrics = [resolve_section_path(section) for section in recipe.evaluation.metrics]
        sets = [resolve_section_path(section) for section in recipe.evaluation.sets]
        evaluation = recipe.evaluation.model_copy(update={"metrics": metrics, "sets": sets})
        task = resolve_section_path(recipe.task)
        update = {"task": task, "reward": rewards, "evaluation": evaluation, "backend": _resolve_python(recipe.backend)}
        recipe = recipe.model_copy(update=update)
    model = recipe.policy.model
    folder = expanded(model)
    if recipe.policy.use != "causal_lm" or not model or model in entries.names("model") or not folder.is_dir():
        return recipe
    return _with_model(recipe, pinned(folder.absolute()))


def _with_model(recipe: J, model: Path) -> J:
    return recipe.model_copy(update={"policy": recipe.policy.model_copy(update={"model": str(model)})})


def keep_start(run: Run, recipe: J) -> J:
    """Return the recipe with the run's own rows, and its own copy of the model that it begins from.

    The model is copied if it is another run's checkpoint, since the other run may delete it, or the run may move to
    another machine. The files are hard links where that is possible. Raises InputError if the checkpoint is incomplete.
    """
    recipe = with_own_rows(run.folder, recipe)
    model, own = recipe.policy.model, run.folder.absolute() / START
    if recipe.policy.use != "causal_lm" or model in entries.names("model"):
        return recipe
    source = pinned(expanded(model).absolute()) if model else own
    if not own.is_dir() and source.is_dir() and in_run(source):
        with explained(f"cannot make {own}", run.advice_on_full_disk), new_folder(own) as temporary:
            link_model(source, temporary)
    return _with_model(recipe, own) if own.is_dir() else recipe


def resolve_section_path(section: S) -> S:
    """Return the section with an absolute path, if it names a file."""
    own = FILE_OPTIONS.get(section.use, "")
    paths = {option: section.options.get(option) for option in (own, "held_out", "dataset") if own}
    if isinstance(section, ChatSection):
        paths["template"] = section.template_file
    absolute = {
        option: str(pinned(expanded(path).absolute()))
        for option, path in paths.items()
        if isinstance(path, str) and path and _is_path(section, option, path)
    }
    return type(section).model_validate({**section.model_dump(), **absolute}) if absolute else section


def _is_path(section: OpenSection, option: str, value: str) -> bool:
    """Return whether an option's value is a path; it may also be a hub id, or a split of a data set."""
    if option == "held_out":
        path = section.options.get("path")
        return isinstance(path, str) and bool(path) and not (expanded(path) / "dataset_dict.json").is_file()
    if option == "policy":
        return value != "default"
    return option not in ("model", "dataset") or expanded(value).is_dir()
