"""The functions ``burnish.sft``, ``burnish.prefer`` and ``burnish.reward_model``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from burnish.backends.chat import chat_settings
from burnish.backends.local import build_language_model
from burnish.named_code import used_code
from burnish.policies.causal_lm import CausalPolicy
from burnish.policies.reward_model import HEAD_WEIGHT, RewardModel
from burnish.protocols import Observer, ParameterOptimizer, Policy, Trainable
from burnish.reports.final import write_final_reports
from burnish.reports.terminal.progress import make_observer
from burnish.run.folder import Run
from burnish.run.inputs import Inputs
from burnish.run.launch import (
    Resuming,
    create_or_open_run,
    discard_on_failure,
    keep_start,
    resolve_recipe_paths,
    resolve_section_path,
    warn_if_environment_changed,
    work_in_run,
)  # fmt: skip
from burnish.run.libraries import record_libraries, restore_libraries
from burnish.run.own_rows import rows_overrides
from burnish.run.script import note_supervised
from burnish.run.sources import run_sources
from burnish.run.trust import code_of
from burnish.supervised.bradley_terry import BradleyTerry
from burnish.supervised.dataset import build_dataset
from burnish.supervised.dpo import PairPreference
from burnish.supervised.encoding import Encoder
from burnish.supervised.kto import KTO
from burnish.supervised.objective import Objective
from burnish.supervised.reading import read_rows
from burnish.supervised.recipe import (
    PreferRecipe,
    RewardModelRecipe,
    SFTRecipe,
    SupervisedRecipe,
    load_supervised,
    recipe_kind,
)  # fmt: skip
from burnish.supervised.sft import FineTuning
from burnish.supervised.sources import SOURCES
from burnish.supervised.step import SupervisedLearner, supervised_trainer
from burnish.system.environment import environment_record
from burnish.system.machine import keep_freed_memory
from burnish.system.reads import Reads, recorded_reads
from burnish.training.optimizer import build_optimizer

R = TypeVar("R", bound=SupervisedRecipe)
T = TypeVar("T", bound=Trainable)
Source = str | Path | Mapping[str, Any]
Setup = tuple[T, Objective[T], ParameterOptimizer]


@dataclass(frozen=True, slots=True)
class SupervisedResult:
    """The result of a supervised run, with its folder ``run_dir``."""

    run_dir: Path
    evaluation: Mapping[str, Mapping[str, Any]]
    """Held-out metric -> before, after, difference, interval, p_value, n."""
    metrics: Sequence[Mapping[str, Any]]
    """One row per step."""

    @property
    def model(self) -> Path:
        """The folder of the trained model, in Hugging Face format."""
        return self.run_dir / "model"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.run_dir / "report.html"

    @property
    def calibration(self) -> Mapping[str, Any] | None:
        """Content of a reward model's ``calibration.json``: error, by_chance, by_chance_95, pairs and table."""
        path = self.run_dir / "calibration.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _set_up_sft(recipe: SFTRecipe, model: CausalPolicy) -> Setup[Policy]:
    return model, FineTuning(), build_optimizer(model, recipe.optimizer)


def _set_up_preference(recipe: PreferRecipe, model: CausalPolicy) -> Setup[Policy]:
    settings = recipe.preference
    objective: Objective[Policy]
    if settings.use == "kto":
        objective = KTO(settings.beta, settings.desirable_weight or 1.0, settings.undesirable_weight or 1.0)
    else:
        objective = PairPreference(settings)
    return model, objective, build_optimizer(model, recipe.optimizer)


def _set_up_reward_model(recipe: RewardModelRecipe, model: CausalPolicy) -> Setup[RewardModel]:
    settings, trained = recipe.reward_model, RewardModel(model, recipe.batch.max_tokens)
    objective = BradleyTerry(margin=settings.margin, centre=settings.centre)
    return trained, objective, build_optimizer(trained, recipe.optimizer, {HEAD_WEIGHT: settings.head_learning_rate})


