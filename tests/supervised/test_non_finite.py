"""A step whose gradient is not a number: the row that it comes from is named, and the run is saved before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import burnish
from burnish.policies.loading import load_policy
from burnish.reports.terminal.progress import QuietProgress
from tests.fakes import SUBJECTS, supervised_recipe, write_lines

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("verb", ["sft", "prefer"])
def test_the_row_is_named_whose_gradient_is_not_finite(tiny, verb, tmp_path, monkeypatch):
    """The only one with a sign whose row of the embedding is as large as a number can be."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": subject, "completion": " sang", "chosen": " sang", "rejected": " fell"} for subject in SUBJECTS]
    rows[7]["prompt"] += " €"
    keys = ("prompt", "completion") if verb == "sft" else ("prompt", "chosen", "rejected")
    write_lines("rows.jsonl", [{key: row[key] for key in keys} for row in rows])
    policy = load_policy(tiny("llama"))
    (token, *_) = policy.tokenizer("€", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[token] = 3e38
    policy.save(Path("broken"))
    recipe = supervised_recipe(
        verb, Path("broken"), "rows.jsonl", format="completion" if verb == "sft" else "pairs", steps=40,
        evaluation={"resamples": 100}, checkpoint={"every": 2},
    )  # fmt: skip
    with pytest.raises(burnish.BurnishError, match="the first row that alone has no finite loss and gradient") as ended:
        getattr(burnish, verb)(recipe, run_dir="run", observer=QuietProgress())
    assert f"begins with '{rows[7]['prompt']} " in str(ended.value)
    (row, *_) = Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(row)["step"] == 1
