"""What the documents say is so: keys, defaults, links, commands, code, and the two READMEs beside each other."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

from burnish.algorithms.presets import PRESETS
from burnish.backends.prompts import task_prompts
from burnish.cli.app import app
from burnish.recipe.schema import Job, Recipe, load_recipe
from burnish.rewards.registry import REWARDS
from burnish.supervised.recipe import PreferRecipe, RewardModelRecipe, SFTRecipe

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")
PAGES = (
    *READMES,
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(str(path.relative_to(ROOT)) for room in ("docs", "recipes") for path in sorted((ROOT / room).rglob("*.md"))),
)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[tuple[str, str]]:
    """Language and text of each code block."""
    return FENCED.findall(read(name))


def headings(name: str) -> list[int]:
    """The level of each heading, in order."""
    return [len(marks) for marks in re.findall(r"^(#+) ", FENCED.sub("", read(name)), re.M)]


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The recipe section inside an annotation such as ``LoRA | None`` or ``list[RewardSection]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(section_of, getattr(annotation, "__args__", ()))), None)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and default of every value of a recipe, as the page writes them."""
    for name, field in model.model_fields.items():
        inner = section_of(field.annotation)
        if inner:
            yield from keys(inner, f"{prefix}{name}.")
        elif field.is_required():
            yield f"{prefix}{name}", "`required`"
        elif field.default is None:
            yield f"{prefix}{name}", "*unset*"
        else:
            value = field.default
            shown = f'"{value}"' if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)
            shown = shown.lower() if isinstance(value, bool) else shown
            yield f"{prefix}{name}", f"`{shown}`"


RECIPE_PAGES = ("docs/en/recipe.md", "docs/zh/recipe.md")


@pytest.mark.parametrize("page", RECIPE_PAGES)
def test_every_key_of_a_recipe_is_explained_with_its_default(page: str) -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| [^|]+ \| ([^|]+) \| [^|]+ \|$", read(page), re.M)
    assert sorted(rows) == sorted(keys(Recipe))


@pytest.mark.parametrize("page", ["docs/en/supervised.md", "docs/zh/supervised.md"])
def test_every_key_of_the_recipes_for_rows_is_explained_with_its_default(page: str) -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| [^|]+ \| ([^|]+) \| [^|]+ \|$", read(page), re.M)
    assert sorted(rows) == sorted({*keys(SFTRecipe), *keys(PreferRecipe), *keys(RewardModelRecipe)} - {*keys(Job)})


@pytest.mark.parametrize("name", REWARDS.names())
def test_the_options_of_rewards_are_explained(name: str) -> None:
    for option in REWARDS.get(name).options:
        assert all(f"`{option}`" in read(page) for page in RECIPE_PAGES), option


@pytest.mark.parametrize("name", REWARDS.names())
def test_a_reward_says_its_range_its_failures_and_its_source(name: str) -> None:
    text = " ".join((inspect.getdoc(REWARDS.get(name).function) or "").split())
    assert re.search(r"Fails by:? ", text) and "Source: " in text
    assert re.search(r"in \[-?\d+, (\d+|inf)\]|, else 0\.0|[Ii]n \(0, 1\]|1 where|any number", text), "its range"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", FENCED.sub("", read(page))):
        assert target.startswith("https://") or (ROOT / page).parent.joinpath(target).exists(), target


def test_the_two_readmes_have_the_same_sections_and_code() -> None:
    english, chinese = READMES
    assert headings(english) == headings(chinese)
    assert blocks(english) == blocks(chinese)
    tables = [[line.count(" | ") for line in read(name).splitlines() if line.startswith("| ")] for name in READMES]
    assert tables[0] == tables[1]


def verbs() -> set[str]:
    return set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_documents_exist(page: str) -> None:
    text = read(page)
    code = [body for language, body in FENCED.findall(text) if language in ("sh", "text")]
    code += re.findall(r"`([^`\n]+)`", FENCED.sub("", text))
    found = {verb for piece in code for verb in re.findall(r"\bburnish ([a-z][a-z-]*)", piece)}
    assert found <= verbs()


@pytest.mark.parametrize("name", READMES)
def test_every_command_stands_in_the_readme(name: str) -> None:
    assert set(re.findall(r"^\| `burnish ([a-z-]+)", read(name), re.M)) == verbs()


@pytest.mark.parametrize(
    ("page", "biased", "unbiased"), [("docs/en/algorithms.md", "yes", "no"), ("docs/zh/algorithms.md", "是", "否")]
)
def test_every_algorithm_is_explained_and_its_bias_said(page: str, biased: str, unbiased: str) -> None:
    text = read(page)
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| .* \| `\w+` \| (\S+) \|$", text, re.M))
    assert rows == {name: unbiased if preset.unbiased else biased for name, preset in PRESETS.items()}
    assert all(preset.paper.split(",")[0] in text for preset in PRESETS.values())


def test_the_readmes_reward_is_the_example() -> None:
    (code,) = [body for language, body in blocks("README.md") if "@burnish.reward" in body]
    example = read("examples/custom_reward.py")
    assert example.endswith(code)
    written = [line for line in code.splitlines() if line.strip()]
    assert len(written) <= 10


def test_the_readmes_task_keeps_its_sides_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = [body for _, body in blocks("README.md") if "class JsonLines" in body]
    (recipe,) = [body for language, body in blocks("README.md") if language == "toml"]
    # A name of its own: a module stays imported after the test.
    (tmp_path / "task_of_the_readme.py").write_text(task, encoding="utf-8")
    (tmp_path / "mine.toml").write_text(recipe.replace("my_task", "task_of_the_readme"), encoding="utf-8")
    lines = "\n".join(f'{{"prompt": "number {number}", "reference": "{number}"}}' for number in range(100))
    (tmp_path / "data.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    read_recipe = load_recipe("mine.toml")
    train, held_out = task_prompts(read_recipe)
    assert len(train) + len(held_out) == 100
    assert 10 <= len(held_out) <= 30
    assert {prompt.reference for prompt in train + held_out} == {str(number) for number in range(100)}
    assert tomllib.loads(recipe)["policy"]["lora"] == {"rank": 16}


def test_the_readmes_verification_is_real() -> None:
    (shown,) = [body for language, body in blocks("README.md") if language == "text"]
    command, *lines = shown.splitlines()
    assert command.startswith("$ burnish ")
    done = CliRunner().invoke(app, command.split()[2:])
    assert done.exit_code == 0
    printed = {comparable(line) for line in done.stdout.splitlines()}
    missing = [line for line in lines if line != "..." and comparable(line) not in printed]
    assert not missing


def comparable(line: str) -> str:
    """A line without the rounding error that is all there is to a bias of zero."""
    return re.sub(r"[+-]\d\.\de-1\d$", "0", line.rstrip())
