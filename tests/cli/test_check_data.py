"""The verb ``check`` on data, dry runs that read the data, and rows given as Python objects."""

from __future__ import annotations

import json
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy
import pytest
from typer.testing import CliRunner

import burnish
from burnish.cli.app import app
from burnish.data.objects import HELD_OUT_ROWS, ROWS, rows_as_files
from burnish.errors import InputError
from burnish.policies.loading import load_model
from burnish.run.folder import Run
from burnish.supervised.data_check import check_data
from tests.fakes import SUBJECTS, supervised_recipe, write_lines

TABLE = "question,answer\nWhat is 1+1?,2\nWhat is 007?,007\n,3\nA colour.,null\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.csv").write_text(TABLE)
    return tmp_path


def test_a_reading_has_counts_lengths_and_what_is_left_out(folder: Path, tiny_chat: Path) -> None:
    options = {"path": "q.csv", "prompt": "question", "reference": "answer", "held_out_percent": 50}
    (reading,) = check_data(options, load_model(tiny_chat), rows=2)
    assert reading.counts["training prompts"] + reading.counts["held-out prompts"] == 3 == reading.counts["references"]
    assert reading.left_out == (("line 4", "'question' is empty"),)
    assert len(reading.lengths) == 3 and min(reading.lengths) > 0
    assert {one.answers for one in reading.first} <= {("2",), ("007",), ("null",)}
    text = "\n".join(reading.lines())
    assert "left out, line 4: 'question' is empty" in text and reading.first[0].text in text.replace("  | ", "")


def test_rows_are_shown_with_what_is_learnt(folder: Path, tiny_chat: Path) -> None:
    pairs = [{"prompt": [{"role": "user", "content": s}], "chosen": [{"role": "assistant", "content": "yes"}],
              "rejected": [{"role": "assistant", "content": "no"}]} for s in SUBJECTS]  # fmt: skip
    write_lines("pairs.jsonl", pairs)
    prompts, rows = check_data({"path": "pairs.jsonl"}, load_model(tiny_chat), rows=1)
    assert prompts.counts["references"] == 50 and rows.counts == {"rows for prefer, reward-model": 50}
    assert rows.first[0].position == "line 1" and rows.first[0].answers[0].startswith("yes")


def test_the_columns_are_guessed(folder: Path, tiny_chat: Path) -> None:
    done = CliRunner().invoke(
        app, ["check", "q.csv", "--model", str(tiny_chat), "--json", "--set", "held_out_percent=50"]
    )
    assert done.exit_code == 0, done.exception
    (reading,) = json.loads(done.stdout)["readings"]
    assert reading["counts"]["references"] == 3


def recipe(folder: Path) -> Path:
    path = folder / "rec.toml"
    path.write_text('name = "x"\n[task]\nuse = "data"\npath = "q.csv"\nprompt = "question"\nmax_broken = 0.5\n'
                    'held_out_percent = 50\n[[reward]]\nuse = "repetition"\n')  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("option", "words"),
    [('task.generator="composite"', "cannot be used"), ("task.size=3", "at least 10")],
)
def test_a_dry_run_checks_the_options_of_a_task(option: str, words: str) -> None:
    refused = CliRunner().invoke(app, ["train", "reasoning", "--dry-run", "--set", option])
    assert words in str(refused.exception)


def test_a_dry_run_reads_the_data(folder: Path) -> None:
    path = str(recipe(folder))
    good = CliRunner().invoke(app, ["train", path, "--dry-run"])
    assert good.exit_code == 0, good.output
    bad = CliRunner().invoke(app, ["train", path, "--dry-run", "--set", "task.prompt=questoin"])
    assert isinstance(bad.exception, InputError) and "no column 'questoin' (did you mean 'question'?)" in str(
        bad.exception
    )
    write_lines("pairs.jsonl", [{"prompt": "a", "chosen": "b"}])
    (folder / "p.toml").write_text(
        'kind = "prefer"\nname = "x"\n[data]\nuse = "data"\npath = "pairs.jsonl"\nformat = "pairs"\n'
    )
    broken = CliRunner().invoke(app, ["prefer", "p.toml", "--dry-run"])
    assert isinstance(broken.exception, InputError) and "line 1: no column 'rejected'" in str(broken.exception)


