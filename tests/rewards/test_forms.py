"""Shapes of reward functions: those of the docs' table, conversations, and what is refused before training."""

from __future__ import annotations

import asyncio
import functools
import linecache
import re
import time
from pathlib import Path
from typing import Any

import pytest

from burnish.backends.preflight import check_columns
from burnish.errors import BurnishError, InputError
from burnish.recipe.schema import load_recipe
from burnish.rewards.combine import Combination, combine
from burnish.rewards.forms import distinct_names
from burnish.rewards.part import Part
from burnish.rewards.registry import REWARDS, reward_function
from burnish.types import Completion, Message, Prompt

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\| `((?:async )?def .*?|f = .*?)` \| (.+?) \|$", (ROOT / "docs/en/rewards.md").read_text(), re.M)
ROW = {"answer": "abc", "level": 2}


def sample(text: str, *, messages: tuple[Message, ...] = (), index: int = 0, **metadata: Any) -> Completion:
    prompt = Prompt("p", "Q", "abc", {**ROW, **metadata}, messages)
    return Completion(prompt, (0,), (1,), text, (0.0,), "stop", index=index)


def part(function: Any, **settings: Any) -> Part:
    return Part("f", reward_function("f", function), **settings)


def values(function: Any, *texts: str, **options: Any) -> list[float]:
    completions = [sample(text, index=index) for index, text in enumerate(texts or ("abc", "no"))]
    return Combination([part(function, options=options)]).score(completions).parts["f"].tolist()


def made(source: str) -> Any:
    linecache.cache["rewards.py"] = (len(source), None, [source], "rewards.py")
    names: dict[str, Any] = {"functools": functools}
    exec(compile(source, "rewards.py", "exec"), names)
    return names.get("f") or names["compute_score"]


def test_the_table_has_twenty_shapes() -> None:
    assert len(ROWS) >= 20


@pytest.mark.parametrize(("source", "result"), ROWS, ids=[source for source, _ in ROWS])
def test_a_function_of_the_table_works_or_is_refused_with_its_line(source: str, result: str, monkeypatch) -> None:
    monkeypatch.setattr(REWARDS, "_entries", dict(REWARDS._entries))
    if result.startswith("`"):
        with pytest.raises(BurnishError) as caught:
            REWARDS.add("f", reward_function("f", made(source)))
            check_columns(load_recipe("toy", changes={"reward": [{"use": "f"}]}), [sample("abc").prompt])
            values(made(source))
        assert str(caught.value) == result.strip("`")
    else:
        shown = ["none" if value != value else f"{value:g}" for value in values(made(source))]
        assert ", ".join(shown) == result


def test_conversations_are_messages_in_trls_form_and_texts_are_texts() -> None:
    seen: list[Any] = []

    def spy(prompts, completions, **kwargs):
        seen.append((prompts[0], completions[0]))
        return [0.0] * len(completions)

    asked, rules = Message("user", "Q"), Message("system", "S")
    column = [{"role": "user", "content": "Q"}]
    for completion in (
        sample("a"),
        sample("a", messages=(asked,)),  # a text that the chat template wraps
        sample("a", messages=(asked,), prompt=column),
        sample("a", messages=(rules, asked, Message("assistant", "A"), asked)),
    ):
        Combination([part(spy)]).score([completion])
    answered = [{"role": "assistant", "content": "a"}]
    assert seen[:2] == [("Q", "a")] * 2
    assert seen[2] == (column, answered)
    assert [message["role"] for message in seen[3][0]] == ["system", "user", "assistant", "user"]


def test_verls_ground_truth_is_the_rows_and_else_the_reference() -> None:
    def compute_score(data_source, solution_str, ground_truth, extra_info, bonus=0.0):
        return float(solution_str == ground_truth) + bonus + 10 * (data_source == "gsm8k") + 100 * extra_info["index"]

    row = {"data_source": "gsm8k", "reward_model": {"style": "rule", "ground_truth": "72"}, "extra_info": {"index": 3}}
    scorer = Combination([part(compute_score, options={"bonus": 0.5})])
    assert scorer.score([sample("72", **row), sample("abc", **row)]).total.tolist() == [311.5, 310.5]
    as_text = {**row, "reward_model": '{"ground_truth": "72"}', "extra_info": '{"index": 3}'}
    assert scorer.score([sample("72", **as_text)]).total.tolist() == [311.5]
    assert values(lambda solution_str, ground_truth: solution_str == ground_truth) == [1.0, 0.0]


