"""Damage that Hypothesis draws: to bytes, to values, to nested tables, to the files of a folder."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from bench.fuzz.case import Content, Link, Pipe, Tree

Draw = Callable[[st.SearchStrategy[Any]], Any]

ODD_TEXTS = (
    "", " ", "\n", "\x00", "\x1b[31m", "\u202e", "我", "🙂", "\ud800", "é" * 300, "a" * 5000, "../outside/file.txt",
    "/", ".", "..",
    "~nobody/x", "nan", "true", "1", "-1", "None", "planted:run", "{{ 1/0 }}", "{% for a in", "%s%n", "a:b",
    "'\"\\", "http://",
)  # fmt: skip
ODD_INTEGERS = (0, -1, 1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**30)
ODD_FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 1e-320, 1e-45, 1e38, 3.5e38, 1e308, -1e308, math.inf, -math.inf, math.nan)


def integers(largest: int | None = None) -> st.SearchStrategy[int]:
    """Return integers, most of them at some edge, up to a size."""
    edges = [value for value in ODD_INTEGERS if largest is None or abs(value) <= largest]
    return st.sampled_from(edges) | st.integers(*((-largest, largest) if largest is not None else (None, None)))


def texts() -> st.SearchStrategy[str]:
    """Return texts, half of them odd."""
    return st.sampled_from(ODD_TEXTS) | st.text(max_size=12)


def values(largest: int | None = None) -> st.SearchStrategy[Any]:
    """Return values as JSON or TOML can have them, nested ones included."""
    floats = st.sampled_from(ODD_FLOATS) | st.floats()
    plain = st.none() | st.booleans() | integers(largest) | floats | texts()
    return plain | st.recursive(
        plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(), inner, max_size=3), max_leaves=5
    )


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of each entry below a value."""
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list):
        items = enumerate(value[:20])
    else:
        return []
    found = []
    for key, below in items:
        found += [(*path, key), *_paths(below, (*path, key))]
    return found


def at(value: Any, path: Sequence[Any]) -> Any:
    """Return the entry at a path."""
    for key in path:
        value = value[key]
    return value


def near(value: Any, largest: int | None = None) -> st.SearchStrategy[Any]:
    """Return values close to one: of its type, or a small change of it."""
    if isinstance(value, bool):
        return st.just(not value)
    if isinstance(value, int):
        return st.sampled_from([value + 1, value - 1, -value, value * 2]) | integers(largest)
    if isinstance(value, float):
        return st.sampled_from([*ODD_FLOATS, -value, value * 2, value / 3]) | st.floats()
    if isinstance(value, str):
        changed = [value + "x", value[:-1], value.upper(), f" {value}", value + "\n", value * 2]
        return st.sampled_from(changed) | texts()
    if isinstance(value, list):
        return st.sampled_from([[], value + value, value[:-1], value[::-1], [value]])
    return st.just([value])


def damaged_value(draw: Draw, value: Any, largest: int | None = None) -> tuple[Any, str]:
    """Draw one change within nested tables: another value, a key gone, renamed, added or moved. Returns the change too."""
    paths = _paths(value)
    if not paths:
        return draw(values(largest)), "the whole value"
    value = copy.deepcopy(value)
    path = draw(st.sampled_from(paths))
    parent, key = at(value, path[:-1]), path[-1]
    shown = ".".join(map(str, path))
    way = draw(st.sampled_from(("near", "other", "remove", "rename", "add", "copy")))
    if way == "near":
        parent[key] = draw(near(parent[key], largest))
    elif way == "other":
        parent[key] = draw(values(largest))
    elif way == "remove":
        del parent[key]
    elif way == "copy":
        parent[key] = copy.deepcopy(at(value, draw(st.sampled_from(paths))))
    elif isinstance(parent, dict):
        name = draw(near(str(key)) | texts())
        parent[name] = parent.pop(key) if way == "rename" else draw(values(largest))
    else:
        parent.insert(draw(st.integers(0, len(parent))), draw(values(largest)))
    return value, f"{way} {shown}"


