"""A disk that fills up during training: the message, and a resumed run equal to one that was never stopped."""

from __future__ import annotations

import subprocess

import pytest

from tests.end_to_end.refusals import TOY, contents, refused


def limit(size: int) -> str:
    """Return Python code that makes writing past ``size`` bytes of a file fail, as on a full disk."""
    return f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"


class TestFullDisk:
    def test_while_a_checkpoint_is_written(self, workspace, tiny_recipe, traces, tiny):
        workspace.write("tiny.toml", tiny_recipe(steps=4))
        assert workspace.ask("train", "tiny.toml", "--run-dir", "whole", "--quiet").status == 0
        size = (workspace / "whole/checkpoints/step-4/optimizer.safetensors").stat().st_size
        # Enough for the model and every line, but not for the optimizer state.
        finished = workspace.ask("train", "tiny.toml", "--run-dir", "run", "--quiet", first=limit(size - 1000))
        refused(finished, 1, "cannot save run/checkpoints/step-2", "make room", "burnish train --resume run")
        assert contents(workspace / "run" / "checkpoints") == []
        assert workspace.ask("train", "--resume", "run", "--quiet").status == 0
        assert traces(workspace / "run") == traces(workspace / "whole")

    @pytest.mark.parametrize("share", [0.4, 0.97])
    @pytest.mark.parametrize("file", ["samples.jsonl", "evaluation/before.json"])
    def test_while_lines_are_written(self, workspace, traces, file, share):
        workspace.write("toy.toml", TOY.replace("prompts_per_step = 2", "prompts_per_step = 12"))
        assert workspace.ask("train", "toy.toml", "--run-dir", "whole", "--quiet").status == 0
        sizes = {
            name: (workspace / "whole" / name).stat().st_size for name in ("samples.jsonl", "evaluation/before.json")
        }
        finished = workspace.ask(
            "train", "toy.toml", "--run-dir", "run", "--quiet", first=limit(int(sizes[file] * share))
        )
        refused(finished, 1, "make room", "burnish train --resume run")
        run = workspace / "run"
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (run / name).exists():
                data = (run / name).read_bytes()
                assert data == b"" or data.endswith(b"\n"), f"{name} ends in the middle of a line"
        assert not list(run.rglob("*.partial"))
        assert workspace.ask("train", "--resume", "run", "--quiet").status == 0
        assert traces(run) == traces(workspace / "whole")

    def test_real_file_system(self, workspace, tiny_recipe, traces, tmp_path):
        """A full tmpfs, if this process may mount one."""
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", disk], capture_output=True)
        if mounted.returncode:
            pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
        try:
            workspace.write("tiny.toml", tiny_recipe(steps=6))
            assert workspace.ask("train", "tiny.toml", "--run-dir", "whole", "--quiet").status == 0
            finished = workspace.ask("train", "tiny.toml", "--run-dir", disk / "run", "--quiet")
            refused(finished, 1, "make room", f"burnish train --resume {disk / 'run'}")
            assert "step-2" in contents(disk / "run" / "checkpoints"), "the older checkpoint is intact"
            refused(workspace.ask("train", "--resume", disk / "run", "--quiet"), 1, "make room")
            subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
            assert workspace.ask("train", "--resume", disk / "run", "--quiet").status == 0
            assert traces(disk / "run") == traces(workspace / "whole")
        finally:
            subprocess.run(["umount", disk], check=True)
