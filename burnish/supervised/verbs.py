"""``burnish.sft``, ``burnish.prefer`` and ``burnish.reward_model``: a recipe in, a run folder with its proof out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from burnish.backends.local import build_language_model
from burnish.policies.causal_lm import CausalPolicy
from burnish.policies.reward_model import HEAD_WEIGHT, RewardModel
from burnish.protocols import Observer, Policy, Trainable
from burnish.reports.terminal.progress import make_observer
from burnish.run.folder import Run
from burnish.run.launch import (
    discarded_on_failure,
    in_run,
    run_of,
    warn_of_changes,
    with_absolute_model,
    with_absolute_path,
)
from burnish.supervised.bradley_terry import BradleyTerry
from burnish.supervised.dataset import build_dataset, read_rows
from burnish.supervised.dpo import PAIR_LOSSES, PairPreference
from burnish.supervised.encoding import Encoder
from burnish.supervised.kto import KTO
from burnish.supervised.objective import Objective
from burnish.supervised.recipe import (
    PreferRecipe,
    RewardModelRecipe,
    SFTRecipe,
    SupervisedRecipe,
    kind_of,
    load_supervised,
)
from burnish.supervised.sft import FineTuning
from burnish.supervised.step import SupervisedLearner, supervised_trainer
from burnish.system.environment import environment_record
from burnish.system.memory import keep_freed_memory
from burnish.training.optimizer import build_optimizer

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


@dataclass(frozen=True, slots=True)
class _Trained(Generic[T]):
    """What a verb trains, what it minimises, and by what it moves."""

    policy: T
    objective: Objective[T]
    optimizer: torch.optim.Optimizer


def _fine_tuning(recipe: SFTRecipe, model: CausalPolicy) -> _Trained[Policy]:
    return _Trained(model, FineTuning(), build_optimizer(model, recipe.optimizer))


def _preferring(recipe: PreferRecipe, model: CausalPolicy) -> _Trained[Policy]:
    settings = recipe.preference
    objective: Objective[Policy]
    if settings.use == "kto":
        objective = KTO(settings.beta, settings.desirable_weight or 1.0, settings.undesirable_weight or 1.0)
    else:
        objective = PairPreference(PAIR_LOSSES[settings.use], settings.beta)
    return _Trained(model, objective, build_optimizer(model, recipe.optimizer))


def _scoring(recipe: RewardModelRecipe, model: CausalPolicy) -> _Trained[RewardModel]:
    settings = recipe.reward_model
    trained = RewardModel(model, recipe.batch.max_tokens)
    rates = {HEAD_WEIGHT: settings.head_learning_rate}
    objective = BradleyTerry(margin=settings.margin, centre=settings.centre)
    return _Trained(trained, objective, build_optimizer(trained, recipe.optimizer, rates))


@dataclass(frozen=True)
class Verb(Generic[R, T]):
    """A function that trains by a recipe, or takes up a run.

    Attributes:
        kind: of the recipe.
        trained: makes of the recipe and its model what is trained.
        does: its docstring; arguments and errors are those of ``burnish.train``.
    """

    kind: type[R]
    trained: Callable[[R, CausalPolicy], _Trained[T]]
    does: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.does)

    def __call__(
        self,
        recipe: Source = None,
        *,
        run_dir: str | Path | None = None,
        resume: str | Path | None = None,
        offline: bool = False,
        observer: Observer | None = None,
        overrides: Sequence[str] = (),
        **changes: Any,
    ) -> SupervisedResult:
        """Arguments and errors as of ``burnish.train``."""
        watcher, verb = observer or make_observer(), kind_of(self.kind)

        def chosen(source: str | Path | Mapping[str, Any]) -> R:
            read = with_absolute_model(load_supervised(self.kind, source, overrides, changes=changes))
            return read.model_copy(update={"data": with_absolute_path(read.data)})

        return in_run(
            lambda: run_of(
                recipe, chosen, run_dir=run_dir, resume=resume, changed=bool(overrides or changes), verb=verb
            ),
            lambda run: self._worked(run, watcher, offline=offline, fresh=resume is None),
            watcher,
        )

    def _worked(self, run: Run, observer: Observer, *, offline: bool, fresh: bool) -> SupervisedResult:
        """Builds what the run's recipe names, and trains to the end."""
        recipe = load_supervised(self.kind, run.folder / "recipe.toml")
        if not fresh:
            warn_of_changes(run, environment_record(threads=recipe.threads, seed=recipe.seed), observer)
        with discarded_on_failure(run, fresh=fresh):
            learner = self._learner(recipe, observer, offline=offline)
        evaluation = supervised_trainer(learner, run, observer).train()
        return SupervisedResult(run.folder, evaluation, run.rows("metrics.jsonl"))

    def _learner(self, recipe: R, observer: Observer, *, offline: bool) -> SupervisedLearner[T]:
        keep_freed_memory()
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        # The rows come first: they are read in a moment, and a model is not.
        rows = read_rows(recipe.data, offline=offline, observer=observer)
        policy = build_language_model(recipe.policy, recipe.seed, offline=offline, observer=observer)
        encoder = Encoder(policy, recipe.batch.max_tokens)
        trained = self.trained(recipe, policy)
        data = build_dataset(rows, recipe, trained.objective, encoder)
        return SupervisedLearner(recipe, trained.policy, trained.objective, data, trained.optimizer)


sft = Verb(SFTRecipe, _fine_tuning, "Fine-tunes on the texts that a recipe names.")
prefer = Verb(
    PreferRecipe,
    _preferring,
    "Learns which answers are preferred, from pairs (DPO, IPO) or from answers judged one by one (KTO).",
)
reward_model = Verb(
    RewardModelRecipe,
    _scoring,
    "Learns from pairs to score answers (Bradley-Terry); the run folder is what the reward ``reward_model`` takes for its "
    "``path``.",
)
