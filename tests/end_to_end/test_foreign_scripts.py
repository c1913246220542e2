"""Scripts of TRL and verl: their data sets and reward functions train as they are, and each sample's parts are what
the functions return when they are called as those libraries call them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import burnish
from burnish.rewards.registry import REWARDS

pytestmark = pytest.mark.slow
SETTINGS: dict[str, Any] = {
    "name": "foreign", "steps": 2,
    "sampling": {"prompts_per_step": 2, "samples_per_prompt": 3, "max_new_tokens": 12},
    "evaluation": {"prompts": 4, "resamples": 100}
}  # fmt: skip
QUESTIONS = [
    {"question": f"What is {a} + {b}?", "answer": f"{a} and {b} are {a + b}.\n#### {a + b}"}
    for a in range(6)
    for b in range(6)
]


@pytest.fixture
def model(tiny, tmp_path: Path) -> str:
    import shutil

    shutil.copytree(tiny("llama"), tmp_path / "chat")
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    (tmp_path / "chat" / "chat_template.jinja").write_text(template, encoding="utf-8")
    return str(tmp_path / "chat")


def sampled(result: Any) -> list[dict[str, Any]]:
    lines = (Path(result.run_dir) / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# The functions of a GRPO script for TRL.


def make_conversation(example):
    return {
        "prompt": [
            {"role": "system", "content": "Answer with a number."},
            {"role": "user", "content": example["question"]},
        ],
        "solution": example["answer"].split("####")[-1].strip(),
    }


def format_reward(completions, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(r"^\s*\d+\s*$", content) else 0.0 for content in contents]


def accuracy_reward(completions, solution, **kwargs):
    rewards = []
    for completion, true in zip(completions, solution):  # noqa: B905
        found = re.findall(r"\d", completion[0]["content"])
        # As in TRL, None is "does not apply".
        rewards.append(float(found[-1] == true) if found else None)
    return rewards


def spread_reward(prompts, completions, completion_ids, trainer_state=None, **kwargs):
    assert all(prompt[0]["role"] == "system" and prompt[-1]["role"] == "user" for prompt in prompts)
    assert len(kwargs["solution"]) == len(completions) and trainer_state.global_step in (0, 1)
    return [len(set(ids)) / len(ids) for ids in completion_ids]


def test_a_grpo_script_of_trl(model: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="pip install 'burnish[hub]'")
    dataset = datasets.Dataset.from_list(QUESTIONS).map(make_conversation, remove_columns=["question", "answer"])
    result = burnish.train(
        SETTINGS | {"policy": {"model": model}, "task": {"use": "data"}}, rows=dataset,
        rewards=[format_reward, accuracy_reward, spread_reward], run_dir=tmp_path / "run", offline=True,
    )  # fmt: skip
    rows = sampled(result)
    assert len(rows) == 2 * 2 * 3
    for row in rows:
        a, b = map(int, re.findall(r"\d", str(row["prompt"])))
        conversation = [[{"role": "assistant", "content": row["completion"]}]]
        assert row["parts"]["format_reward"] == format_reward(conversation)[0]
        assert row["parts"]["accuracy_reward"] == accuracy_reward(conversation, [str(a + b)])[0]
        assert 0 < row["parts"]["spread_reward"] <= 1


SCORE = r"""
import re


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    assert data_source == "openai/gsm8k" and extra_info["split"] == "train" and extra_info["index"] >= 0
    found = re.findall(r"\d", solution_str)
    return {"score": float(bool(found) and found[-1] == ground_truth), "found": len(found)}
"""


def test_a_parquet_file_and_a_compute_score_of_verl(model: str, tmp_path: Path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets", reason="pip install 'burnish[hub]'")

    def process(example, index):
        return {
            "data_source": "openai/gsm8k",
            "prompt": [{"role": "user", "content": example["question"]}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": example["answer"].split("####")[-1].strip()},
            "extra_info": {"split": "train", "index": index, "answer": example["answer"]},
        }

    made = datasets.Dataset.from_list(QUESTIONS).map(process, with_indices=True, remove_columns=["question", "answer"])
    made.to_parquet(str(tmp_path / "train.parquet"))
    (tmp_path / "gsm8k_score.py").write_text(SCORE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(REWARDS, "_paths", {})
    try:
        result = burnish.train(
            SETTINGS | {
                "policy": {"model": model}, "task": {"use": "data", "path": "train.parquet"},
                "reward": [{"use": "gsm8k_score:compute_score"}],
            },
            run_dir=tmp_path / "run", offline=True,
        )  # fmt: skip
        from gsm8k_score import compute_score
    finally:
        sys.modules.pop("gsm8k_score", None)
    rows = sampled(result)
    assert len(rows) == 2 * 2 * 3
    for row in rows:
        a, b = map(int, re.findall(r"\d", str(row["prompt"])))
        own = compute_score("openai/gsm8k", row["completion"], str(a + b), {"split": "train", "index": 0})
        assert row["parts"]["compute_score"] == own["score"]
    assert any(key.endswith("/found") for key in result.metrics[0])
