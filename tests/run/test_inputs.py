"""Fingerprints of a run's inputs: what a resumed run refuses, and what it may go on with."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import burnish
from burnish.cli.app import app
from burnish.errors import InputError
from burnish.rewards.registry import REWARDS
from burnish.run.folder import Run, comparable
from burnish.run.inputs import LARGE, Inputs
from burnish.run.interrupts import Interrupted
from burnish.run.proof import examine
from burnish.tasks.registry import TASKS
from burnish.types import SamplingParams
from tests.fakes import SUBJECTS, InterruptingObserver, RecordingObserver, supervised_recipe, write_lines

ROWS = [
    {"prompt": f"The {subject} said {number}", "answer": " on Monday"} for number in range(3) for subject in SUBJECTS
]


class Job:
    """A recipe with files of its own, of reinforcement learning or fine-tuning, and a run that stopped after a step."""

    def __init__(self, folder: Path, model: Path, *, sft: bool = False, **changes: Any) -> None:
        self.folder, self.model, self.data = folder, folder / "model", folder / "rows.jsonl"
        shutil.copytree(model, self.model)
        write_lines(self.data, ROWS)
        self.verb: Callable[..., Any] = burnish.sft if sft else burnish.train
        if sft:
            rows = [{"prompt": row["prompt"], "completion": row["answer"]} for row in ROWS]
            write_lines(self.data, rows)
            self.recipe = supervised_recipe("sft", self.model, str(self.data), format="completion")
        else:
            (folder / "own_rewards.py").write_text(
                "from own_words import WORD\n\ndef own(text):\n    return len(text + WORD) / 9\n"
            )
            (folder / "own_words.py").write_text("WORD = 'a'\n")
            self.recipe = {
                "name": "small", "policy": {"model": str(self.model)},
                "task": {"use": "data", "path": str(self.data), "chat": False, "held_out_percent": 25},
                "sampling": {"prompts_per_step": 2, "samples_per_prompt": 2, "max_new_tokens": 4},
                "reward": [{"use": "own_rewards:own"}, {"use": "repetition"}],
                "evaluation": {"samples_per_prompt": 1, "resamples": 100, "prompts": 4},
            }  # fmt: skip
        self.recipe |= {"steps": 3, "checkpoint": {"every": 1}, **changes}
        self.run = folder / "run"

    def begin(self, run: Path | None = None) -> Path:
        with pytest.raises(Interrupted):
            self.verb(self.recipe, run_dir=run or self.run, observer=InterruptingObserver(after_step=1), offline=True)
        return run or self.run

    def resume(self, run: Path | None = None, **options: Any) -> Any:
        return self.verb(resume=run or self.run, observer=RecordingObserver(), offline=True, **options)

    def inputs(self) -> dict[str, Any]:
        return json.loads((self.run / "inputs.json").read_text())["inputs"]


@pytest.fixture
def job(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for registry in (REWARDS, TASKS):
        monkeypatch.setattr(registry, "_paths", {})
    yield lambda sft=False, **changes: Job(tmp_path, tiny("llama"), sft=sft, **changes)
    for name in ("own_rewards", "own_words", "own_task"):
        sys.modules.pop(name, None)


def append_rows(job: Job) -> None:
    with job.data.open("a", encoding="utf-8") as file:
        file.writelines(
            json.dumps(ROWS[0] | {"prompt": f"New {number}", "completion": " x"}) + "\n" for number in range(4)
        )


def shift_weights(job: Job) -> None:
    path = job.model / "model.safetensors"
    weights = load_file(path)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, path, metadata={"format": "pt"})


def edit(name: str) -> Callable[[Job], None]:
    return lambda job: (job.folder / name).write_text((job.folder / name).read_text() + "\n\n")


CHANGES = [
    (append_rows, rf"^task\.path: .*rows\.jsonl has changed .*\({len(ROWS)} lines, now {len(ROWS) + 4}\)"),
    (lambda job: job.data.unlink(), r"^task\.path: .*rows\.jsonl is missing: restore it"),
    (shift_weights, r"^policy\.model: .*model\.safetensors has changed .*other content of the same size"),
    (edit("own_rewards.py"), r"^reward\.0\.use: .*own_rewards\.py has changed"),
    (edit("own_words.py"), r"^reward\.0\.use: .*own_words\.py has changed"),
    (edit("model/tokenizer_config.json"), r"^policy\.model: .*tokenizer_config\.json has changed"),
    (
        lambda job: (job.model / "chat_template.jinja").write_text("{{ messages[-1].content }}"),
        r"^policy\.model: .*jinja was not read when",
    ),
]


def test_a_change_is_refused_by_name(job):
    job = job()
    job.begin()
    before = (job.run / "metrics.jsonl").read_bytes()
    kept = job.folder.with_name(f"{job.folder.name}-kept")
    shutil.copytree(job.folder, kept)
    for change, refusal in CHANGES:
        change(job)
        with pytest.raises(InputError, match=refusal) as error:
            job.resume()
        assert "--accept-changed-inputs" in str(error.value) and "\n" not in str(error.value)
        if "was not read" not in refusal:  # what has a record is checked without going on
            (part,) = (part for part in examine(job.run) if part.problems)
            assert part.name == "inputs" and re.match(refusal.removesuffix(": restore it"), part.problems[0])
        shutil.copytree(kept, job.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("run"))
    assert (job.run / "metrics.jsonl").read_bytes() == before
    assert not any(part.problems for part in examine(job.run))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "refusal"),
    [(append_rows, r"^data\.path: .*rows\.jsonl has changed .*now"), (shift_weights, r"^policy\.model: ")],
)
def test_supervised_runs_refuse_changes_too(job, change, refusal):
    job = job(sft=True)
    job.begin()
    change(job)
    with pytest.raises(InputError, match=refusal):
        job.resume()
    result = job.resume(accept_changed_inputs=True)
    assert len(result.metrics) == 3 and result.evaluation
    assert [row["kind"] for row in Run.open(job.run).rows("warnings.jsonl")] == ["inputs"]


@pytest.mark.slow
def test_the_same_bytes_are_the_same_inputs(job):
    job = job()
    job.begin(job.folder / "whole")
    whole = job.resume(job.folder / "whole")
    job.begin()
    for path in job.folder.rglob("*"):
        if path.is_file() and not path.is_relative_to(job.run):
            os.utime(path, ns=(1, 1))
    resumed = job.resume()
    assert [comparable(row) for row in resumed.metrics] == [comparable(row) for row in whole.metrics]
    assert job.inputs()["task.path"][str(job.data)]["modified"] == 1, "the next resume need not hash it again"
    assert not Run.open(job.run).rows("warnings.jsonl")


@pytest.mark.slow
def test_accepted_changes_are_recorded_and_shown(job):
    job = job()
    job.begin()
    append_rows(job)
    ran = CliRunner().invoke(app, ["train", "--resume", str(job.run), "--offline"])
    assert isinstance(ran.exception, InputError)
    ran = CliRunner().invoke(app, ["train", "--resume", str(job.run), "--offline", "--accept-changed-inputs"])
    assert ran.exit_code == 0, ran.output
    accepted = json.loads((job.run / "inputs.json").read_text())["accepted"]
    assert accepted[0]["step"] == 1 and accepted[0]["changes"][0].startswith("task.path: ")
    page = (job.run / "report.html").read_text()
    assert f"({len(ROWS)} lines, now {len(ROWS) + 4})" in page
    assert f"rows.jsonl {job.inputs()['task.path'][str(job.data)]['sha256'][:12]}" in page
    # What has been accepted is the record from now on.
    assert len(job.resume().metrics) == 3


@pytest.mark.slow
def test_a_run_without_a_record_is_warned_of_once(job):
    job = job()
    job.begin()
    (job.run / "inputs.json").unlink()
    observer = RecordingObserver()
    job.verb(resume=job.run, observer=observer, offline=True)
    assert [text for text in observer.warnings if "before inputs were recorded" in text]
    assert job.inputs()["task.path"]


OWN_FILES = """
from pathlib import Path
import burnish

