"""record_tokens: what a run recorded, held against plain transformers, and against the same run without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import burnish
from burnish.reports.terminal.progress import make_observer
from tests.policies.test_token_rows import padded_model

RECORDED = ("prompt_ids", "token_ids", "sampler_logprobs", "logprobs")
SMALL = {
    "record_tokens": True,
    "sampling": {"prompts_per_step": 2, "samples_per_prompt": 3, "max_new_tokens": 8, "temperature": 0.8, "top_k": 30},
    "optimizer": {"learning_rate": 1e-3},
    "evaluation": {"prompts": 2, "resamples": 100},
    "checkpoint": {"every": 1, "keep": 9},
}


def rows(run: Path, name: str = "samples.jsonl") -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text(encoding="utf-8").splitlines()]


def trained(model: Path, run: Path, **changes: object) -> Path:
    policy = {"model": str(model), **changes}
    result = burnish.train(
        "toy", run_dir=run, steps=2, policy=policy, rewards={"repetition": 1.0}, observer=make_observer(quiet=True),
        **SMALL,
    )  # fmt: skip
    return result.run_dir


@pytest.mark.slow
def test_recording_changes_nothing_else(tmp_path):
    runs = [
        burnish.train(
            "toy", run_dir=tmp_path / str(record), steps=3, record_tokens=record, observer=make_observer(quiet=True)
        ).run_dir
        for record in (False, True)
    ]
    plain, recorded = (rows(run) for run in runs)
    for row in recorded:
        kept = {key: row.pop(key) for key in RECORDED}
        assert len(kept["token_ids"]) == len(kept["logprobs"]) == len(kept["sampler_logprobs"]) == row["tokens"]
        assert kept["logprobs"] == pytest.approx(kept["sampler_logprobs"], abs=1e-12)
    assert recorded == plain
    for first, second in zip(*(rows(run, "metrics.jsonl") for run in runs), strict=True):
        assert {key: value for key, value in first.items() if "time" not in key and "per_second" not in key} == {
            key: value for key, value in second.items() if "time" not in key and "per_second" not in key
        } | {"memory/peak": first["memory/peak"]}


def test_the_first_step_equals_plain_transformers(tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    folder, real = padded_model("llama", tiny, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    first = [row for row in rows(trained(folder, tmp_path / "run")) if row["step"] == 1]
    assert len(first) == 6
    for row in first:
        ids = torch.tensor([row["prompt_ids"] + row["token_ids"]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(row["prompt_ids"]) - 1 : -1][:, real] / 0.8
        kept = logits.masked_fill(logits < logits.topk(30, -1).values[:, -1:], -torch.inf).log_softmax(-1)
        columns = torch.searchsorted(real, torch.tensor(row["token_ids"]))
        expected = kept.gather(-1, columns[:, None]).flatten().tolist()
        assert row["sampler_logprobs"] == pytest.approx(expected, abs=1e-4)
        assert row["logprobs"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["whole", "adapter"])
def test_the_example_holds_every_step_against_transformers(tiny, tmp_path, lora):
    folder, _ = padded_model("llama", tiny, tmp_path / "model")
    run = trained(folder, tmp_path / "run", **({} if lora is None else {"lora": lora}))
    script = [sys.executable, str(Path(__file__).parents[2] / "examples" / "check_logprobs.py"), str(run), str(folder)]
    done = subprocess.run(script, capture_output=True, encoding="utf-8", timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["step 1", "step 2"]
    # It sees a log-probability that is wrong.
    samples = rows(run)
    samples[-1]["logprobs"][0] += 1e-3
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples), encoding="utf-8")
    done = subprocess.run(script, capture_output=True, encoding="utf-8", timeout=240)
    assert done.returncode == 1 and "1.0e-03 (policy)" in done.stdout.splitlines()[1]
