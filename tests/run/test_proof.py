"""Run folders that are not what their run wrote: what is named, what is offered, and what still resumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from burnish.api import train
from burnish.errors import InputError
from burnish.run.folder import comparable, read_lines
from burnish.run.proof import examine
from tests.fakes import RecordingObserver, train_toy

OPTIONS = ("steps=6", "checkpoint.every=2", "checkpoint.keep=9", "evaluation.every=2", "optimizer.learning_rate=1.0")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with three checkpoints, on which training is known to move every weight."""
    return train_toy(tmp_path_factory.mktemp("proof") / "run", *OPTIONS).run_dir


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run", symlinks=True)


def resume(run: Path, **options: object) -> list[str]:
    """Resume a run and return its warnings."""
    observer = RecordingObserver()
    train(resume=run, observer=observer, **options)
    return [text for level, text in observer.messages if level == "warning"]


def bits(run: Path) -> dict[str, object]:
    """Everything that is equal in equal runs."""
    newest = run / "checkpoints" / "step-6"
    files = [*newest.rglob("*"), *(run / "evaluation").iterdir(), run / "samples.jsonl", run / "held_out.jsonl"]
    rows = [comparable(row) for row in read_lines(run / "metrics.jsonl")]
    return {path.name: path.read_bytes() for path in files if path.is_file()} | {"metrics": rows}


def strip(run: Path) -> None:
    """Make a folder look as if an earlier version had written it: no manifest, no history of recipes."""
    (run / "recipes.json").unlink()
    for path in run.glob("checkpoints/*/manifest.json"):
        path.unlink()


def step(run: Path, number: int) -> Path:
    return run / "checkpoints" / f"step-{number}"


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def cut(path: Path, size: int = -1) -> None:
    path.write_bytes(path.read_bytes()[:size])


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")


def drop_line(path: Path, number: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:number] + lines[number + 1 :]))


def foreign_checkpoint(run: Path) -> None:
    """Put a checkpoint of the same step of another run in the place of the newest."""
    other = train_toy(run.parent / "other", *OPTIONS, "seed=5").run_dir
    shutil.rmtree(step(run, 6))
    shutil.copytree(step(other, 6), step(run, 6))


