"""Model cards in Hugging Face's format, filled from a run's recipe and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.catalogue import entries
from burnish.catalogue.portable import public_name
from burnish.reports.card_sections import card_sections
from burnish.reports.run_data import read_run
from burnish.reports.wording import decimals, difference_text, finite, fixed, ordered, p_text, set_and_metric, title

_LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "Gemma Terms of Use": "gemma"}
"""Licence of a catalogue model -> Hugging Face's name for it."""


def model_card(run: Path, *, library: str, release: Mapping[str, Any] | None = None) -> str:
    """Return the card of a run's model: metadata with the measured results, and a page for people.

    Args:
        library: "transformers", or "peft" for an adapter.
        release: the record of a release; None is that of release.json, if there is one.
    """
    from huggingface_hub import EvalResult, ModelCardData

    files = read_run(run)
    recipe, name = files.recipe, files.name
    evaluation = {key: row for key, row in files.evaluation.items() if isinstance(row, dict)}
    base = public_name(_option(recipe, "policy", "model", ""))
    verb, task = str(recipe.get("kind", "train")), _option(recipe, "task", "use", "data")
    method = _option(recipe, "algorithm", "use", verb)
    results = [
        EvalResult(
            task_type="text-generation", task_name="Text generation", dataset_type=name or task,
            dataset_name=name or task, dataset_split="held out", metric_type=metric.replace("/", "_"),
            metric_name=title(metric), metric_value=value,
        )
        for key in ordered(evaluation) if (value := finite(evaluation[key].get("after"))) is not None
        for name, metric in [set_and_metric(key)]
    ]  # fmt: skip
    entry = entries.lookup(base) if base in entries.names("model") else None
    public = "" if Path(base).is_absolute() else base
    data = ModelCardData(
        base_model=public or None, library_name=library, pipeline_tag="text-generation", tags=["burnish", method],
        license=_LICENCES.get(entry.licence) if entry else None, model_name=name, eval_results=results or None,
    )  # fmt: skip
    text = [f"---\n{data.to_yaml()}\n---\n", f"# {name}\n"]
    text.append(f"Trained by burnish, method `{method}`, "
                f"{recipe.get('steps')} steps, seed {recipe.get('seed', 0)}, from "
                f"{f'`{public}`' if public else 'a local model'}.\n")  # fmt: skip
    if rewards := [one for one in _rows(recipe.get("reward")) if "use" in one]:
        parts = (f"`{one.get('name', one['use'])}` (weight {finite(one.get('weight', 1.0)) or 0:g})" for one in rewards)
        text.append(f"Rewards: {', '.join(parts)}.\n")
    if entry:
        text.append(f"The base model: {entry.notice}. Licence: {entry.licence}.\n")
    if library == "peft" and entry:
        text.append(f"This is an adapter. `burnish fetch {base}` prints the folder of its base model.\n")
    if evaluation:
        text.append(_table(evaluation))
    text += card_sections(run, recipe, evaluation, release)
    return "\n".join(text)


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
