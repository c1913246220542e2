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


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/outside"])
def test_a_record_of_a_file_elsewhere_is_refused(run: Path, name: str) -> None:
    (run.parent / "outside").write_text("x")
    record = {"size": 1, "modified": 0, "sha256": "0" * 64}
    (run / "inputs.json").write_text(json.dumps({"inputs": {"policy.model": {f"<run>/{name}": record}}}))
    with pytest.raises(InputError, match=r"inputs\.json is damaged \(ValueError: '.*outside' leads out of the folder"):
        resolve_model(str(run), offline=True)


@pytest.mark.parametrize("change", [{"step": 3}, {"step": None}])
def test_a_manifest_of_another_step_is_refused(run: Path, change: dict[str, int | None]) -> None:
    path = run / "checkpoints" / "step-2" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=r"manifest\.json is damaged \(ValueError: it is of step"):
        resolve_model(str(run), offline=True)
