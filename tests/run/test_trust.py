"""Code that a recipe names: it runs where the recipe was given, and not from a folder of somebody else."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import burnish
from burnish.cli.app import app
from burnish.errors import InputError
from burnish.named_code import module_file
from tests.end_to_end.refusals import TOY
from tests.fakes import RecordingObserver

CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")

def score(text):
    return float(len(text))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, whose reward is a module beside it that leaves a marker; the shell stands elsewhere."""
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "project"
    (folder / "elsewhere").mkdir(parents=True)
    name = f"mine_{abs(hash(str(tmp_path)))}"
    (folder / f"{name}.py").write_text(CODE.format(marker=str(tmp_path / "marker")))
    (folder / "toy.toml").write_text(TOY.replace('use = "exact"', f'use = "{name}:score"\nname = "mine"'))
    monkeypatch.chdir(folder / "elsewhere")
    yield folder
    forget(name)


def forget(name: str) -> None:
    """Let a module be imported anew, as in another process."""
    from burnish.rewards.registry import REWARDS

    sys.modules.pop(name, None)
    for path in [path for path in REWARDS._paths if path.startswith(f"{name}:")]:
        del REWARDS._paths[path]


def module(place: Path) -> str:
    return next(place.glob("*.py")).stem


def ran(place: Path) -> bool:
    """Whether the module ran since it was asked last."""
    marker = place.parent / "marker"
    if marker.exists():
        marker.unlink()
        return True
    return False


def train(*arguments: object, **options: object) -> list[str]:
    observer = RecordingObserver()
    burnish.train(*arguments, observer=observer, **options)
    return [text for _, text in observer.messages]


