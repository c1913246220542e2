from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from burnish.errors import InputError
from burnish.reports.model_card import model_card
from burnish.safety.release import release_run
from burnish.safety.review.queue import QueueSettings
from burnish.safety.review.session import open_review, queue_samples
from burnish.safety.review.store import APPROVE, REJECT, Answer, ReviewStore
from tests.safety.review.conftest import visitor

RECIPE = 'name = "mine"\nsteps = 3\n[task]\nuse = "news"\n[[reward]]\nuse = "bleu"\n'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    (folder / "model" / "config.json").write_text("{}", encoding="utf-8")
    rows = [
        {"step": 1, "prompt_id": "p", "prompt": "hi", "completion": f"text {number}", "flags": ["insult"]}
        for number in range(2)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def store(run: Path) -> Iterator[ReviewStore]:
    opened = open_review(run)
    yield opened
    opened.engine.dispose()


def judge(store: ReviewStore, *labels: str) -> None:
    ann = visitor(store, "ann")
    for label in labels:
        item = store.next_item(ann)
        assert item is not None and item.kind == "text"
        store.judge(ann, item.id, Answer(label))


def test_a_release_waits_for_the_queue_and_for_every_judgement(run, store):
    with pytest.raises(InputError, match="were not queued for people"):
        release_run(run, store)
    queue_samples(store, run, QueueSettings())
    with pytest.raises(InputError, match="2 of 2 flagged texts wait"):
        release_run(run, store)
    judge(store, APPROVE)
    with pytest.raises(InputError, match="1 of 2 flagged texts wait"):
        release_run(run, store)
    assert not (run / "release.json").exists()


def test_an_approved_run_is_released_with_names_times_and_hashes(run, store):
    queue_samples(store, run, QueueSettings())
    judge(store, APPROVE, APPROVE)
    release_run(run, store, clock=lambda: 0.0)
    record = json.loads((run / "release.json").read_text(encoding="utf-8"))
    assert record["released_at"] == "1970-01-01T00:00:00+00:00"
    assert record["model"] == {"config.json": {"sha256": hashlib.sha256(b"{}").hexdigest(), "bytes": 2}}
    assert record["flagged"] == {"total": 2, "rejected": 0}
    assert record["texts"][0]["sha256"] == hashlib.sha256(b"text 0").hexdigest()
    assert [one["reviewer"] for text in record["texts"] for one in text["verdicts"]] == ["ann", "ann"]
    card = (run / "model_card.md").read_text(encoding="utf-8")
    assert "of which 0 were rejected" in card and "ann (2)" in card
    assert "Licence: LGPL-2.1" in card and "## Limits" in card


def test_a_rejected_text_needs_a_reason_that_is_recorded(run, store):
    queue_samples(store, run, QueueSettings())
    judge(store, APPROVE, REJECT)
    with pytest.raises(InputError, match="1 of 2 flagged texts were rejected"):
        release_run(run, store, despite=" ")
    record = release_run(run, store, despite="an early step, cured\nlater")
    assert record["despite"] == "an early step, cured\nlater" and record["flagged"]["rejected"] == 1
    card = (run / "model_card.md").read_text(encoding="utf-8")
    assert "1 flagged texts were rejected: an early step, cured later" in card


def test_newer_samples_must_be_queued_first(run, store):
    queue_samples(store, run, QueueSettings())
    judge(store, APPROVE, APPROVE)
    with (run / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "hi", "completion": "new", "flags": ["insult"]}) + "\n")
    with pytest.raises(InputError, match="were not queued"):
        release_run(run, store)
    assert queue_samples(store, run, QueueSettings()) == 1
    with pytest.raises(InputError, match="1 of 3 flagged texts wait"):
        release_run(run, store)


def test_a_folder_without_a_recipe_is_not_reviewed(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        open_review(tmp_path)
    assert list(tmp_path.iterdir()) == []


DAMAGED = {
    "recipe.toml": [
        "",
        "name = ",
        'name = 3\npolicy = "x"\ntask = 1\nreward = 5\n',
        'reward = [{ weight = "x" }, { use = 1 }]\n',
    ],
    "evaluation.json": ["", "[1]", "{", '{"reward": 3}', '{"reward": {"after": null, "interval": 1}}'],
    "warnings.jsonl": ["{}", "[1]\n3\n", '{"text": [1]}\n', "{\n"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in DAMAGED.items() for text in texts])
def test_a_damaged_file_of_the_run_leaves_no_half_release(run, store, name, text):
    queue_samples(store, run, QueueSettings())
    judge(store, APPROVE, APPROVE)
    (run / name).write_text(text, encoding="utf-8")
    release_run(run, store)
    assert "ann (2)" in (run / "model_card.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '{"flagged": 1}', '{"despite": "x"}', '{"review": {"by_reviewer": 3}}']
)
def test_a_card_beside_a_damaged_release_says_so(run, text):
    (run / "release.json").write_text(text, encoding="utf-8")
    assert "release.json cannot be read" in model_card(run)


def test_a_review_is_not_written_through_a_link(run, tmp_path):
    target = tmp_path / "elsewhere.sqlite"
    for name in ("missing", "present"):
        if name == "present":
            target.write_bytes(b"")
        (run / "review.sqlite").symlink_to(target)
        with pytest.raises(InputError, match="is a link"):
            open_review(run)
        assert target.exists() == (name == "present")
        (run / "review.sqlite").unlink()
    assert target.read_bytes() == b""
