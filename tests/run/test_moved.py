"""``burnish evaluate RUN`` after the run and its data were moved."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import burnish
from burnish.api import evaluate
from burnish.errors import InputError
from burnish.recipe.schema import load_recipe
from burnish.run.moved import run_recipe
from tests.fakes import SUBJECTS, RecordingObserver, write_lines

ROWS = [{"prompt": f"The {subject} said {n}", "answer": "x"} for n in range(3) for subject in SUBJECTS]


@pytest.fixture
def project(tmp_path: Path, tiny) -> Path:
    """A folder with data and a run, which was moved."""
    old = tmp_path / "old"
    (old / "data").mkdir(parents=True)
    write_lines(old / "data" / "rows.jsonl", ROWS)
    write_lines(old / "data" / "hard.jsonl", ROWS[:3])
    recipe = {
        "name": "small", "steps": 1, "policy": {"model": str(tiny())}, "reward": [{"use": "repetition"}],
        "task": {"use": "data", "path": str(old / "data" / "rows.jsonl"), "chat": False},
        "sampling": {"prompts_per_step": 1, "samples_per_prompt": 2, "max_new_tokens": 2},
        "evaluation": {"sets": [{"name": "hard", "path": str(old / "data" / "hard.jsonl")}], "prompts": 2},
    }  # fmt: skip
    burnish.train(recipe, run_dir=old / "runs" / "one", observer=RecordingObserver(), offline=True)
    return old.rename(tmp_path / "new")


@pytest.mark.slow
def test_files_that_moved_along_are_found_by_their_content(project):
    run = project / "runs" / "one"
    recipe = run_recipe(run, [])
    assert recipe.task.options["path"] == str(project / "data" / "rows.jsonl")
    assert recipe.evaluation.sets[0].options["path"] == str(project / "data" / "hard.jsonl")
    assert "set/hard/reward" in evaluate(str(run), offline=True, observer=RecordingObserver())
    # Other content under the same name is not taken for the run's.
    write_lines(project / "data" / "rows.jsonl", ROWS[:-1])
    with pytest.raises(
        InputError, match=r"its task\.path = '.*old/data/rows\.jsonl' is missing.*--set task\.path=PATH"
    ):
        run_recipe(run, [])
    chosen = run_recipe(run, [f"task.path={project}/data/rows.jsonl"])
    assert chosen.task.options["path"] == str(project / "data" / "rows.jsonl")


@pytest.mark.slow
def test_a_run_has_its_own_rows(tmp_path, tiny):
    recipe = {
        "name": "small", "steps": 1, "policy": {"model": str(tiny())}, "reward": [{"use": "repetition"}],
        "task": {"use": "data", "chat": False},
        "sampling": {"prompts_per_step": 1, "samples_per_prompt": 2, "max_new_tokens": 2},
    }  # fmt: skip
    burnish.train(recipe, rows=ROWS, run_dir=tmp_path / "run", observer=RecordingObserver(), offline=True)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert run_recipe(tmp_path / "moved", []).task.options["path"] == str(tmp_path / "moved" / "rows.jsonl")


def test_an_override_replaces_own_rows(tmp_path):
    recipe = {
        "name": "small", "reward": [{"use": "repetition"}],
        "task": {"use": "data", "path": "/old/rows.jsonl", "held_out": "/old/rows_held_out.jsonl"},
    }  # fmt: skip
    (tmp_path / "recipe.toml").write_text(load_recipe(recipe).toml(), encoding="utf-8")
    for name in ("rows.jsonl", "rows_held_out.jsonl", "other.jsonl"):
        (tmp_path / name).touch()
    own = {"path": str(tmp_path / "rows.jsonl"), "held_out": str(tmp_path / "rows_held_out.jsonl")}
    assert run_recipe(tmp_path, []).task.options == own
    for key in own:
        other = str(tmp_path / "other.jsonl")
        assert run_recipe(tmp_path, [f"task.{key}={other}"]).task.options == own | {key: other}
