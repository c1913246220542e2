"""The command line: light imports, help, JSON output and exit statuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
import typer

from burnish.algorithms.presets import PRESETS
from burnish.cli import app as cli
from burnish.errors import BurnishError
from burnish.recipe.reading import KINDS
from burnish.recipe.schema import builtin_recipes, load_recipe
from burnish.run.interrupts import Interrupted

COMMANDS = typer.main.get_command(cli.app).commands
VERBS = sorted(COMMANDS)


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["burnish", *arguments])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    return exit.value.code or 0


def output_of_new_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def loaded(code: str) -> set[str]:
    """Return the heavy modules that a new Python process has loaded after running ``code``."""
    heavy = ("torch", "transformers", "peft", "sacrebleu", "ray", "numpy", "plotly")
    report = """
import sys
postponed = lambda module: type(module).__name__ == "_Postponed"
"""
    report += f"print('|'.join(m for m in {heavy!r} if m in sys.modules and not postponed(sys.modules[m])))"
    printed = output_of_new_python(code + report)
    return set(printed.splitlines()[-1].split("|")) - {""}


class TestLight:
    def test_import_burnish_loads_nothing_heavy(self):
        assert loaded("import burnish") == set()
        assert loaded("import burnish\nburnish.Prompt, burnish.InputError, dir(burnish)") == set()

    @pytest.mark.slow
    def test_help_loads_nothing_heavy(self):
        code = "import sys; from burnish.cli import app as cli; sys.argv = ['burnish', 'train', '--help']\n"
        assert loaded(code + "try: cli.main()\nexcept SystemExit: pass") == set()

    @pytest.mark.slow
    def test_a_dry_run_loads_no_model(self):
        code = "import sys; from burnish.cli import app as cli; sys.argv = ['burnish', 'train', 'news', '--dry-run']\n"
        assert "transformers" not in loaded(code + "try: cli.main()\nexcept SystemExit: pass")

    @pytest.mark.slow
    def test_a_local_run_loads_no_ray(self, tmp_path):
        code = "import burnish; from burnish.reports.terminal.progress import make_observer\n"
        code += f"burnish.train('toy', steps=1, run_dir={str(tmp_path / 'run')!r}, observer=make_observer(quiet=True))"
        found = loaded(code)
        assert "torch" in found and "ray" not in found

    def test_every_public_name_exists(self):
        import burnish

        assert all(getattr(burnish, name) is not None for name in burnish.__all__)
        with pytest.raises(AttributeError, match="no attribute 'trian'"):
            _ = burnish.trian


class TestHelp:
    @pytest.mark.parametrize("verb", VERBS)
    def test_of_a_verb(self, verb, monkeypatch, capsys):
        assert run(monkeypatch, verb, "--help") == 0
        out = capsys.readouterr().out
        assert f"burnish {verb}" in out
        assert "--help" in out

    @pytest.mark.parametrize("verb", VERBS)
    def test_first_sentence_fits_the_list_of_verbs(self, verb):
        assert not COMMANDS[verb].get_short_help_str(limit=64).endswith("...")

    def test_lists_every_verb(self, monkeypatch, capsys):
        assert run(monkeypatch, "--help") == 0
        out = capsys.readouterr().out
        assert all(verb in out for verb in VERBS)

    def test_version(self, monkeypatch, capsys):
        from burnish import __version__

        assert run(monkeypatch, "--version") == 0
        assert capsys.readouterr().out == f"burnish {__version__}\n"

    @pytest.mark.parametrize("arguments", [["trian"], ["train", "--stpes", "3"], ["generate", "m", "--samples", "0"]])
    def test_wrong_usage_is_bad_input(self, arguments, monkeypatch, capsys):
        assert run(monkeypatch, *arguments) == 2
        assert "Traceback" not in capsys.readouterr().err


class TestList:
    @pytest.mark.parametrize("what", ["algorithms", "rewards", "tasks", "models", "data", "recipes"])
    def test_text_and_json_of_each_kind(self, what, monkeypatch, capsys):
        assert run(monkeypatch, "list", what) == 0
        text = capsys.readouterr().out
        assert run(monkeypatch, "list", what, "--json") == 0
        rows = json.loads(capsys.readouterr().out)
        assert rows
        for row, line in zip(rows, text.splitlines(), strict=True):
            assert line.split()[0] == row["name"]
            assert len(row["summary"]) > 10, f"{row['name']} has no summary"

    def test_contains_the_registered_names(self, monkeypatch, capsys):
        def names(what: str) -> set[str]:
            run(monkeypatch, "list", what, "--json")
            return {row["name"] for row in json.loads(capsys.readouterr().out)}

        assert names("algorithms") == set(PRESETS)
        assert {"bleu", "exact", "perplexity", "repetition"} <= names("rewards")
        assert {"news", "toy"} <= names("tasks")
        assert "smollm2-135m" in names("models")
        assert names("recipes") == set().union(*(builtin_recipes(kind) for kind in (None, *KINDS)))

    def test_unknown_kind(self, monkeypatch, capsys):
        assert run(monkeypatch, "list", "reward") == 2
        assert capsys.readouterr().err.startswith("burnish: cannot list 'reward' (did you mean 'rewards'?)")


class TestTrain:
    def test_dry_run_prints_the_recipe(self, monkeypatch, capsys, tmp_path):
        monkeypatch.chdir(tmp_path)
        assert run(monkeypatch, "train", "toy", "--dry-run", "--set", "steps=7") == 0
        path = tmp_path / "printed.toml"
        path.write_text(capsys.readouterr().out, encoding="utf-8")
        assert load_recipe(path).resolved() == load_recipe("toy", ["steps=7"]).resolved()
        assert run(monkeypatch, "train", "toy", "--dry-run", "--json") == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed == load_recipe("toy").resolved().model_dump(mode="json"), "every default"
        assert [path.name for path in tmp_path.iterdir()] == ["printed.toml"]

    @pytest.mark.slow
    def test_json_is_one_object_per_line(self, monkeypatch, capsys, tmp_path):
        folder = tmp_path / "run"
        assert run(monkeypatch, "train", "toy", "--set", "steps=3", "--run-dir", str(folder), "--json") == 0
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [event["metrics"]["step"] for event in events if event["event"] == "step"] == [1, 2, 3]
        assert events[-1]["event"] == "result"
        assert events[-1]["evaluation"] == json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        assert events[-1]["report"] == str(folder / "report.html")
        steps = [event["metrics"] for event in events if event["event"] == "step"]
        # A process that has imported torch uses more than 100 MB.
        assert events[-1]["cost"]["peak_memory_mb"] == max(step["memory/peak"] for step in steps) > 100
        assert events[-1]["cost"]["seconds"] == sum(step["time/step"] for step in steps)
        assert "peak memory" in (folder / "report.html").read_text(encoding="utf-8")
        assert "method `rloo`, 3 steps" in (folder / "model_card.md").read_text(encoding="utf-8")

    @pytest.mark.slow
    def test_quiet_prints_only_the_result(self, monkeypatch, capsys, tmp_path):
        folder = tmp_path / "run"
        assert run(monkeypatch, "train", "toy", "--set", "steps=3", "--run-dir", str(folder), "--quiet") == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        assert str(folder / "report.html") in captured.out


class TestScore:
    def test_json(self, monkeypatch, capsys):
        assert run(monkeypatch, "score", "a b a b a b", "我爱你。", "--use", "repetition", "--json") == 0
        rows = json.loads(capsys.readouterr().out)
        # 5 pairs of words, 2 of them distinct: 1 - 3/4 = 1/4. Longest repeat a b a b, 4 of 5 possible: 1 - 4/5 = 1/5.
        assert rows[0]["parts"]["repetition"] == pytest.approx(0.05)
        assert rows[1] == {"text": "我爱你。", "parts": {"repetition": 1.0}}

    def test_with_a_reference(self, monkeypatch, capsys):
        assert run(monkeypatch, "score", " yes ", "no", "--use", "exact", "--reference", "yes", "--json") == 0
        assert [row["parts"]["exact"] for row in json.loads(capsys.readouterr().out)] == [1.0, 0.0]

    def test_without_a_reference(self, monkeypatch, capsys):
        assert run(monkeypatch, "score", "x", "--use", "bleu") == 2
        assert "needs a reference; pass --reference TEXT" in capsys.readouterr().err


@pytest.mark.usefixtures("loaded_once")
class TestGenerate:
    def test_json_and_seed(self, monkeypatch, capsys, tiny):
        def texts(seed: str) -> list[dict]:
            arguments = ["generate", str(tiny("llama")), "The home team", "--samples", "3", "--max-new-tokens", "6"]
            assert run(monkeypatch, *arguments, "--seed", seed, "--json") == 0
            return json.loads(capsys.readouterr().out)

        first, second, other = texts("1"), texts("1"), texts("2")
        assert first == second != other
        assert all(1 <= row["tokens"] <= 6 and row["finish_reason"] in ("stop", "length") for row in first)

    def test_stops(self, monkeypatch, capsys, tiny):
        arguments = ["generate", str(tiny("llama")), "The home team", "--max-new-tokens", "40", "--json"]
        assert run(monkeypatch, *arguments, "--stop", "e", "--stop", "a", "--keep-stop", "--min-new-tokens", "2") == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert row["finish_reason"] == "stop" and row["text"][-1] in "ea" and 2 < row["tokens"] < 40
        assert run(monkeypatch, *arguments, "--stop-token-id", "5000") == 2
        assert "the model has no token 5000" in capsys.readouterr().err
        assert run(monkeypatch, *arguments, "--stop", "") == 2
        assert "stop: an empty text would end every completion" in capsys.readouterr().err
        assert run(monkeypatch, *arguments, "--min-new-tokens", "41") == 2
        assert "min_new_tokens = 41: must be at most 40" in capsys.readouterr().err


def test_an_error_is_one_line_with_its_exit_status(monkeypatch, capsys):
    def fails(*arguments, **options):
        raise BurnishError("the sky fell: hold it up")

    monkeypatch.setattr("burnish.listing.listing", fails)
    assert run(monkeypatch, "list", "rewards") == 1
    assert capsys.readouterr().err == "burnish: the sky fell: hold it up\n"


def test_a_second_ctrl_c_keeps_the_message_of_the_first(monkeypatch, capsys):
    """It used to arrive between the first one's error and its message about once in twenty tries."""
    pressed = typer.Typer(pretty_exceptions_enable=False)

    @pressed.command()
    def twice() -> None:
        try:
            raise Interrupted("stopped, saved after step 3; resume with: burnish train --resume run")
        finally:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", pressed)
    monkeypatch.setattr("sys.argv", ["burnish"])
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert ended.value.code == 130
    assert cli.first_interrupt(SystemExit(2)) is None
    message = "burnish: stopped, saved after step 3; resume with: burnish train --resume run\n"
    assert capsys.readouterr().err == message
