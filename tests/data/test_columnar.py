"""Columnar files with values that Python or JSON does not have, and folders that ``datasets`` saved."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from burnish.data.readers import read_files
from burnish.errors import InputError
from burnish.tasks.data import DataTask

arrow = pytest.importorskip("pyarrow", reason="pip install 'burnish[parquet]'")


def write(path: Path, **columns: Any) -> Path:
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow.table(columns), path)
    return path


UNREADABLE: list[tuple[str, Any, str]] = [
    ("text that is not UTF-8", arrow.array([b"\xff", b"x"]).view(arrow.string()), "a value cannot be read ('utf-8'"),
    ("a date after year 9999", arrow.array([2**31 - 1, 0], arrow.date32()), "a value cannot be read ("),
    ("a map with a key twice", arrow.array([[("k", 1), ("k", 2)], []], arrow.map_(arrow.string(), arrow.int64())),
     "a value cannot be read ("),
    ("deep JSON", arrow.array(["[" * 100_000, "1"]).cast(arrow.json_()), "a column of type JSON is not JSON ("),
]  # fmt: skip


@pytest.mark.parametrize(("name", "column", "reason"), UNREADABLE, ids=[name for name, _, _ in UNREADABLE])
def test_one_value_that_cannot_be_read_breaks_one_row(tmp_path: Path, name: str, column: Any, reason: str) -> None:
    first, second = read_files(write(tmp_path / "a.parquet", value=column))
    assert first.values is None and first.position == "row 1" and first.reason.startswith(reason)
    assert second.position == "row 2" and second.values is not None


@pytest.mark.parametrize("offsets", [(0, 3, 2**30), (0, -(2**30), 6), (5, 3, 6)])
@pytest.mark.parametrize("nested", [False, True])
def test_offsets_that_lead_out_of_the_file_are_not_followed(
    tmp_path: Path, offsets: tuple[int, ...], nested: bool
) -> None:
    column = arrow.array(["abc", "def"])
    table = arrow.table({"prompt": arrow.array([["abc"], ["def"]]) if nested else column})
    path = tmp_path / "a.arrow"
    with arrow.ipc.new_file(path, table.schema) as file:
        file.write_table(table)
    assert len(list(read_files(path))) == 2
    whole, before = path.read_bytes(), struct.pack("<3i", 0, 3, 6)
    assert whole.count(before) == 1
    path.write_bytes(whole.replace(before, struct.pack("<3i", *offsets)))
    with pytest.raises(InputError, match="not a whole Arrow file"):
        list(read_files(path))


def test_a_map_is_an_object(tmp_path: Path) -> None:
    column = arrow.array([[("gold", "4")]], arrow.map_(arrow.string(), arrow.string()))
    write(tmp_path / "a.parquet", prompt=["2 + 2?"], answers=column)
    task = DataTask(path=str(tmp_path / "a.parquet"), reference="answers.gold")
    (example,) = task.examples(offline=True, observer=None)
    assert example.prompt.references == ("4",)


class TestSavedFolders:
    def test_a_data_set_and_its_splits(self, tmp_path: Path) -> None:
        library = pytest.importorskip("datasets", reason="pip install 'burnish[hub]'")
        library.disable_progress_bars()
        rows = library.Dataset.from_list([{"prompt": f"question {index}", "n": f"00{index}"} for index in range(4)])
        rows.select([3, 1]).save_to_disk(tmp_path / "one")
        assert [row.values for row in read_files(tmp_path / "one")] == [
            {"prompt": "question 3", "n": "003"}, {"prompt": "question 1", "n": "001"},
        ]  # fmt: skip
        library.DatasetDict({"train": rows, "test": rows.select([2])}).save_to_disk(tmp_path / "splits")
        (row,) = read_files(tmp_path / "splits", side="test")
        assert row.values == {"prompt": "question 2", "n": "002"}
        task = DataTask(path=str(tmp_path / "splits"), held_out="test", reference="n")
        assert [prompt.text for prompt in task.evaluation()] == ["question 2"]
        assert [prompt.reference for prompt in task.train()] == ["000", "001", "003"]
        with pytest.raises(InputError, match=r"no split 'tset' \(did you mean 'test'\?\); it has train, test"):
            list(read_files(tmp_path / "splits", side="tset"))

    @pytest.mark.parametrize(
        ("name", "content", "reason"),
        [
            ("dataset_dict.json", [], "its dataset_dict.json does not name its splits"),
            ("dataset_dict.json", {"splits": None}, "its dataset_dict.json does not name its splits"),
            ("dataset_dict.json", {"splits": [1]}, "its dataset_dict.json does not name its splits"),
            ("state.json", [], "its state.json does not name its files"),
            ("state.json", {"_data_files": [{"filename": "../a.arrow"}]}, "names a file outside of the folder"),
        ],
    )
    def test_a_damaged_description_is_refused(self, tmp_path: Path, name: str, content: Any, reason: str) -> None:
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(InputError, match=reason):
            list(read_files(tmp_path))
