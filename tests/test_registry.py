"""Names: found lazily, never taken twice, and a miss says what there is."""

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from burnish.errors import InputError
from burnish.registry import Registry, import_object, nearest
from burnish.tasks.registry import TASKS, check_task_options


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working folder, as a user's own file is; it notes when it is imported."""
    name = "burnish_test_plugin"
    (tmp_path / f"{name}.py").write_text("value = 41\nclass Outer:\n    class Inner:\n        value = 42\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield name
    sys.modules.pop(name, None)


def test_nearest() -> None:
    assert nearest("grop", ["grpo", "rloo"]) == " (did you mean 'grpo'?)"
    assert nearest("xyz", ["grpo", "rloo"]) == "" == nearest("x", [])


def test_registered_objects_are_found_again() -> None:
    registry: Registry[int] = Registry("thing")
    assert registry.add("one", 1) == 1
    assert (registry.get("one"), registry.names(), "one" in registry, "two" in registry) == (1, ["one"], True, False)


def test_a_taken_name_is_refused_and_keeps_its_object() -> None:
    registry: Registry[Any] = Registry("thing", builtin={"zero": "math:pi"})
    registry.add("one", 1)
    for name in ("one", "zero"):
        with pytest.raises(InputError, match=f"a thing named '{name}' is registered already: choose another name"):
            registry.add(name, 2)
    assert registry.get("one") == 1


def test_builtins_are_imported_only_when_asked_for(module: str) -> None:
    registry: Registry[Any] = Registry("thing", builtin={"answer": f"{module}:Outer.Inner.value", "gone": "nowhere:x"})
    assert registry.names() == ["answer", "gone"] and "answer" in registry
    assert module not in sys.modules
    assert registry.get("answer") == 42
    with pytest.raises(InputError, match=r"thing 'nowhere:x': cannot import 'nowhere'.*put its file into"):
        registry.get("gone")


def test_wrap_is_applied_once_to_what_is_loaded(module: str) -> None:
    calls: list[tuple[str, object]] = []

    def wrap(name: str, found: object) -> list[object]:
        calls.append((name, found))
        return [found]

    registry = Registry("thing", builtin={"value": f"{module}:value"}, wrap=wrap)
    assert registry.get("value") is registry.get("value")
    assert registry.get(f"{module}:value") == [41]
    assert calls == [("value", 41), (f"{module}:value", 41)]


def test_entry_points_are_listed_and_loaded(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint(name="theirs", value="math:tau", group="burnish.things")

    def points(*, group: str) -> EntryPoints:
        assert group == "burnish.things"
        return EntryPoints([point])

    monkeypatch.setattr("importlib.metadata.entry_points", points)
    registry: Registry[Any] = Registry("thing", builtin={"ours": f"{module}:value"})
    assert registry.names() == ["ours", "theirs"]
    assert registry.get("theirs") == pytest.approx(6.283185307179586)


def test_a_miss_lists_the_choices() -> None:
    registry: Registry[int] = Registry("thing")
    with pytest.raises(InputError, match=r"no thing named 'one'; known: none; or write 'module:object'"):
        registry.get("one")
    registry.add("bleu", 1)
    registry.add("exact", 2)
    with pytest.raises(
        InputError, match=r"no thing named 'blue' \(did you mean 'bleu'\?\); known: bleu, exact; or write"
    ):
        registry.get("blue")


def test_import_object_says_what_is_missing(module: str) -> None:
    before = list(sys.path)
    assert import_object(f"{module}:value") == 41
    with pytest.raises(
        InputError, match=rf"reward '{module}:valu': '{module}' has no 'valu' \(did you mean 'value'\?\)"
    ):
        import_object(f"{module}:valu", "reward")
    with pytest.raises(InputError, match="cannot import 'burnish_nowhere'"):
        import_object("burnish_nowhere:x")
    assert sys.path == before


def test_an_error_inside_the_users_module_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "burnish_test_broken.py").write_text("\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"ZeroDivisionError: division by zero \(.*burnish_test_broken\.py, line 2\)"):
        import_object("burnish_test_broken:x")


def test_a_module_that_exits_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "burnish_test_exits.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"importing 'burnish_test_exits' raised SystemExit: 0 \(.*line 1\)"):
        import_object("burnish_test_exits:x")


# Tasks


def test_shipped_tasks() -> None:
    assert {"news", "toy"} <= set(TASKS.names())


def test_a_task_must_be_callable(module: str) -> None:
    with pytest.raises(InputError, match=f"task '{module}:value' is neither a class nor a function but a int"):
        TASKS.get(f"{module}:value")


def task(*, size: int = 3, share: float = 0.5, title: str = "x", shuffle: bool = False, path: str | None = None) -> Any:
    """A task factory with an option of every kind."""


@pytest.mark.parametrize(
    "options", [{}, {"size": 4, "share": 1, "title": "y", "shuffle": True, "path": "p"}, {"path": 3}, {"share": 0.25}]
)
def test_good_options(options: dict[str, Any]) -> None:
    check_task_options(task, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sise": 4}, r"unknown key 'sise' \(did you mean 'size'\?\); known: use, size, share, title, shuffle, path"),
        ({"size": 4.0}, "size = 4.0 must have the type of its default 3"),
        ({"size": True}, "size = True must have"),
        ({"share": True}, "share = True must have"),
        ({"shuffle": 1}, "shuffle = 1 must have"),
        ({"title": 1}, "title = 1 must have the type of its default 'x'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_task_options(task, options)