def reshape_moments(path: Path, shape: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = {name: one if one.dim() == 0 else shape(one).contiguous() for name, one in load_file(path).items()}
    save_file(tensors, path)


OPTIMIZER, WEIGHTS = "optimizer.safetensors", "model/model.safetensors"
NEWEST = {
    "weights of an older step": (
        lambda run: swap(step(run, 6) / WEIGHTS, step(run, 4) / WEIGHTS), r"model\.safetensors is not what was saved", 2
    ),
    "moments of an older step": (
        lambda run: shutil.copy(step(run, 4) / OPTIMIZER, step(run, 6) / OPTIMIZER), r"SHA-256 differs", 4
    ),
    "two checkpoints swapped": (lambda run: swap(step(run, 6), step(run, 4)), r"step-6 was saved as step 4", 2),
    "an older one renamed to a later": (
        lambda run: step(run, 4).rename(step(run, 60)), "step-60 was saved as step 4: it has been renamed", 6
    ),
    "an older one copied beside the last": (
        lambda run: shutil.copytree(step(run, 2), step(run, 7)), "step-7 was saved as step 2", 6
    ),
    "the state without its last byte": (lambda run: cut(step(run, 6) / "state.json"), r"state\.json has .* bytes", 4),
    "an empty optimizer": (lambda run: save_file({}, step(run, 6) / OPTIMIZER), r"optimizer\.safetensors has", 4),
    "no optimizer": (lambda run: (step(run, 6) / OPTIMIZER).unlink(), r"optimizer\.safetensors is missing", 4),
    "moments of another shape": (
        lambda run: reshape_moments(step(run, 6) / OPTIMIZER, lambda one: one.t()),
        r"'exp_avg/logits' is F64 \[4, 5\], but F64 \[5, 4\] was saved", 4,
    ),
    "a foreign file": (
        lambda run: (step(run, 6) / "model" / "notes.txt").write_text("x"),
        r"model/notes\.txt is not a file of this checkpoint", 4,
    ),
    "a link instead of a file": (
        lambda run: (
            (step(run, 6) / WEIGHTS).unlink(),
            (step(run, 6) / WEIGHTS).symlink_to("../../step-4/model/model.safetensors"),
        ),
        r"model\.safetensors is not a regular file", 4,
    ),
    "a manifest cut short": (lambda run: cut(step(run, 6) / "manifest.json", -20), r"manifest\.json is damaged", 4),
    "a manifest of another shape": (
        lambda run: (step(run, 6) / "manifest.json").write_text('{"step": 6, "files": []}'),
        r"manifest\.json is damaged", 4,
    ),
    "a manifest of a file elsewhere": (
        lambda run: edit(step(run, 6) / "manifest.json", '"evaluation/before.json"', '"../before.json"'),
        r"manifest\.json is damaged \(ValueError: '\.\./before\.json' leads out of the folder", 4,
    ),
    "no manifest": (lambda run: (step(run, 6) / "manifest.json").unlink(), r"manifest\.json is missing", 4),
    "a checkpoint of another run": (
        foreign_checkpoint, r"step-6 belongs to a run of another recipe: seed was 0 and is 5", 4
    ),
    "a lost line of metrics": (
        lambda run: drop_line(run / "metrics.jsonl", 4), r"metrics\.jsonl has lost lines: 5 are left of 6", 4
    ),
    "an edited line of metrics": (
        lambda run: edit(run / "metrics.jsonl", '"reward/mean": ', '"reward/mean": 1'), "has other lines than were", 0
    ),
    "lost samples": (lambda run: cut(run / "samples.jsonl", 100), r"samples\.jsonl, line 1: not JSON", 0),
    "no samples": (lambda run: (run / "samples.jsonl").unlink(), r"samples\.jsonl is missing", 0),
    "a lost measurement": (
        lambda run: drop_line(run / "held_out.jsonl", 0), r"held_out\.jsonl has lost lines: 1 are left of 2", 2
    ),
    "another first measurement": (
        lambda run: cut(run / "evaluation" / "before.json", -2), r"before\.json has .* \(the measurement before", 0
    ),
}  # fmt: skip
"""Damage -> how it is made, what is said of it, and the step that is offered instead, 0 to begin again."""


@pytest.mark.parametrize("name", NEWEST)
def test_a_damaged_checkpoint_is_named_and_the_last_whole_one_is_offered(run: Path, whole: Path, name: str) -> None:
    damage, said, offered = NEWEST[name]
    damage(run)
    before = sorted(run.rglob("*"))
    with pytest.raises(InputError, match=said) as caught:
        resume(run)
    first, second = str(caught.value).split("\n")
    assert second.endswith(f"burnish train --resume {run} --from-step {offered}"), (first, second)
    assert sorted(run.rglob("*")) == before, "a refusal changes nothing"
    assert any(part.problems for part in examine(run))
    resume(run, from_step=offered)
    assert bits(run) == bits(whole)
    assert not any(part.problems for part in examine(run))


@pytest.mark.parametrize(
    ("key", "before", "after"),
    [
        ("seed", "seed = 0", "seed = 1"),
        ("optimizer.learning_rate", "learning_rate = 1.0", "learning_rate = 1.5"),
        ("steps", "steps = 6", "steps = 9"),
        ("checkpoint.keep", "keep = 9\n", "\n"),
    ],
)
def test_an_edited_recipe_is_refused_by_key(run: Path, key: str, before: str, after: str) -> None:
    edit(run / "recipe.toml", before, after)
    with pytest.raises(
        InputError, match=rf"recipe\.toml was edited since the run began: {key} was .* and is .*restore"
    ):
        resume(run)
    assert [part.name for part in examine(run) if part.problems] == ["recipe.toml"]
    with pytest.raises(InputError, match="was edited since the run began"):
        resume(run, from_step=2)


def test_comments_and_order_of_a_recipe_may_change(run: Path) -> None:
    edit(run / "recipe.toml", "seed = 0\n", "# mine\nseed    = 0 # as before\n")
    assert resume(run) == []


@pytest.mark.parametrize("text", ["", "[]", "{", '{"recipes": [], "unproved_until": 0}', '{"recipes": [[]]}'])
def test_a_damaged_history_is_refused(run: Path, text: str) -> None:
    (run / "recipes.json").write_text(text)
    with pytest.raises(InputError, match=r"recipes\.json is damaged .*: restore it, or start a new run"):
        resume(run)


class TestFromStep:
    def test_going_back_gives_the_same_bits(self, run: Path, whole: Path) -> None:
        for back in (4, 2, 0):
            resume(run, from_step=back)
            assert bits(run) == bits(whole)

    def test_only_a_step_with_a_checkpoint_is_taken(self, run: Path) -> None:
        with pytest.raises(InputError, match=r"--from-step 3: .* has no such checkpoint; it has 0, 2, 4, 6"):
            resume(run, from_step=3)
        with pytest.raises(InputError, match="--from-step belongs to --resume"):
            train_toy(run.parent / "new", from_step=2)

    def test_the_best_model_is_not_one_that_was_deleted(self, tmp_path: Path) -> None:
        kept = [*OPTIONS, "checkpoint.keep_best=held_out/reward"]
        first = train_toy(tmp_path / "run", *kept).run_dir
        best = (first / "model_best").readlink()
        resume(first, from_step=2)
        assert (first / "model_best").readlink() == best and (first / "model_best").is_dir()


class TestEarlierVersions:
    """Runs without manifests: nothing can be proved, but what can be told is told."""

    def test_they_resume_with_one_line_and_are_proved_from_then_on(self, run: Path, whole: Path) -> None:
        strip(run)
        shutil.rmtree(step(run, 6))
        said = [text for text in resume(run) if "manifest" in text]
        assert len(said) == 1 and said[0].endswith(
            "step-4 was saved before checkpoints had a manifest, so its files cannot be proved"
        )
        assert (step(run, 6) / "manifest.json").is_file() and not (step(run, 4) / "manifest.json").exists()
        assert bits(run) == bits(whole)
        assert not any(part.problems for part in examine(run))
        (step(run, 6) / "manifest.json").unlink()
        with pytest.raises(InputError, match=r"step-6/manifest\.json is missing"):
            resume(run)

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda run: step(run, 4).rename(step(run, 9)), r"step-9/state\.json belongs to another step"),
            (lambda run: cut(step(run, 6) / WEIGHTS), "has no header, or not all of its tensors"),
            (lambda run: save_file({}, step(run, 6) / OPTIMIZER), "has no tensors, although the optimizer has made"),
            (lambda run: (step(run, 6) / OPTIMIZER).write_bytes(b""), "has no header"),
            (lambda run: reshape_moments(step(run, 6) / OPTIMIZER, lambda one: one[:1]), "belongs to another model's"),
            (lambda run: reshape_moments(step(run, 6) / OPTIMIZER, lambda one: one.flatten()), "has shape"),
            (lambda run: drop_line(run / "metrics.jsonl", 2), "has lost 1 of 6 steps, such as 3"),
        ],
    )
    def test_what_can_be_told_is_refused(self, run: Path, damage: Callable[[Path], None], said: str) -> None:
        strip(run)
        damage(run)
        with pytest.raises(InputError, match=said):
            resume(run)


