"""The documents agree with the code and with each other: keys, defaults, links, commands, examples, translations."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import tomllib
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

from burnish.algorithms.presets import PRESETS
from burnish.backends.prompts import task_prompts
from burnish.cli.app import app
from burnish.errors import InputError
from burnish.recipe.schema import Job, Recipe, load_recipe
from burnish.rewards.registry import REWARDS
from burnish.supervised.recipe import PreferRecipe, RewardModelRecipe, SFTRecipe, load_supervised
from burnish.tasks.registry import TASKS
from burnish.types import Prompt

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")
TWINS = (
    READMES,
    ("recipes/README.md", "recipes/README.zh-CN.md"),
    *((f"docs/en/{path.name}", f"docs/zh/{path.name}") for path in sorted((ROOT / "docs" / "zh").glob("*.md"))),
)
ENGLISH_ONLY = {"samples.md"}
PAGES = (
    *READMES,
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(str(path.relative_to(ROOT)) for room in ("docs", "recipes") for path in sorted((ROOT / room).rglob("*.md"))),
)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)


def builtin_rewards() -> list[str]:
    """Return the names of burnish's own rewards; other tests of this process may have registered more."""
    names = REWARDS.names()
    return [name for name in names if REWARDS.get(name).function.__module__.startswith("burnish.")]


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
            yield f"{prefix}{name}", default(field.default)


def default(value: Any) -> str:
    """A default as the tables write it; a long text is named, not quoted."""
    if value is None:
        return "*unset*"
    if isinstance(value, str):
        return f'`"{value}"`' if len(value) <= 40 else "*text*"
    shown = str(list(value) if isinstance(value, tuple) else value)
    return f"`{shown.lower() if isinstance(value, bool) else shown}`"


def option_rows(page: str) -> list[tuple[str, str]]:
    """Option and default of each row of a page's option tables."""
    return re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \| ([^|]+) \| [^|]+ \|$", read(page), re.M)


@pytest.mark.parametrize("page", ["docs/en/recipe.md", "docs/zh/recipe.md"])
def test_every_key_of_a_recipe_is_explained_with_its_default(page: str) -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| [^|]+ \| ([^|]+) \| [^|]+ \|$", read(page), re.M)
    assert sorted(rows) == sorted(keys(Recipe))


@pytest.mark.parametrize("page", ["docs/en/supervised.md", "docs/zh/supervised.md"])
def test_every_key_of_the_recipes_for_rows_is_explained_with_its_default(page: str) -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| [^|]+ \| ([^|]+) \| [^|]+ \|$", read(page), re.M)
    assert sorted(rows) == sorted({*keys(SFTRecipe), *keys(PreferRecipe), *keys(RewardModelRecipe)} - {*keys(Job)})