def json_bytes(value: Any) -> bytes:
    """Return JSON as Python writes it, NaN included."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def damaged_json(draw: Draw, data: bytes) -> tuple[bytes, str]:
    """Draw a change of a JSON file: of its values, now and then of its bytes, or a key twice."""
    try:
        value = json.loads(data)
    except ValueError:
        return damaged_bytes(draw, data)
    way = draw(st.sampled_from(("value", "value", "value", "bytes", "twice")))
    if way == "bytes":
        return damaged_bytes(draw, data)
    if way == "twice" and isinstance(value, dict) and value:
        key = draw(st.sampled_from(sorted(value)))
        extra = json_bytes({key: draw(near(value[key]))})
        return extra[:-1] + b", " + data.lstrip()[1:], f"twice {key}"
    changed, text = damaged_value(draw, value)
    return json_bytes(changed), text


def damaged_lines(draw: Draw, data: bytes) -> tuple[bytes, str]:
    """Draw a change of a file of JSON lines: one of its rows, the order, or its bytes."""
    lines = data.splitlines(keepends=True)
    if not lines:
        return damaged_bytes(draw, data)
    index = draw(st.integers(0, len(lines) - 1))
    way = draw(st.sampled_from(("row", "row", "row", "bytes", "remove", "twice", "swap", "cut")))
    if way == "bytes":
        return damaged_bytes(draw, data)
    if way == "row":
        row, text = damaged_json(draw, lines[index].rstrip(b"\n"))
        lines[index] = row + b"\n"
        return b"".join(lines), f"line {index + 1}: {text}"
    if way == "remove":
        del lines[index]
    elif way == "twice":
        lines.insert(index, lines[index])
    elif way == "swap":
        lines[0], lines[index] = lines[index], lines[0]
    else:
        lines = [*lines[:index], lines[index][: len(lines[index]) // 2]]
    return b"".join(lines), f"{way} line {index + 1}"


def damaged_bytes(draw: Draw, data: bytes) -> tuple[bytes, str]:
    """Draw a change of bytes."""
    way = draw(st.sampled_from(("flip", "cut", "remove", "repeat", "zero", "insert", "append", "empty")))
    # Headers are at the front, where most of what is read is.
    front = st.integers(0, min(200, max(0, len(data) - 1)))
    where = draw(front | st.integers(0, max(0, len(data) - 1)))
    length = draw(st.integers(1, 40))
    odd = draw(
        st.sampled_from((b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\xed\xa0\x80", b'"', b"{", b"]", b"9" * 400))
    )
    before, within, after = data[:where], data[where : where + length], data[where + length :]
    changed = {
        "flip": before + bytes(value ^ 1 << where % 8 for value in within[:1]) + within[1:] + after,
        "cut": before, "remove": before + after, "repeat": before + within * 2 + after,
        "zero": before + bytes(len(within)) + after, "insert": before + odd + within + after, "append": data + odd,
        "empty": b"",
    }  # fmt: skip
    return changed[way], f"{way} at byte {where}"


def damaged_file(draw: Draw, name: str, data: bytes) -> tuple[bytes, str]:
    """Draw a change of a file by what it holds."""
    if name.endswith((".jsonl", ".ndjson")):
        return damaged_lines(draw, data)
    if name.endswith(".json"):
        return damaged_json(draw, data)
    if name.endswith(".safetensors"):
        return damaged_tensors(draw, data)
    return damaged_bytes(draw, data)


def damaged_tensors(draw: Draw, data: bytes) -> tuple[bytes, str]:
    """Draw a change of a safetensors file: its header, its numbers, or its bytes."""
    length = int.from_bytes(data[:8], "little")
    way = draw(st.sampled_from(("header", "header", "number", "number", "bytes")))
    if way == "bytes" or len(data) <= 8 + length:
        return damaged_bytes(draw, data)
    if way == "header":
        header, text = damaged_json(draw, data[8 : 8 + length])
        return len(header).to_bytes(8, "little") + header + data[8 + length :], f"header: {text}"
    count = (len(data) - 8 - length) // 4
    place = 8 + length + 4 * draw(st.integers(0, max(0, count - 1)))
    number = draw(
        st.sampled_from(
            (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\xff\xff\x7f\x7f", b"\x01\x00\x00\x00")
        )
    )
    return data[:place] + number + data[place + 4 :], f"number {number.hex()} at byte {place}"


def damaged_tree(draw: Draw, tree: Tree, outside: str) -> tuple[dict[str, Content], str]:
    """Draw a change of a folder: a file damaged, gone, swapped, renamed, or a link or pipe in its place.

    Args:
        outside: relative path of the folder outside, as a link in the top folder has it.
    """
    changed = dict(tree)
    files = sorted(name for name, what in tree.items() if isinstance(what, bytes))
    name = draw(st.sampled_from(files))
    way = draw(
        st.sampled_from(("content",) * 8 + ("remove", "swap", "rename", "link", "pipe", "folder", "add", "copy"))
    )
    data = tree[name]
    assert isinstance(data, bytes)
    if way == "content":
        changed[name], text = damaged_file(draw, name, data)
        return changed, f"{name}: {text}"
    other = draw(st.sampled_from(files))
    up = "../" * name.count("/")
    if way == "swap":
        changed[name], changed[other] = tree[other], data
    elif way == "copy":
        changed[name] = tree[other]
    elif way == "link":
        changed[name] = Link(up + outside + draw(st.sampled_from(("/file.txt", "", "/folder", "/new.txt"))))
    elif way == "pipe":
        changed[name] = Pipe()
    elif way == "folder":
        changed = {f"{name}/inner" if one == name else one: what for one, what in tree.items()}
    elif way == "add":
        beside = name.rpartition("/")[0]
        changed[
            f"{beside}/{draw(st.sampled_from(('extra.json', '.hidden', 'chat_template.jinja', 'adapter_config.json')))}"
        ] = data
    else:
        del changed[name]
        if way == "rename":
            changed[name + draw(st.sampled_from((".bak", "x", ".partial", ".json")))] = data
    return changed, f"{way} {name}" + (f", {other}" if way in ("swap", "copy") else "")


def damaged_times(draw: Draw, tree: Tree, outside: str, most: int = 3) -> tuple[dict[str, Content], tuple[str, ...]]:
    """Draw one change of a folder, or a few."""
    changed, texts_of = dict(tree), []
    for _ in range(draw(st.integers(1, most))):
        changed, text = damaged_tree(draw, changed, outside)
        texts_of.append(text)
    return changed, tuple(texts_of)
