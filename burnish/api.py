"""``burnish.train``: a recipe in, a run folder with its proof out."""

from __future__ import annotations

import inspect
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.algorithms.presets import PRESETS
from burnish.backends.local import build
from burnish.backends.preflight import check_companions, check_prompts, say_walls
from burnish.backends.prompts import task_prompts
from burnish.catalogue import entries
from burnish.catalogue.convert import resolve_model
from burnish.errors import InputError
from burnish.evaluation.held_out import compare, measure, summary
from burnish.evaluation.measurement import Measurement
from burnish.generation.engine import make_sampler
from burnish.policies.causal_lm import CausalModel
from burnish.policies.loading import load_model
from burnish.protocols import Observer, Sampler
from burnish.recipe.reading import VERBS
from burnish.recipe.schema import Recipe, load_recipe, shipped
from burnish.recipe.sections import RewardSection
from burnish.registry import nearest
from burnish.reports.page.html import write_report
from burnish.reports.terminal.progress import make_observer
from burnish.rewards.combine import Combination
from burnish.rewards.registry import REWARDS
from burnish.run.folder import Run
from burnish.run.launch import Noting, discarded_on_failure, in_run, run_of, warn_of_changes, with_absolute_model
from burnish.system.environment import environment
from burnish.system.paths import expanded
from burnish.tasks.registry import TASKS
from burnish.text import mostly_han_or_kana
from burnish.training.reinforcement import HELD_OUT_SEED, Session
from burnish.types import Completion, Prompt, SamplingParams

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

    def chosen(source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
        return with_absolute_model(_recipe(source, rewards, overrides, changes)).resolved()

    return in_run(
        lambda: run_of(recipe, chosen, run_dir=run_dir, resume=resume, changed=bool(rewards or overrides or changes)),
        lambda run: _worked(run, watcher, offline=offline, fresh=resume is None),
        watcher,
    )


def _worked(run: Run, observer: Observer, *, offline: bool, fresh: bool) -> Result:
    """Builds what the run's recipe names, and trains to the end."""
    read = load_recipe(run.folder / "recipe.toml")
    if not fresh:
        warn_of_changes(run, environment(threads=read.threads, seed=read.seed), observer)
    noted = Noting(observer)
    with discarded_on_failure(run, fresh=fresh):
        learner, held_out = build(read, offline=offline, observer=noted, folder=run.folder)
    noted.write(run)
    evaluation = Session(learner, run, observer, held_out).work()
    return Result(run.folder, write_report(run.folder), evaluation, run.rows("metrics.jsonl"))


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
    """The name a recipe can hold: the registered one; a function that is not registered is, under its own name.

    A callable object goes by the name of its class.
    """
    if isinstance(key, str):
        return key
    name = str(getattr(key, "__name__", type(key).__name__))
    if name not in REWARDS or REWARDS.get(name).function is not key:
        from burnish.rewards.registry import reward

        reward(name=name)(key)
    return name


def evaluate(
    model: str,
    *,
    against: str | None = None,
    recipe: str | Path | Mapping[str, Any] | Recipe = "news",
    overrides: Sequence[str] = (),
    offline: bool = False,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Measures a model on a recipe's held-out prompts; with ``against``, compares two, paired.

    Perplexity is under the recipe's own model, so that two measurements have one judge.

    Returns:
        Metric -> value; with ``against``, metric -> before (of ``against``), after (of ``model``) and so on.
    """
    chosen = _recipe(recipe, None, overrides, {})
    if chosen.policy.use != "causal_lm":
        raise InputError(
            f"recipe '{chosen.name}' has policy.use = \"{chosen.policy.use}\": evaluate measures causal language models; "
            "what such a run has reached stands in its evaluation.json"
        )
    settings = chosen.evaluation
    with _watching(observer) as watcher:
        judge = _language_model(chosen.policy.model, chosen, offline, watcher)
        _, prompts = task_prompts(chosen, offline=offline, observer=watcher)
        check_prompts(chosen, [], prompts, watcher)
        check_companions(chosen)
        say_walls(chosen, watcher)

        def measured(name: str) -> Measurement:
            policy = _language_model(name, chosen, offline, watcher)
            policy.reference = judge
            scorer = Combination.from_recipe(chosen.reward, judge)
            further = Combination.from_metrics(settings.metrics, judge)
            return measure(
                policy, make_sampler(policy), scorer, prompts, sampling=chosen.sampling.params,
                samples_per_prompt=settings.samples_per_prompt, seed=(chosen.seed, HELD_OUT_SEED, 0), observer=watcher,
                metrics=further, better={section.part: section.better for section in settings.metrics},
            )  # fmt: skip

        found = measured(model)
        other = measured(against) if against is not None else None
    if other is None:
        return dict(summary(found, bleu_tokenize=settings.bleu_tokenize))
    return compare(
        other, found, resamples=settings.resamples, seed=chosen.seed, bleu_tokenize=settings.bleu_tokenize
    )  # fmt: skip


def _language_model(name: str, recipe: Recipe, offline: bool, observer: Observer) -> CausalModel:
    source = resolve_model(name, offline=offline, observer=observer)
    return load_model(source, dtype=recipe.policy.dtype, device=recipe.policy.device, offline=offline)


def generate(
    model: str,
    prompt: str,
    *,
    samples: int = 1,
    sampling: SamplingParams,
    seed: int = 0,
    offline: bool = False,
    observer: Observer | None = None,
) -> Sequence[Completion]:
    """Samples continuations of one prompt from a run folder, a model folder, a catalogue name or a hub id."""
    with _watching(observer) as watcher:
        sampler = _sampler(model, offline=offline, observer=watcher)
        groups = sampler.sample([Prompt("prompt", prompt)], samples_per_prompt=samples, sampling=sampling, seed=(seed,))
    return groups[0].completions


def _sampler(name: str, *, offline: bool, observer: Observer) -> Sampler:
    """What samples from a run, a model folder, a catalogue name or a hub id."""
    run = expanded(name)
    if (run / "recipe.toml").is_file() and (run / "model").is_dir():
        written = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
        if written.get("policy", {}).get("use") in ("lstm", "module"):
            section = load_recipe(run / "recipe.toml").policy
            from burnish.backends.modules import load_trained
            from burnish.generation.modules import ModuleSampler

            return ModuleSampler(load_trained(section, run / "model"))
    return make_sampler(load_model(resolve_model(name, offline=offline, observer=observer), offline=offline))


@contextmanager
def _watching(observer: Observer | None) -> Iterator[Observer]:
    """The observer, or progress on standard error where there is none: a first use downloads much. It is told the end."""
    watcher = observer or make_observer()
    try:
        yield watcher
    finally:
        watcher.finish()


def score(
    texts: Sequence[str],
    *,
    rewards: Sequence[str],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    prompt: str = "",
    reference: str | None = None,
    model: str = "smollm2-135m",
    offline: bool = False,
    observer: Observer | None = None,
) -> list[dict[str, Any]]:
    """What each reward says of each text, as a continuation of ``prompt``; the model is loaded only if a reward asks.

    Args:
        options: reward -> its options, such as ``{"regex": {"pattern": "[0-9]+"}}``.
    """
    for name in options or {}:
        if name not in rewards:
            raise InputError(
                f"options for '{name}'{nearest(name, rewards)}, which is not among the rewards: use it too"
            )
    for name in rewards:
        # Before the model is loaded.
        _check_scorable(name, (options or {}).get(name, {}), texts, reference)
    needed = any("reference_policy" in REWARDS.get(name).arguments for name in rewards)
    judge = None
    if needed:
        with _watching(observer) as watcher:
            judge = load_model(resolve_model(model, offline=offline, observer=watcher), offline=offline)
    asked = Prompt("prompt", prompt, reference)
    completions = []
    for text in texts:
        ids = judge.encode(text) if judge else ()
        completions.append(Completion(asked, judge.encode_prompt(asked) if judge else (), ids, text, (), "stop"))
    sections = [RewardSection(use=name, **(options or {}).get(name, {})) for name in rewards]
    found = Combination.from_recipe(sections, judge).score(completions)
    return [
        {"text": text, "parts": {name: float(values[place]) for name, values in found.parts.items()}}
        for place, text in enumerate(texts)
    ]


def _check_scorable(name: str, options: Mapping[str, Any], texts: Sequence[str], reference: str | None) -> None:
    """Raises InputError where a reward cannot judge these texts."""
    chosen = REWARDS.get(name)
    chosen.check_options(options, beside=())
    if chosen.facts.needs_reference and not (reference and reference.strip()):
        raise InputError(f"'{name}' needs a reference, the true answer: give it with --reference TEXT or reference=...")
    if not chosen.english_only(options):
        return
    for place, text in enumerate([*texts, reference or ""], start=1):
        if mostly_han_or_kana(text):
            which = "the reference" if place > len(texts) else f"text {place}"
            raise InputError(f"'{name}' knows English only, and {which} is Chinese or Japanese: leave one of them out")


def listing(what: str) -> list[dict[str, str]]:
    """Names of one kind with a line about each. Raises InputError where there is no such kind."""
    kinds: dict[str, Callable[[], list[tuple[str, str]]]] = {
        "algorithms": lambda: [(name, f"{preset.when} ({preset.paper})") for name, preset in PRESETS.items()],
        "rewards": lambda: [(name, REWARDS.get(name).summary) for name in REWARDS.names()],
        "tasks": lambda: [(name, _first_line(TASKS.get(name))) for name in TASKS.names()],
        "models": lambda: _catalogue("model"),
        "data": lambda: _catalogue("data"),
        "recipes": lambda: [
            (name, _first_comment(path)) for kind in (None, *VERBS) for name, path in shipped(kind).items()
        ],
    }
    if what not in kinds:
        raise InputError(f"cannot list '{what}'{nearest(what, kinds)}: {', '.join(kinds)}")
    return [{"name": name, "summary": text} for name, text in kinds[what]()]


def _catalogue(kind: entries.Kind) -> list[tuple[str, str]]:
    found = [entries.lookup(name) for name in entries.names(kind)]
    return [(entry.name, f"{entry.description}; from {entry.requirement}, {entry.licence}") for entry in found]


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("# ") if first.startswith("#") else ""


def train_toy(seed: int = 0) -> list[float]:
    """Trains the known table in a folder that is thrown away; the mean reward of each step."""
    with tempfile.TemporaryDirectory() as folder:
        result = train("toy", seed=seed, run_dir=Path(folder) / "toy", observer=make_observer(quiet=True))
        return [float(row["reward/mean"]) for row in result.metrics]