@burnish.reward(files=lambda: [Path("weights.bin").absolute()])
def weighted_length(text):
    return len(text) * float(Path("weights.bin").read_text())
"""


@pytest.mark.slow
def test_options_and_files_of_a_users_own_task(job, tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "one.txt").write_text("a\nb\nc\nd\n")
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    (tmp_path / "own_task.py").write_text(
        "from pathlib import Path\nfrom burnish import Prompt\n\nclass Words:\n"
        "    def __init__(self, *, files: str = 'words/*.txt'):\n        self.files = files\n"
        "    def words(self):\n"
        "        return [w for p in sorted(Path().glob(self.files)) for w in p.read_text().split()]\n"
        "    def train(self):\n        return [Prompt(w, w) for w in self.words()[:2]]\n"
        "    def evaluation(self):\n        return [Prompt(w, w) for w in self.words()[2:]]\n"
    )
    (tmp_path / "weights.bin").write_text("1")
    job = job(
        task={"use": "own_task:Words", "files": "words/*.txt"},
        reward=[{"use": "json_format", "schema_file": "schema.json"}, {"use": "own_words:weighted_length"}],
    )
    (tmp_path / "own_words.py").write_text(OWN_FILES)
    job.begin()
    keys = {key: [Path(name).name for name in files] for key, files in job.inputs().items() if key != "policy.model"}
    assert keys == {
        "task.files": ["one.txt"], "task.use": ["own_task.py"], "reward.0.schema_file": ["schema.json"],
        "reward.1.use": ["weights.bin", "own_words.py"],
    }  # fmt: skip
    (tmp_path / "words" / "two.txt").write_text("e f")
    with pytest.raises(InputError, match=r"^task\.files: .*two\.txt was not read when the run began"):
        job.resume()
    (tmp_path / "words" / "two.txt").unlink()
    (tmp_path / "schema.json").write_text('{"type": "array"}')
    with pytest.raises(InputError, match=r"^reward\.0\.schema_file: .*schema\.json has changed"):
        job.resume()
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    (tmp_path / "weights.bin").write_text("2")
    with pytest.raises(InputError, match=r"^reward\.1\.use: .*weights\.bin has changed"):
        job.resume()


SCRIPT = """
import sys
import burnish
from own_words import WORD

