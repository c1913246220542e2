"""The command ``burnish harden``: the order of its steps, what is not repeated, its record, and bad input."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import burnish.api
import burnish.catalogue.convert
import burnish.supervised.verbs
from burnish.cli import hardening
from burnish.cli.app import app
from burnish.errors import BurnishError
from burnish.run.interrupts import Interrupted
from burnish.safety.redteam import judge, rewards
from tests.safety.packaged import fake_sets

ROW = {
    "kind": "all", "name": "all", "share": 0.1, "low": 0.0, "high": 0.2, "n": 5, "refused": 0.9,
    "before": {"share": 0.5}, "difference": -0.4, "interval": [-0.5, -0.3], "p_value": 0.01,
}  # fmt: skip


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["harden", *map(str, arguments)])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the command calls, in order; the calls write the files that end a step."""
    made: list[tuple[Any, ...]] = []

    def red_team(model: str, *, export: Path | None = None, side: str, **options: Any) -> dict[str, Any]:
        made.append(("red_team", model, side, options["each"], options.get("against"), options.get("families")))
        if export is not None:
            rows = [{"family": "direct"}] * 3 + [{"family": "harmless"}] * 2
            export.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"rows": [ROW]}

    def trainer(name: str) -> Any:
        def train(recipe: str | None = None, **options: Any) -> None:
            if "resume" in options:
                made.append((name, "resume", options["resume"].name))
                folder = options["resume"]
            else:
                made.append((name, recipe, *options["overrides"]))
                folder = options["run_dir"]
                folder.mkdir()
            (folder / "evaluation.json").write_text("{}")

        return train

    monkeypatch.setattr(burnish.catalogue.convert, "resolve_model", lambda *_, **__: None)
    monkeypatch.setattr(hardening, "red_team", red_team)
    monkeypatch.setattr(burnish.api, "train", trainer("train"))
    monkeypatch.setattr(burnish.supervised.verbs, "sft", trainer("sft"))
    return made


def test_each_round_starts_from_the_model_of_the_one_before(tmp_path: Path, calls: list[tuple[Any, ...]]) -> None:
    folder = tmp_path / "hard"
    options = ["open", "--run-dir", folder, "--seed", 3, "--find", 5, "--each", 4, "--set", "train.steps=7", "--json"]
    record = json.loads(run(*options, "--rounds", 2).stdout)
    first, second = folder / "round-1", folder / "round-2"
    trained = ("direct", "paraphrase", "role_play")
    assert calls == [
        ("red_team", "open", "train", 5, None, trained),
        ("sft", "safety_warm", "seed=3", 'policy.model="open"', f'data.path="{first}/found.jsonl"'),
        ("train", "safety", "seed=3", f'policy.model="{first}/warm"', "steps=7"),
        ("red_team", f"{first}/trained", "held_out", 4, "open", None),
        ("red_team", f"{first}/trained", "train", 5, None, trained),
        ("sft", "safety_warm", "seed=3", f'policy.model="{first}/trained"', f'data.path="{second}/found.jsonl"'),
        ("train", "safety", "seed=3", f'policy.model="{second}/warm"', "steps=7"),
        ("red_team", f"{second}/trained", "held_out", 4, "open", None),
    ]
    assert json.loads((folder / "harden.json").read_text()) == record
    assert [(one["round"], one["attacks"], one["harmless"]) for one in record["rounds"]] == [(1, 3, 2), (2, 3, 2)]
    # Repeated, nothing is done again; a further round is.
    assert json.loads(run(*options, "--rounds", 2).stdout) == record and len(calls) == 8
    assert len(json.loads(run(*options, "--rounds", 3).stdout)["rounds"]) == 3 and len(calls) == 12


def test_a_run_that_was_stopped_is_resumed(
    tmp_path: Path, calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(recipe: str | None = None, *, run_dir: Path, **_: Any) -> None:
        run_dir.mkdir()
        (run_dir / "recipe.toml").write_text("")
        raise Interrupted("stopped; resume with: burnish train --resume x")

    train = burnish.api.train
    monkeypatch.setattr(burnish.api, "train", stopped)
    options = ["open", "--run-dir", tmp_path / "hard", "--rounds", 1]
    result = run(*options)
    assert isinstance(result.exception, Interrupted) and result.exception.exit_status == 130
    assert str(result.exception) == f"stopped; repeat the command to continue {tmp_path}/hard"
    monkeypatch.setattr(burnish.api, "train", train)
    del calls[:]
    table = run(*options).stdout
    assert [call[:2] for call in calls] == [("train", "resume"), ("red_team", f"{tmp_path}/hard/round-1/trained")]
    assert "  all attacks              0.500  0.100  -0.400 [-0.500, -0.300]" in table.splitlines()


def test_it_ends_when_no_attack_succeeds(tmp_path: Path, calls: list[tuple[Any, ...]]) -> None:
    (tmp_path / "hard/round-1").mkdir(parents=True)
    settings = {"model": "open", "seed": 0, "find": 70, "rehearse": 0, "each": 40, "set": [], "attacker": None}
    (tmp_path / "hard/harden.json").write_text(json.dumps(settings))
    (tmp_path / "hard/round-1/found.jsonl").write_text('{"family": "harmless"}\n')
    result = run("open", "--run-dir", tmp_path / "hard")
    assert calls == [] and "round 1: no attack succeeded, so there is nothing to train on" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "steps=5"], "--set steps=5: write the step first, warm or train, as in train.steps=50"),
        (["--set", "train.seed=5"], "--set train.seed=5: burnish harden sets seed from --seed; leave it out"),
        (["--set", "train.stepz=5"], "stepz"),
        (["--seed", "1"], "was begun with seed = 0, not 1: repeat the options, or choose another --run-dir"),
    ],
)
def test_bad_input_is_refused_before_anything_is_done(
    tmp_path: Path, calls: list[tuple[Any, ...]], arguments: Sequence[str], message: str
) -> None:
    run("open", "--run-dir", tmp_path / "hard", "--rounds", 1)
    del calls[:]
    result = run("open", "--run-dir", tmp_path / "hard", "--rounds", 1, *arguments)
    assert isinstance(result.exception, BurnishError) and message in str(result.exception) and calls == []


