"""What cannot work, through the command line: an exit status, one line that names the fix, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

TOY = """
name = "toy"
steps = 4
[policy]
use = "tabular"
[task]
use = "toy"
[sampling]
prompts_per_step = 2
samples_per_prompt = 4
max_new_tokens = 4
[algorithm]
use = "rloo"
[[reward]]
use = "exact"
[evaluation]
resamples = 100
[checkpoint]
every = 2
"""

# Taken away from root too: without them a folder that may not be written to is one for everybody.
NO_OVERRIDE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc.capget(header, data)
data[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
if libc.capset(header, data):
    raise OSError(ctypes.get_errno(), "capset")
"""


def refused(finished, status: int, *parts: str) -> None:
    """One or two lines on standard error that hold the parts; nothing on standard output."""
    assert finished.status == status, (finished.status, finished.err)
    assert "Traceback" not in finished.err
    assert 1 <= len(finished.lines) <= 2, finished.err
    assert finished.err.startswith("burnish: ")
    for part in parts:
        assert part in finished.err, (part, finished.err)
    assert finished.out == ""


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts)


class TestRecipes:
    @pytest.mark.parametrize(
        ("change", "parts"),
        [
            (("steps = 4", "stepps = 4"), ["unknown key 'stepps'", "did you mean 'steps'?"]),
            (("prompts_per_step", "prompt_per_step"), ["sampling.prompt_per_step", "did you mean 'prompts_per_step'?"]),
            (("steps = 4", 'steps = "4"'), ["steps = '4'", "must be a whole number"]),
            (("steps = 4", "steps = 0"), ["steps = 0", "must be at least 1"]),
            (("steps = 4", "steps = true"), ["steps = true", "must be a whole number"]),
            (("steps = 4", "steps = 4\nseed = -1"), ["seed = -1"]),
            (("steps = 4", "steps = "), ["not valid TOML", "line 3"]),
            (("steps = 4", "steps = 4\nsteps = 5"), ["not valid TOML"]),
            (('use = "rloo"', 'use = "rlo"'), ["algorithm.use = 'rlo'", "did you mean 'rloo'?"]),
            (('use = "exact"', 'use = "exat"'), ["reward.0", "no reward named 'exat'", "did you mean 'exact'?"]),
            (('use = "toy"', 'use = "toyy"'), ["task", "no task named 'toyy'", "did you mean 'toy'?"]),
            (('use = "toy"', 'use = "toy"\nprompt = 3'), ["task", "'prompt'", "did you mean 'prompts'?"]),
            (('use = "toy"', 'use = "toy"\nprompts = "three"'), ["prompts = 'three'"]),
            (('use = "exact"', 'use = "bleu"\ntokenise = "zh"'), ["option 'tokenise'", "did you mean 'tokenize'?"]),
            (('use = "exact"', 'use = "repetition"\nn = "two"'), ["n = 'two'"]),
            (("samples_per_prompt = 4", "samples_per_prompt = 1"), ["'rloo'", "samples_per_prompt must be at least 2"]),
            (
                ('use = "rloo"', 'use = "rloo"\nkl = { coefficient = 0.1, estimator = "k1" }'),
                ["algorithm.kl", "mean is zero", '"k2" or "k3"'],
            ),
            (
                ('use = "exact"', 'use = "exact"\n[[reward]]\nuse = "exact"'),
                ["two rewards are called 'exact'", "name ="],
            ),
            (('use = "exact"', 'use = "exact"\nweight = 0.0'), ["weight 0", "give one a weight"]),
            (('use = "exact"', 'use = "exact"\nweight = inf'), ["reward.0.weight", "finite"]),
            (('[[reward]]\nuse = "exact"\n', ""), ["'reward' is missing", "[[reward]]"]),
            (('name = "toy"', 'name = "../toy"'), ["name = '../toy'"]),
            (('use = "tabular"', 'use = "tabular"\nlora = { rank = 4 }'), ["LoRA", "leave out policy.lora"]),
            (('use = "tabular"', 'use = "causal_lm"\nmodel = 3'), ["policy.model = 3", "must be text, in quotes"]),
            (('use = "exact"', 'use = "jobs:missing"'), ["'jobs' has no 'missing'"]),
            (('use = "exact"', 'use = "nowhere:reward"'), ["cannot import 'nowhere'"]),
            (('use = "exact"', 'use = "jobs:unfillable"'), ["unfillable", "'teacher'"]),
        ],
    )
    def test_refused_before_anything_is_written(self, place, change, parts):
        assert change[0] in TOY
        place.write("toy.toml", TOY.replace(*change, 1))
        before = contents(place.folder)
        for options in ((), ("--dry-run",)):
            refused(place.ask("train", "toy.toml", *options), 2, "toy.toml", *parts)
        assert contents(place.folder) == before

    def test_not_utf_8(self, place):
        (place / "toy.toml").write_bytes(TOY.replace('"toy"', '"我"', 1).encode("gb18030"))
        refused(place.ask("train", "toy.toml"), 2, "toy.toml: not UTF-8", "save it as UTF-8")

    def test_a_file_that_is_not_there(self, place):
        refused(place.ask("train", "toyy"), 2, "no recipe 'toyy'", "did you mean 'toy'?")
        refused(place.ask("train", "some/where.toml"), 2, "no recipe 'some/where.toml'")

    def test_a_folder(self, place):
        refused(place.ask("train", place.folder), 2, "is a folder", "name the recipe's .toml file")

    def test_a_file_that_may_not_be_read(self, place):
        place.write("toy.toml", TOY).chmod(0)
        refused(place.ask("train", "toy.toml", first=NO_OVERRIDE), 2, "toy.toml: cannot be read", "Permission denied")

    @pytest.mark.parametrize(
        ("override", "parts"),
        [
            ("steps", ["key=value"]),
            ("stepps=3", ["did you mean 'steps'?"]),
            ("steps.more=3", ["steps is a value, not a section"]),
            ("reward.weight=2.0", ["reward.weight=2.0", "number"]),
            ("reward.7.weight=2.0", ["from 0 to 0"]),
            ("steps=many", ["steps = 'many'"]),
        ],
    )
    def test_overrides(self, place, override, parts):
        refused(place.ask("train", "toy", "--set", override), 2, *parts)

    def test_neither_or_both_of_recipe_and_resume(self, place):
        refused(place.ask("train"), 2, "--resume")
        refused(place.ask("train", "toy", "--resume", "runs/toy"), 2, "either a recipe")
        place.write("toy.toml", TOY)
        assert place.ask("train", "toy.toml", "--run-dir", "run", "--quiet").status == 0
        refused(place.ask("train", "--resume", "run", "--set", "steps=9"), 2, "keeps its recipe")
        refused(place.ask("train", "--resume", "run", "--run-dir", "other"), 2, "keeps its recipe")