@dataclass(frozen=True)
class Verb(Generic[R, T]):
    """A function that trains by a recipe of the class ``kind`` or resumes a run; ``summary`` is its docstring.

    ``set_up`` builds model, objective and optimizer from a recipe and its language model.
    """

    kind: type[R]
    set_up: Callable[[R, CausalPolicy], Setup[T]]
    summary: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.summary)

    def __call__(
        self,
        recipe: Source | None = None,
        *,
        rows: Any = None,
        run_dir: str | Path | None = None,
        resume: str | Path | None = None,
        extend: int | None = None,
        from_step: int | None = None,
        accept_changed_inputs: bool = False,
        trust: bool = False,
        offline: bool = False,
        observer: Observer | None = None,
        overrides: Sequence[str] = (),
        **changes: Any,
    ) -> SupervisedResult:
        """Train by a recipe, or resume a run. Arguments and errors are those of ``burnish.train``."""
        watcher, verb = observer or make_observer(), recipe_kind(self.kind)
        note_supervised(verb.replace("-", "_"))
        settings = [*overrides, *rows_overrides("data", rows)]

        def read(source: Source) -> R:
            loaded = resolve_recipe_paths(load_supervised(self.kind, source, settings, changes=changes))
            return loaded.model_copy(update={"data": resolve_section_path(loaded.data)})

        resuming = Resuming(run=resume, extend=extend, from_step=from_step, accept=accept_changed_inputs, trust=trust)
        changed = bool(settings or changes)
        with code_of(recipe, resume, trust=trust):
            return work_in_run(
                lambda: create_or_open_run(
                    recipe, read, resuming, watcher, run_dir=run_dir, changed=changed, rows=rows, verb=verb
                ),
                lambda run: self._train(run, watcher, resuming, offline=offline),
                watcher,
            )

    def _train(self, run: Run, observer: Observer, resuming: Resuming, *, offline: bool) -> SupervisedResult:
        fresh = resuming.fresh
        inputs, reads = Inputs(run, observer, fresh=fresh, accept=resuming.accept), Reads()
        recipe = load_supervised(self.kind, run.folder / "recipe.toml")
        if not fresh:
            warn_if_environment_changed(run, environment_record(threads=recipe.threads, seed=recipe.seed), observer)
        with discard_on_failure(run, fresh=fresh):
            recipe = keep_start(run, recipe)
            restore_libraries(run)
            learner = self._build_learner(recipe, run.folder, observer, offline=offline, reads=reads)
            record_libraries(run)
            for text in used_code():
                observer.message(text)
            source = {"data.use": (recipe.data.use, SOURCES.get(recipe.data.use))}
            sources = run_sources(run, recipe, reads, source, offline=offline)
        with inputs.recorded(sources):
            evaluation = supervised_trainer(learner, run, observer, accept=resuming.accept).train()
        write_final_reports(run.folder, observer)
        return SupervisedResult(run.folder, evaluation, run.rows("metrics.jsonl"))

    def _build_learner(
        self, recipe: R, folder: Path, observer: Observer, *, offline: bool, reads: Reads
    ) -> SupervisedLearner[T]:
        keep_freed_memory()
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        # The rows come first, since reading them is quick and loading a model is not.
        with recorded_reads(reads):
            rows = read_rows(recipe.data, offline=offline, observer=observer)
        chat = chat_settings(recipe.data, folder)
        policy = build_language_model(recipe.policy, recipe.seed, offline=offline, observer=observer, chat=chat)
        encoder = Encoder(policy, recipe.batch.max_tokens)
        trained, objective, optimizer = self.set_up(recipe, policy)
        dataset = build_dataset(rows, recipe, objective, encoder)
        objective.prepare(trained, encoder)
        return SupervisedLearner(recipe, trained, objective, dataset, optimizer)


sft = Verb(SFTRecipe, _set_up_sft, "Fine-tune a model on texts.")
prefer = Verb(
    PreferRecipe,
    _set_up_preference,
    "Train on preferences: pairs of answers (DPO, IPO, SimPO, ORPO, CPO) or labelled answers (KTO).",
)
reward_model = Verb(
    RewardModelRecipe,
    _set_up_reward_model,
    "Train a reward model on pairs (Bradley-Terry); its run folder is the ``path`` of the reward ``reward_model``.",
)
