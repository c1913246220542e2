"""Models in run folders: one that is not what its run saved is refused wherever a model is named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from bench.tiny_models import write_tiny_model
from burnish.catalogue.convert import resolve_model
from burnish.errors import InputError
from burnish.run.folder import find_checkpoints
from burnish.system.file_records import file_record


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Path:
    """A run folder with one checkpoint and its manifest."""
    folder = tmp_path / "run"
    checkpoint = folder / "checkpoints" / "step-2"
    shutil.copytree(model, checkpoint / "model")
    (checkpoint / "state.json").write_text('{"step": 2}')
    (folder / "recipe.toml").write_text('name = "x"\n')
    (folder / "model").symlink_to("checkpoints/step-2/model")
    files = {
        path.relative_to(checkpoint).as_posix(): file_record(path) for path in checkpoint.rglob("*") if path.is_file()
    }
    manifest = {"step": 2, "files": files, "recipe": {}, "lines": {}, "beside": {}}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert [one.step for one in find_checkpoints(folder)] == [2]
    return folder


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def add(path: Path) -> None:
    (path.parent / "chat_template.jinja").write_text("{{ messages }}")


DAMAGE = [
    ("model.safetensors", flip, "model.safetensors is not what was saved: its SHA-256 differs"),
    (
        "config.json",
        lambda path: path.write_text(path.read_text() + "\n"),
        "config.json has .* bytes, but .* were saved",
    ),
    ("tokenizer.json", Path.unlink, "tokenizer.json is missing"),
    ("config.json", add, "chat_template.jinja is not a file of this checkpoint"),
    ("../manifest.json", lambda path: path.write_text("[]"), "manifest.json is damaged"),
    (
        "../manifest.json",
        lambda path: path.write_text('{"files": {"model/config.json": 3}}'),
        "manifest.json is damaged",
    ),
]


@pytest.mark.parametrize("name", ["run", "run/model", "run/checkpoints/step-2/model"])
@pytest.mark.parametrize(("file", "damage", "message"), DAMAGE)
def test_damage_is_named_by_every_way_to_the_model(run: Path, name: str, file: str, damage, message: str) -> None:
    named = str(run.parent / name)
    assert resolve_model(named).samefile(run / "model")
    damage(run / "model" / file)
    with pytest.raises(InputError, match=message) as caught:
        resolve_model(named)
    assert f"burnish check {run}" in str(caught.value)


def test_a_copy_and_a_run_without_manifests_are_taken(run: Path, tmp_path: Path) -> None:
    flip(run / "model" / "model.safetensors")
    copy = shutil.copytree(run / "model", tmp_path / "copy")
    assert resolve_model(str(copy)) == copy
    (run / "model" / ".." / "manifest.json").unlink()
    assert resolve_model(str(run)).samefile(run / "model")


def test_a_run_that_leads_out_of_itself_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.move(run / "checkpoints" / "step-2" / "model", tmp_path / "elsewhere")
    (run / "checkpoints" / "step-2" / "model").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link that leads out of the run folder"):
        resolve_model(str(run))


def test_a_pipe_is_not_waited_for(run: Path) -> None:
    (run / "model" / "generation_config.json").unlink()
    os.mkfifo(run / "model" / "generation_config.json")
    with pytest.raises(InputError, match="but a pipe: remove it"):
        resolve_model(str(run))
