"""Model cards in Hugging Face's format, filled from a run's recipe and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.catalogue import entries
from burnish.catalogue.portable import public_name
from burnish.reports.card_sections import card_sections
from burnish.reports.run_data import RunData, read_run
from burnish.reports.wording import decimals, difference_text, finite, fixed, ordered, p_text, set_and_metric, title
from burnish.system.files import explained, write_text

CARD = "model_card.md"
_LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "Gemma Terms of Use": "gemma"}
"""Licence of a catalogue model -> Hugging Face's name for it."""


def write_model_card(run: Path) -> Path:
    """Write ``model_card.md`` into a run folder atomically.

    Raises InputError if it is not a run folder, and BurnishError if the card cannot be written.
    """
    target = run / CARD
    text = model_card(run)
    with explained(f"cannot write {target}"):
        write_text(target, text)
    return target


def model_card(run: Path, *, model: Path | None = None, release: Mapping[str, Any] | None = None) -> str:
    """Return the card of a run's model: metadata with the measured results, and a page for people.

    Args:
        model: the folder with the model's files; None is the run's own.
        release: the record of a release; None is that of release.json, if there is one.
    """
    from huggingface_hub import EvalResult, ModelCardData

    files = read_run(run)
    recipe, name = files.recipe, files.name
    evaluation = {key: row for key, row in files.evaluation.items() if isinstance(row, dict)}
    kind = _option(recipe, "policy", "use", "causal_lm")
    base = public_name(_option(recipe, "policy", "model", "")) if kind == "causal_lm" else ""
    library = _library(model or run / "model")
    verb, task = str(recipe.get("kind", "train")), _option(recipe, "task", "use", "data")
    method = _option(recipe, "algorithm", "use", verb)
    pipeline = "text-classification" if verb == "reward-model" else "text-generation"
    results = [
        EvalResult(
            task_type=pipeline, task_name=pipeline.capitalize().replace("-", " "), dataset_type=name or task,
            dataset_name=name or task, dataset_split="held out", metric_type=metric.replace("/", "_"),
            metric_name=title(metric), metric_value=value,
        )
        for key in ordered(evaluation) if (value := finite(evaluation[key].get("after"))) is not None
        for name, metric in [set_and_metric(key)]
    ]  # fmt: skip
    entry = entries.lookup(base) if base in entries.names("model") else None
    public = "" if Path(base).is_absolute() else base
    data = ModelCardData(
        base_model=public or None, library_name=library, pipeline_tag=pipeline, tags=["burnish", method],
        license=_LICENCES.get(entry.licence) if entry else None, model_name=name, eval_results=results or None,
    )  # fmt: skip
    text = [f"---\n{data.to_yaml()}\n---\n", f"# {name}\n"]
    text.append(f"Trained by burnish, method `{method}`, "
                f"{_steps(files)} steps, seed {recipe.get('seed', 0)}, from "
                f"{f'`{public}`' if public else 'a local model' if base else f'a `{kind}` policy'}.\n")  # fmt: skip
    if rewards := [one for one in _rows(recipe.get("reward")) if "use" in one]:
        parts = (f"`{one.get('name', one['use'])}` (weight {finite(one.get('weight', 1.0)) or 0:g})" for one in rewards)
        text.append(f"Rewards: {', '.join(parts)}.\n")
    if entry:
        text.append(f"The base model: {entry.notice}. Licence: {entry.licence}.\n")
    elif base:
        text.append("The base model's licence is not known to burnish.\n")
    if library == "peft" and entry:
        text.append(f"This is an adapter. `burnish fetch {base}` prints the folder of its base model.\n")
    if evaluation:
        text.append(_table(evaluation))
    text += card_sections(run, files, evaluation, release)
    return "\n".join(text)


def _library(model: Path) -> str | None:
    """Return the library that opens a folder's model; None for models that only burnish opens."""
    names = {"adapter_config.json": "peft", "config.json": "transformers"}
    known = (library for name, library in names.items() if (model / name).is_file())
    return next(known, "gguf" if any(model.glob("*.gguf")) else None)


def _steps(files: RunData) -> str:
    total = str(files.recipe.get("steps"))
    return total if not files.rows or files.steps_done == files.total_steps else f"{files.steps_done} of {total}"


def _option(recipe: Mapping[str, Any], table: str, key: str, default: str) -> str:
    section = recipe.get(table)
    return str(section.get(key, default)) if isinstance(section, Mapping) else default


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def _table(evaluation: Mapping[str, Mapping[str, Any]]) -> str:
    header = "| metric | before | after | difference [95% interval] | p | n |"
    lines = ["## Held-out results\n", header, "|---|---|---|---|---|---|"]
    for metric in ordered(evaluation):
        row = evaluation[metric]
        before, after = (fixed(row.get(key), decimals(row)) for key in ("before", "after"))
        cells = [title(metric), before, after, difference_text(row), p_text(row), str(row.get("n"))]
        lines.append(f"| {' | '.join(cells)} |".replace("\n", " "))
    lines.append("\nDifferences are paired by prompt; the intervals are from a bootstrap.\n")
    return "\n".join(lines)
