"""The loop of the docs: RL samples, people's judgements over HTTP, a reward model, and RL with it."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from statistics import mean
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


def own_score(completion: burnish.Completion) -> float:
    """Be the reviewer's score as a metric; without a name among the rewards, which other tests list."""
    return vowels(completion.text)


OWN_SCORE = {"use": f"{__name__}:own_score", "name": "own_score"}


def recipe(model: Path, reward: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "name": "loop", "policy": {"model": str(model)},
        "task": {"use": "data", "path": "prompts.jsonl", "prompt": "prompt", "held_out_percent": 30},
        "sampling": {"prompts_per_step": 8, "samples_per_prompt": 4, "max_new_tokens": 16},
        "evaluation": {"samples_per_prompt": 6, "resamples": 500, "metrics": [OWN_SCORE]}, "reward": [reward],
        "algorithm": {"use": "rloo", "kl": {"coefficient": 0.02, "estimator": "k3", "where": "loss"}},
        "optimizer": {"learning_rate": 3e-3}, **changes,
    }  # fmt: skip


def learn_words(model: Path, rng: random.Random) -> Path:
    """Return a run that taught the model to answer with words, so that its texts differ in vowels."""
    words = sorted({word for subject in SUBJECTS for word in subject.split()})
    rows = [{"prompt": rng.choice(SUBJECTS), "completion": " " + " ".join(rng.choices(words, k=4))} for _ in range(960)]
    write_lines("words.jsonl", rows)
    warm = supervised_recipe("sft", model, "words.jsonl", format="completion", steps=60)
    warm |= {"batch": {"examples_per_step": 16, "max_tokens": 64}, "optimizer": {"learning_rate": 1e-2}}
    return burnish.sft(warm, run_dir="words", observer=RecordingObserver()).run_dir


def judge_over_http(run: Path) -> list[dict[str, Any]]:
    """Let the script judge 300 pairs of a run; return the rows that a reward model reads."""
    store = open_review(run)
    assert queue_samples(store, run, QueueSettings(pairs=300)) == 300
    headers = {"Authorization": f"Bearer {store.add_reviewer('script')}"}
    with served(store) as address, httpx.Client(base_url=address, headers=headers, timeout=60) as client:
        while item := client.get("/api/next").json():
            left, right = map(vowels, item["texts"])
            choice = "tie" if left == right else "left" if left > right else "right"
            client.post("/api/judge", json={"item": item["id"], "choice": choice}).raise_for_status()
    rows = list(preference_rows(store.judgements()))
    store.engine.dispose()
    return rows


def train_on(rows: list[dict[str, Any]], model: Path, name: str) -> tuple[list[float], list[float]]:
    """Train by a reward model of these rows. Return the own score of each held-out prompt before and after.

    A learned reward can be gamed, and one run may do so: the scores are means over the runs of three seeds.
    """
    write_rows(Path(f"{name}.jsonl"), rows)
    judge = supervised_recipe("reward-model", model, f"{name}.jsonl", format="pairs", steps=60)
    # The samples are of training prompts, and both splits are by one hash: 30% of the prompts have no row here.
    judge["data"]["held_out_percent"] = 50
    burnish.reward_model(judge, run_dir=f"judge-{name}", observer=RecordingObserver())
    reward = {"use": "reward_model", "path": f"judge-{name}"}
    scores: dict[str, dict[str, list[float]]] = {"before": defaultdict(list), "after": defaultdict(list)}
    for seed in range(3):
        given = recipe(model, reward, steps=15, seed=seed)
        trained = burnish.train(given, run_dir=f"two-{name}-{seed}", observer=RecordingObserver())
        for when, found in scores.items():
            measured = json.loads((trained.run_dir / "evaluation" / f"{when}.json").read_text(encoding="utf-8"))
            for row in measured["samples"]:
                found[row["prompt_id"]].append(row["metrics"]["own_score"])
    prompts = sorted(scores["before"])
    return [mean(scores["before"][one]) for one in prompts], [mean(scores["after"][one]) for one in prompts]


@pytest.mark.slow
def test_training_on_a_scripted_reviewers_judgements_raises_its_own_score(tiny_chat, tmp_path, monkeypatch):
    from scipy.stats import ttest_rel

    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    write_lines("prompts.jsonl", [{"prompt": subject} for subject in SUBJECTS])
    model = learn_words(tiny_chat, rng)
    sampling = {"prompts_per_step": 32, "samples_per_prompt": 2, "max_new_tokens": 16}
    first = recipe(model, {"use": "repetition"}, steps=10, sampling=sampling, optimizer={"learning_rate": 1e-5})
    rows = judge_over_http(burnish.train(first, run_dir="one", observer=RecordingObserver()).run_dir)
    assert rows and all(vowels(row["chosen"]) > vowels(row["rejected"]) for row in rows)
    assert all(row["prompt"][-1]["role"] == "user" for row in rows)  # a conversation
    before, learned = train_on(rows, model, "judged")
    assert ttest_rel(learned, before, alternative="greater").pvalue < 0.01
    # The control is a reviewer of the opposite taste.
    opposite = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    before, unlearned = train_on(opposite, model, "opposite")
    assert ttest_rel(unlearned, before, alternative="less").pvalue < 0.01
    assert ttest_rel(learned, unlearned, alternative="greater").pvalue < 0.01


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