def test_an_extended_run_is_proved_too(run: Path) -> None:
    train(resume=run, extend=2, observer=RecordingObserver())
    assert not any(part.problems for part in examine(run))
    assert len(json.loads((run / "recipes.json").read_text())["recipes"]) == 2
    assert resume(run) == []
    edit(run / "recipe.toml", "steps = 8", "steps = 7")
    with pytest.raises(InputError, match="steps was 8 and is 7: restore it, or add steps with --extend"):
        resume(run)


def test_links_and_pipes_are_refused_before_anything_is_read(run: Path, tmp_path: Path) -> None:
    import os

    mine = tmp_path / "mine.txt"
    mine.write_text("kept")
    for name in ("metrics.jsonl", ".recipe.toml.partial", "checkpoints/.step-8.partial", "evaluation/after.json"):
        path = run / name
        aside = path.rename(tmp_path / "aside") if path.exists() else None
        path.symlink_to(mine)
        with pytest.raises(InputError, match="is a link that leads out of the run folder"):
            resume(run)
        assert [part.name for part in examine(run) if part.problems] == ["links"]
        path.unlink()
        if aside:
            aside.rename(path)
    os.mkfifo(run / "warnings.pipe")
    with pytest.raises(InputError, match="is neither a file nor a folder but a pipe"):
        resume(run)
    assert mine.read_text() == "kept"


def test_a_lock_that_is_a_folder_is_named(run: Path) -> None:
    (run / ".lock").unlink(missing_ok=True)
    (run / ".lock").mkdir()
    assert [text for part in examine(run) for text in part.problems] == [f"{run / '.lock'} is not a file"]