def foreign(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that began on another machine."""
    train(place / "toy.toml", run_dir=place / "run")
    forget(module(place))
    assert ran(place)
    monkeypatch.setenv("BURNISH_HOME", str(place.parent / "another home"))
    return place / "run"


def test_a_module_is_looked_up_beside_the_recipe_and_said(place: Path) -> None:
    said = train(place / "toy.toml", run_dir=place / "run")
    file = place / f"{module(place)}.py"
    assert f"runs {file}, which the recipe names: reward '{module(place)}:score'" in said
    assert ran(place)
    assert json.loads((place / "run" / "recipes.json").read_text())["code_folder"] == str(place)


def test_a_module_of_the_same_name_in_the_working_folder_is_not_taken(place: Path) -> None:
    (place / "elsewhere" / f"{module(place)}.py").write_text("raise SystemExit('the wrong one')")
    train(place / "toy.toml", run_dir=place / "run")
    forget(module(place))
    train(resume=place / "run")
    assert ran(place)


def test_a_run_of_this_machine_resumes_without_a_question(place: Path) -> None:
    train(place / "toy.toml", run_dir=place / "run")
    forget(module(place))
    moved = shutil.move(place / "run", place.parent / "moved")
    said = train(resume=moved, extend=2)
    assert ran(place) and any(text.startswith("runs ") for text in said)
    forget(module(place))
    train(resume=moved, extend=2)  # with the seal of the longer recipe
    assert ran(place)


def test_a_run_of_another_machine_asks_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = foreign(place, monkeypatch)
    before = sorted(run.rglob("*"))
    question = rf"is code in {place}/mine_\d+\.py: .* did not begin on this machine; look at it, then add --trust"
    for again in ({"resume": run}, {"recipe": run / "recipe.toml", "run_dir": place / "new"}):
        with pytest.raises(InputError, match=question):
            train(**again)
        assert not ran(place)
    assert sorted(run.rglob("*")) == before
    train(resume=run, trust=True)
    assert ran(place)
    forget(module(place))
    train(resume=run, extend=1)
    assert ran(place), "trusted from then on"


@pytest.mark.parametrize("edit", ["recipe", "folder", "seal"])
def test_a_seal_holds_for_one_recipe_and_one_folder(place: Path, edit: str) -> None:
    """Somebody who was given a run cannot send it back with other code."""
    train(place / "toy.toml", run_dir=place / "run")
    assert ran(place)
    forget(module(place))
    run, other = place / "run", place / "elsewhere"
    (other / "other.py").write_text((place / f"{module(place)}.py").read_text())
    history = json.loads((run / "recipes.json").read_text())
    if edit == "recipe":
        shutil.rmtree(run / "checkpoints")
        (run / "checkpoints").mkdir()
        history["recipes"][0]["reward"][0]["use"] = "other:score"
        (run / "recipe.toml").write_text(
            (run / "recipe.toml").read_text().replace(f"{module(place)}:score", "other:score")
        )
        history["code_folder"] = str(other)
    elif edit == "folder":
        shutil.copy(place / f"{module(place)}.py", other)
        history["code_folder"] = str(other)
    else:
        history["seals"] = ["0" * 64]
    (run / "recipes.json").write_text(json.dumps(history))
    with pytest.raises(InputError, match="did not begin on this machine"):
        train(resume=run)
    assert not ran(place)


def test_without_a_home_every_resume_asks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "file").write_text("")
    monkeypatch.setenv("BURNISH_HOME", str(place / "file" / "home"))
    train(place / "toy.toml", run_dir=place / "run")
    assert ran(place)
    forget(module(place))
    with pytest.raises(InputError, match="--trust"):
        train(resume=place / "run")
    train(resume=place / "run", trust=True)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('use = "{0}:score"', 'use = "{0}:score"'),
        ('use = "toy"', 'use = "{0}:score"'),
        ('[[reward]]', '[[evaluation.metrics]]\nuse = "{0}:score"\n[[reward]]'),
        ('use = "tabular"', 'use = "module"\nmodule = "{0}:score"\nscores = "logits"\nvocabulary = "{1}/characters"'),
    ],
    ids=["reward", "task", "metric", "policy"],
)  # fmt: skip
def test_a_dry_run_runs_no_code(place: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str) -> None:
    from typer.testing import CliRunner

    from burnish.cli.app import app

    (place / "characters").write_text("abc")
    text, name = (place / "toy.toml").read_text(), module(place)
    if before.startswith("use = ") and "score" not in before:
        text = text.replace(f'use = "{name}:score"\nname = "mine"', 'use = "repetition"')
    (place / "toy.toml").write_text(text.replace(before.format(name), after.format(name, place), 1))
    done = CliRunner().invoke(app, ["train", str(place / "toy.toml"), "--dry-run"])
    assert not ran(place)
    assert done.exit_code == 0, (done.output, done.exception)
    assert f"'{name}:score' is code in {place}/{name}.py: a dry run does not run it" in " ".join(done.output.split())


def test_evaluate_runs_no_code_of_a_recipe(place: Path, tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(
        json.dumps({"prompt": f"{word} said"}) + "\n"
        for word in ("Ann", "Bob", "Carl", "Dora", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim")
    )
    (place / "rows.jsonl").write_text(rows)
    recipe = {
        "name": "small", "steps": 1, "policy": {"model": str(tiny())}, "reward": [{"use": f"{module(place)}:score"}],
        "task": {"use": "data", "path": str(place / "rows.jsonl"), "chat": False},
        "sampling": {"prompts_per_step": 1, "samples_per_prompt": 2, "max_new_tokens": 2},
        "evaluation": {"resamples": 100, "samples_per_prompt": 2},
    }  # fmt: skip
    monkeypatch.chdir(place)
    train(recipe, run_dir=place / "run")
    assert ran(place)
    quiet = {"observer": RecordingObserver(), "offline": True}
    assert "reward" in burnish.evaluate(str(place / "run"), **quiet), "a run of this machine"
    monkeypatch.setenv("BURNISH_HOME", str(place.parent / "another home"))
    for again in ({}, {"recipe": place / "run" / "recipe.toml"}):
        forget(module(place))
        ran(place)
        with pytest.raises(InputError, match=r"did not begin on this machine; .* --trust"):
            burnish.evaluate(str(place / "run"), **again, **quiet)
        assert not ran(place)
    shutil.copy(place / "run" / "recipe.toml", place / "alone.toml")
    with pytest.raises(InputError, match="evaluate runs none of a recipe file; look at it, then add --trust"):
        burnish.evaluate(str(place / "run"), recipe=place / "alone.toml", **quiet)
    assert not ran(place)
    assert "reward" in burnish.evaluate(str(place / "run"), recipe=place / "alone.toml", trust=True, **quiet)
    assert ran(place)


def test_opening_a_run_of_somebody_else_runs_no_code(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from burnish.cli.app import app

    run = foreign(place, monkeypatch)
    for verb in ("report", "check"):
        assert CliRunner().invoke(app, [verb, str(run)]).exit_code == 0
    assert CliRunner().invoke(app, ["train", "--resume", str(run), "--dry-run"]).exit_code == 0
    recipe = (run / "recipe.toml").read_text().replace('use = "tabular"', 'use = "module"\nscores = "logits"')
    (run / "recipe.toml").write_text(recipe.replace("[policy]", f'[policy]\nmodule = "{module(place)}:score"'))
    vocabulary = {"kind": "character", "tokens": ["a", "b", "$"], "end": 2}
    (run / "model" / "vocabulary.json").write_text(json.dumps(vocabulary))
    with pytest.raises(InputError, match="did not begin on this machine; look at it"):
        burnish.load(run)
    assert not ran(place)


def test_a_missing_module_names_the_folder(place: Path) -> None:
    (place / "toy.toml").write_text(TOY.replace('use = "exact"', 'use = "nowhere.to_be:found"'))
    with pytest.raises(
        InputError, match=rf"cannot import 'nowhere.to_be' .* put its file into {place}, where the recipe"
    ):
        train(place / "toy.toml", run_dir=place / "run")
    assert module_file("nowhere.to_be") is None


PROGRAM = "#!/bin/sh\ntouch {marker}\nexit 1\n"


@pytest.fixture
def program(place: Path) -> Path:
    """A program that a recipe of the run at ``place`` names as the Python of its samplers; it leaves the marker."""
    path = place / "python"
    path.write_text(PROGRAM.format(marker=place.parent / "marker"))
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("engine", [True, False])
def test_a_run_of_another_machine_starts_no_program_and_joins_no_cluster(place, program, monkeypatch, engine) -> None:
    run = foreign(place, monkeypatch)
    python = f'engine = "vllm"\npython = "{program}"' if engine else 'address = "127.0.0.1:9"'
    recipe = f'name = "theirs"\n[[reward]]\nuse = "repetition"\n[backend]\nuse = "ray"\n{python}\n'
    (run / "recipe.toml").write_text(recipe)
    key = "backend.python" if engine else "backend.address"
    with pytest.raises(InputError, match=rf"{key} = .* did not begin on this machine; look at it, then add --trust"):
        burnish.train(recipe=run / "recipe.toml", run_dir=place / "new", observer=RecordingObserver())
    done = CliRunner().invoke(app, ["doctor", "--ray", str(run / "recipe.toml")])
    assert isinstance(done.exception, InputError) and key in str(done.exception)
    done = CliRunner().invoke(app, ["train", str(run / "recipe.toml"), "--dry-run"])
    assert done.exit_code == 0, done.exception
    assert not ran(place)
    if engine:
        with pytest.raises(InputError, match="is not a Python"):
            burnish.train(recipe=run / "recipe.toml", run_dir=place / "new", observer=RecordingObserver(), trust=True)
        assert ran(place)
