"""The library's verbs: ``train``, ``evaluate``, ``generate``, ``score`` and what the command line adds to them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.backends.chat import chat_settings
from burnish.backends.held_out_sets import fitting_sets, held_out_sets
from burnish.backends.local import build
from burnish.backends.preflight import check_companions, check_dependencies, check_prompts
from burnish.backends.prompt_lengths import check_lengths
from burnish.backends.prompts import task_prompts
from burnish.backends.remote import started_backend
from burnish.catalogue.convert import resolve_model
from burnish.errors import InputError
from burnish.evaluation.held_out import compare, summary
from burnish.evaluation.measurement import Measurement
from burnish.generation.engine import make_sampler
from burnish.model import LoadedModel, read_run_tables, trains_on_plain_text
from burnish.named_code import used_code
from burnish.policies.causal_lm import CausalModel
from burnish.policies.chat_template import ChatSettings
from burnish.policies.loading import load_model
from burnish.protocols import Observer
from burnish.recipe.combination import combine_metrics, combine_rewards
from burnish.recipe.schema import Recipe, load_recipe
from burnish.registry import Registry
from burnish.reports.final import write_final_reports
from burnish.reports.terminal.progress import make_observer, watching
from burnish.rewards.calling import printing_to
from burnish.rewards.given import Rewards, register_given
from burnish.rewards.registry import REWARDS
from burnish.run.folder import Run
from burnish.run.inputs import Inputs
from burnish.run.launch import (
    Resuming,
    WarningRecorder,
    create_or_open_run,
    discard_on_failure,
    keep_start,
    resolve_recipe_paths,
    sets_backend,
    warn_if_environment_changed,
    work_in_run,
)
from burnish.run.libraries import record_libraries, restore_libraries
from burnish.run.moved import run_recipe
from burnish.run.own_rows import rows_overrides
from burnish.run.script import resume_command, stop_if_collecting
from burnish.run.sources import run_sources
from burnish.run.trust import ASK, code_of
from burnish.system.environment import environment_record
from burnish.system.paths import expanded
from burnish.system.reads import Reads
from burnish.tasks.registry import TASKS
from burnish.training.reinforcement import measure_by_recipe, reinforcement_trainer
from burnish.types import Completion, SamplingParams


@dataclass(frozen=True, slots=True)
class Result:
    """The folder and report of a training run, its evaluation (held-out metric -> before, after, difference, interval,
    p_value, n) and its metrics, one row per step."""

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
    rewards: Rewards | None = None,
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
) -> Result:
    """Train a model by a recipe, or resume a run.

    Args:
        recipe: a built-in recipe's name, a TOML file, a mapping of the same shape, or a ``Recipe``.
        rewards: a reward's name or function, a list of them, or a mapping to weights, in place of the recipe's rewards.
            Of a run to resume: the functions that it was given.
        rows: a list of mappings, a ``datasets.Dataset`` or ``DatasetDict``, in place of the recipe's data. The task
            ``data`` reads them; the run folder keeps a copy.
        run_dir: the folder to write to; ``runs/<name>-<time>`` by default.
        resume: a run folder to resume, instead of a recipe; ``overrides`` may then set keys of ``backend``.
        extend: steps to add to the run that is resumed.
        from_step: the checkpoint that the resumed run goes back to; newer ones are deleted. 0 begins again.
        accept_changed_inputs: resume although a file that the run reads has changed; the change is recorded.
        trust: run the code that the recipe of a run from another machine names.
        offline: download nothing; a missing file raises an error that names the command to fetch it.
        observer: receives progress; by default it is printed to standard error.
        overrides: ``section.key=value`` texts, as on the command line.
        **changes: top-level keys of the recipe, such as ``steps`` and ``seed``.

    Raises:
        InputError: the recipe, the model, the data or the run folder cannot be used.
        BurnishError: training failed; the run folder is intact up to the last checkpoint.
    """
    named = register_given(rewards)
    stop_if_collecting()
    watcher = observer or make_observer()
    settings = [*overrides, *rows_overrides("task", rows)]

    def read(source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
        given = named if resume is None else ()  # a resumed run keeps its own
        return resolve_recipe_paths(_read_recipe(source, given, settings, changes)).resolved()

    resuming = Resuming(run=resume, extend=extend, from_step=from_step, accept=accept_changed_inputs, trust=trust)
    changed = bool(changes) or not all(map(sets_backend, settings))
    with code_of(recipe, resume, trust=trust):
        return work_in_run(
            lambda: create_or_open_run(
                recipe, read, resuming, watcher, run_dir=run_dir, changed=changed, moved=bool(settings), rows=rows
            ),
            lambda run: _train(run, watcher, named, resuming, offline=offline),
            watcher,
        )


def _train(
    run: Run, observer: Observer, named: Sequence[tuple[str, float]], resuming: Resuming, *, offline: bool
) -> Result:
    """Build everything that the run's recipe names, and train to the last step."""
    fresh = resuming.fresh
    inputs = Inputs(run, observer, fresh=fresh, accept=resuming.accept)
    recipe = load_recipe(run.folder / "recipe.toml")
    if named and named != (own := [(section.use, section.weight) for section in recipe.reward]):
        raise InputError(f"a resumed run keeps its rewards, {dict(own)}: give these, not {dict(named)}")
    run.resume_with = resume_command(run.folder, run.verb, _registered_names(recipe))
    if not fresh:
        warn_if_environment_changed(run, environment_record(threads=recipe.threads, seed=recipe.seed), observer)
    noted = WarningRecorder(observer)
    reads: Reads = {}
    with ExitStack() as stack:
        with discard_on_failure(run, fresh=fresh):
            recipe = keep_start(run, recipe)
            restore_libraries(run)
            attach = stack.enter_context(started_backend(recipe, run, observer, offline=offline))
            learner, held_out = build(recipe, offline=offline, observer=noted, folder=run.folder, reads=reads)
            attach(learner)
            for text in used_code():
                observer.message(text)
            record_libraries(run)
            sources = run_sources(run, recipe, reads, offline=offline)
            noted.write(run)
            stack.enter_context(inputs.recorded(sources))
            stack.enter_context(printing_to(run.folder))
            trainer = reinforcement_trainer(learner, run, observer, held_out)
        evaluation = trainer.train()
    return Result(run.folder, write_final_reports(run.folder, observer), evaluation, run.rows("metrics.jsonl"))