def test_numbers_of_a_returned_dict_are_logged() -> None:
    def compute_score(solution_str, ground_truth):
        return {"score": 0.5, "acc": float(solution_str == ground_truth), "pred": solution_str}

    scores = Combination([part(compute_score)]).score([sample("abc"), sample("no")])
    assert scores.total.tolist() == [0.5, 0.5] and scores.logged == {"f/acc": (1.0, 0.0)}


def test_a_column_fills_a_parameter_with_a_default_and_an_option_wins() -> None:
    def graded(completions, level=None, scale=1.0, **kwargs):
        return [scale * (level or [0])[0]] * len(completions)

    assert values(graded) == [2.0, 2.0] and values(graded, scale=3.0) == [6.0, 6.0]


def test_two_functions_of_one_name_are_told_apart() -> None:
    def longer(text: str, n: int) -> float:
        return float(len(text) > n)

    functions = [functools.partial(longer, n=2), functools.partial(longer, n=9), lambda text: 1.0, lambda text: 2.0]
    scores = combine(dict.fromkeys(functions, 1.0)).score([sample("abc")])
    named = {name: value.tolist() for name, value in scores.parts.items()}
    assert named == {"longer": [1.0], "longer_2": [0.0], "lambda": [1.0], "lambda_2": [2.0]}
    assert distinct_names([longer], ["longer", "longer_2"]) == ["longer_3"]


def test_async_functions_run_concurrently_also_inside_a_loop() -> None:
    running: list[int] = []

    async def slow(text: str) -> int:
        running.append(1)
        while len(running) < 20:  # ends only if all are started
            await asyncio.sleep(0.001)
        return len(text)

    async def notebook() -> list[float]:
        return values(slow, *["abc"] * 20)

    assert values(slow, *["abc"] * 20) == [3.0] * 20
    running.clear()
    assert asyncio.run(notebook()) == [3.0] * 20


def test_async_functions_share_one_loop() -> None:
    loops = set()

    async def here(text: str) -> float:
        loops.add(asyncio.get_running_loop())
        return 0.0

    values(here), values(here)
    assert len(loops) == 1


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_call_ends_at_its_time_limit(asynchronous: bool) -> None:
    async def waits(text: str) -> float:
        await asyncio.sleep(30 if text == "no" else 0)
        return 1.0

    def spins(text: str) -> float:
        while text == "no":
            time.sleep(0.001)
        return 1.0

    begun = time.monotonic()
    limited = part(waits if asynchronous else spins, time_limit=0.2)
    with pytest.raises(BurnishError, match=r"'f' took longer than its time_limit of 0.2 s on prompt 'p', sample 2"):
        Combination([limited]).score([sample("abc"), sample("no", index=1)])
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("batch", [False, True])
def test_a_tolerated_share_of_errors_is_counted(batch: bool) -> None:
    def one(text: str) -> float:
        return {"a": 1.0, "nan": float("nan")}[text]

    def every(texts: list[str]) -> list[float]:
        return [one(text) for text in texts]

    texts = ["a", "b", "a", "nan"]
    tolerant = Combination([part(every if batch else one, max_errors=0.5)])
    scores = tolerant.score([sample(text, index=index) for index, text in enumerate(texts)], step=1)
    assert scores.total.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert scores.counts == {"f/errors": 2.0}
    message = r"raised KeyError: 'b' .*sample 1 .*failed on 2 of 3 completions, more than max_errors = 0.5 allows"
    with pytest.raises(BurnishError, match=message):
        tolerant.score([sample("b"), sample("a"), sample("nan")])


def test_a_part_that_does_not_apply_counts_nowhere() -> None:
    mine = part(lambda text: None if text == "no" else 3.0, normalise="group", gate=0.0)
    other = Part("other", reward_function("other", lambda text: 1.0))
    scores = Combination([mine, other]).score([sample("abc"), sample("no"), sample("ab")], step=1)
    # "f" is equal where it applies, so its standardised value is 0, and its gate holds nothing back.
    assert scores.total.tolist() == [1.0, 1.0, 1.0] and scores.unnormalised.tolist() == [4.0, 1.0, 4.0]
    assert scores.passed["f"].tolist() == [True] * 3 and scores.counts == {"f/not_applied": 1.0}


def test_an_object_that_cannot_tell_its_arguments_is_refused() -> None:
    class Hostile:
        def __call__(self, text: str) -> float:
            return 1.0

        @property
        def __signature__(self) -> object:
            raise ZeroDivisionError

    for function in (type("NoFunction", (), {"__call__": 1})(), Hostile()):
        with pytest.raises(InputError, match="reward 'f': Python cannot tell its arguments; wrap it in a function"):
            reward_function("f", function)
