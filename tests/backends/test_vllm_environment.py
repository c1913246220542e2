"""The environment of vLLM: what lacks, is not a Python, or has other versions is named before a cluster is started."""

from __future__ import annotations

import json
import sys

import pytest

from burnish.backends import vllm_environment
from burnish.backends.vllm_environment import check_vllm
from burnish.errors import InputError
from burnish.recipe.schema import load_recipe
from burnish.run.launch import resolve_recipe_paths


@pytest.fixture
def environment(tmp_path):
    """Return a function that writes a program which answers as the Python of another environment would."""

    def write(**found) -> str:
        path = tmp_path / "python"
        versions = {name: vllm_environment._version(name) for name in vllm_environment.SAME}
        answer = {"python": sys.version.split()[0], "vllm": True, **versions, **found}
        path.write_text(f"#!/bin/sh\ncat << END\n{json.dumps(answer)}\nEND\n", encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    return write


def test_an_environment_with_the_same_versions_will_do(environment):
    check_vllm(environment())


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ({"vllm": False}, "vLLM is not installed there: `make vllm`"),
        ({"ray": None}, "it has ray not installed, and this program runs with"),
        ({"ray": "1.0"}, "it has ray 1.0, and this program runs with"),
        ({"python": "3.9.1"}, "it has python 3.9.1, and this program runs with"),
    ],
)
def test_what_is_missing_or_different_is_named(environment, found, problem):
    with pytest.raises(InputError) as refused:
        check_vllm(environment(**found))
    assert problem in str(refused.value) and "\n" not in str(refused.value)


def test_a_python_without_vllm_is_asked_and_refused():
    with pytest.raises(InputError, match="vLLM is not installed there"):
        check_vllm(sys.executable)


@pytest.mark.parametrize(
    ("python", "problem"),
    [
        ("/nowhere/python", "cannot be run (No such file or directory)"),
        ("/bin/true", "is not a Python (it prints nothing)"),
    ],
)
def test_what_is_not_a_python_is_refused(python, problem):
    with pytest.raises(InputError) as refused:
        check_vllm(python)
    assert f"backend.python = '{python}': {problem}" in str(refused.value)


def test_without_vllm_one_line_names_the_extra_and_the_key(monkeypatch):
    monkeypatch.setattr(vllm_environment, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'burnish\[ray,vllm\]', or set backend.python") as refused:
        check_vllm(None)
    assert "\n" not in str(refused.value)


def test_the_path_is_kept_with_its_links(environment, tmp_path, monkeypatch):
    environment()
    (tmp_path / "link").symlink_to(tmp_path / "python")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("news", ["backend.use=ray", "backend.engine=vllm", "backend.python=link"])
    assert resolve_recipe_paths(recipe).backend.python == str(tmp_path / "link")
    recipe = load_recipe("news", ["backend.use=ray", "backend.engine=vllm", "backend.python=/elsewhere/python"])
    assert resolve_recipe_paths(recipe).backend.python == "/elsewhere/python"
