"""Rules of the code base that no linter checks: sizes, unique names and docstrings."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "burnish").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
QUESTIONS = ("How ", "What ", "When ", "Where ", "Which ", "Who ", "Why ")
ENTRY_POINTS = {"main"}
BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
COMMANDS = ("verbs.command", "train_verb")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the functions within a node. Reads blocks only: expressions hold no definitions."""
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
            yield one
        waiting += [child for name in BLOCKS for child in getattr(one, name, ())]


def is_public(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether a name is one to import: not private, not an entry point, and not a command, which is named for its verb."""
    is_command = any(ast.unparse(decorator).startswith(COMMANDS) for decorator in node.decorator_list)
    return not (is_command or node.name.startswith("_") or node.name in ENTRY_POINTS)


def first_line(path: Path) -> str:
    return (ast.get_docstring(tree(path)) or "").partition("\n")[0]


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE + TESTS}
    assert {path: lines for path, lines in lengths.items() if lines > 400} == {}


@pytest.mark.slow
def test_no_function_is_longer_than_60_lines() -> None:
    lengths = {
        f"{name(path)}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in PACKAGE + TESTS
        for node in functions(tree(path))
    }
    assert {key: lines for key, lines in lengths.items() if lines > 60} == {}


@pytest.mark.slow
def test_no_two_public_classes_or_functions_share_a_name() -> None:
    places: dict[str, set[str]] = defaultdict(set)
    for path in PACKAGE:
        for node in tree(path).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and is_public(node):
                places[node.name].add(name(path))
    assert {key: sorted(paths) for key, paths in places.items() if len(paths) > 1} == {}


@pytest.mark.slow
def test_every_package_and_module_has_a_docstring() -> None:
    folders = {path.parent for path in PACKAGE}
    assert [name(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
    assert [name(path) for path in PACKAGE if not first_line(path)] == []


@pytest.mark.slow
def test_the_first_line_of_a_docstring_is_a_statement_that_ends_there() -> None:
    lines = {name(path): first_line(path) for path in PACKAGE}
    assert {path: line for path, line in lines.items() if not line.endswith((".", ":"))} == {}
    assert {path: line for path, line in lines.items() if line.startswith(QUESTIONS)} == {}
