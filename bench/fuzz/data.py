"""Cases of data: rows and bytes damaged in every form that is read, through the verbs that read it."""

from __future__ import annotations

import gzip
import zlib
from contextlib import suppress
from typing import Any

from hypothesis import strategies as st

from bench.fuzz.case import Case, Command, Content
from bench.fuzz.damage import Draw, damaged_bytes, damaged_file, damaged_lines, texts, values
from bench.fuzz.samples import PREFER, SFT, TINY, toml
from bench.fuzz.stock import Stock


def _damaged(draw: Draw, name: str, data: bytes) -> tuple[bytes, str]:
    if name.endswith(".gz") and draw(st.booleans()):
        with suppress(OSError, EOFError, zlib.error):
            rows, text = damaged_lines(draw, gzip.decompress(data))
            return gzip.compress(rows, mtime=0), text
    if name.endswith((".csv", ".tsv", ".txt")) and draw(st.booleans()):
        lines = data.decode("utf-8", "replace").split("\n")
        index = draw(st.integers(0, len(lines) - 1))
        lines[index] = draw(st.sampled_from(('"', "a,b,c,d,e", "\t\t", "", "=1+1", '"a""b', "'")) | texts())
        return "\n".join(lines).encode("utf-8", "surrogatepass"), f"line {index + 1}"
    if name.endswith((".parquet", ".arrow", ".gz")):
        return damaged_bytes(draw, data)
    return damaged_file(draw, name, data)


def _commands(draw: Draw, name: str) -> Command:
    """Draw a verb that reads the file."""
    field = draw(st.sampled_from(("question", "answer", "level", "level.name", "id", "messages", "nothing")) | texts())
    field = field.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")
    option = draw(
        st.sampled_from(("prompt", "reference", "group", "template", "messages", "held_out", "system", "format"))
    )
    chosen = draw(
        st.sampled_from(
            (
                ("train", "tiny.toml", "--dry-run", "--set", f"task.path={name}"),
                ("train", "tiny.toml", "--dry-run", "--set", f"task.path={name}", "--set", f"task.{option}={field}"),
                ("init", name, "--to", "new.toml"),
                ("init", name, "--to", "new.toml", "--kind", "sft", "--prompt", field),
                ("check", name, "--model", "model"),
                ("check", name, "--model", "model", "--json", "--set", f"{option}={field}"),
                ("sft", "sft.toml", "--dry-run", "--set", f"data.path={name}"),
                ("sft", "sft.toml", "--run-dir", "run", "--quiet", "--set", f"data.path={name}"),
                ("prefer", "prefer.toml", "--dry-run", "--set", f"data.path={name}"),
                ("filter", name),
                ("filter", name, "--json", "--field", field),
                ("generate", "model", "--file", name, "--max-new-tokens", "2", "--plain"),
                ("train", "tiny.toml", "--run-dir", "run", "--quiet", "--set", f"task.path={name}"),
            )
        )
    )
    return Command(chosen)


@st.composite
def cases(draw: Any, stock: Stock) -> Case:
    """Draw a file of data with some damage, and a verb that reads it; or texts on standard input."""
    files = stock.trees["data"]
    name = draw(st.sampled_from(sorted(files)))
    data = files[name]
    assert isinstance(data, bytes)
    changes = []
    for _ in range(draw(st.integers(1, 3))):
        data, text = _damaged(draw, name, data)
        changes.append(f"{name}: {text}")
    if draw(st.integers(0, 11)) == 11:
        reward = draw(
            st.sampled_from(("length_band", "bleu", "repetition", "regex", "json_format", "keywords", "rouge_l"))
        )
        option = (
            f"{reward}.{draw(st.sampled_from(('pattern', 'n', 'low', 'min_letters', 'longest')))}={draw(values())!r}"
        )
        extra = (
            ("--set", option.replace("\x00", "").encode("utf-8", "replace").decode("utf-8"))
            if draw(st.booleans())
            else ()
        )
        json = draw(st.sampled_from(((), ("--json",))))
        command = Command(("score", "--use", reward, "--reference", "one", *extra, *json), stdin=data)
    else:
        command = _commands(draw, name)
    tree: dict[str, Content] = {**stock.trees["model"], "questions.jsonl": files["questions.jsonl"], name: data}
    tree |= {"tiny.toml": toml(TINY), "sft.toml": toml(SFT), "prefer.toml": toml(PREFER)}
    return Case("data", tree, (command,), tuple(changes))
