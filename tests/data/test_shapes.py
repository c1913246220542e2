"""Shapes of data that users bring: each is read as the docs' table says, or refused with a line that names the fix."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from time import process_time
from typing import Any

import pytest

from burnish.data.rows import (
    Conversation,
    ConversationPair,
    LabelledCompletion,
    LabelledConversation,
    PreferencePair,
    PromptCompletion,
    TrainingRow,
)  # fmt: skip
from burnish.data.text_files import read_json_lines
from burnish.errors import InputError
from burnish.supervised.data_rows import DataRows
from burnish.tasks.data import DataTask
from burnish.types import Message, Prompt
from tests.fakes import RecordingObserver

U, A, S, T = "user", "assistant", "system", "tool"
ROWS = [{"prompt": "What is 007?", "reference": "007"}, {"prompt": "And null?", "reference": "null"}]
LINES = "\n".join(map(json.dumps, ROWS))
TABLE = "prompt,reference\nWhat is 007?,007\nAnd null?,null\n"


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def messages(*turns: tuple[Any, str]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in turns)


def prompts(path: Path, **options: Any) -> list[Prompt]:
    examples = DataTask(path=str(path), **options).examples(offline=True, observer=None)
    return [example.prompt for example in examples]


def rows(path: Path, *values: dict[str, Any], **options: Any) -> tuple[TrainingRow, ...]:
    path.write_text("\n".join(map(json.dumps, values)), encoding="utf-8")
    read = DataRows(path=str(path), **options).rows()
    assert not read.broken, read.broken
    return read.rows


def parquet(path: Path, values: list[dict[str, Any]]) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="pip install 'burnish[parquet]'")
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow.Table.from_pylist(values), path)
    return path


def arrow_file(path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pip install 'burnish[parquet]'")
    table = arrow.Table.from_pylist(ROWS)
    with arrow.ipc.new_file(path, table.schema) as file:
        file.write_table(table)


def zstd(path: Path) -> None:
    library = pytest.importorskip("zstandard", reason="pip install 'burnish[zstd]'")
    path.write_bytes(library.compress(LINES.encode()) + library.compress(b"\n"))


FILES: list[tuple[str, Any]] = [
    ("a.jsonl", LINES),
    ("a.ndjson", LINES),
    ("lines.json", LINES),
    ("one_line.json", json.dumps(ROWS)),
    ("pretty.json", json.dumps(ROWS, indent=2)),
    ("pretty.jsonl", "\ufeff" + json.dumps(ROWS, indent=4)),
    ("objects.jsonl", "\n".join(json.dumps(row, indent=1) for row in ROWS)),
    ("wrapped.json", json.dumps({"version": "1.0", "data": ROWS})),
    ("a.csv", TABLE),
    ("a.tsv", TABLE.replace(",", "\t")),
    ("a.jsonl.gz", gzip.compress(LINES.encode())),
    ("a.csv.gz", gzip.compress(TABLE.encode())),
    ("a.jsonl.zst", zstd),
    ("a.parquet", lambda path: parquet(path, ROWS)),
    ("a.arrow", arrow_file),
]


@pytest.mark.parametrize(("name", "content"), FILES, ids=[name for name, _ in FILES])
def test_each_kind_of_file_gives_the_same_prompts(tmp_path: Path, name: str, content: Any) -> None:
    path = tmp_path / name
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert [(one.text, one.reference) for one in prompts(path, reference="reference")] == [
        (row["prompt"], row["reference"]) for row in ROWS
    ]


def test_a_pattern_names_each_file_and_line(tmp_path: Path) -> None:
    for index, row in enumerate(ROWS):
        (tmp_path / f"part{index}.jsonl").write_text("\n" + json.dumps(row))
    read = prompts(tmp_path / "part*.jsonl")
    assert [one.position for one in read] == ["part0.jsonl, line 2", "part1.jsonl, line 2"]
    (tmp_path / "array.json").write_text(json.dumps(ROWS, indent=1))
    assert [one.position for one in prompts(tmp_path / "array.json")] == ["line 2", "line 6"]


REFUSED: list[tuple[str, bytes, str]] = [
    ("cut.json", json.dumps(ROWS, indent=1).encode()[:-4], r"not whole JSON \(Expecting ',' delimiter: line 9"),
    ("more.json", b"[{}] [{}]", "not whole JSON .*Extra data"),
    ("deep.json", b"[" * 100_000, "not whole JSON"),
    ("cut.jsonl.gz", gzip.compress(LINES.encode() * 99)[:-9], "not a whole compressed file"),
    ("cut.jsonl.zst", b"\x28\xb5\x2f\xfd\x00\x58", "not a whole compressed file"),
    ("semicolons.csv", b"prompt;reference\na;b\n", "one column, 'prompt;reference': set delimiter = \";\""),
    ("open.csv", b'prompt\na\n"b\nc\n', "line 3: a quotation mark is not closed"),
    ("lines.csv", b'prompt\n"b\nc "d" e\nf"\n', r"cannot be used: lines 2 to 3: not CSV \(',' expected"),
    (
        "splits.json",
        b'{"train": [{"prompt": "a"}], "test": [{"prompt": "b"}]}',
        "no column 'prompt'.*it has train, test",
    ),
    ("gbk.csv", "问题,答案\n".encode("gbk"), "not UTF-8 text: save the file as 'CSV UTF-8'"),
    ("utf16.csv", "prompt\n".encode("utf-16"), "the file is UTF-16: save it as UTF-8 text"),
    ("table.csv", b"PK\x03\x04", "a zip archive or spreadsheet: save it as UTF-8 text"),
    ("typo.jsonl", b'{"promt": "a"}', r"line 1: no column 'prompt' \(did you mean 'promt'\?\)"),
    ("question.jsonl", b'{"data": {"prompt": "a"}}', r"no column 'prompt' \(did you mean 'data.prompt'\?\)"),
    ("image.jsonl", b'{"prompt": [{"role": "user", "content": [{"type": "image"}]}]}', "part of type 'image'"),
    ("repeated.jsonl", b'{"prompt": "a", "prompt": "b"}', "line 1: the key 'prompt' occurs twice in an object"),
    (
        "nested.json",
        b'[{"prompt": "a"},\n{"prompt": "a", "x": [{"y": 1, "y": 2}]}]',
        "line 2: the key 'y' occurs twice",
    ),
    ("unfinished.jsonl", b'{"messages": [{"role": "robot", "content": "a"}]}', "role 'robot': known roles are"),
    ("stepwise.jsonl", b'{"prompt": "a", "completion": 7, "labels": [true]}', "held_out_percent = 10 leaves"),
]


@pytest.mark.parametrize(("name", "content", "line"), REFUSED, ids=[name for name, _, _ in REFUSED])
def test_what_cannot_be_read_is_refused_with_a_line(tmp_path: Path, name: str, content: bytes, line: str) -> None:
    if name.endswith(".zst"):
        pytest.importorskip("zstandard", reason="pip install 'burnish[zstd]'")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=line):
        DataTask(path=str(tmp_path / name)).train()


TALK = said((S, "Short."), (U, "Hi."), (A, "Hello."), (U, "2 + 2?"))
SHAREGPT = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": said((U, "2 + 2?")),
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"split": "train", "index": 0},
}
PROMPTS: list[tuple[str, dict[str, Any], dict[str, Any], tuple[Message, ...], tuple[str, ...]]] = [
    ("text", {"prompt": "Hi."}, {}, messages((U, "Hi.")), ()),
    ("trl", {"prompt": TALK}, {}, messages((S, "Short."), (U, "Hi."), (A, "Hello."), (U, "2 + 2?")), ()),
    ("verl", VERL, {}, messages((U, "2 + 2?")), ("4",)),
    ("openai", {"messages": said((U, "Hi."), (A, "Hello."))}, {}, messages((U, "Hi.")), ("Hello.",)),
    ("sharegpt", {"conversations": SHAREGPT}, {}, messages((U, "Hi.")), ("Hello.",)),
    ("completion", {"prompt": "Hi.", "completion": "Hello."}, {}, messages((U, "Hi.")), ("Hello.",)),
    ("completions", {"prompt": said((U, "Hi.")), "completion": said((A, "Yes."))}, {}, messages((U, "Hi.")), ("Yes.",)),
    ("pair", {"prompt": "Hi.", "chosen": "Yes.", "rejected": "No."}, {}, messages((U, "Hi.")), ("Yes.",)),
    ("implied", {"chosen": said((U, "Hi."), (A, "Yes.")), "rejected": said((U, "Hi."), (A, "No."))}, {},
     messages((U, "Hi.")), ("Yes.",)),
    ("implied text", {"chosen": "The sky is blue.", "rejected": "The sky is green."}, {},
     messages((U, "The sky is")), (" blue.",)),
    ("hh", {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, {},
     messages((U, "q")), ("a",)),
    ("repeated", {"prompt": "q", "chosen": said((U, "q"), (A, "a")), "rejected": said((U, "q"), (A, "b"))}, {},
     messages((U, "q")), ("a",)),
    ("turns", {"prompt": said((U, "q")), "completion": said((A, "a"), (U, "r"), (A, "b"))}, {}, messages((U, "q")),
     ("a",)),
    ("developer", {"prompt": said(("developer", "Short."), (U, "Hi."))}, {}, messages((S, "Short."), (U, "Hi.")), ()),
    ("parts", {"prompt": [{"role": U, "content": [{"type": "text", "text": "Hi."}]}]}, {}, messages((U, "Hi.")), ()),
    ("path", {"a": {"b": [{"q": "Hi.", "x": 4}]}}, {"prompt": "a.b.0.q", "reference": "a.b.0.x"}, messages((U, "Hi.")),
     ("4",)),
    ("squad", {"prompt": "Hi.", "answers": {"text": ["a", "b", "a"]}}, {"reference": "answers.text"},
     messages((U, "Hi.")), ("a", "b")),
    ("dotted", {"prompt": "Hi.", "a.b": "c", "a": {"b": "d"}}, {"reference": "a.b"}, messages((U, "Hi.")), ("c",)),
    ("template", {"q": {"text": "Hi {x}"}, "n": 7}, {"template": "{n}: {q.text}"}, messages((U, "7: Hi {x}")), ()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "options", "asked", "answers"), PROMPTS, ids=[one[0] for one in PROMPTS])
def test_prompts_of_each_shape(
    tmp_path: Path, name: str, row: dict[str, Any], options: dict[str, Any], asked: tuple[Message, ...],
    answers: tuple[str, ...],
) -> None:  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    (prompt,) = prompts(path, **options)
    assert (prompt.messages, prompt.references) == (asked, answers)


def test_an_object_as_reference_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        "\n".join(json.dumps({"prompt": f"question {n}", "gold": {"answer": "4", "n": n}}) for n in range(40))
    )
    for reference, expected in (("gold", True), ("gold.answer", False)):
        observer = RecordingObserver()
        DataTask(path=str(path), reference=reference).prepare(observer=observer)  # type: ignore[arg-type]
        warnings = [text for level, text in observer.messages if level == "warning"]
        assert bool(warnings) == expected
        assert all("is an object in 40 of 40 rows" in one and '"gold.answer"' in one for one in warnings)


def test_tools_are_kept_for_the_template(tmp_path: Path) -> None:
    call = {"role": A, "content": None, "tool_calls": [{"type": "function", "function": {"name": "add"}}]}
    asked = [*said((U, "2 + 2?")), call, {"role": T, "content": "4", "tool_call_id": "c1"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": asked}))
    (prompt,) = prompts(tmp_path / "a.jsonl")
    assert [message.role for message in prompt.messages] == [U, A, T]
    assert prompt.messages[1].tools == {"tool_calls": call["tool_calls"]}
    assert prompt.messages[2].tools == {"tool_call_id": "c1"}


def test_verl_parquet_and_metadata(tmp_path: Path) -> None:
    (prompt,) = prompts(parquet(tmp_path / "train.parquet", [VERL]))
    assert prompt.references == ("4",) and prompt.messages == messages((U, "2 + 2?"))
    assert prompt.metadata["data_source"] == "openai/gsm8k" and prompt.metadata["extra_info"] == VERL["extra_info"]


def test_columns_of_type_json_are_decoded(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pip install 'burnish[parquet]'")
    import pyarrow.parquet

    columns = {"prompt": ["Capital?"], "answer": ['"Paris"'], "all": [['"Paris"', '{"a": 1}']]}
    types = {"prompt": arrow.string(), "answer": arrow.json_(), "all": arrow.list_(arrow.json_())}
    table = arrow.table({name: arrow.array(values).cast(types[name]) for name, values in columns.items()})
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table, path)
    (prompt,) = prompts(path, reference="answer")
    assert prompt.references == ("Paris",) and prompt.metadata["all"] == ["Paris", {"a": 1}]


LEARNT: list[tuple[str, dict[str, Any], TrainingRow]] = [
    ("openai", {"messages": said((U, "q"), (A, "a"))}, Conversation(messages((U, "q"), (A, "a")), "")),
    ("sharegpt", {"conversations": SHAREGPT}, Conversation(messages((U, "Hi."), (A, "Hello.")), "")),
    ("completion", {"prompt": "q", "completion": "a"}, PromptCompletion("q", "a", "")),
    ("alpaca", {"instruction": "q", "input": "x", "output": "a"}, PromptCompletion("q\n\nx", "a", "")),
    ("messages", {"prompt": said((U, "q")), "completion": said((A, "a"))}, Conversation(messages((U, "q"), (A, "a")), "")),
    ("text", {"text": "once"}, PromptCompletion("", "once", "")),
    ("pair", {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "0.5"}, PreferencePair("q", "a", "b", "", 0.5)),
    ("explicit", {"prompt": said((U, "q")), "chosen": said((A, "a")), "rejected": said((A, "b"))},
     ConversationPair(messages((U, "q")), messages((A, "a")), messages((A, "b")), "")),
    ("implied", {"chosen": said((U, "q"), (A, "a")), "rejected": said((U, "q"), (A, "b"))},
     ConversationPair(messages((U, "q")), messages((A, "a")), messages((A, "b")), "")),
    ("repeated", {"prompt": "q", "chosen": said((U, "q"), (A, "a")), "rejected": said((U, "q"), (A, "b"))},
     ConversationPair(messages((U, "q")), messages((A, "a")), messages((A, "b")), "")),
    ("one message", {"conversations": SHAREGPT[:1], "chosen": {"from": "gpt", "value": "a"},
                     "rejected": {"from": "gpt", "value": "b"}},
     ConversationPair(messages((U, "Hi.")), messages((A, "a")), messages((A, "b")), "")),
    ("hh", {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
     ConversationPair(messages((U, "q")), messages((A, "a")), messages((A, "b")), "")),
    ("implied text", {"chosen": "The sky is blue.", "rejected": "The sky is green."},
     PreferencePair("The sky is", " blue.", " green.", "")),
    ("kto", {"prompt": "q", "completion": "a", "label": True}, LabelledCompletion("q", "a", True, "")),
    ("kto chat", {"prompt": said((U, "q")), "completion": said((A, "a")), "label": False},
     LabelledConversation(messages((U, "q")), messages((A, "a")), False, "")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "expected"), LEARNT, ids=[one[0] for one in LEARNT])
def test_rows_of_each_shape(tmp_path: Path, name: str, row: dict[str, Any], expected: TrainingRow) -> None:
    from dataclasses import replace

    (read,) = rows(tmp_path / "a.jsonl", row)
    assert replace(read, unit="") == expected


def test_answers_of_several_turns_and_text_through_the_template(tmp_path: Path) -> None:
    begin = said((U, "1"), (A, "2"), (U, "3"))
    pair = {"chosen": [*begin, *said((A, "a"), (U, "x"), (A, "b"))], "rejected": [*begin, *said((A, "c"))]}
    (row,) = rows(tmp_path / "a.jsonl", pair)
    assert isinstance(row, ConversationPair)
    assert (len(row.prompt), len(row.chosen), len(row.rejected)) == (3, 3, 1)
    (row,) = rows(tmp_path / "a.jsonl", {"prompt": "q", "chosen": "a", "rejected": "b"}, chat=True, system="s")
    assert row == ConversationPair(messages((S, "s"), (U, "q")), messages((A, "a")), messages((A, "b")), row.unit)
    paths = {"prompt": "input.messages", "chosen": "preferred_output", "rejected": "non_preferred_output"}
    openai = {"input": {"messages": begin}, "preferred_output": said((A, "a")), "non_preferred_output": said((A, "b"))}
    (row,) = rows(tmp_path / "a.jsonl", openai, format="pairs", columns=paths)
    assert isinstance(row, ConversationPair) and row.prompt == messages((U, "1"), (A, "2"), (U, "3"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"promt": "q", "chosen": "a b", "rejected": "a c"}, r"no column 'prompt' \(did you mean 'promt'\?\)"),
        ({"chosen": said((U, "q"), (A, "a")), "rejected": said((U, "r"), (A, "a"))}, "they differ at message 1"),
        ({"chosen": said((U, "q"), (A, "a")), "rejected": said((U, "q"), (A, "a"))}, "are the same conversation"),
        ({"prompt": "z", "chosen": said((U, "q"), (A, "a")), "rejected": said((U, "q"), (A, "b"))}, "do not continue"),
        ({"prompt": said((U, "q"), (A, "x")), "chosen": "a", "rejected": "b"}, "the prompt ends with an assistant"),
        ({"prompt": "q", "chosen": ["a"], "rejected": "b"}, "'chosen' is a list, not text or messages"),
        ({"prompt": "q", "completion": "a", "label": 1}, "'label' is 1, not true or false"),
        ({"question": "q", "answer": "a"}, "its columns are question, answer: set data.format, and data.columns"),
        ({"prompt": "q", "completion": "\ud800"}, "not UTF-8 text"),
        ({"messages": "x"}, "'messages': not a list of messages"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 10**400}, "'margin' is 1000.*, not a finite number"),
    ],
)
def test_rows_that_cannot_be_used_say_why(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    import re

    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (broken,) = DataRows(path=str(tmp_path / "a.jsonl")).rows().broken
    assert broken.position == "line 1" and re.search(reason, broken.reason), broken.reason


def test_repeated_keys_are_sought_in_linear_time(tmp_path: Path) -> None:
    lists = "[" * 500 + "]" * 500
    names = ", ".join(f'"{index}": {index}' for index in range(60_000))
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "q", "x": {lists}}}\n{{{names}, "z": 1, "z": 2}}\n')
    start = process_time()
    first, second = read_json_lines(tmp_path / "a.jsonl")
    assert first.values is not None and first.values["prompt"] == "q"
    assert second.reason == "the key 'z' occurs twice in an object"
    assert process_time() - start < 5  # 90 s if every key is counted


def test_a_hint_looks_at_a_bounded_number_of_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from burnish.data import fields

    looked_at: list[int] = []
    monkeypatch.setattr(fields, "nearest", lambda name, known: str(looked_at.append(len(known))))
    with pytest.raises(ValueError, match="no column 'prompt'"):
        fields.field({f"column {index}": index for index in range(10 * fields.HINTED)}, "prompt")
    assert looked_at == [fields.HINTED]


def test_a_named_column_is_used_or_refused(tmp_path: Path) -> None:
    row = {"question": "q", "context": "x", "answer": "a"}
    columns = {"prompt": "question", "completion": "answer", "input": "context"}
    (read,) = rows(tmp_path / "a.jsonl", row, columns=columns)
    assert isinstance(read, PromptCompletion) and read.prompt == "q\n\nx"
    for values, options, reason in (
        (row, {"columns": columns | {"input": "contxt"}}, "no column 'contxt' (did you mean 'context'?)"),
        (row | {"context": ["x"]}, {"columns": columns}, "'context' and its prompt are not both text"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "gap": 1}, {"columns": {"margin": "gpa"}}, "no column 'gpa'"),
        ({"prompt": "q", "completion": "a"}, {"system": "s"}, "system is a message of a conversation"),
        ({"text": "t"}, {"system": "s", "chat": True}, "system is a message of a conversation"),
    ):
        (tmp_path / "a.jsonl").write_text(json.dumps(values))
        (broken,) = DataRows(path=str(tmp_path / "a.jsonl"), **options).rows().broken
        assert reason in broken.reason


def test_the_data_s_own_held_out_side(tmp_path: Path) -> None:
    copy = " ".join(f"word{index}" for index in range(13))
    (tmp_path / "train.jsonl").write_text(
        "\n".join(json.dumps({"prompt": text}) for text in ("a", "b", f"Say {copy}", "t"))
    )
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in ("t", f"Tell {copy}")))
    task = DataTask(path=str(tmp_path / "train.jsonl"), held_out=str(tmp_path / "test.jsonl"))
    assert [prompt.text for prompt in task.train()] == ["a", "b"]
    assert [(prompt.text, prompt.position) for prompt in task.evaluation()] == [
        ("t", "held-out line 1"), (f"Tell {copy}", "held-out line 2"),
    ]  # fmt: skip
