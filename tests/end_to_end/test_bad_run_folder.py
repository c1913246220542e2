"""Damaged, locked and unwritable run folders: exit status, message, and a run that can still be resumed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.end_to_end.refusals import NO_OVERRIDE, TOY, contents, refused


class TestRunFolders:
    @pytest.fixture
    def done(self, workspace) -> Path:
        """A finished run."""
        workspace.write("toy.toml", TOY)
        assert workspace.ask("train", "toy.toml", "--run-dir", "run", "--quiet").status == 0
        return workspace / "run"

    def test_new_run_in_the_folder_of_another(self, workspace, done):
        before = {name: (done / name).read_bytes() for name in ("metrics.jsonl", "recipe.toml", "evaluation.json")}
        refused(workspace.ask("train", "toy.toml", "--run-dir", "run"), 2, "run already holds a run", "--resume run")
        assert all((done / name).read_bytes() == was for name, was in before.items())

    def test_resume_without_a_run(self, workspace):
        (workspace / "empty").mkdir()
        for name in ("empty", "nowhere", "jobs.py"):
            refused(workspace.ask("train", "--resume", name), 2, f"{name} is not a run folder")
        assert contents(workspace / "empty") == []

    @pytest.mark.parametrize("file", ["model/model.safetensors", "optimizer.safetensors", "state.json"])
    @pytest.mark.parametrize("damage", ["cut", "noise", "empty", "gone"])
    def test_damaged_checkpoint(self, workspace, done, traces, file, damage):
        whole = traces(done)
        newest = done / "checkpoints" / "step-4"
        path = newest / file
        data = path.read_bytes()
        broken = {"cut": data[: len(data) * 2 // 3], "noise": bytes(range(256)) * 3, "empty": b""}
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(broken[damage])
        if (file, damage) != ("state.json", "gone"):  # a checkpoint without its state is ignored
            refused(workspace.ask("train", "--resume", "run", "--quiet"), 2, "step-4", "delete")
            shutil.rmtree(newest)
        assert workspace.ask("train", "--resume", "run", "--quiet").status == 0
        assert traces(done) == whole

    @pytest.mark.parametrize("state", ["[]", "{}", '{"step": 4, "baseline": "high"}', '{"step": 4, "baseline": null}'])
    def test_invalid_state(self, workspace, done, state):
        (done / "checkpoints" / "step-4" / "state.json").write_text(state)
        refused(workspace.ask("train", "--resume", "run", "--quiet"), 2, "step-4", "delete")

    def test_checkpoint_of_another_model(self, workspace, done):
        from safetensors.torch import save_file
        from torch import zeros

        save_file({"logits": zeros(3, 2)}, done / "checkpoints" / "step-4" / "model" / "model.safetensors")
        refused(workspace.ask("train", "--resume", "run", "--quiet"), 2, "step-4")

    def test_damaged_line_in_the_middle(self, workspace, done):
        lines = (done / "metrics.jsonl").read_text().splitlines()
        (done / "metrics.jsonl").write_text("\n".join([lines[0], "{broken", *lines[2:]]) + "\n")
        refused(workspace.ask("train", "--resume", "run", "--quiet"), 2, "metrics.jsonl, line 2", "delete the line")

    def test_damaged_measurement(self, workspace, done):
        (done / "evaluation" / "before.json").write_text('{"samples": [')
        refused(workspace.ask("train", "--resume", "run", "--quiet"), 2, "measurement")

    def test_missing_measurement(self, workspace, done):
        (done / "evaluation" / "before.json").unlink()
        refused(workspace.ask("train", "--resume", "run", "--quiet"), 2, "before.json is missing", "start a new run")

    def test_unwritable_parent(self, workspace):
        workspace.write("toy.toml", TOY)
        (workspace / "closed").mkdir(mode=0o555)
        finished = workspace.ask("train", "toy.toml", "--run-dir", "closed/run", first=NO_OVERRIDE)
        refused(finished, 1, "cannot make the run folder closed/run", "choose a folder you may write to")

    def test_unwritable_run(self, workspace, done):
        before = contents(done)
        for path in [done, *done.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o555 if path.is_dir() else 0o444)
        refused(workspace.ask("train", "--resume", "run", "--quiet", first=NO_OVERRIDE), 1, "run", "Permission denied")
        assert contents(done) == before

    def test_file_in_place_of_the_folder(self, workspace):
        workspace.write("toy.toml", TOY)
        workspace.write("run", "a file")
        refused(workspace.ask("train", "toy.toml", "--run-dir", "run"), 1, "cannot make the run folder run")
        refused(workspace.ask("train", "toy.toml", "--run-dir", "run/below"), 1, "part of that path is a file")
        assert (workspace / "run").read_text() == "a file"

    def test_check_names_what_is_wrong_with_each_part(self, workspace, done):
        whole = workspace.ask("check", "run")
        assert (whole.status, whole.out.splitlines()[-1]) == (0, "whole")
        (done / "checkpoints" / "step-2" / "optimizer.safetensors").write_bytes(b"")
        (done / "checkpoints" / "step-9").mkdir()
        (done / "model").unlink()
        (done / "model").symlink_to("checkpoints/step-1/model")
        before = contents(done)
        found = workspace.ask("check", "run")
        assert (found.status, found.out.splitlines()[-1]) == (1, "3 wrong") and "Traceback" not in found.err
        for text in (
            "step-2/optimizer.safetensors has 0 bytes", "step-9 has no state.json", "which is not a checkpoint",
            "step-4      whole: ",
        ):  # fmt: skip
            assert text in found.out, (text, found.out)
        parts = json.loads(workspace.ask("check", "run", "--json").out)["parts"]
        assert sum(len(part["problems"]) for part in parts) == 3
        assert contents(done) == before

    def test_a_renamed_checkpoint_is_not_the_end_of_a_run(self, workspace, done, traces):
        whole = traces(done)
        (done / "checkpoints" / "step-2").rename(done / "checkpoints" / "step-3")
        shutil.rmtree(done / "checkpoints" / "step-4")
        refused(workspace.ask("train", "--resume", "run", "--quiet"), 2, "step-3 was saved as step 2", "--from-step 0")
        assert workspace.ask("train", "--resume", "run", "--from-step", "0", "--quiet").status == 0
        assert traces(done) == whole

    @pytest.mark.parametrize("name", ["evaluation/after.json", "metrics.jsonl", "samples.jsonl"])
    def test_no_verb_waits_for_a_pipe_or_follows_a_link(self, workspace, done, name):
        elsewhere = workspace.write("elsewhere", "{}")
        for replace, words in (
            (os.mkfifo, "but a pipe"), (lambda path: path.symlink_to(elsewhere), "is a link that leads out"),
        ):  # fmt: skip
            (done / name).unlink()
            replace(done / name)
            for verb in (("report", "run"), ("train", "--resume", "run", "--quiet"), ("generate", "run", "x")):
                refused(workspace.ask(*verb), 2, words, "remove it")
        assert elsewhere.read_text() == "{}"

    def test_two_processes_on_one_folder(self, workspace, done):
        from filelock import FileLock

        with FileLock(done / ".lock"):
            refused(workspace.ask("train", "--resume", "run", "--quiet"), 2, "another process is working on this run")
        assert workspace.ask("train", "--resume", "run", "--quiet").status == 0