class TestTasks:
    @pytest.mark.parametrize(
        ("name", "parts"),
        [
            ("Nothing", ["no training prompts"]),
            ("NoneHeldOut", ["no held-out prompts"]),
            ("Twice", ["the same id", "unique"]),
            ("BothSides", ["prompt 'train1' on both sides"]),
        ],
    )
    def test_refused_and_the_folder_is_free_again(self, place, tiny_recipe, name, parts):
        place.write("tiny.toml", tiny_recipe().replace("Headlines", name))
        before = contents(place.folder)
        refused(place.ask("train", "tiny.toml", "--run-dir", "run"), 2, f"jobs:{name}", *parts)
        assert contents(place.folder) == before


class TestRewards:
    @pytest.mark.parametrize(
        ("name", "parts"),
        [
            ("raises", ["reward 'raises' raised ZeroDivisionError", "on prompt '"]),
            ("nan", ["reward 'nan' returned nan", "finite"]),
            ("word", ["reward 'word' returned 'good' (str)", "one number"]),
            ("too_few", ["reward 'too_few' returned", "one number each"]),
        ],
    )
    def test_fails_with_its_name_and_the_run_can_be_taken_up(self, place, name, parts):
        place.write("toy.toml", TOY.replace('use = "exact"', f'use = "jobs:{name}"'))
        refused(place.ask("train", "toy.toml", "--run-dir", "run", "--quiet"), 1, *parts)
        # The reward is mended; the folder is still good.
        place.write("jobs.py", f"def {name}(completion):\n    return float(len(completion.text))\n")
        assert place.ask("train", "--resume", "run", "--quiet").status == 0
        assert len((place / "run" / "metrics.jsonl").read_text().splitlines()) == 4

    def test_in_a_later_step(self, place):
        place.write("toy.toml", TOY.replace('use = "exact"', 'use = "jobs:later"'))
        refused(place.ask("train", "toy.toml", "--run-dir", "run", "--quiet"), 1, "'later' raised RuntimeError")
        assert contents(place / "run" / "checkpoints")[0] == "step-2"
        assert len((place / "run" / "metrics.jsonl").read_text().splitlines()) == 2
        place.write("jobs.py", "def later(completion):\n    return float(len(completion.text))\n")
        assert place.ask("train", "--resume", "run", "--quiet").status == 0