def _read_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    rewards: Sequence[tuple[str, float]],
    overrides: Sequence[str],
    changes: Mapping[str, Any],
) -> Recipe:
    if isinstance(recipe, Recipe):
        chosen = "learning_rate" in recipe.optimizer.model_fields_set
        exclude = None if chosen else {"optimizer": {"learning_rate"}}
        recipe = recipe.model_dump(mode="json", exclude_none=True, exclude=exclude)
    tables = [{"use": name, "weight": weight} for name, weight in rewards]
    return load_recipe(recipe, overrides, changes={**changes, "reward": tables} if tables else changes)


def _registered_names(recipe: Recipe) -> list[tuple[Registry[Any], str]]:
    used = [section.use for section in (*recipe.reward, *recipe.evaluation.metrics)]
    return [(TASKS, recipe.task.use), *((REWARDS, name) for name in used)]


def evaluate(
    model: str,
    *,
    against: str | None = None,
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    overrides: Sequence[str] = (),
    trust: bool = False,
    offline: bool = False,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Measure a model on a recipe's held-out prompts; with ``against``, compare two models on the same prompts.

    Returns metric -> value; with ``against``, metric -> before (of ``against``), after (of ``model``), difference,
    interval, p_value and n. The recipe's own model is the reference for perplexity, so that any two measurements are
    comparable. Without a recipe, it is that of ``model`` if this is a run folder, else "news".

    Code that the recipe names runs if the recipe is that of a run which began on this machine, or with ``trust``.

    Raises InputError if the recipe, a model or the data cannot be used.
    """
    own = _run_folder(model) if recipe is None else None
    with code_of(recipe, own, trust=trust, refusal=f"evaluate runs none of a recipe file; {ASK}"):
        return _evaluate(model, own, against, recipe, overrides, offline=offline, observer=observer)


def _evaluate(
    model: str,
    own: Path | None,
    against: str | None,
    recipe: str | Path | Mapping[str, Any] | Recipe | None,
    overrides: Sequence[str],
    *,
    offline: bool,
    observer: Observer | None,
) -> dict[str, Any]:
    chosen = run_recipe(own, overrides) if own else _read_recipe(recipe or "news", (), overrides, {})
    if chosen.policy.use != "causal_lm":
        raise InputError(
            f"recipe '{chosen.name}' has policy.use = \"{chosen.policy.use}\": evaluate measures only causal language "
            "models; the results of another policy are in its run's evaluation.json"
        )
    settings = chosen.evaluation
    with watching(observer) as watcher:
        for name in filter(None, (model, against)):
            resolve_model(name, offline=offline, observer=watcher)  # a wrong name is refused before the data are read
        reference = _language_model(chosen.policy.model, chosen, offline, watcher)
        train, prompts = task_prompts(chosen, offline=offline, observer=watcher)
        sets = held_out_sets(chosen, train, offline=offline, observer=watcher)
        check_prompts(chosen, [], prompts, watcher)
        _, prompts, _ = check_lengths(chosen, reference, [], prompts, watcher)
        sets = fitting_sets(chosen, reference, sets, watcher)
        check_companions(chosen)
        check_dependencies(chosen, watcher, offline=offline)

        def measure_model(name: str) -> Measurement:
            watcher.message(f"measuring {name}")
            policy = _language_model(name, chosen, offline, watcher)
            policy.reference = reference
            scorer = combine_rewards(chosen.reward, reference)
            metrics = combine_metrics(settings.metrics, reference)
            return measure_by_recipe(
                chosen, policy, make_sampler(policy), scorer, metrics, prompts, sets, observer=watcher
            )

        after = measure_model(model)
        before = measure_model(against) if against is not None else None
    if before is None:
        return dict(summary(after, bleu_tokenize=settings.bleu_tokenize))
    return compare(before, after, resamples=settings.resamples, seed=chosen.seed, bleu_tokenize=settings.bleu_tokenize)


def _run_folder(model: str) -> Path | None:
    """Return the folder of a run of ``burnish train``, None for any other model."""
    folder = expanded(model)
    return folder if "algorithm" in read_run_tables(folder) else None


def _language_model(name: str, recipe: Recipe, offline: bool, observer: Observer) -> CausalModel:
    source = resolve_model(name, offline=offline, observer=observer)
    return load_model(
        source, dtype=recipe.policy.dtype, device=recipe.policy.device, offline=offline,
        chat=chat_settings(recipe.task), observer=observer,
    )  # fmt: skip


def load(
    model: str | Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    template_kwargs: Mapping[str, Any] | None = None,
    trust: bool = False,
    offline: bool = False,
    observer: Observer | None = None,
) -> LoadedModel:
    """Load a run folder, a model folder, a catalogue name or a hub id, to sample from it.

    ``template_kwargs`` are variables of the chat template, such as ``enable_thinking``; by default those that the run
    was trained with. ``trust`` runs the code of a module that the recipe of a run from another machine names.

    Raises InputError if the model cannot be used.
    """
    name = str(model)
    run = expanded(name)
    written = read_run_tables(run)
    with watching(observer) as watcher:
        if written.get("policy", {}).get("use") in ("lstm", "module"):
            from burnish.backends.modules import load_trained
            from burnish.generation.modules import ModuleSampler

            with code_of(None, run, trust=trust):
                policy = load_trained(load_recipe(run / "recipe.toml").policy, run / "model")
            return LoadedModel(name, ModuleSampler(policy))
        source = resolve_model(name, offline=offline, observer=watcher)
        trained = (written.get("task") or written.get("data") or {}).get("template_kwargs")
        chat = ChatSettings(variables=(trained if template_kwargs is None else template_kwargs) or {})
        sampler = make_sampler(
            load_model(source, dtype=dtype, device=device, offline=offline, chat=chat, observer=watcher)
        )
    return LoadedModel(name, sampler, plain=trains_on_plain_text(written))


def generate(
    model: str | Path,
    prompt: str,
    *,
    samples: int = 1,
    system: str = "",
    plain: bool | None = None,
    seed: int = 0,
    offline: bool = False,
    observer: Observer | None = None,
    sampling: SamplingParams | None = None,
    **options: Any,
) -> Sequence[Completion]:
    """Sample completions of one prompt from a run folder, a model folder, a catalogue name or a hub id.

    The prompt is answered through the model's chat template, if it has one and its run did not train on plain text;
    ``plain=True`` continues the text. ``options`` are fields of ``SamplingParams``. ``burnish.load`` keeps the model
    for several prompts. Raises InputError if the model or an option cannot be used.
    """
    return load(model, offline=offline, observer=observer).generate(
        prompt, samples=samples, system=system, plain=plain, seed=seed, sampling=sampling, **options
    )


def train_toy(seed: int = 0) -> list[float]:
    """Train the toy recipe in a temporary folder and return the mean reward of each step."""
    with tempfile.TemporaryDirectory() as folder:
        result = train("toy", seed=seed, run_dir=Path(folder) / "toy", observer=make_observer(quiet=True))
        return [float(row["reward/mean"]) for row in result.metrics]
