"""JSON Schema as a reward: errors count, and no schema reads other documents or takes forever."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from burnish.errors import InputError
from burnish.rewards.library import schema as schema_module
from burnish.rewards.library.format import json_format
from burnish.rewards.registry import REWARDS

pytest.importorskip("jsonschema", reason="needs the extra schema")

PERSON = {
    "type": "object",
    "required": ["name", "age"],
    "properties": {
        "name": {"type": "string", "minLength": 1, "pattern": "^[A-Z\u4e00-\u9fff]"},
        "age": {"type": "integer", "minimum": 0},
        "friends": {"type": "array", "items": {"$ref": "#"}},
    },
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ('{"name": "Li", "age": 7}', 0),
        ('{"name": "李", "age": 7, "friends": [{"name": "An", "age": 3}]}', 0),
        ('{"name": "", "age": 7}', 2),  # too short, and no capital
        ('{"name": "Li", "age": -1}', 1),
        ('{"name": "Li"}', 1),
        ("{}", 2),
        ('{"name": "Li", "age": 7, "pet": "cat"}', 1),
        ('{"name": "Li", "age": 7, "friends": [{"name": "An"}, {}]}', 3),
        ("[1]", 1),
    ],
)
def test_the_reward_falls_with_each_error(text: str, errors: int) -> None:
    assert json_format(text, schema=PERSON) == 1 / (1 + errors)


@pytest.mark.parametrize("text", ["", "no", '{"name": NaN}', '{"name": 1} and more', "[" * 100_000])
def test_a_text_that_is_not_json_scores_zero(text: str) -> None:
    assert json_format(text, schema=PERSON) == 0.0


def test_a_property_may_have_the_name_of_a_keyword() -> None:
    schema = {"properties": {"pattern": {"const": "("}, "$ref": {"type": "integer"}, "enum": {"enum": ["(a+)+"]}}}
    assert json_format('{"pattern": "(", "$ref": 1, "enum": "(a+)+"}', schema=schema) == 1.0
    assert json_format('{"pattern": ")", "$ref": "1", "enum": "a"}', schema=schema) == 0.25


def test_patterns_of_properties_by_hand() -> None:
    schema = {
        "properties": {"id": {"type": "integer"}},
        "patternProperties": {"^n_": {"type": "number"}, "(?i)^x|y$": {"type": "null"}},
        "additionalProperties": {"type": "string", "pattern": "^[a-z]+(-[a-z]+)*$"},
    }
    assert json_format('{"id": 1, "n_a": 2.5, "X1": null, "ny": null, "slug": "a-b"}', schema=schema) == 1.0
    # A number that is a text; a slug with two hyphens; and n_y, which two patterns match, is neither a number nor null.
    assert json_format('{"n_a": "2.5", "slug": "a--b", "n_y": "x"}', schema=schema) == 1 / 5
    closed = {**schema, "additionalProperties": False}
    assert json_format('{"id": 1, "n_a": 2.5, "slug": "a", "more": "b"}', schema=closed) == 1 / 2  # one error for both


def test_a_text_on_which_patterns_take_exponential_time_scores_zero(monkeypatch) -> None:
    monkeypatch.setattr(schema_module, "SECONDS", 0.05)
    before = time.process_time()
    keys = ", ".join(f'"{"a" * 300}{key}": 1' for key in range(6))
    for schema in (
        {"patternProperties": {"^(a|a)*$": {}}},
        {"additionalProperties": False, "patternProperties": {"^(a|a)*$": {}}},
        {"propertyNames": {"pattern": "^(a|a)*$"}},
    ):
        assert json_format(f"{{{keys}}}", schema=schema) == 0.0
    # The limit is per text, however many keys it has.
    assert time.process_time() - before < 2.0


def test_a_schema_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"enum": [None, 7]}), encoding="utf-8")
    values = [json_format(text, schema_file=str(file)) for text in ("null", "7", "8")]
    assert values == [1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schema": {"type": "objekt"}}, r"schema at type: 'objekt' is not valid"),
        ({"schema": {"type": "object"}, "required": {"a": "string"}}, "exclude one another: keep one"),
        ({"schema": {"type": "object"}, "extra": False}, "set additionalProperties = false"),
        ({"schema": {"$ref": "https://example.org/a.json"}}, "refers to another document"),
        ({"schema": {"properties": {"a": {"pattern": "("}}}}, r"schema at properties/a/pattern: '\(' is not a 'regex'"),
        ({"schema": {"patternProperties": {"[": {}}}}, "is not a 'regex'"),
        ({"schema": {"properties": {"default": {"pattern": "(a{999}){9999}"}}}}, "repeats more than 1,000,000 times"),
        ({"schema": {"patternProperties": {"a": {}}, "unevaluatedProperties": False}}, "use additionalProperties"),
        ({"schema": {"$defs": {"enum": {"$ref": "other.json"}}}}, "refers to another document"),
        ({"schema": {"$ref": "#/$defs/A"}}, "does not lead to a schema"),
        ({"schema": {"$schema": 7}}, "json_format: schema"),
        ({"schema": json.loads('{"not": ' * 300 + "{}" + "}" * 300)}, "is not a JSON Schema .RecursionError"),
        ({"schema_file": "nowhere.json"}, "cannot be read: No such file"),
    ],
)
def test_a_schema_that_cannot_work_is_refused_with_the_recipe(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        REWARDS.get("json_format").check_options(options)


@pytest.mark.parametrize(
    ("text", "message"), [("[]", "must be a JSON object"), ("{", "is not JSON"), ("\xff", "not UTF-8 text")]
)
def test_a_file_without_a_schema_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "schema.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        json_format("{}", schema_file=str(file))


def test_hostile_texts_take_no_time() -> None:
    nested = '{"name": "A", "age": 1, "friends": [' * 400 + "]}" * 400
    texts = [
        '{"name": "' + "A" * 1900 + '", "age": 1}',
        '{"name": "' + "A" * 5000 + '", "age": 1}',  # too long for a pattern
        nested,
        '{"a": 1e400}',
        "{" + ", ".join(f'"k{i}": {i}' for i in range(150)) + "}",
    ]
    values = [json_format(text, schema=PERSON) for text in texts]
    assert values[0] == 1.0 and values[1] == values[2] == 0.0
    assert all(0 <= value <= 1 for value in values)
    assert json_format(nested, schema={"type": "object", "properties": {"friends": {"items": {"$ref": "#"}}}}) == 0.0


@pytest.mark.slow
def test_a_schema_that_branches_at_each_level_has_a_budget() -> None:
    branch = [
        {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}, "k": {"const": k}}} for k in (1, 2, 3)
    ]
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "anyOf": [*branch, {"type": "null"}]}
    assert json_format('{"a":' * 3 + "null" + "}" * 3, schema=schema) == 1.0
    assert json_format('{"a":' * 40 + "1" + "}" * 40, schema=schema) == 0.0


def test_a_reference_to_an_unknown_anchor_is_refused() -> None:
    assert json_format("no json", schema={"properties": {"a": {"$ref": "#nobody"}}}) == 0.0
    with pytest.raises(InputError, match=r"cannot be resolved .*: correct its references"):
        json_format('{"a": 1}', schema={"properties": {"a": {"$ref": "#nobody"}}})
