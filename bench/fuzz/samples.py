"""Undamaged input: small recipes, and data in the shapes and files that users bring."""

from __future__ import annotations

import csv
import gzip
import io
import json
from typing import Any

import tomli_w

from bench.fuzz.case import Content

TOY: dict[str, Any] = {
    "name": "toy", "steps": 4,
    "policy": {"use": "tabular"}, "task": {"use": "toy"}, "reward": [{"use": "exact"}], "algorithm": {"use": "rloo"},
    "sampling": {"prompts_per_step": 2, "samples_per_prompt": 4, "max_new_tokens": 4},
    "evaluation": {"every": 2, "samples_per_prompt": 2, "resamples": 100}, "checkpoint": {"every": 2},
}  # fmt: skip
BEGIN: dict[str, Any] = {**TOY, "name": "begin", "steps": 1, "policy": {"model": "model"}}
TUNED: dict[str, Any] = {**TOY, "name": "tuned", "policy": {"model": "begin", "lora": {"rank": 2}}}
"""A language model that begins from another run, so that its folder needs nothing else."""
TINY: dict[str, Any] = {
    "name": "tiny", "steps": 1, "policy": {"model": "model", "lora": {"rank": 2}},
    "task": {
        "use": "data", "path": "questions.jsonl", "prompt": "question", "reference": "answer", "chat": False,
        "held_out_percent": 30,
    },
    "reward": [
        {"use": "bleu"}, {"use": "length_band", "weight": 0.5},
        {"use": "regex", "pattern": "[a-z]+"}, {"use": "keywords", "min_letters": 2},
    ],
    "algorithm": {"use": "grpo", "kl": {"coefficient": 0.05, "estimator": "k3", "where": "loss"}},
    "sampling": {"prompts_per_step": 1, "samples_per_prompt": 2, "max_new_tokens": 3, "stop": ["."]},
    "evaluation": {"samples_per_prompt": 1, "resamples": 100},
    "guards": {"stop": False}, "optimizer": {"learning_rate": 1e-3, "schedule": "linear"},
}  # fmt: skip
SFT: dict[str, Any] = {
    "kind": "sft", "name": "warm", "steps": 1, "policy": {"model": "model"},
    "data": {"use": "data", "path": "questions.jsonl", "columns": {"prompt": "question", "completion": "answer"}},
    "batch": {"examples_per_step": 2, "max_tokens": 64}, "evaluation": {"prompts": 2},
}  # fmt: skip
PREFER: dict[str, Any] = {
    **SFT, "kind": "prefer", "preference": {"use": "dpo", "beta": 0.1}, "data": {"use": "data", "path": "pairs.jsonl"},
}  # fmt: skip
REWARD_MODEL: dict[str, Any] = {**SFT, "kind": "reward-model", "data": {"use": "data", "path": "pairs.jsonl"}}

BASES = {"toy": TOY, "tiny": TINY, "sft": SFT, "prefer": PREFER, "reward-model": REWARD_MODEL}

_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "八", "nine", "ten", "eleven", "twelve")
QUESTIONS = [
    {
        "id": index,
        "question": f"What comes after {word}?",
        "answer": _NUMBERS[index],
        "level": {"name": "easy", "n": index / 3},
    }
    for index, word in enumerate(_NUMBERS[:-1], start=1)
]
PAIRS = [
    {
        "prompt": row["question"],
        "chosen": row["answer"],
        "rejected": _NUMBERS[0] if row["id"] > 1 else "no",
        "margin": 1.0,
    }
    for row in QUESTIONS
]
CHATS = [
    {"messages": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]}
    for row in QUESTIONS
]


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _table(delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ("id", "question", "answer"), delimiter=delimiter, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(QUESTIONS)
    return text.getvalue().encode()


def data_files() -> dict[str, Content]:
    """Return the files of data, by name."""
    import pyarrow
    import pyarrow.parquet

    file, table = io.BytesIO(), pyarrow.Table.from_pylist(QUESTIONS)
    pyarrow.parquet.write_table(table, file)
    arrow = io.BytesIO()
    with pyarrow.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table)
    return {
        "questions.jsonl": _lines(QUESTIONS), "pairs.jsonl": _lines(PAIRS), "chats.jsonl": _lines(CHATS),
        "questions.json": json.dumps(QUESTIONS).encode(), "questions.csv": _table(","), "questions.tsv": _table("\t"),
        "questions.jsonl.gz": gzip.compress(_lines(QUESTIONS), mtime=0), "questions.parquet": file.getvalue(),
        "questions.arrow": arrow.getvalue(), "texts.txt": "\n".join(row["question"] for row in QUESTIONS).encode(),
    }  # fmt: skip


def toml(value: Any) -> bytes:
    """Return TOML; what it cannot write, such as null, is left out."""
    return tomli_w.dumps(writable(value)).encode("utf-8", "surrogatepass")


def writable(value: Any) -> Any:
    """Return nested tables without null, and with texts that TOML can hold."""
    if isinstance(value, dict):
        return {str(key): writable(below) for key, below in value.items() if below is not None}
    if isinstance(value, list):
        return [writable(below) for below in value if below is not None]
    return value
