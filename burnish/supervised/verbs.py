"""``burnish.sft``, ``burnish.prefer`` and ``burnish.reward_model``: a recipe in, a run folder with its proof out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from burnish.api import warn_of_changes, with_absolute_model
from burnish.backends.local import environment, keep_freed_memory
from burnish.catalogue.convert import resolve_model
from burnish.errors import BurnishError, InputError
from burnish.interrupts import Interrupts
from burnish.paths import expanded
from burnish.policies.causal_lm import CausalLM, load_policy
from burnish.policies.reward_model import HEAD_WEIGHT, RewardModel
from burnish.protocols import Observer, Policy, Trainable
from burnish.reports.progress import make_observer
from burnish.run import Run
from burnish.session import Interrupted, optimizer_for
from burnish.supervised.comparing import Comparing
from burnish.supervised.dataset import dataset, read_rows
from burnish.supervised.encoding import Encoder
from burnish.supervised.judging import Judging
from burnish.supervised.objectives import PAIR_LOSSES, FineTuning, Objective, Preferring
from burnish.supervised.recipe import (
    PreferRecipe,
    RewardModelRecipe,
    SFTRecipe,
    SupervisedRecipe,
    kind_of,
    load_supervised,
)
from burnish.supervised.session import Learner, Session

R = TypeVar("R", bound=SupervisedRecipe)
T = TypeVar("T", bound=Trainable)
Source = str | Path | Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class SupervisedResult:
    """What a run leaves behind.

    Attributes:
        run_dir: the run folder.
        evaluation: held-out metric -> before, after, difference, interval, p_value, n.
        metrics: one row a step.
    """

    run_dir: Path
    evaluation: Mapping[str, Mapping[str, Any]]
    metrics: Sequence[Mapping[str, Any]]

    @property
    def model(self) -> Path:
        """The trained model in Hugging Face form."""
        return self.run_dir / "model"

    @property
    def calibration(self) -> Mapping[str, Any] | None:
        """Of a reward model, the content of ``calibration.json``: error, by_chance, by_chance_95, pairs and table."""
        path = self.run_dir / "calibration.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def sft(
    recipe: Source = None,
    *,
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
    offline: bool = False,
    observer: Observer | None = None,
    overrides: Sequence[str] = (),
    **changes: Any,
) -> SupervisedResult:
    """Fine-tunes on the texts that a recipe names, or takes up a run. Arguments and errors as of ``burnish.train``."""
    job = _Job(SFTRecipe, _fine_tuning, offline, observer or make_observer())
    return job.done(recipe, run_dir, resume, overrides, changes)


def prefer(
    recipe: Source = None,
    *,
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
    offline: bool = False,
    observer: Observer | None = None,
    overrides: Sequence[str] = (),
    **changes: Any,
) -> SupervisedResult:
    """Learns which answers are preferred, from pairs (DPO, IPO) or from answers judged one by one (KTO), or takes up a
    run. Arguments and errors as of ``burnish.train``."""
    job = _Job(PreferRecipe, _preferring, offline, observer or make_observer())
    return job.done(recipe, run_dir, resume, overrides, changes)


def reward_model(
    recipe: Source = None,
    *,
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
    offline: bool = False,
    observer: Observer | None = None,
    overrides: Sequence[str] = (),
    **changes: Any,
) -> SupervisedResult:
    """Learns from pairs to score answers (Bradley-Terry), or takes up a run. Arguments and errors as of
    ``burnish.train``; the run folder is what the reward ``reward_model`` takes for its ``path``."""
    job = _Job(RewardModelRecipe, _scoring, offline, observer or make_observer())
    return job.done(recipe, run_dir, resume, overrides, changes)


@dataclass(frozen=True, slots=True)
class _Trained(Generic[T]):
    """What a verb trains, what it minimises, and by what it moves."""

    policy: T
    objective: Objective[T]
    optimizer: torch.optim.Optimizer


def _fine_tuning(recipe: SFTRecipe, model: CausalLM) -> _Trained[Policy]:
    return _Trained(model, FineTuning(), optimizer_for(model, recipe.optimizer))


def _preferring(recipe: PreferRecipe, model: CausalLM) -> _Trained[Policy]:
    settings = recipe.preference
    objective: Objective[Policy]
    if settings.use == "kto":
        objective = Judging(settings.beta, settings.desirable_weight or 1.0, settings.undesirable_weight or 1.0)
    else:
        objective = Preferring(PAIR_LOSSES[settings.use], settings.beta)
    return _Trained(model, objective, optimizer_for(model, recipe.optimizer))


def _scoring(recipe: RewardModelRecipe, model: CausalLM) -> _Trained[RewardModel]:
    settings = recipe.reward_model
    trained = RewardModel(model, recipe.batch.max_tokens)
    rates = {HEAD_WEIGHT: settings.head_learning_rate}
    objective = Comparing(margin=settings.margin, centre=settings.centre)
    return _Trained(trained, objective, optimizer_for(trained, recipe.optimizer, rates))


@dataclass(frozen=True, slots=True)
class _Job(Generic[R, T]):
    """One call of a verb."""

    kind: type[R]
    trained: Callable[[R, CausalLM], _Trained[T]]
    offline: bool
    observer: Observer

    def done(
        self,
        recipe: Source,
        run_dir: str | Path | None,
        resume: str | Path | None,
        overrides: Sequence[str],
        changes: Mapping[str, Any],
    ) -> SupervisedResult:
        # From the moment that the folder is there, Ctrl-C shall say how to go on with it.
        with Interrupts() as interrupts:
            interrupts.hold()
            run = self._run(recipe, run_dir, resume, overrides, changes)
            try:
                interrupts.release()
                return self._worked(run, fresh=resume is None)
            except KeyboardInterrupt:
                raise Interrupted(f"stopped; go on with: {run.going_on}") from None
            finally:
                self.observer.finish()
                run.close()

    def _run(
        self,
        recipe: Source,
        run_dir: str | Path | None,
        resume: str | Path | None,
        overrides: Sequence[str],
        changes: Mapping[str, Any],
    ) -> Run:
        """A new run folder with its recipe in it, or the one to resume."""
        verb = kind_of(self.kind)
        if resume is not None:
            if recipe is not None or overrides or changes or run_dir:
                raise InputError("a resumed run keeps its recipe and its folder: give resume alone")
            return Run.open(Path(resume), verb)
        if recipe is None:
            raise InputError("name a recipe, or a run folder to resume")
        chosen = with_absolute_path(
            with_absolute_model(load_supervised(self.kind, recipe, overrides, changes=changes))
        )  # fmt: skip
        return Run.create(chosen, Path(run_dir) if run_dir else None, environment(chosen), verb=verb)

    def _worked(self, run: Run, *, fresh: bool) -> SupervisedResult:
        """Builds what the run's recipe names, and trains to the end."""
        recipe = load_supervised(self.kind, run.folder / "recipe.toml")
        if not fresh:
            warn_of_changes(run, environment(recipe), self.observer)
        try:
            learner = self._learner(recipe)
        except BurnishError:
            if fresh:
                # Nothing was done yet, and the folder would stand in the way of the mended recipe.
                run.discard()
            raise
        evaluation = Session(learner, run, self.observer).work()
        return SupervisedResult(run.folder, evaluation, run.rows("metrics.jsonl"))

    def _learner(self, recipe: R) -> Learner[T]:
        keep_freed_memory()
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        # The rows come first: they are read in a moment, and a model is not.
        rows = read_rows(recipe.data, offline=self.offline, observer=self.observer)
        section = recipe.policy
        source = resolve_model(section.model, offline=self.offline, observer=self.observer)
        policy = load_policy(
            source, lora=section.lora, dtype=section.dtype, device=section.device, offline=self.offline,
            seed=recipe.seed, gradient_checkpointing=section.gradient_checkpointing,
        )  # fmt: skip
        encoder = Encoder(policy, recipe.batch.max_tokens)
        trained = self.trained(recipe, policy)
        data = dataset(rows, recipe, trained.objective, encoder)
        return Learner(recipe, trained.policy, trained.objective, data, trained.optimizer)


def with_absolute_path(recipe: R) -> R:
    """A recipe that means the same file wherever the run is taken up again."""
    path = recipe.data.options.get("path")
    if recipe.data.use != "jsonl" or not isinstance(path, str):
        return recipe
    data = type(recipe.data).model_validate(
        {**recipe.data.model_dump(), "path": str(expanded(path).absolute())}
    )  # fmt: skip
    return recipe.model_copy(update={"data": data})
