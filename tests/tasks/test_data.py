"""A user's own data: broken rows are listed with their lines, and no row is lost silently."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from burnish.errors import InputError
from burnish.system import optional_packages as extras
from burnish.tasks.data import DataTask
from burnish.tasks.registry import TASKS, check_task_options
from tests.fakes import RecordingObserver

GOOD = [{"prompt": f"Question {n}?", "reference": f"Answer {n}."} for n in range(200)]


def lines(path: Path, rows: list[Any]) -> Path:
    """Write rows as JSON lines; bytes are written unchanged."""
    encoded = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"\n".join(encoded) + b"\n")
    return path


def table(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


def references(**options: Any) -> dict[str, str | None]:
    """Return the text -> reference of all prompts; none may be on both sides."""
    task = DataTask(**options)
    both = [*task.train(), *task.evaluation()]
    assert not {p.text for p in task.train()} & {p.text for p in task.evaluation()}
    return {prompt.text: prompt.reference for prompt in both}


EXPECTED = {row["prompt"]: row["reference"] for row in GOOD}


def test_an_empty_name_of_the_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="prompt is empty: name the field with the prompt, or leave it out"):
        DataTask(path="rows.jsonl", prompt="")


def test_three_formats_give_the_same_prompts(tmp_path: Path) -> None:
    one = DataTask(path=str(lines(tmp_path / "a.jsonl", GOOD)), reference="reference")
    two = DataTask(path=str(table(tmp_path / "a.csv", GOOD)), reference="reference")
    three = DataTask(path=str(table(tmp_path / "a.tsv", GOOD, delimiter="\t")), reference="reference")
    assert one.train() == two.train() == three.train() and one.evaluation() == two.evaluation() == three.evaluation()
    assert 5 < len(one.evaluation()) < 40
    arrow = pytest.importorskip("pyarrow", reason="pip install 'burnish[parquet]'")
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow.Table.from_pylist(GOOD), tmp_path / "a.parquet")
    four = DataTask(path=str(tmp_path / "a.parquet"), reference="reference")
    assert four.train() == one.train() and four.evaluation() == one.evaluation()


def test_the_order_and_the_other_rows_do_not_decide_a_side(tmp_path: Path) -> None:
    all_of_it = DataTask(path=str(lines(tmp_path / "a.jsonl", GOOD)))
    some = DataTask(path=str(lines(tmp_path / "b.jsonl", GOOD[::-2])))
    assert {p.id for p in some.train()} <= {p.id for p in all_of_it.train()}
    assert [p.text for p in all_of_it.train()] == [p["prompt"] for p in GOOD if p["prompt"] in
                                                  {q.text for q in all_of_it.train()}]  # fmt: skip


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    for name, path in (("a.jsonl", lines(tmp_path / "a.jsonl", GOOD)), ("a.csv", table(tmp_path / "a.csv", GOOD))):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert references(path=str(tmp_path / name), reference="reference") == EXPECTED


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff", b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow"])
def test_another_encoding_is_named(tmp_path: Path, name: str, mark: bytes) -> None:
    if name.endswith(("parquet", "arrow")):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(mark + "prompt\nQuestion?\n".encode("utf-16-le"))
    with pytest.raises(InputError, match=r"the file is (UTF-16|a zip archive or spreadsheet): save it as UTF-8"):
        DataTask(path=str(tmp_path / name)).train()


BROKEN: list[tuple[Any, str]] = [
    (b'{"prompt": "caf\xe9"}', "not UTF-8 text"),
    (b'{"prompt": "x"', "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b'["prompt"]', "a list, not an object"),
    (b"null", "null, not an object"),
    ({"promt": "x"}, "no column 'prompt' (did you mean 'promt'?)"),
    ({"prompt": None}, "'prompt' is null"),
    ({"prompt": 7}, "'prompt' is a number, not text"),
    ({"prompt": {"text": "x"}}, "'prompt' is an object, not text"),
    ({"prompt": " \n"}, "'prompt' is empty"),
    ({"prompt": "x" * 100_001}, "100,001 characters"),
    (b'{"prompt": "\\ud800"}', "not UTF-8 text"),
    ({"prompt": "no answer"}, "no column 'reference'"),
    ({"prompt": "x", "reference": None}, "'reference' is null"),
    ({"prompt": "x", "reference": []}, "'reference' is empty"),
    ({"prompt": "x", "reference": ""}, "'reference' is empty"),
    (b'{"prompt": "x", "reference": NaN}', "'reference' is a number that JSON does not have"),
]


@pytest.mark.parametrize(("row", "reason"), BROKEN, ids=[reason for _, reason in BROKEN])
def test_a_broken_row_is_listed_with_its_line_and_the_others_are_kept(tmp_path: Path, row: Any, reason: str) -> None:
    path = lines(tmp_path / "a.jsonl", [*GOOD[:2], b"", row, *GOOD[2:]])
    observer = RecordingObserver()
    task = DataTask(path=str(path), reference="reference")
    task.prepare(observer=observer)  # type: ignore[arg-type]
    assert {prompt.text for prompt in (*task.train(), *task.evaluation())} == set(EXPECTED)
    (warning,) = [text for level, text in observer.messages if level == "warning"]
    assert warning.startswith(f"data: 1 of 201 rows of '{path}' cannot be used: line 4: ") and reason in warning
    with pytest.raises(InputError, match=r"1 of 201 rows .*line 4: .*raise max_broken \(now 0.0\)"):
        DataTask(path=str(path), reference="reference", max_broken=0.0).train()


def test_many_broken_rows_are_refused_and_the_first_few_listed(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [*GOOD, *[{"prompt": ""}] * 7])
    with pytest.raises(
        InputError, match=r"^7 of 207 rows .*line 201: .*line 205: 'prompt' is empty; \.\.\.; correct them"
    ):
        DataTask(path=str(path)).train()
    assert len(references(path=str(path), max_broken=0.05)) == 200


def test_rows_of_csv_that_are_broken(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", [*GOOD, {"prompt": 'two\nlines, and a "word"', "reference": "x" * 200_000}])
    before = csv.field_size_limit()
    assert references(path=str(path), reference="reference", max_characters=300_000)['two\nlines, and a "word"']
    assert csv.field_size_limit() == before
    whole = path.read_bytes()
    for bad, reason in (
        (b"one field\r\n", "1 fields where line 1 names 2 columns"),
        (b"a,b,c\r\n", "3 fields where line 1 names 2 columns"),
        (b"caf\xe9,x\r\n", "'prompt' is not UTF-8 text"),
        (b'"a"b,x\r\n', "not CSV"),
        (b",x\r\n", "'prompt' is empty"),
    ):
        path.write_bytes(whole.replace(b"Question 0?", bad + b"Question 0?", 1))
        observer = RecordingObserver()
        DataTask(path=str(path), reference="reference", max_characters=300_000).prepare(observer=observer)  # type: ignore[arg-type]
        assert "1 of 202 rows" in observer.messages[0][1] and f"line 2: {reason}" in observer.messages[0][1], (
            observer.messages
        )
    path.write_bytes(whole + b'"never closed,x\r\n')
    with pytest.raises(InputError, match="line 204: a quotation mark is not closed"):
        DataTask(path=str(path), max_broken=0.0, max_characters=300_000).train()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n\n \n", "has no rows"),
        (b"prompt,prompt\n", "line 1 must name each column, all different"),
        (b"prompt\n", "has no rows"),
    ],
)
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / ("a.csv" if b"prompt" in content else "a.jsonl")
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        DataTask(path=str(path)).train()


def test_repeated_prompts_are_one_prompt_on_one_side(tmp_path: Path) -> None:
    again = [{"prompt": f" {row['prompt']}\n", "reference": "Another."} for row in GOOD]
    observer = RecordingObserver()
    task = DataTask(path=str(lines(tmp_path / "a.jsonl", [*GOOD, *again])), reference="reference")
    task.prepare(observer=observer)  # type: ignore[arg-type]
    assert {p.text: p.reference for p in (*task.train(), *task.evaluation())} == EXPECTED
    sides = f"data: {len(task.train())} training and {len(task.evaluation())} held-out prompts"
    assert observer.messages[-1][1] == f"{sides}; left out: 200 repeated"
    DataTask(path=str(lines(tmp_path / "b.jsonl", GOOD))).prepare(observer=observer)  # type: ignore[arg-type]
    assert observer.messages[-1][1] == sides, "nothing is left out"


def test_a_group_is_on_one_side(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {n}?", "source": [["+"], ["-"], ["*"]][n % 3] if n < 60 else n} for n in range(200)]
    path = str(lines(tmp_path / "a.jsonl", rows))
    task = DataTask(path=path, group="source", metadata=["source"], held_out_percent=30)
    train, held_out = ({str(p.metadata["source"]) for p in side} for side in (task.train(), task.evaluation()))
    assert train and held_out and not train & held_out and "['+']" in train | held_out
    groups = [example.texts[1] for example in task.examples(offline=True, observer=None)]
    assert len(set(groups)) == 143  # three groups of twenty rows and 140 of one row


def test_near_copies_are_on_one_side(tmp_path: Path) -> None:
    """Two versions of each question with thirteen words in common; by their own hashes, many would be separated."""
    rows = [
        {"prompt": f"{start} " + " ".join(f"word{index}in{n}" for index in range(13))}
        for n in range(60)
        for start in ("Please tell", "I ask about")
    ]
    task = DataTask(path=str(lines(tmp_path / "a.jsonl", rows)), held_out_percent=25)
    train, held_out = ({p.text.split()[-1] for p in side} for side in (task.train(), task.evaluation()))
    assert len(train) + len(held_out) == 60 and 5 < len(held_out) < 30 and not train & held_out


def test_templates_fill_in_columns(tmp_path: Path) -> None:
    rows = [{"a b": f"{n}", "c": "x {a b} y"} for n in range(50)]
    prompts = references(path=str(lines(tmp_path / "a.jsonl", rows)), template="{{Say}} {a b}: {c}")
    assert "{Say} 7: x {a b} y" in prompts  # the content of a column is not a template
    for template in ("no column", "{}", "{a[0]}", "{a!r}", "{a:>9}", "{a"):
        with pytest.raises(InputError, match="template"):
            DataTask(path="a.jsonl", template=template)


def test_conversations_and_nested_references(tmp_path: Path) -> None:
    def talk(n: int, *, answered: bool) -> list[dict[str, str]]:
        turns = [("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."), ("user", f"And {n}?")]
        turns += [("assistant", f"Yes {n}.")] if answered else []
        return [{"role": role, "content": content} for role, content in turns]

    rows = [{"talk": talk(n, answered=True), "calls": {"calls": [{"expected": n}]}} for n in range(40)]
    path = str(lines(tmp_path / "a.jsonl", rows))
    task = DataTask(path=path, messages="talk", system="Be kind.")
    prompt = task.train()[0]
    assert [message.role for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert prompt.messages[0].content == "Be kind." and prompt.text == prompt.messages[-1].content
    assert prompt.reference == f"Yes {prompt.text[4:-1]}."
    named = DataTask(path=path, messages="talk", reference="calls").train()[0]
    assert json.loads(named.reference or "") == {"calls": [{"expected": int(named.text[4:-1])}]}
    as_text = [{"talk": json.dumps(talk(n, answered=False))} for n in range(40)]
    assert set(references(path=str(table(tmp_path / "a.csv", as_text)), messages="talk").values()) == {None}


@pytest.mark.parametrize(
    "talk", [None, [], "x", [1], [{"role": "robot", "content": "x"}], [{"role": "user", "content": None}],
             [{"role": "assistant", "content": "x"}], [{"role": "user"}], [{"role": "system", "content": "x"}]],
)  # fmt: skip
def test_broken_conversations_are_listed(tmp_path: Path, talk: Any) -> None:
    with pytest.raises(InputError, match=r"1 of 1 rows .*line 1: '(messages|content)'"):
        DataTask(path=str(lines(tmp_path / "a.jsonl", [{"messages": talk}])), messages="messages").train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name either path"),
        ({"path": "a.jsonl", "dataset": "x/y"}, "name either path"),
        ({"path": "a.txt"}, "does not say its format"),
        ({"path": "a.txt", "format": "jsonlines"}, "did you mean 'jsonl'"),
        ({"path": "/nowhere/a.jsonl"}, "cannot be read: No such file"),
        ({"path": "/"}, "cannot be read: Is a directory; name its files"),
        ({"path": "/", "format": "csv"}, "cannot be read: Is a directory"),
        ({"path": "a.jsonl", "messages": "m", "template": "{t}"}, "remove one of them"),
        ({"path": "a.jsonl", "messages": "m", "chat": False}, "needs chat = true"),
        ({"path": "a.jsonl", "system": "m", "chat": False}, "needs chat = true"),
        ({"path": "a.jsonl", "max_broken": 1.0}, "max_broken = 1.0"),
        ({"path": "a.jsonl", "revision": "main"}, "revision is for a data set of the hub"),
        ({"path": "a.jsonl", "side": "test"}, "side = 'test': files have no splits"),
        ({"path": "a.jsonl", "held_out": "a.jsonl"}, "held_out = 'a.jsonl' is the training side"),
        ({"dataset": "tests", "revision": "main"}, "'tests' is a folder, which has no revisions"),
        ({"dataset": "x/y", "format": "csv"}, "format is for files named by path"),
        ({"path": "nowhere-*.jsonl"}, "no file matches this pattern"),
        ({"path": "a.jsonl", "max_characters": 0}, "max_characters = 0"),
        ({"path": "/dev/null", "format": "csv"}, "not a regular file"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DataTask(**options).train()
    check_task_options(TASKS.get("data"), options)


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"")
    with pytest.raises(InputError, match="the file is empty"):
        DataTask(path=str(tmp_path / "a.csv")).train()


def test_a_file_in_gbk_is_refused_as_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("问题,答案\n一加一？,二\n".encode("gbk"))
    with pytest.raises(InputError, match="line 1: not UTF-8 text: save the file as 'CSV UTF-8'"):
        DataTask(path=str(tmp_path / "a.csv"), prompt="问题").train()


def test_a_file_that_is_not_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for content in (b"PAR1", b"not at all", b"PAR1" + bytes(100) + b"PAR1"):
        (tmp_path / "a.parquet").write_bytes(content)
        with pytest.raises(InputError, match="not a whole Parquet file"):
            DataTask(path=str(tmp_path / "a.parquet")).train()


@pytest.mark.parametrize(("options", "extra"), [({"path": "a.parquet"}, "parquet"), ({"dataset": "x/y"}, "hub")])
def test_a_missing_package_is_one_command(options: dict[str, Any], extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError(f"No module named '{module}'", name=module.partition(".")[0])

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    with pytest.raises(InputError, match=rf"pip install 'burnish\[{extra}\]'$"):
        DataTask(**options).train()