def test_another_folder_is_refused(tmp_path: Path, calls: list[tuple[Any, ...]]) -> None:
    (tmp_path / "notes.txt").touch()
    result = run("open", "--run-dir", tmp_path)
    assert "holds something else than rounds of burnish harden" in str(result.exception) and calls == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("harden.json", "{", "harden.json cannot be read"),
        ("harden.json", "[]", "harden.json is not of burnish harden"),
        ("harden.json", "[" * 100_000, "harden.json cannot be read"),
        ("round-1/redteam.json", '{"rows": 3}', "redteam.json has rows that burnish harden did not write: delete it"),
        ("round-1/redteam.json", '{"rows": [{"kind": "all"}]}', "redteam.json has rows that burnish harden did not"),
        ("round-1/redteam.json", "\xff", "redteam.json cannot be read"),
        ("round-1/trained/evaluation.json", "[1]", "evaluation.json is not of burnish harden"),
        ("round-1/found.jsonl", "{\n", "found.jsonl, line 1: not JSON"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_done(
    tmp_path: Path, calls: list[tuple[Any, ...]], name: str, content: str, message: str
) -> None:
    options = ["open", "--run-dir", tmp_path / "hard", "--rounds", 1]
    run(*options)
    del calls[:]
    (tmp_path / "hard" / name).write_text(content, encoding="latin-1")
    result = run(*options)
    assert isinstance(result.exception, BurnishError) and message in str(result.exception) and calls == []


TINY = [
    "warm.steps=2", "warm.batch.examples_per_step=2", "warm.evaluation.resamples=100", "train.steps=2",
    "train.sampling.prompts_per_step=2", "train.sampling.samples_per_prompt=2", "train.sampling.max_new_tokens=4",
    "train.evaluation.prompts=4", "train.evaluation.sets=[]", "train.evaluation.resamples=100",
    "train.checkpoint.every=1",
]  # fmt: skip


@pytest.mark.slow
def test_a_tiny_model_is_hardened_and_a_failure_costs_no_finished_step(
    tmp_path: Path, tiny_chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_sets(tmp_path, monkeypatch)

    def unsafe(requests: Sequence[str], answers: Sequence[str]) -> list[float]:
        return [0.9 if len(answer) % 2 else 0.1 for answer in answers]

    for module in (judge, rewards):
        monkeypatch.setattr(module, "answer_judge", lambda *_: SimpleNamespace(unsafe=unsafe))
    options: list[object] = [tiny_chat, "--rounds", 1, "--find", 4, "--each", 3, "--json", "--offline"]
    options += [word for key in TINY for word in ("--set", key)]
    whole = run(*options, "--run-dir", tmp_path / "whole")
    assert whole.exit_code == 0, whole.exception

    steps, overlap = iter(range(100)), rewards.refuses

    def fails_in_the_second_step(text: str) -> bool:
        if next(steps) > 8 and "trained" in {path.name for path in (tmp_path / "halved/round-1").iterdir()}:
            raise RuntimeError("a reward broke")
        return overlap(text)

    monkeypatch.setattr(rewards, "refuses", fails_in_the_second_step)
    broken = run(*options, "--run-dir", tmp_path / "halved")
    assert "a reward broke" in str(broken.exception)
    monkeypatch.setattr(rewards, "refuses", overlap)
    monkeypatch.setattr(burnish.supervised.verbs, "sft", None)  # is not called again
    again = run(*options, "--run-dir", tmp_path / "halved")
    assert again.exit_code == 0, again.exception
    first, second = (json.loads(result.stdout)["rounds"][0] for result in (whole, again))
    assert first["evaluation"] == second["evaluation"] and first["rows"] == second["rows"]
    weights = [tmp_path / name / "round-1/trained/model/model.safetensors" for name in ("whole", "halved")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