class TestRows:
    def test_objects_become_lines(self) -> None:
        files = rows_as_files([{"prompt": "a", "day": date(2024, 1, 5)}, {"prompt": "\ud800"}])
        assert [json.loads(line) for line in files[ROWS].splitlines()] == [
            {"prompt": "a", "day": "2024-01-05"}, {"prompt": "\ud800"},
        ]  # fmt: skip
        day = numpy.datetime64("2024-01-05T00:00:00", "ns")
        assert json.loads(rows_as_files([{"a": day}])[ROWS])["a"].startswith("2024-01-05T00:00:00")
        splits = rows_as_files({"train": [{"prompt": "a"}], "test": [{"prompt": "b"}]})
        assert set(splits) == {ROWS, HELD_OUT_ROWS}

    def test_a_data_set_and_its_splits(self) -> None:
        library = pytest.importorskip("datasets", reason="pip install 'burnish[hub]'")
        rows = [{"prompt": "007", "day": datetime(2024, 1, 5), "n": None}, {"prompt": "null", "day": None, "n": 7}]
        data = library.Dataset.from_list(rows)
        expected = [{"prompt": "007", "day": "2024-01-05T00:00:00", "n": None}, {"prompt": "null", "day": None, "n": 7}]
        for one in (data, data.with_format("numpy"), data.to_iterable_dataset(), library.DatasetDict({"train": data})):
            files = rows_as_files(one)
            assert list(files) == [ROWS] and [json.loads(line) for line in files[ROWS].splitlines()] == expected
        files = rows_as_files(library.DatasetDict({"train": data, "validation": data.select([1])}))
        assert [json.loads(line) for line in files[HELD_OUT_ROWS].splitlines()] == expected[1:]

    def test_a_data_frame_has_null_for_missing_values(self) -> None:
        pandas = pytest.importorskip("pandas", reason="pip install 'burnish[hub]'")
        times = [pandas.Timestamp("2024-01-05"), pandas.NaT]
        numbers = pandas.array([1, None], dtype="Int64")
        frame = pandas.DataFrame(
            {"a": ["007", None], "b": [0.5, float("nan")], "c": times, "d": numbers, "e": [[1], []]}
        )
        assert [json.loads(line) for line in rows_as_files(frame)[ROWS].splitlines()] == [
            {"a": "007", "b": 0.5, "c": "2024-01-05T00:00:00", "d": 1, "e": [1]},
            {"a": None, "b": None, "c": None, "d": None, "e": []},
        ]
        with pytest.raises(InputError, match="rows: two columns of the data frame have the same name"):
            rows_as_files(pandas.DataFrame([["x", "y"]], columns=["a", "a"]))

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([], "rows: no rows"),
            ("text", "rows: a str: give a list"),
            ([{"a": 1}, 7], "rows, row 2: a int, not a mapping"),
            ([{"a": b"x"}], "rows, row 1: JSON has no bytes"),
            ({"test": []}, "rows: no split 'train'; it has test"),
        ],
    )
    def test_what_is_not_rows_is_refused(self, rows: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            rows_as_files(rows)

    def test_a_run_keeps_its_rows(self, folder: Path, tiny: Any) -> None:
        rows = [{"prompt": subject, "chosen": " sang", "rejected": " fell"} for subject in SUBJECTS]
        source = supervised_recipe("prefer", tiny("llama"), "", format="pairs", steps=1)
        result = burnish.prefer(source, rows=rows, run_dir="runs/a")
        assert (result.run_dir / ROWS).is_file()
        written = json.loads((result.run_dir / "data.json").read_text())
        assert written["rows"] == 50 and Run.open(result.run_dir, "prefer")
