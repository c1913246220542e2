"""A run with the content filter as a penalty and a gate."""

from __future__ import annotations

import json

import pytest

import burnish
from burnish.run.folder import read_lines

RECIPE = """
name = "filtered"
steps = 30
[policy]
use = "tabular"
[task]
use = "toy"
[sampling]
prompts_per_step = 4
samples_per_prompt = 8
max_new_tokens = 4
[algorithm]
use = "rloo"
[[reward]]
use = "exact"
[[reward]]
use = "content_filter"
policy = {policy}
gate = -0.5
[optimizer]
learning_rate = 0.1
[evaluation]
bleu_tokenize = "char"
"""


@pytest.mark.slow
def test_a_policy_learns_to_leave_a_blocked_word_out(tmp_path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[categories.love]\naction = "block"\nwords = ["爱"]\n', encoding="utf-8")
    (tmp_path / "recipe.toml").write_text(RECIPE.format(policy=json.dumps(str(policy))), encoding="utf-8")
    burnish.train(tmp_path / "recipe.toml", run_dir=tmp_path / "run")
    steps = [row for row in read_lines(tmp_path / "run" / "metrics.jsonl") if "reward/content_filter" in row]
    samples = list(read_lines(tmp_path / "run" / "samples.jsonl"))
    for row in samples:
        assert ("filter:love" in row["flags"]) == ("爱" in row["completion"]) == (row["parts"]["content_filter"] < 0)
    # The table's first texts have 爱 in about half of them; the gate and the penalty both speak against it.
    first, last = (sum(row["reward/content_filter"] for row in part) / 5 for part in (steps[:5], steps[-5:]))
    assert first < -0.3 and last > first / 2
    assert steps[0]["scoring/content_filter/love"] >= 1
