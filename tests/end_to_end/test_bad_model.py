"""Damaged and incomplete model folders: exit status, message, and no files left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.end_to_end.refusals import contents, refused


class TestModels:
    @pytest.fixture
    def model(self, workspace, tiny) -> Path:
        return shutil.copytree(tiny("llama"), workspace / "model")

    def refused(self, workspace, tiny_recipe, tiny, status, *parts: str) -> None:
        workspace.write("tiny.toml", tiny_recipe().replace(str(tiny("llama")), "model"))
        before = contents(workspace.folder)
        refused(workspace.ask("train", "tiny.toml", "--run-dir", "run", "--quiet"), status, *parts)
        assert contents(workspace.folder) == before, "no files are left behind"
        refused(workspace.ask("generate", "model", "hello"), status, *parts)

    def test_missing_shard(self, workspace, tiny_recipe, tiny, model):
        from burnish.policies.loading import load_model

        load_model(model).model.save_pretrained(model, max_shard_size="40KB")
        shards = sorted(model.glob("model-*.safetensors"))
        (model / "model.safetensors").unlink(missing_ok=True)
        shards[1].unlink()
        self.refused(workspace, tiny_recipe, tiny, 2, "lacks 1 of", shards[1].name)

    def test_truncated_weights(self, workspace, tiny_recipe, tiny, model):
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        self.refused(workspace, tiny_recipe, tiny, 2, "model.safetensors", "copy or download it again")

    def test_no_config(self, workspace, tiny_recipe, tiny, model):
        (model / "config.json").unlink()
        self.refused(workspace, tiny_recipe, tiny, 2, "has no config.json")

    def test_invalid_config(self, workspace, tiny_recipe, tiny, model):
        (model / "config.json").write_text("{")
        self.refused(workspace, tiny_recipe, tiny, 2, "config.json cannot be read as JSON")

    def test_weights_of_another_shape(self, workspace, tiny_recipe, tiny, model):
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 50}))
        self.refused(workspace, tiny_recipe, tiny, 2, "cannot be loaded")

    def test_missing_layer(self, workspace, tiny_recipe, tiny, model):
        from safetensors.torch import load_file, save_file

        weights = load_file(model / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, model / "model.safetensors", {"format": "pt"})
        self.refused(workspace, tiny_recipe, tiny, 2, "cannot be loaded", "up_proj")

    def test_pickled_weights(self, workspace, tiny_recipe, tiny, model):
        (model / "model.safetensors").rename(model / "pytorch_model.bin")
        self.refused(workspace, tiny_recipe, tiny, 2, "pickled weights", "save the model as safetensors")

    def test_no_tokenizer(self, workspace, tiny_recipe, tiny, model):
        for path in model.glob("tokenizer*"):
            path.unlink()
        self.refused(workspace, tiny_recipe, tiny, 2, "has no tokenizer")

    def test_no_such_folder(self, workspace, tiny_recipe, tiny):
        workspace.write("tiny.toml", tiny_recipe().replace(str(tiny("llama")), "./nowhere"))
        refused(workspace.ask("train", "tiny.toml", "--run-dir", "run"), 2, "model './nowhere'", "no such folder")
        assert not (workspace / "run").exists()
