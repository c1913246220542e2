"""The loop of the docs: RL samples, people's judgements over HTTP, a reward model, and RL with it."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx
import pytest

import burnish
from burnish.safety.review.exports import preference_rows, write_rows
from burnish.safety.review.queue import QueueSettings
from burnish.safety.review.session import open_review, queue_samples
from tests.fakes import SUBJECTS, RecordingObserver, supervised_recipe, write_lines
from tests.safety.review.serving import served


def vowels(text: str) -> float:
    """Return the scripted reviewer's own score of a text."""
    return sum(letter in "aeiou" for letter in text) / max(1, len(text))


def recipe(model: Any, reward: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "loop", "steps": 3, "policy": {"model": str(model)},
        "task": {"use": "data", "path": "prompts.jsonl", "prompt": "prompt"},
        "sampling": {"prompts_per_step": 6, "samples_per_prompt": 4, "max_new_tokens": 8},
        "evaluation": {"prompts": 4, "samples_per_prompt": 1, "resamples": 100},
        "algorithm": {"use": "rloo"}, "reward": [reward],
    }  # fmt: skip


@pytest.mark.slow
def test_judgements_become_a_reward_that_is_trained_on(tiny_chat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lines("prompts.jsonl", [{"prompt": subject} for subject in SUBJECTS])
    observer = RecordingObserver()
    first = burnish.train(recipe(tiny_chat, {"use": "repetition"}), run_dir=tmp_path / "one", observer=observer)
    store = open_review(first.run_dir)
    queue_samples(store, first.run_dir, QueueSettings())
    headers = {"Authorization": f"Bearer {store.add_reviewer('script')}"}
    with served(store) as address, httpx.Client(base_url=address, headers=headers, timeout=60) as client:
        while item := client.get("/api/next").json():
            left, right = map(vowels, item["texts"])
            choice = "tie" if left == right else "left" if left > right else "right"
            client.post("/api/judge", json={"item": item["id"], "choice": choice}).raise_for_status()
    rows = list(preference_rows(store.judgements()))
    store.engine.dispose()
    assert rows and all(vowels(row["chosen"]) > vowels(row["rejected"]) for row in rows)
    assert all(row["prompt"][-1]["role"] == "user" for row in rows)  # a conversation
    write_rows(tmp_path / "pairs.jsonl", rows)
    judge = supervised_recipe("reward-model", tiny_chat, "pairs.jsonl", format="pairs", steps=2)
    burnish.reward_model(judge, run_dir=tmp_path / "judge", observer=observer)
    reward = {"use": "reward_model", "path": str(tmp_path / "judge")}
    second = burnish.train(recipe(tiny_chat, reward), run_dir=tmp_path / "two", observer=observer)
    samples = [json.loads(line) for line in (second.run_dir / "samples.jsonl").read_text("utf-8").splitlines()]
    assert len(samples) == 72 and len({row["parts"]["reward_model"] for row in samples}) > 1


@pytest.mark.slow
def test_a_reward_learned_from_300_judgements_ranks_held_out_pairs(tiny, tmp_path, monkeypatch):
    from scipy.stats import binomtest

    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    words = [word for subject in SUBJECTS for word in subject.split()]
    pairs = []
    while len(pairs) < 300:
        first, second = (" " + " ".join(rng.choices(words, k=6)) for _ in range(2))
        if vowels(first) != vowels(second):
            chosen, rejected = sorted((first, second), key=vowels, reverse=True)
            pairs.append({"prompt": f"{rng.choice(SUBJECTS)} {len(pairs)}", "chosen": chosen, "rejected": rejected})
    write_lines("pairs.jsonl", pairs)
    recipe = supervised_recipe("reward-model", tiny("llama"), "pairs.jsonl", format="pairs", steps=60)
    result = burnish.reward_model(recipe, run_dir=tmp_path / "judge", observer=RecordingObserver())
    accuracy = result.evaluation["preference_accuracy"]
    right = round(accuracy["after"] * accuracy["n"])
    assert binomtest(right, accuracy["n"], 0.5, alternative="greater").pvalue < 0.01
