"""Recipes that ``burnish init`` drafts: one per shape of data, each of which passes a dry run."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from burnish.backends.prompts import task_prompts
from burnish.backends.reference_check import check_answers
from burnish.cli.app import app
from burnish.drafting.recipe import draft_recipe
from burnish.errors import InputError
from burnish.recipe.schema import load_recipe
from tests.fakes import SUBJECTS, write_lines

Row = dict[str, Any]
LONG = "A long answer that explains at some length, and in whole sentences, why {} is so."


def chat(*turns: tuple[str, str]) -> list[Row]:
    return [{"role": role, "content": content} for role, content in turns]


def asked(subject: str) -> list[Row]:
    return chat(("user", f"Tell me of {subject}."))


def answered(subject: str) -> list[Row]:
    return [*asked(subject), *chat(("assistant", f"Yes, {subject}."))]


def rejected(subject: str) -> list[Row]:
    return [*asked(subject), *chat(("assistant", f"No, {subject}."))]


TRAINED: dict[str, tuple[Callable[[int, str], Row], Row, str]] = {
    "numbers": (lambda n, s: {"question": f"{s}?", "answer": f"{n}"}, {"prompt": "question"}, "numeric"),
    "gsm8k": (lambda n, s: {"question": s, "answer": f"It is so. #### 1,{n:03}"}, {"prompt": "question"}, "numeric"),
    "money": (lambda n, s: {"Problem": s, "Final_Answer": f"${n}.50"}, {"reference": "Final_Answer"}, "numeric"),
    "words": (lambda n, s: {"id": n, "prompt": s, "reference": f"red {s}"}, {"prompt": "prompt"}, "word_f1"),
    "chinese": (lambda n, s: {"问题": f"{s}是什么？", "答案": f"是{s}"}, {"prompt": "问题", "reference": "答案"}, "word_f1"),
    "long": (lambda n, s: {"instruction": s, "output": LONG.format(s)}, {"reference": "output"}, "chrf"),
    "inputs": (
        lambda n, s: {"instruction": "Sum up.", "input": s, "output": LONG.format(s)},
        {"template": "{instruction}\n\n{input}"},
        "chrf",
    ),
    "letters": (
        lambda n, s: {"question": s, "A": "yes", "B": "no", "answer": "AB"[n % 2]},
        {"template": "{question}\nA. {A}\nB. {B}"},
        "choice",
    ),
    "arc": (
        lambda n, s: {"question": s, "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
        {"template": "{question}\nA. {choices.text.0}\nB. {choices.text.1}", "reference": "answerKey"},
        "choice",
    ),
    "arc, numbered": (
        lambda n, s: {"question": s, "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "12"[n % 2]},
        {"template": "{question}\n{choices.label.0}. {choices.text.0}\n{choices.label.1}. {choices.text.1}"},
        "numeric",
    ),
    "medqa": (
        lambda n, s: {"question": s, "options": {"A": "x", "B": "y"}, "answer": "AB"[n % 2]},
        {"template": "{question}\nA. {options.A}\nB. {options.B}"},
        "choice",
    ),
    "objects": (
        lambda n, s: {"question": s, "choices": [{"text": "x"}, {"text": "y"}], "answer": "AB"[n % 2]},
        {"prompt": "question"},
        "choice",
    ),
    "squad": (
        lambda n, s: {"context": f"The {s} is red.", "question": f"What is {s}?", "answers": {"text": ["red", s]}},
        {"template": "{context}\n\n{question}", "reference": "answers.text"},
        "word_f1",
    ),
    "verl": (
        lambda n, s: {"data_source": "x", "prompt": asked(s), "reward_model": {"style": "rule", "ground_truth": f"{n}"}},
        {"prompt": "prompt", "reference": "reward_model.ground_truth"},
        "numeric",
    ),
    "trl": (lambda n, s: {"prompt": asked(s), "solution": f"{n} dogs, {s}"}, {"reference": "solution"}, "word_f1"),
    "messages": (lambda n, s: {"messages": asked(s), "answer": f"{n}"}, {"prompt": "messages"}, "numeric"),
    "mbpp": (
        lambda n, s: {"text": f"Write {s}.", "code": "x", "test_list": [f"assert f(1) == {n}", "assert f(2) == 3"]},
        {"prompt": "text", "reference": "test_list"},
        "unit_tests",
    ),
    "apps": (
        lambda n, s: {"question": s, "input_output": json.dumps({"inputs": [f"{n}\n"], "outputs": ["2\n"]})},
        {"reference": "input_output"},
        "unit_tests",
    ),
    "prompts": (lambda n, s: {"prompt": f"Write about {s}."}, {"prompt": "prompt"}, "repetition"),
}  # fmt: skip
SUPERVISED: dict[str, tuple[Callable[[int, str], Row], str, Row]] = {
    "conversations": (lambda n, s: {"messages": answered(s)}, "sft", {}),
    "sharegpt": (
        lambda n, s: {"conversations": [{"from": "human", "value": s}, {"from": "gpt", "value": f"Yes, {s}."}]},
        "sft",
        {},
    ),
    "completions": (lambda n, s: {"prompt": s, "completion": f" {s}."}, "sft", {"chat": True}),
    "alpaca": (
        lambda n, s: {"instruction": s, "input": "x" * (n % 2), "output": f"{s}."},
        "sft",
        {"columns": {"prompt": "instruction", "completion": "output"}},
    ),
    "texts": (lambda n, s: {"text": f"All about {s}."}, "sft", {}),
    "pairs": (lambda n, s: {"prompt": s, "chosen": f"Yes {s}", "rejected": "No"}, "prefer", {"chat": True}),
    "questions": (
        lambda n, s: {"question": s, "chosen": f"Yes {s}", "rejected": "No"},
        "prefer",
        {"columns": {"prompt": "question"}},
    ),
    "chats": (lambda n, s: {"chosen": answered(s), "rejected": rejected(s)}, "prefer", {}),
    "labels": (lambda n, s: {"prompt": s, "completion": f"So {s}", "label": n % 2 == 0}, "prefer", {}),
}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def dry_run(verb: str, recipe: str) -> None:
    done = CliRunner().invoke(app, [verb, recipe, "--dry-run", "--quiet"])
    assert done.exit_code == 0, f"{done.exception}\n{Path(recipe).read_text()}"


@pytest.mark.parametrize("name", TRAINED)
def test_a_draft_for_training_passes_the_dry_run(name: str) -> None:
    make, fields, reward = TRAINED[name]
    write_lines("mine.jsonl", [make(number, subject) for number, subject in enumerate(SUBJECTS)])
    done = CliRunner().invoke(app, ["init", "mine.jsonl"])
    assert done.exit_code == 0, done.exception
    assert done.stdout.splitlines() == [
        "mine.toml", "next:", "  burnish train mine.toml --dry-run", "  burnish train mine.toml --run-dir runs/mine",
    ]  # fmt: skip
    recipe = tomllib.loads(Path("mine.toml").read_text(encoding="utf-8"))
    assert recipe["task"].items() >= {"use": "data", "path": "mine.jsonl", **fields}.items()
    assert recipe["reward"][0]["use"] == reward
    dry_run("train", "mine.toml")
    drafted = load_recipe("mine.toml")
    check_answers(drafted, task_prompts(drafted)[0])  # the reward calls its references right


@pytest.mark.parametrize("name", SUPERVISED)
def test_a_draft_for_rows_passes_the_dry_run(name: str) -> None:
    make, verb, keys = SUPERVISED[name]
    write_lines("mine.jsonl", [make(number, subject) for number, subject in enumerate(SUBJECTS)])
    done = CliRunner().invoke(app, ["init", "mine.jsonl"])
    assert done.exit_code == 0, done.exception
    recipe = tomllib.loads(Path("mine.toml").read_text(encoding="utf-8"))
    assert recipe["kind"] == verb and recipe["data"].items() >= keys.items()
    assert recipe.get("preference", {}).get("use") == ({"labels": "kto"}.get(name, "dpo") if verb == "prefer" else None)
    dry_run(verb, "mine.toml")


def test_a_table_and_a_parquet_file(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pip install 'burnish[parquet]'")
    import pyarrow.parquet

    rows = [{"question": f"What is {one}?", "answer": f"red {one}"} for one in SUBJECTS]
    pyarrow.parquet.write_table(arrow.Table.from_pylist(rows), "a.parquet")
    lines = "".join(f"{row['question']};{row['answer']}\n" for row in rows)
    Path("b.csv").write_text(f"question;answer\n{lines}")
    for command, target in (
        (["a.parquet", "--to", "x.toml"], "x.toml"),
        (["b.csv", "--set", "delimiter=;"], "b.toml"),
    ):
        assert CliRunner().invoke(app, ["init", *command]).exit_code == 0
        recipe = tomllib.loads(Path(target).read_text())
        assert (recipe["task"]["prompt"], recipe["task"]["reference"]) == ("question", "answer")
        dry_run("train", target)


def test_sizes_follow_the_data() -> None:
    def sizes(answer: str, count: int) -> tuple[int, int, int]:
        write_lines("a.jsonl", [{"prompt": f"What is {number}?", "answer": answer} for number in range(count)])
        recipe = tomllib.loads(draft_recipe("a.jsonl")[1])
        sampling = recipe["sampling"]
        return recipe["task"]["held_out_percent"], sampling["prompts_per_step"], sampling["max_new_tokens"]

    # 50 of 200 prompts are a quarter; 2 bytes are a token, so the least limit, 32; 1024 / (8 * 32) = 4 prompts.
    assert sizes("no", 200) == (25, 4, 32)
    # 400 bytes are 134 tokens; half as many again are 201, in steps of 16 are 208, and 16 more; at least 2 prompts.
    assert sizes("word " * 80, 1000) == (10, 2, 224)


def test_rows_of_every_kind_can_be_asked_for() -> None:
    write_lines("a.jsonl", [{"Q": f"What is {one}?", "A": one} for one in SUBJECTS])
    with pytest.raises(
        InputError, match="no column looks like the prompt; the columns are Q, A: name them with --prompt"
    ):
        draft_recipe("a.jsonl")
    with pytest.raises(InputError, match=r"no column 'question'.*it has Q, A"):
        draft_recipe("a.jsonl", prompt="question")
    verb, text, _ = draft_recipe("a.jsonl", prompt="Q", reference="A", kind="sft")
    assert verb == "sft" and tomllib.loads(text)["data"]["columns"] == {"prompt": "Q", "completion": "A"}
    with pytest.raises(InputError, match="no column looks like the preferred and the rejected answer"):
        draft_recipe("a.jsonl", kind="prefer")
    with pytest.raises(InputError, match=r"--kind sfd \(did you mean 'sft'\?\): write one of train, sft"):
        draft_recipe("a.jsonl", kind="sfd")


def test_nothing_is_overwritten_and_what_cannot_be_read_is_named() -> None:
    write_lines("a.jsonl", [{"prompt": one, "answer": one} for one in SUBJECTS])
    Path("a.toml").write_text("mine")
    done = CliRunner().invoke(app, ["init", "a.jsonl"])
    assert isinstance(done.exception, InputError) and str(done.exception).startswith("a.toml exists: name another file")
    assert Path("a.toml").read_text() == "mine"
    done = CliRunner().invoke(app, ["init", "a.jsonl", "--to", "none/a.toml"])
    assert str(done.exception).endswith("cannot write none/a.toml: No such file or directory: its folder does not exist, "
                                        "or was moved or removed")  # fmt: skip
    Path("b.jsonl").write_text("[]")
    for name, line in (("b.jsonl", "no row can be read"), ("c.jsonl", "cannot be read: No such file")):
        with pytest.raises(InputError, match=line):
            draft_recipe(name)
    write_lines("a.jsonl", [{"prompt": one, "choices": ["x", "y"], "answer": index % 2}
                            for index, one in enumerate(SUBJECTS)])  # fmt: skip
    with pytest.raises(InputError, match="'answer' numbers the options of 'choices'"):
        draft_recipe("a.jsonl")


@pytest.mark.parametrize("missing", ["choices", "answer"])
def test_options_or_answers_that_a_row_lacks(missing: str) -> None:
    rows = [{"question": one, "choices": ["x", "y"], "answer": index % 2} for index, one in enumerate(SUBJECTS)]
    del rows[5][missing]
    write_lines("a.jsonl", rows)
    with pytest.raises(InputError, match="'answer' numbers the options of 'choices'"):
        draft_recipe("a.jsonl")
    write_lines("a.jsonl", [{**row, "answer": "AB"[row["answer"]]} for row in rows if "answer" in row])
    recipe = tomllib.loads(draft_recipe("a.jsonl")[1])
    assert ("template" in recipe["task"]) is (missing == "answer")


def test_a_context_that_some_rows_lack_is_left_out_with_a_word() -> None:
    rows = [{"instruction": one, "context": "x" * (index % 2), "response": one} for index, one in enumerate(SUBJECTS)]
    write_lines("a.jsonl", rows)
    text = draft_recipe("a.jsonl")[1]
    assert "'context' is empty in some rows, so it is left out" in text
    assert tomllib.loads(text)["task"]["prompt"] == "instruction"


def test_rows_that_differ_from_the_commonest_form_are_reported() -> None:
    rows = [{"question": one, "answer": str(index)} for index, one in enumerate(SUBJECTS)]
    write_lines("a.jsonl", [{"prompt": "x", "completion": "y"}, *rows, {"question": "x"}])
    verb, text, note = draft_recipe("a.jsonl")
    task = tomllib.loads(text)["task"]
    assert (verb, task["prompt"], task["reference"]) == ("train", "question", "answer")
    assert note == (
        f"2 of the first {len(rows) + 2} rows differ from the others, the first at line 1: 'prompt' and 'completion' for "
        "`burnish sft`, not 'question' and 'answer' for `burnish train`"
    )
    assert f"# {note}.\n" in text
    write_lines("b.jsonl", rows)
    assert draft_recipe("b.jsonl")[2] == ""


def test_rows_that_cannot_be_used_are_not_a_matter_of_max_broken() -> None:
    write_lines("a.jsonl", [{"question": "", "answer": "x"} for _ in SUBJECTS])
    with pytest.raises(InputError, match=r"line 1: 'question' is empty.*; correct them, or name other columns$"):
        draft_recipe("a.jsonl")


def test_the_next_command_reads_no_file_as_an_option() -> None:
    write_lines("-x.jsonl", [{"prompt": one, "answer": one} for one in SUBJECTS])
    done = CliRunner().invoke(app, ["init", "./-x.jsonl"])
    assert done.stdout.splitlines()[::2] == ["./-x.toml", "  burnish train ./-x.toml --dry-run"]
    dry_run("train", "./-x.toml")


def test_text_of_the_data_is_written_as_toml() -> None:
    rows = [{'say "what"': one, "answer": f'"{one}"\n# [x]'} for one in SUBJECTS]
    write_lines("a.jsonl", rows)
    recipe = tomllib.loads(draft_recipe("a.jsonl", prompt='say "what"', reference="answer")[1])
    assert recipe["task"]["prompt"] == 'say "what"'


@pytest.mark.parametrize("key", ["x\n[evil]\ny = 1 #", "x\ry", "\x1b[31m"])
def test_text_of_the_data_stays_in_its_comment(key: str) -> None:
    rows = [json.dumps({"prompt": one, "answer": one}) for one in SUBJECTS]
    name = json.dumps(key)
    Path("a.jsonl").write_text("\n".join([*rows, f'{{"prompt": "q", {name}: 1, {name}: 2}}']))
    text = draft_recipe("a.jsonl")[1]
    assert tomllib.loads(text).keys() == {"name", "steps", "policy", "task", "reward", "sampling", "evaluation"}
    assert "unusable rows: 1; the first, line" in text and key not in text
    Path("a\nb.jsonl").write_text("\n".join(rows))
    assert tomllib.loads(draft_recipe("a\nb.jsonl")[1])["task"]["path"] == "a\nb.jsonl"


def test_names_and_options_that_a_recipe_cannot_hold_are_refused() -> None:
    write_lines("a.jsonl", [{"prompt": one, "answer": one} for one in SUBJECTS])
    for key, value in (("path", 5), ("held_out", 3), ("format", True)):
        with pytest.raises(InputError, match=f"--set {key}={value}: must be text"):
            draft_recipe("a.jsonl", settings={key: value})
    write_lines("\udcff.jsonl", [{"prompt": one, "answer": one} for one in SUBJECTS])
    done = CliRunner().invoke(app, ["init", "\udcff.jsonl", "--to", "b.toml"])
    assert isinstance(done.exception, InputError) and "is not UTF-8 text" in str(done.exception)
    assert not Path("b.toml").exists()


def test_a_pattern_names_a_recipe_without_its_wildcards() -> None:
    for name in ("data-1-of-2.jsonl", "data-2-of-2.jsonl"):
        write_lines(name, [{"prompt": f"{name} {one}", "answer": one} for one in SUBJECTS])
    done = CliRunner().invoke(app, ["init", "data-*-of-*.jsonl"])
    assert done.stdout.startswith("data-of.toml\n")


def test_repeated_prompts_count_once() -> None:
    write_lines("a.jsonl", [{"prompt": f"q {index % 20}", "answer": "no"} for index in range(200)])
    text = draft_recipe("a.jsonl")[1]
    assert "of 20 prompts per step" in text and "of 20 prompts, which training never sees" in text


def test_a_draft_loads_neither_torch_nor_transformers() -> None:
    import subprocess

    write_lines("a.jsonl", [{"prompt": one, "answer": one} for one in SUBJECTS])
    code = "import sys; from burnish.drafting.recipe import draft_recipe; draft_recipe('a.jsonl'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "datasets"} & {*done.stdout.split()}
