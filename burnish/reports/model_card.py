"""Model cards in Hugging Face's format, filled from a run's recipe and evaluation."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.catalogue import entries
from burnish.catalogue.portable import public_name
from burnish.reports.card_sections import card_sections
from burnish.reports.wording import decimals, difference_text, finite, fixed, ordered, p_text, set_and_metric, title

_LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "Gemma Terms of Use": "gemma"}
"""Licence of a catalogue model -> Hugging Face's name for it."""


def model_card(run: Path, *, library: str) -> str:
    """Return the card of a run's model: metadata with the measured results, and a page for people.

    Args:
        library: "transformers", or "peft" for an adapter.
    """
    from huggingface_hub import EvalResult, ModelCardData

    recipe = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    path = run / "evaluation.json"
    evaluation: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    name, base = str(recipe["name"]), public_name(str(recipe.get("policy", {}).get("model", "")))
    verb, task = str(recipe.get("kind", "train")), str(recipe.get("task", {}).get("use", "data"))
    method = str(recipe.get("algorithm", {}).get("use", verb))
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
    if rewards := recipe.get("reward"):
        parts = ", ".join(
            f"`{reward.get('name', reward['use'])}` (weight {reward.get('weight', 1.0):g})" for reward in rewards
        )
        text.append(f"Rewards: {parts}.\n")
    if entry:
        text.append(f"The base model: {entry.notice}. Licence: {entry.licence}.\n")
    if library == "peft" and entry:
        text.append(f"This is an adapter. `burnish fetch {base}` prints the folder of its base model.\n")
    if evaluation:
        text.append(_table(evaluation))
    text += card_sections(run, recipe, evaluation)
    return "\n".join(text)


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