class TestModels:
    @pytest.fixture
    def model(self, place, tiny) -> Path:
        return shutil.copytree(tiny("llama"), place / "model")

    def refused(self, place, tiny_recipe, tiny, status, *parts: str) -> None:
        place.write("tiny.toml", tiny_recipe().replace(str(tiny("llama")), "model"))
        before = contents(place.folder)
        refused(place.ask("train", "tiny.toml", "--run-dir", "run", "--quiet"), status, *parts)
        assert contents(place.folder) == before, "nothing is left half-written"
        refused(place.ask("generate", "model", "hello"), status, *parts)

    def test_a_missing_shard(self, place, tiny_recipe, tiny, model):
        from burnish.policies.loading import load_model

        load_model(model).model.save_pretrained(model, max_shard_size="40KB")
        shards = sorted(model.glob("model-*.safetensors"))
        (model / "model.safetensors").unlink(missing_ok=True)
        shards[1].unlink()
        self.refused(place, tiny_recipe, tiny, 2, "lacks 1 of", shards[1].name)

    def test_a_shard_cut_short(self, place, tiny_recipe, tiny, model):
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        self.refused(place, tiny_recipe, tiny, 2, "model.safetensors", "copy or download it again")

    def test_no_config(self, place, tiny_recipe, tiny, model):
        (model / "config.json").unlink()
        self.refused(place, tiny_recipe, tiny, 2, "has no config.json")

    def test_a_config_that_is_no_json(self, place, tiny_recipe, tiny, model):
        (model / "config.json").write_text("{")
        self.refused(place, tiny_recipe, tiny, 2, "config.json cannot be read as JSON")

    def test_weights_of_another_shape(self, place, tiny_recipe, tiny, model):
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 50}))
        self.refused(place, tiny_recipe, tiny, 2, "cannot be loaded")

    def test_weights_that_lack_a_layer(self, place, tiny_recipe, tiny, model):
        from safetensors.torch import load_file, save_file

        weights = load_file(model / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, model / "model.safetensors", {"format": "pt"})
        self.refused(place, tiny_recipe, tiny, 2, "cannot be loaded", "up_proj")

    def test_pickled_weights(self, place, tiny_recipe, tiny, model):
        (model / "model.safetensors").rename(model / "pytorch_model.bin")
        self.refused(place, tiny_recipe, tiny, 2, "pickled weights", "save the model as safetensors")

    def test_no_tokenizer(self, place, tiny_recipe, tiny, model):
        for path in model.glob("tokenizer*"):
            path.unlink()
        self.refused(place, tiny_recipe, tiny, 2, "has no tokenizer")

    def test_no_such_folder(self, place, tiny_recipe, tiny):
        place.write("tiny.toml", tiny_recipe().replace(str(tiny("llama")), "./nowhere"))
        refused(place.ask("train", "tiny.toml", "--run-dir", "run"), 2, "model './nowhere'", "no such folder")
        assert not (place / "run").exists()


