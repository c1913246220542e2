"""Closed pipes, full outputs and terminals without Unicode."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import ClassVar

from tests.end_to_end.refusals import TOY, refused


class TestOutput:
    CHINESE: ClassVar = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}

    def test_closed_pipe(self, workspace):
        read, write = os.pipe()
        os.close(read)
        process = workspace.start("list", "rewards", stdout=write)
        os.close(write)
        finished = workspace.finish(process)
        assert finished.err == ""
        assert finished.status in (0, 1)

    def test_head(self, workspace):
        """Output longer than a pipe's buffer."""
        command = '"$0" -m burnish.cli.app verify --samples 1000 --json | head -1'
        done = subprocess.run(
            ["bash", "-c", command, sys.executable], cwd=workspace.folder, capture_output=True, text=True
        )
        assert (done.stdout, done.stderr) == ("{\n", "")

    def test_training_survives_a_closed_standard_error(self, workspace):
        workspace.write("toy.toml", TOY)
        read, write = os.pipe()
        os.close(read)
        process = workspace.start("train", "toy.toml", "--run-dir", "run", stderr=write)
        os.close(write)
        assert workspace.finish(process).status == 0
        assert (workspace / "run" / "report.html").is_file()

    def test_chinese_on_an_ascii_terminal(self, workspace):
        workspace.write("toy.toml", TOY.replace('use = "toy"', 'use = "toy"\nanswer = "爱你。"'))
        trained = workspace.run("train", "toy.toml", "--run-dir", "我", environment=self.CHINESE)
        assert trained.status == 0, trained.err
        assert (workspace / "我" / "report.html").is_file()
        assert "爱" in (workspace / "我" / "samples.jsonl").read_text(encoding="utf-8")
        printed = workspace.run("train", "toy.toml", "--dry-run", environment=self.CHINESE)
        assert printed.status == 0, printed.err
        assert "\\u7231\\u4f60\\u3002" in printed.out
        refused(workspace.run("train", "我.toml", environment=self.CHINESE), 2, "no recipe")

    def test_full_device(self, workspace):
        with open("/dev/full", "w") as full:
            process = workspace.start("list", "rewards", stdout=full)
        finished = workspace.finish(process)
        refused(finished, 1, "cannot write the result: No space left on device")
