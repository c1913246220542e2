"""The run folder: complete lines, complete checkpoints, and cutting back to a checkpoint."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from burnish.errors import BurnishError, InputError
from burnish.recipe.schema import load_recipe
from burnish.run.folder import Run, comparable, read_lines
from burnish.run.libraries import record_libraries, restore_libraries
from burnish.system.files import explained, write_text

RECIPE = load_recipe("toy")


@pytest.fixture
def run(tmp_path):
    created = Run.create(RECIPE, tmp_path / "run", {"seed": 0})
    yield created
    created.close()


def fill(text: str):
    def write(folder: Path) -> None:
        (folder / "model" / "weights").write_text(text)

    return write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestCreate:
    def test_a_new_folder_has_recipe_and_environment(self, run):
        assert names(run.folder) == [
            ".lock", "checkpoints", "environment.json", "evaluation", "recipe.toml", "recipes.json"
        ]  # fmt: skip
        assert load_recipe(run.folder / "recipe.toml") == RECIPE

    def test_an_existing_run_is_rejected(self, run):
        with pytest.raises(InputError, match="already holds a run"):
            Run.create(RECIPE, run.folder)

    def test_default_names_are_unique(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        runs = [Run.create(RECIPE) for _ in range(3)]
        assert len({each.folder for each in runs}) == 3
        assert all(each.folder.parent == Path("runs") for each in runs)
        for each in runs:
            each.close()

    def test_an_open_run_is_locked(self, run):
        with pytest.raises(InputError, match="another process"):
            Run.open(run.folder)
        run.close()
        Run.open(run.folder).close()

    def test_discard_deletes_only_what_create_made(self, run, tmp_path):
        (run.folder / "mine.txt").write_text("kept")
        run.discard()
        assert names(run.folder) == ["mine.txt"]
        other = Run.create(RECIPE, tmp_path / "other")
        other.discard()
        assert not (tmp_path / "other").exists()

    def test_files_of_a_user_with_the_names_of_a_run_are_refused(self, tmp_path):
        for name in ("chat_template.jinja", "start/notes.txt", "rows.jsonl", "metrics.jsonl", "environment.json",
                     "checkpoints/step-1/state.json"):  # fmt: skip
            mine = tmp_path / name.replace("/", "-") / name
            mine.parent.mkdir(parents=True)
            mine.write_text("mine")
            folder = tmp_path / name.replace("/", "-")
            with pytest.raises(InputError, match="choose another --run-dir"):
                Run.create(RECIPE, folder)
            assert mine.read_text() == "mine" and len(list(folder.iterdir())) == 1

    def test_discard_deletes_the_rows_of_a_call(self, tmp_path):
        run = Run.create(RECIPE, tmp_path / "run", files={"rows.jsonl": "{}", "rows_held_out.jsonl": "{}"})
        assert (run.folder / "rows.jsonl").read_text() == "{}"
        run.discard()
        assert not run.folder.exists()


class TestLines:
    def test_rows_can_be_read_back(self, run):
        rows = [{"step": 1, "text": "我爱你。\n\u2028"}, {"step": 2, "text": "half an emoji \ud83d", "x": 1e-300}]
        run.append("samples.jsonl", rows[:1])
        run.append("samples.jsonl", rows[1:])
        assert run.rows("samples.jsonl") == rows
        (run.folder / "samples.jsonl").read_bytes().decode("utf-8")

    def test_an_incomplete_last_line_is_skipped(self, run):
        run.append("metrics.jsonl", [{"step": 1}, {"step": 2}])
        path = run.folder / "metrics.jsonl"
        path.write_bytes(path.read_bytes() + '{"step": 3, "x": "我'.encode()[:-1])
        assert run.rows("metrics.jsonl") == [{"step": 1}, {"step": 2}]

    def test_a_broken_line_before_the_last_is_an_error(self, run):
        (run.folder / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
        with pytest.raises(InputError, match="line 2"):
            list(read_lines(run.folder / "metrics.jsonl"))

    def test_a_missing_file_has_no_rows(self, run):
        assert run.rows("warnings.jsonl") == []

    def test_nan_is_rejected_before_anything_is_written(self, run):
        with pytest.raises(BurnishError, match=r"metrics\.jsonl: x is nan"):
            run.append("metrics.jsonl", [{"step": 1}, {"step": 2, "x": float("nan")}])
        assert not (run.folder / "metrics.jsonl").exists()

    def test_half_a_line_is_removed_after_a_failed_write(self, run):
        """A limit on the file size writes what fits and then fails, like a full disk."""
        rows = [{"step": step, "text": "x" * 100} for step in range(20)]
        run.append("metrics.jsonl", rows[:2])
        before = (run.folder / "metrics.jsonl").read_bytes()
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) * 3, old[1]))
        try:
            with pytest.raises(BurnishError, match=r"metrics\.jsonl: File too large: make room.*--resume"):
                run.append("metrics.jsonl", rows[2:])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert (run.folder / "metrics.jsonl").read_bytes() == before
        run.append("metrics.jsonl", rows[2:])
        assert run.rows("metrics.jsonl") == rows

    def test_comparable_leaves_out_only_timings(self):
        row = {"step": 3, "time/step": 1.0, "time/generate": 0.5, "tokens": 7, "tokens_per_second": 9.0, "kl": 0.1}
        assert comparable(row) == {"step": 3, "tokens": 7, "kl": 0.1}


class TestCheckpoints:
    def test_the_newest_are_kept(self, run):
        for step in (2, 4, 10, 12):
            run.save_checkpoint(step, {"baseline": step / 8}, fill(str(step)), keep=2)
        assert [checkpoint.step for checkpoint in run.checkpoints()] == [10, 12]
        assert run.checkpoints()[-1].state == {"step": 12, "baseline": 1.5}
        assert (run.folder / "model" / "weights").read_text() == "12"
        assert os.readlink(run.folder / "model") == "checkpoints/step-12/model"
        assert names(run.folder / "checkpoints") == ["step-10", "step-12"]

    def test_a_failed_save_keeps_the_older_checkpoint(self, run):
        run.save_checkpoint(1, {}, fill("1"), keep=1)

        def fails(folder: Path) -> None:
            (folder / "model" / "weights").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(BurnishError, match="make room, then resume with: burnish train --resume"):
            run.save_checkpoint(2, {}, fails, keep=1)
        assert names(run.folder / "checkpoints") == ["step-1"]
        assert (run.folder / "model" / "weights").read_text() == "1"

    def test_other_failures_are_raised_and_leave_nothing(self, run):
        def fails(folder: Path) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run.save_checkpoint(2, {}, fails, keep=1)
        assert names(run.folder / "checkpoints") == []

    def test_saving_again_only_repairs_the_link(self, run):
        run.save_checkpoint(1, {}, fill("1"), keep=2)
        run.save_checkpoint(2, {}, fill("2"), keep=2)
        (run.folder / "model").unlink()
        run.save_checkpoint(2, {}, fill("other"), keep=1)
        assert (run.folder / "model" / "weights").read_text() == "2"
        assert [checkpoint.step for checkpoint in run.checkpoints()] == [2]

    def test_files_follow_the_umask(self, run):
        def write(folder: Path) -> None:
            save_file({"w": np.zeros(3, dtype=np.float32)}, folder / "model" / "model.safetensors")

        before = os.umask(0o027)
        try:
            folder = run.save_checkpoint(1, {}, write, keep=1).folder
        finally:
            os.umask(before)
        modes = {path.name: path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
        assert modes == dict.fromkeys(("manifest.json", "model.safetensors", "state.json"), 0o640), "safetensors: 0600"

    def test_a_copy_with_its_links_resolved_is_linked_again(self, run, tmp_path):
        for step in (1, 2):
            run.save_checkpoint(step, {}, fill(f"of step {step}"), keep=2)
        copy = tmp_path / "copy"
        shutil.copytree(run.folder, copy)
        assert (copy / "model").is_dir() and not (copy / "model").is_symlink()
        copied = Run.open(copy)
        copied.cut_back(copied.checkpoints()[-1])
        assert (copy / "model").readlink() == Path("checkpoints/step-2/model")
        assert (copy / "model" / "weights").read_text() == "of step 2"
        (copy / "model").unlink()
        (copy / "model").mkdir()
        (copy / "model" / "mine").write_text("not a copy")
        with pytest.raises(BurnishError, match="other files than a checkpoint's"):
            copied.cut_back(copied.checkpoints()[-1])
        assert (copy / "model" / "mine").exists()
        copied.close()

    def test_a_folder_without_state_is_not_a_checkpoint_and_is_replaced(self, run):
        (run.folder / "checkpoints" / "step-3" / "model").mkdir(parents=True)
        assert run.checkpoints() == []
        run.save_checkpoint(3, {}, fill("3"), keep=1)
        assert (run.folder / "model" / "weights").read_text() == "3"

    def test_other_names_are_not_checkpoints(self, run):
        for name in ("step-", "step-x", "step-3.old", "other"):
            (run.folder / "checkpoints" / name).mkdir()
            (run.folder / "checkpoints" / name / "state.json").write_text("{}")
        assert run.checkpoints() == []

    @pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "held_out.jsonl"])
    def test_cutting_back_keeps_only_lines_that_the_checkpoint_proves(self, run, name):
        run.append(name, [{"step": 1, "x": 1.0}])
        checkpoint = run.save_checkpoint(1, {}, fill("1"), keep=2)
        whole = (run.folder / name).read_bytes()
        run.append(name, [{"step": 1, "x": 2.0}])  # a later line whose step was damaged
        run.cut_back(checkpoint)
        assert (run.folder / name).read_bytes() == whole
        run.append(name, [{"step": 0, "x": 2.0}])
        run.cut_back(None)
        assert (run.folder / name).read_bytes() == b""
        run.append(name, [{"x": 2.0}])
        with pytest.raises(InputError, match=f"{name}: a line is damaged, it has no object with a step"):
            run.cut_back(None)

    def test_cutting_back_removes_later_lines_and_leftovers(self, run):
        for step in (1, 2, 3):
            run.append("metrics.jsonl", [{"step": step, "x": 0.1 * step}])
            run.append("samples.jsonl", [{"step": step, "text": "\ud83d我"}] * 2)
        checkpoint = run.save_checkpoint(2, {}, fill("2"), keep=2)
        before = (run.folder / "samples.jsonl").read_bytes()
        (run.folder / "checkpoints" / ".step-3.partial" / "model").mkdir(parents=True)
        run.cut_back(checkpoint)
        assert [row["step"] for row in run.rows("metrics.jsonl")] == [1, 2]
        assert (run.folder / "samples.jsonl").read_bytes() == before[: len(before) * 4 // 6]
        assert names(run.folder / "checkpoints") == ["step-2"]
        run.cut_back(None)
        assert run.rows("metrics.jsonl") == run.rows("samples.jsonl") == []

    def test_cutting_back_keeps_lines_as_they_are_and_one_in_memory(self, run):
        path = run.folder / "samples.jsonl"
        written = b'{"step":1,  "text": "\\u6211"}\n' + b"".join(
            b'{"step": %d, "text": "%s"}\n' % (step, b"x" * 1000) for step in range(1, 2000)
        )
        path.write_bytes(written)
        checkpoint = run.save_checkpoint(1999, {}, fill("2"), keep=2)
        tracemalloc.start()
        run.cut_back(checkpoint)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert path.read_bytes() == written
        assert peak < len(written) / 10

    @pytest.mark.parametrize("line", ["[]", '{"step": "1"}', "[" * 100_000, '{"step": null}', "7"])
    def test_a_damaged_line_is_named_and_nothing_is_cut(self, run, line):
        path = run.folder / "samples.jsonl"
        path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 9}}\n', encoding="utf-8")
        before = path.read_bytes()
        with pytest.raises(InputError, match=r"samples\.jsonl.*delete the line"):
            run.cut_back(None)
        assert path.read_bytes() == before
        assert not list(run.folder.glob(".*.partial"))

    @pytest.mark.parametrize("text", ["{", "", "[]", "\xff\xfe", "[" * 100_000])
    def test_a_broken_state_is_an_error(self, run, text):
        checkpoint = run.save_checkpoint(1, {}, fill("1"), keep=1)
        (checkpoint.folder / "state.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=r"damaged.*delete"):
            _ = run.checkpoints()[0].state


class TestWriting:
    def test_text_is_written_atomically(self, tmp_path, monkeypatch):
        path = tmp_path / "file.json"
        write_text(path, "first")
        monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        with pytest.raises(OSError, match="broken"):
            write_text(path, "second")
        assert path.read_text() == "first"
        assert names(tmp_path) == ["file.json"]

    @pytest.mark.parametrize(
        ("code", "fix"),
        [
            (errno.ENOSPC, "the disk is full"),
            (errno.EDQUOT, "quota"),
            (errno.EACCES, "may write to"),
            (errno.EROFS, "can be written to"),
            (errno.ENOTDIR, "part of that path is a file"),
        ],
    )
    def test_errors_name_the_fix(self, code, fix):
        with pytest.raises(BurnishError, match=fix) as caught, explained("cannot write x"):
            raise OSError(code, os.strerror(code))
        assert str(caught.value).startswith("cannot write x: ")
        assert caught.value.exit_status == 1

    def test_other_errors_are_raised_unchanged(self):
        with pytest.raises(ZeroDivisionError), explained("cannot write x"):
            raise ZeroDivisionError


def test_environment_is_written(run):
    assert json.loads((run.folder / "environment.json").read_text()) == {"seed": 0}


def test_a_run_keeps_the_libraries_of_its_products(run, monkeypatch) -> None:
    from burnish.policies.kernels import products

    chosen = {"weight 9x8": "torch", "inputs 9x8": "onednn", "forward 9x8": "torch"}
    monkeypatch.setattr(products, "_chosen", dict(chosen))
    monkeypatch.setattr(products, "has_onednn_linear", lambda: True)
    record_libraries(run)
    path = run.folder / "environment.json"
    environment = {"seed": 0, "products": {"onednn": "inputs 9x8", "torch": "forward 9x8, weight 9x8"}}
    assert json.loads(path.read_text()) == environment
    products._chosen = {"weight 9x8": "onednn"}  # of another run in this process
    record_libraries(run)
    assert json.loads(path.read_text()) == environment
    restore_libraries(run)
    assert products.choices() == chosen
    for damaged in ("[]", "{", '{"products": {"torch": ["x"], "other": "weight 9x8"}}'):
        path.write_text(damaged)
        restore_libraries(run)
        assert not {"weight 9x8", "inputs 9x8"} & set(products.choices())