BONUS = {bonus}

def score(text):
    return len(text) + BONUS

@burnish.reward
def own(text):
    return score(text + WORD)

if __name__ == "__main__":
    if sys.argv[1:] == ["resume"]:
        burnish.train(resume="run")
    else:
        burnish.train("toy", rewards={{own: 1.0}}, run_dir="run", steps=2)
{more}
"""


@pytest.mark.slow
def test_a_script_may_change_and_its_reward_may_not(tmp_path):
    (tmp_path / "own_words.py").write_text("WORD = 'a'\n")

    def run(*arguments: str, bonus: int = 1, more: str = "") -> subprocess.CompletedProcess[str]:
        (tmp_path / "script.py").write_text(SCRIPT.format(bonus=bonus, more=more))
        command = [sys.executable, "script.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert run().returncode == 0
    assert run("resume", more="# another comment").returncode == 0
    refused = run("resume", bonus=2)
    assert "reward.0.use: the source of 'own' has changed since run began" in refused.stderr


@pytest.mark.slow
def test_a_chat_template_file(job, tmp_path):
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:")
    job = job()
    job.recipe["task"] |= {"chat": True, "template": "own.jinja"}
    job.recipe["task"].pop("held_out_percent")
    job.begin()
    (tmp_path / "own.jinja").write_text("{{ messages[-1].content }}")
    with pytest.raises(InputError, match=r"^task\.template: .*own\.jinja has changed"):
        job.resume()


def test_large_files_are_hashed_beside_the_run(tmp_path):
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(LARGE + 1)
    (tmp_path / "run").mkdir()
    run = Run(tmp_path / "run")
    with Inputs(run, RecordingObserver(), fresh=True).recorded({"policy.model": {"large": path}}):
        pass
    record = json.loads((run.folder / "inputs.json").read_text())["inputs"]["policy.model"][str(path)]
    assert record["sha256"] == hashlib.sha256(bytes(LARGE + 1)).hexdigest()
    run.close()


@pytest.mark.slow
class TestRunOfARun:
    @pytest.fixture(params=[None, {"rank": 2}], ids=["full", "lora"])
    def second(self, request, job, tmp_path):
        first = job(policy={"model": str(tmp_path / "model"), **({"lora": request.param} if request.param else {})})
        first.recipe["checkpoint"]["keep"] = 1
        first.begin(tmp_path / "first")
        policy = {"model": str(tmp_path / "first"), **({"lora": request.param} if request.param else {})}
        first.recipe = first.recipe | {"policy": policy}
        first.begin(tmp_path / "whole")
        whole = first.resume(tmp_path / "whole")
        first.begin()
        return first, [comparable(row) for row in whole.metrics]

    def test_it_keeps_the_checkpoint_it_began_from(self, second, tmp_path):
        job, whole = second
        recipe = tomllib.loads((job.run / "recipe.toml").read_text())
        assert recipe["policy"]["model"] == str(tmp_path / "first" / "checkpoints" / "step-1" / "model")
        weights = next((job.run / "start").glob("*.safetensors"))
        assert weights.stat().st_nlink > 1
        job.resume(tmp_path / "first")
        assert not (tmp_path / "first" / "checkpoints" / "step-1").exists()
        shutil.rmtree(tmp_path / "first")
        shutil.move(job.run, tmp_path / "elsewhere")
        resumed = job.resume(tmp_path / "elsewhere")
        assert [comparable(row) for row in resumed.metrics] == whole
        text = burnish.api.generate(str(tmp_path / "elsewhere"), "The", sampling=SamplingParams(4), offline=True)[
            0
        ].text
        assert isinstance(text, str)

    def test_a_third_run_keeps_the_whole_chain(self, second, tmp_path):
        job, _ = second
        job.resume()
        job.recipe = job.recipe | {"policy": job.recipe["policy"] | {"model": str(job.run)}}
        third = job.begin(tmp_path / "third")
        shutil.rmtree(job.run)
        shutil.rmtree(tmp_path / "first")
        rows = job.resume(third).metrics
        assert len(rows) == 3 and all(torch.isfinite(torch.tensor(row["grad_norm"])) for row in rows)
        weights = next((third / "start").glob("*.safetensors"))
        inputs = json.loads((third / "inputs.json").read_text())["inputs"]["policy.model"]
        assert f"<run>/start/{weights.name}" in inputs