class TestRunFolders:
    @pytest.fixture
    def done(self, place) -> Path:
        """A finished run."""
        place.write("toy.toml", TOY)
        assert place.ask("train", "toy.toml", "--run-dir", "run", "--quiet").status == 0
        return place / "run"

    def test_one_that_holds_a_run(self, place, done):
        before = {name: (done / name).read_bytes() for name in ("metrics.jsonl", "recipe.toml", "evaluation.json")}
        refused(place.ask("train", "toy.toml", "--run-dir", "run"), 2, "run holds a run already", "--resume run")
        assert all((done / name).read_bytes() == was for name, was in before.items())

    def test_resuming_what_is_no_run(self, place):
        (place / "empty").mkdir()
        for name in ("empty", "nowhere", "jobs.py"):
            refused(place.ask("train", "--resume", name), 2, f"{name} is no run folder")
        assert contents(place / "empty") == []

    @pytest.mark.parametrize("file", ["model/model.safetensors", "optimizer.safetensors", "state.json"])
    @pytest.mark.parametrize("damage", ["cut", "noise", "empty", "gone"])
    def test_a_damaged_checkpoint(self, place, done, traces, file, damage):
        whole = traces(done)
        newest = done / "checkpoints" / "step-4"
        path = newest / file
        data = path.read_bytes()
        broken = {"cut": data[: len(data) * 2 // 3], "noise": bytes(range(256)) * 3, "empty": b""}
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(broken[damage])
        if (file, damage) != ("state.json", "gone"):  # a checkpoint without its state counts as none
            refused(place.ask("train", "--resume", "run", "--quiet"), 2, "step-4", "delete")
            shutil.rmtree(newest)
        assert place.ask("train", "--resume", "run", "--quiet").status == 0
        assert traces(done) == whole

    @pytest.mark.parametrize("state", ["[]", "{}", '{"step": 4, "baseline": "high"}', '{"step": 4, "baseline": null}'])
    def test_a_state_without_sense(self, place, done, state):
        (done / "checkpoints" / "step-4" / "state.json").write_text(state)
        refused(place.ask("train", "--resume", "run", "--quiet"), 2, "step-4", "delete")

    def test_another_models_checkpoint(self, place, done):
        from safetensors.torch import save_file
        from torch import zeros

        save_file({"logits": zeros(3, 2)}, done / "checkpoints" / "step-4" / "model" / "model.safetensors")
        refused(place.ask("train", "--resume", "run", "--quiet"), 2, "step-4")

    def test_a_broken_line_in_the_middle(self, place, done):
        lines = (done / "metrics.jsonl").read_text().splitlines()
        (done / "metrics.jsonl").write_text("\n".join([lines[0], "{broken", *lines[2:]]) + "\n")
        refused(place.ask("train", "--resume", "run", "--quiet"), 2, "metrics.jsonl, line 2", "delete the line")

    def test_a_damaged_measurement(self, place, done):
        (done / "evaluation" / "before.json").write_text('{"samples": [')
        refused(place.ask("train", "--resume", "run", "--quiet"), 2, "measurement")

    def test_a_measurement_that_is_gone(self, place, done):
        (done / "evaluation" / "before.json").unlink()
        refused(place.ask("train", "--resume", "run", "--quiet"), 2, "before.json is gone", "start a new run")

    def test_a_parent_that_may_not_be_written_to(self, place):
        place.write("toy.toml", TOY)
        (place / "closed").mkdir(mode=0o555)
        finished = place.ask("train", "toy.toml", "--run-dir", "closed/run", first=NO_OVERRIDE)
        refused(finished, 1, "cannot make the run folder closed/run", "choose a folder you may write to")

    def test_a_run_that_may_not_be_written_to(self, place, done):
        before = contents(done)
        for path in [done, *done.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o555 if path.is_dir() else 0o444)
        refused(place.ask("train", "--resume", "run", "--quiet", first=NO_OVERRIDE), 1, "run", "Permission denied")
        assert contents(done) == before

    def test_a_file_in_the_way(self, place):
        place.write("toy.toml", TOY)
        place.write("run", "a file")
        refused(place.ask("train", "toy.toml", "--run-dir", "run"), 1, "cannot make the run folder run")
        refused(place.ask("train", "toy.toml", "--run-dir", "run/below"), 1, "part of that path is a file")
        assert (place / "run").read_text() == "a file"

    def test_two_processes_on_one_folder(self, place, done):
        from filelock import FileLock

        with FileLock(done / ".lock"):
            refused(place.ask("train", "--resume", "run", "--quiet"), 2, "another process is working on this run")
        assert place.ask("train", "--resume", "run", "--quiet").status == 0


def limit(size: int) -> str:
    """Python that makes every file that grows past ``size`` bytes fail, as a full disk would."""
    return f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"


class TestFullDisk:
    def test_while_a_checkpoint_is_written(self, place, tiny_recipe, traces, tiny):
        place.write("tiny.toml", tiny_recipe(steps=4))
        assert place.ask("train", "tiny.toml", "--run-dir", "whole", "--quiet").status == 0
        size = (place / "whole/checkpoints/step-4/optimizer.safetensors").stat().st_size
        # Room for the model and every line, not for the optimizer's state.
        finished = place.ask("train", "tiny.toml", "--run-dir", "run", "--quiet", first=limit(size - 1000))
        refused(finished, 1, "cannot save run/checkpoints/step-2", "make room", "burnish train --resume run")
        assert contents(place / "run" / "checkpoints") == []
        assert place.ask("train", "--resume", "run", "--quiet").status == 0
        assert traces(place / "run") == traces(place / "whole")

    @pytest.mark.parametrize("share", [0.4, 0.97])
    @pytest.mark.parametrize("file", ["samples.jsonl", "evaluation/before.json"])
    def test_while_lines_are_written(self, place, traces, file, share):
        place.write("toy.toml", TOY.replace("prompts_per_step = 2", "prompts_per_step = 12"))
        assert place.ask("train", "toy.toml", "--run-dir", "whole", "--quiet").status == 0
        sizes = {name: (place / "whole" / name).stat().st_size for name in ("samples.jsonl", "evaluation/before.json")}
        finished = place.ask("train", "toy.toml", "--run-dir", "run", "--quiet", first=limit(int(sizes[file] * share)))
        refused(finished, 1, "make room", "burnish train --resume run")
        run = place / "run"
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (run / name).exists():
                data = (run / name).read_bytes()
                assert data == b"" or data.endswith(b"\n"), f"{name} ends with half a line"
        assert not list(run.rglob("*.partial"))
        assert place.ask("train", "--resume", "run", "--quiet").status == 0
        assert traces(run) == traces(place / "whole")

    def test_a_real_one(self, place, tiny_recipe, traces, tmp_path):
        """A file system that is full, where this process may mount one."""
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", disk], capture_output=True)
        if mounted.returncode:
            pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
        try:
            place.write("tiny.toml", tiny_recipe(steps=6))
            assert place.ask("train", "tiny.toml", "--run-dir", "whole", "--quiet").status == 0
            finished = place.ask("train", "tiny.toml", "--run-dir", disk / "run", "--quiet")
            refused(finished, 1, "make room", f"burnish train --resume {disk / 'run'}")
            assert "step-2" in contents(disk / "run" / "checkpoints"), "the older checkpoint is there"
            refused(place.ask("train", "--resume", disk / "run", "--quiet"), 1, "make room")
            subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
            assert place.ask("train", "--resume", disk / "run", "--quiet").status == 0
            assert traces(disk / "run") == traces(place / "whole")
        finally:
            subprocess.run(["umount", disk], check=True)


class TestOutput:
    CHINESE: ClassVar = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}

    def test_a_pipe_that_is_closed(self, place):
        read, write = os.pipe()
        os.close(read)
        process = place.start("list", "rewards", stdout=write)
        os.close(write)
        finished = place.finish(process)
        assert finished.err == ""
        assert finished.status in (0, 1)

    def test_head(self, place):
        """Results that are longer than a pipe holds."""
        command = '"$0" -m burnish.cli.app verify --samples 1000 --json | head -1'
        found = subprocess.run(
            ["bash", "-c", command, sys.executable], cwd=place.folder, capture_output=True, text=True
        )
        assert (found.stdout, found.stderr) == ("{\n", "")

    def test_a_closed_standard_error_stops_nothing(self, place):
        place.write("toy.toml", TOY)
        read, write = os.pipe()
        os.close(read)
        process = place.start("train", "toy.toml", "--run-dir", "run", stderr=write)
        os.close(write)
        assert place.finish(process).status == 0
        assert (place / "run" / "report.html").is_file()

    def test_chinese_where_the_terminal_has_no_letters_for_it(self, place):
        place.write("toy.toml", TOY.replace('use = "toy"', 'use = "toy"\nanswer = "爱你。"'))
        trained = place.run("train", "toy.toml", "--run-dir", "我", environment=self.CHINESE)
        assert trained.status == 0, trained.err
        assert (place / "我" / "report.html").is_file()
        assert "爱" in (place / "我" / "samples.jsonl").read_text(encoding="utf-8")
        printed = place.run("train", "toy.toml", "--dry-run", environment=self.CHINESE)
        assert printed.status == 0, printed.err
        assert "\\u7231\\u4f60\\u3002" in printed.out
        refused(place.run("train", "我.toml", environment=self.CHINESE), 2, "no recipe")

    def test_a_full_output(self, place):
        with open("/dev/full", "w") as full:
            process = place.start("list", "rewards", stdout=full)
        finished = place.finish(process)
        refused(finished, 1, "cannot write the result: No space left on device")