@pytest.mark.parametrize("page", ["docs/en/rewards.md", "docs/zh/rewards.md"])
def test_every_option_of_a_reward_is_explained_with_its_default(page: str) -> None:
    options = [
        (f"{name}.{option}", default(value))
        for name in builtin_rewards()
        for option, value in REWARDS.get(name).options.items()
    ]
    assert sorted(option_rows(page)) == sorted(options)
    assert sorted(re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|[^|]* \|$", read(page), re.M)) == builtin_rewards()


@pytest.mark.parametrize("page", ["docs/en/tasks.md", "docs/zh/tasks.md"])
def test_every_option_of_a_task_is_explained_with_its_default(page: str) -> None:
    options = [
        (f"{name}.{option}", default(parameter.default))
        for name in TASKS.names()
        for option, parameter in inspect.signature(TASKS.get(name)).parameters.items()
    ]
    assert sorted(option_rows(page)) == sorted(options)


@pytest.mark.parametrize("name", builtin_rewards())
def test_a_reward_says_its_range_its_failures_and_its_source(name: str) -> None:
    text = " ".join((inspect.getdoc(REWARDS.get(name).function) or "").split())
    assert re.search(r"Fails by:? ", text) and "Source: " in text
    ranges = (
        r"in \[-?\d+, (\d+|inf)\]",
        r", else 0\.0",
        r"[Ii]n \(0, 1\]",
        "1 where",
        r": 1\.0 or 0\.0",
        "any number",
        "unbounded",
    )
    assert any(re.search(pattern, text) for pattern in ranges), "its range"


def anchors(name: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", FENCED.sub("", read(name)), re.M)
    kept = ("".join(c for c in title.lower() if c in "-_ " or unicodedata.category(c)[0] in "LN") for title in titles)
    return {title.replace(" ", "-") for title in kept}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", FENCED.sub("", read(page))):
        path = (ROOT / page).parent.joinpath(target) if target else ROOT / page
        assert target.startswith("https://") or path.exists(), target
        assert not anchor or anchor in anchors(str(path)), f"{target}#{anchor}"


def columns(name: str) -> list[int]:
    """The number of cells of each row of each table."""
    return [line.count(" | ") for line in FENCED.sub("", read(name)).splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("twins", TWINS, ids=lambda twins: twins[0])
def test_a_page_and_its_translation_have_the_same_sections_and_code(twins: tuple[str, str]) -> None:
    english, chinese = twins
    assert headings(english) == headings(chinese)
    assert blocks(english) == blocks(chinese)
    assert columns(english) == columns(chinese)


def test_every_page_has_a_translation() -> None:
    pages = {path.name for path in (ROOT / "docs" / "en").glob("*.md")}
    assert pages - {path.name for path in (ROOT / "docs" / "zh").glob("*.md")} == ENGLISH_ONLY


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_short(page: str) -> None:
    lines = (line for line in FENCED.sub("", read(page)).splitlines() if not line.startswith("|"))
    assert [line for line in lines if len(line) > 120] == []


def verbs() -> set[str]:
    return set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_documents_exist(page: str) -> None:
    text = read(page)
    code = [body for language, body in FENCED.findall(text) if language in ("sh", "text")]
    code += re.findall(r"`([^`\n]+)`", FENCED.sub("", text))
    found = {verb for piece in code for verb in re.findall(r"\bburnish ([a-z][a-z-]*)", piece)}
    assert found <= verbs()


def test_the_safety_loops_commands_name_recipes_and_their_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [shlex.split(line)[1:] for language, text in blocks("docs/en/safety.md") for line in text.splitlines()]
    commands = [(verb, name, [text for flag, text in pairwise(rest) if flag == "--set"]) for verb, name, *rest in lines]
    (first, second), (judge,) = ([rest for verb, *rest in commands if verb == one] for one in ("train", "reward-model"))
    assert load_recipe(*first).reward[3].use == "content_filter"
    with pytest.raises(InputError, match=r"reward.4: reward model 'runs/judge': there is no such folder"):
        load_recipe(*second)
    assert load_supervised(RewardModelRecipe, *judge).data.use == "data"


@pytest.mark.parametrize("name", ["docs/en/commands.md", "docs/zh/commands.md"])
def test_every_command_is_listed(name: str) -> None:
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


def prompts_of_the_recipe(
    page: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts of the recipe that a page shows, on 100 rows."""
    # A name of its own: a module stays imported after the test.
    for task in (body for _, body in blocks(page) if "class JsonLines" in body):
        (folder / "task_of_the_docs.py").write_text(task, encoding="utf-8")
    (recipe,) = [body for language, body in blocks(page) if language == "toml" and "name = " in body]
    (folder / "mine.toml").write_text(recipe.replace("my_task", "task_of_the_docs"), encoding="utf-8")
    rows = [
        {"question": f"number {number}", "prompt": f"number {number}", "answer": str(number)} for number in range(100)
    ]
    lines = "\n".join(json.dumps({**row, "reference": row["answer"]}) for row in rows)
    (folder / "data.jsonl").write_text(lines, encoding="utf-8")
    table = "".join(f"{row['question']},{row['answer']}\n" for row in rows)
    (folder / "questions.csv").write_text(f"question,answer\n{table}", encoding="utf-8")
    monkeypatch.chdir(folder)
    train, held_out = task_prompts(load_recipe("mine.toml"))
    return list(train), list(held_out)


@pytest.mark.parametrize(("page", "least", "most"), [("README.md", 15, 35), ("docs/en/tasks.md", 10, 30)])
def test_the_recipe_on_your_own_data_keeps_the_sides_apart(
    page: str, least: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, held_out = prompts_of_the_recipe(page, tmp_path, monkeypatch)
    assert len(train) + len(held_out) == 100
    assert least <= len(held_out) <= most
    assert {prompt.reference for prompt in train + held_out} == {str(number) for number in range(100)}


def test_the_readmes_recipe_has_eight_lines_and_learns_with_the_rate_of_lora() -> None:
    (recipe,) = [body for language, body in blocks("README.md") if language == "toml"]
    assert len(recipe.splitlines()) == 8
    assert load_recipe(tomllib.loads(recipe)).optimizer.learning_rate == 1e-4


@pytest.mark.slow
def test_the_verification_in_the_docs_is_real() -> None:
    (shown,) = [body for language, body in blocks("docs/en/exactness.md") if language == "text"]
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
