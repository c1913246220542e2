"""Tests of programs in the forms of public data: calls, input and output (APPS, TACO, LiveCodeBench), asserts (MBPP).

Nothing is run or unpickled here: asserts are parsed, and what they expect must be a literal.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from burnish.errors import InputError
from burnish.sandbox.answers import Call, ExpressionTest, InputTest, ProgramTest
from burnish.sandbox.program import FILE_BYTES, plain
from burnish.types import Prompt

EXAMPLE = '{"calls": [{"function": "add", "arguments": [1, 2], "expected": 3}]}'
_NAMES = ("fn_name", "func_name", "entry_point")
_WRAPPERS: dict[str, Any] = {"set": set, "sorted": sorted, "list": list, "tuple": tuple, "frozenset": frozenset}


def canonical_tests(prompt: Prompt) -> str:
    """Return a prompt's tests as JSON text: its metadata's ``tests``, or else its references."""
    tests: Any = prompt.metadata.get("tests") or (prompt.references if prompt.alternatives else prompt.reference)
    if isinstance(tests, str) and not tests.lstrip().startswith("assert"):
        value: Any = _load(prompt.id, tests)
    else:
        value = [tests] if isinstance(tests, str) else tests
    name = next((prompt.metadata[key] for key in _NAMES if prompt.metadata.get(key)), None)
    try:
        return json.dumps({"tests": value, "name": name}, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise _refusal(prompt.id, str(error)) from error


def read_tests(prompt_id: str, text: str) -> list[ProgramTest]:
    """Read what ``canonical_tests`` returned. Raises InputError if it is not in a known form, or has no test."""
    document = json.loads(text)
    value, name = document["tests"], document["name"]
    try:
        tests = _read(value, name)
    except (KeyError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise _refusal(prompt_id) from error
    except ValueError as error:
        raise _refusal(prompt_id, str(error)) from error
    if not tests or not all(isinstance(test.function, str) for test in tests if isinstance(test, Call)):
        raise InputError(f"reward 'unit_tests': prompt '{prompt_id}' needs at least one call, as in {EXAMPLE}")
    return tests


def _refusal(prompt_id: str, reason: str = "") -> InputError:
    return InputError(
        f"reward 'unit_tests': the tests of prompt '{prompt_id}' must be JSON such as {EXAMPLE}, inputs and outputs, "
        f"or a list of asserts{': ' + reason[:200] if reason else ''}"
    )


def _load(prompt_id: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refusal(prompt_id) from error


def _read(value: Any, name: str | None) -> list[ProgramTest]:
    if isinstance(value, Mapping) and "calls" in value:
        return [Call(row["function"], tuple(row["arguments"]), row["expected"]) for row in value["calls"]]
    if isinstance(value, Mapping) and "inputs" in value:
        return _inputs(value["inputs"], value["outputs"], value.get("fn_name") or name)
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        if all(isinstance(row, Mapping) for row in value):
            return [_live(row, name) for row in value]
        return [test for row in value for test in _asserts(row)]
    raise ValueError("neither calls, nor inputs and outputs, nor asserts")


def _inputs(inputs: Any, outputs: Any, name: str | None) -> list[ProgramTest]:
    """Read the form of APPS and TACO: lists of inputs and outputs, of a function if there is a name."""
    if not (isinstance(inputs, list) and isinstance(outputs, list)):
        raise ValueError("inputs and outputs must be lists, with one entry per test")
    if len(inputs) != len(outputs):
        raise ValueError(f"{len(inputs)} inputs and {len(outputs)} outputs")
    pairs = list(zip(inputs, outputs, strict=True))
    if name is None:
        return [InputTest(_joined(given), _joined(expected)) for given, expected in pairs]
    if not all(isinstance(given, list) for given in inputs):
        raise ValueError(f"each of the inputs of '{name}' must be the list of its arguments")
    # APPS wraps the value of each function in a list; its own grader takes such a list for the value too.
    wrapped = all(isinstance(expected, list) and len(expected) == 1 for expected in outputs)
    return [Call(name, tuple(given), expected[0] if wrapped else expected, wrapped) for given, expected in pairs]


def _joined(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        raise ValueError("an input or output of a whole program must be text")
    if len(value.encode()) > FILE_BYTES:
        raise ValueError(f"an input or output of a whole program has more than {FILE_BYTES >> 20} MiB")
    return value


def _live(row: Mapping[str, Any], name: str | None) -> ProgramTest:
    """Read a test of LiveCodeBench: text, or for a function one JSON value per line."""
    if row.get("testtype", "stdin") == "stdin":
        return InputTest(_joined(row["input"]), _joined(row["output"]))
    if name is None:
        raise ValueError("a functional test needs metadata with func_name")
    arguments = [json.loads(line) for line in row["input"].splitlines() if line.strip()]
    return Call(name, tuple(arguments), json.loads(row["output"]))


def _asserts(source: str) -> list[ProgramTest]:
    tests: list[ProgramTest] = []
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assert):
            raise ValueError(f"not an assert: {ast.unparse(node)}")
        tests.append(_assertion(node.test))
    return tests


def _assertion(test: ast.expr) -> ProgramTest:
    """Return the test of ``expression == literal``, ``expression``, or ``not expression``."""
    match test:
        case ast.Compare(left, [ast.Eq() | ast.Is()], [right]):
            return ExpressionTest(ast.unparse(left), _json(_literal(right)))
        case ast.UnaryOp(ast.Not(), operand):
            return ExpressionTest(f"bool({ast.unparse(operand)})", False)
        case ast.Call(ast.Name()):
            return ExpressionTest(f"bool({ast.unparse(test)})", True)
    raise ValueError(f"no value is expected in: assert {ast.unparse(test)}")


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _WRAPPERS:
        if len(node.args) == 1 and not node.keywords:
            return _WRAPPERS[node.func.id](_literal(node.args[0]))
        if not node.args and not node.keywords:
            return _WRAPPERS[node.func.id](())
    return ast.literal_eval(node)


def _json(value: Any) -> Any:
    """Return a value as the sandbox writes it."""
    try:
        return json.loads(json.dumps(plain(value), allow_nan=False))
    except TypeError as error:
        raise ValueError(f"JSON does not have {value!r}") from error
