"""Generators of reasoning-gym: which ones can be used, mixes of several, seeds, and answers that are not evaluated."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from burnish.errors import InputError
from burnish.rewards.library.answers import verifier
from burnish.tasks.generators import GENERATORS, REFUSED, generate_entries, reaches_verifier
from burnish.tasks.reasoning import Reasoning
from burnish.types import Completion, Prompt

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="pip install 'burnish[reasoning]'"),
    pytest.mark.xdist_group("reasoning_gym"),
]


def verdict(name: str, entry: dict[str, Any], text: str, *, partial: bool = False) -> float:
    prompt = Prompt("p", "?", None, {"generator": name, "entry": entry})
    return verifier(Completion(prompt, (), (), text, (), "stop"), answer="whole", partial=partial)


@pytest.mark.slow
def test_exactly_the_generators_with_a_fault_are_refused() -> None:
    command = [sys.executable, "-m", "bench.generators", "--json"]
    rows = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    assert {name: row["faults"] for name, row in rows.items() if row["faults"] and name not in REFUSED} == {}
    assert [name for name in REFUSED if not rows[name]["faults"]] == []
    measured = [rows[name] for name in GENERATORS if "shared" in rows[name]]
    # Chance alone: among the few questions that "string_splitting" has, for instance.
    assert sum(row["shared"] for row in measured) < 0.03 * sum(row["distinct"] for row in measured)
    assert max(row["shared"] / row["distinct"] for row in measured) < 0.5


def test_every_installed_generator_is_usable_or_refused() -> None:
    from reasoning_gym.factory import DATASETS

    assert sorted([*GENERATORS, *REFUSED]) == sorted(DATASETS)


@pytest.mark.parametrize("page", ["docs/en/tasks.md", "docs/zh/tasks.md"])
def test_the_pages_list_all_generators(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    block = text.split("```text\nab ")[1].split("```")[0]
    assert ["ab", *block.split()] == GENERATORS
    assert [name for name in REFUSED if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "game_of_life_halting",
            "generator 'game_of_life_halting' of reasoning-gym cannot be used: its verifier accep",
        ),
        ("word_ladder", "cannot be used: its questions or answers depend on Python's hash seed"),
        ("composite", r"it has no questions of its own; task\.generators mixes generators"),
        ("chain_sun", r"generator = 'chain_sun' \(did you mean 'chain_sum'\?\): reasoning-gym has no such"),
    ],
)
def test_a_generator_is_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Reasoning(generator=name)
    with pytest.raises(InputError, match=message):
        Reasoning(generators=[{"use": "gcd"}, {"use": name}])


MIX = [{"use": "chain_sum", "weight": 2, "settings": {"max_digits": 4}}, {"use": "gcd"}, {"use": "lcm", "weight": 0.5}]


def test_a_mix_has_the_weights_and_says_where_a_question_is_from() -> None:
    task = Reasoning(generators=MIX, size=70, held_out_percent=30)
    made = [share.use for share in map(task.shares.__getitem__, task._order())]
    assert Counter(made) == {"chain_sum": 40, "gcd": 20, "lcm": 10}
    assert Counter(made[:35]) == {"chain_sum": 20, "gcd": 10, "lcm": 5}
    prompts = [*task.train(), *task.evaluation()]
    for prompt in prompts:
        assert prompt.id.startswith(f"reasoning/{prompt.metadata['generator']}/")
        assert verifier(Completion(prompt, (), (), f"It is {prompt.reference}", (), "stop")) == 1.0
    # The settings of one are not those of the others: sums of one-digit numbers are below 19.
    assert max(int(prompt.reference or 0) for prompt in prompts if prompt.metadata["generator"] == "chain_sum") > 100
    assert prompts == [*(again := Reasoning(generators=MIX, size=70, held_out_percent=30)).train(), *again.evaluation()]
    # A generator's questions do not depend on the others.
    alone = Reasoning(generator="gcd", size=20, held_out_percent=30)
    assert [prompt for prompt in task.train() if prompt.metadata["generator"] == "gcd"] == alone.train()


def test_a_mix_reports_its_counts() -> None:
    class Messages:
        texts: list[str] = []  # noqa: RUF012 - one test

        def message(self, text: str, *, level: str = "info") -> None:
            self.texts.append(text)

    Reasoning(generators=MIX, size=70).prepare(observer=Messages())  # type: ignore[arg-type]
    assert Messages.texts[0].startswith("reasoning: 40 chain_sum, ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generators": [{"use": "gcd", "weight": -1}]}, "generator 'gcd': weight = -1: must be a number above 0"),
        ({"generators": [{"use": "gcd", "weight": 0}]}, "weight = 0: must be"),
        ({"generators": [{"use": "gcd", "weight": float("inf")}]}, "weight = inf: must be"),
        ({"generators": [{"use": "gcd", "wieght": 1}]}, r"generators\.0: unknown key 'wieght' \(did you mean 'weight'"),
        ({"generators": [{"use": 5}]}, r"generators\.0 = \{'use': 5\}: must be a table such as"),
        ({"generators": ["gcd"]}, r"generators\.0 = 'gcd': must be a table such as"),
        ({"generators": [{"use": "gcd", "settings": 3}]}, "settings = 3: must be a table"),
        ({"settings": {"seed": 3}}, r"settings\.seed is the task's: set task\.seed instead"),
        ({"generator": "gcd", "generators": MIX}, r"set either task\.generators or task\.generator"),
    ],
)
def test_a_mix_that_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Reasoning(**options)


def test_settings_are_lists_too_and_wrong_ones_are_named() -> None:
    entries = generate_entries("basic_arithmetic", {"operators": ["+"]}, 20, 0)
    assert all("*" not in entry["question"] and "/" not in entry["question"] for entry in entries)
    with pytest.raises(InputError, match=r"generator 'gcd' refuses its settings: .*max_valu"):
        generate_entries("gcd", {"max_valu": 3}, 10, 0)


def test_another_seed_gives_other_questions() -> None:
    from reasoning_gym import create_dataset

    settings = {"min_digits": 6, "max_digits": 8}

    def questions(seed: int) -> set[str]:
        return {entry["question"] for entry in generate_entries("products", settings, 200, seed)}

    first = questions(0)
    assert len(first) == 200 and not any(first & questions(seed) for seed in (1, 2, -1, 1000))
    # Seeds of the package itself are shifts of one another.
    made = [create_dataset("products", seed=seed, size=200, **settings) for seed in (0, 1)]
    plain = [{entry["question"] for entry in dataset} for dataset in made]
    assert len(plain[0] & plain[1]) == 199


def test_sides_of_two_seeds_share_no_question() -> None:
    # All 200 one-digit sums, so both seeds ask the same.
    one, other = (Reasoning(size=1000, seed=seed, held_out_percent=25) for seed in (0, 1))
    assert {prompt.text for prompt in one.train()} & {prompt.text for prompt in other.train()}
    assert not {prompt.text for prompt in one.train()} & {prompt.text for prompt in other.evaluation()}


@pytest.mark.parametrize("name", ["list_functions", "pool_matrix"])
def test_generators_that_use_global_random_states_are_repeatable_and_leave_them(name: str) -> None:
    import numpy as np

    states = random.getstate(), np.random.get_state()[1].tolist()
    first = generate_entries(name, {}, 10, 3)
    random.random(), np.random.random()
    moved = random.getstate(), np.random.get_state()[1].tolist()
    again = generate_entries(name, {}, 10, 3)
    assert [entry["question"] for entry in first] == [entry["question"] for entry in again]
    assert moved == (random.getstate(), np.random.get_state()[1].tolist()) and moved != states


def test_answers_are_not_evaluated() -> None:
    for name, text in (("countdown", "f(1)"), ("countdown", "2**3"), ("countdown", "a"), ("spiral_matrix", "[1, 2]")):
        assert not reaches_verifier(name, text, {})
    entry = {"answer": "5*(7 - 2)", "metadata": {"numbers": [2, 5, 7], "target": 25}}
    assert verdict("countdown", entry, "(7-2) * 5") == 1.0
    assert verdict("countdown", entry, "20 + 5") == 0.0
    board = {"answer": "Q _\n_ Q", "metadata": {"valid_answers": ["Q _\n_ Q", "_ Q\nQ _"]}}
    assert verdict("n_queens", board, "_ Q\nQ _") == 1.0
    assert verdict("n_queens", board, "[['_', 'Q'], ['Q', '_']]", partial=True) == 0.0
    assert verdict("string_insertion", {"answer": "AB", "metadata": {}}, "['A', 'B']", partial=True) == 0.0


def test_a_number_that_is_none_is_wrong() -> None:
    (entry,) = generate_entries("complex_arithmetic", {}, 1, 0)
    assert [verdict("complex_arithmetic", entry, text) for text in ("nan", "NaN", "nan + 1i", "(nan)")] == [0.0] * 4
    real, imaginary = entry["metadata"]["result"]
    assert verdict("complex_arithmetic", entry, f"({real} {'-' if imaginary < 0 else '+'} {abs(imaginary)}i)") == 1.0


def test_long_answers_and_graph_colours_count() -> None:
    long = {"answer": "x" * 3000, "metadata": {}}
    assert verdict("caesar_cipher", long, "x" * 3000) == 1.0
    (entry,) = generate_entries("graph_color", {}, 1, 0)
    assert verdict("graph_color", json.loads(json.dumps(entry)), entry["answer"]) == 1.0
    assert verdict("graph_color", entry, "{}") == 0.0
