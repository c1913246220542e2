"""Reward functions that misbehave: each costs one line, whatever they raise, return, log or set."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from burnish.errors import BurnishError, ContractError, InputError, one_line
from burnish.rewards.calling import failed, outcomes
from burnish.rewards.combine import Combination, combine
from burnish.rewards.part import LARGEST, Part
from burnish.rewards.registry import RewardFacts, RewardFunction, reward_function
from burnish.run.interrupts import Interrupts
from burnish.scoring import score as score_texts
from tests.rewards.completions import answer


class Unreadable(Exception):
    def __str__(self) -> str:
        sys.exit(0)


class OwnEnd(BaseException):
    """An exception that no handler of ``Exception`` catches."""


class Hostile:
    """An object of which nothing can be asked."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise ZeroDivisionError

    def __repr__(self) -> str:
        raise GeneratorExit


class Exits:
    ndim = 0

    def item(self) -> float:
        sys.exit(0)


def raising(error: Callable[[], BaseException]) -> Callable[..., Any]:
    def mine(text: str) -> float:
        raise error()

    return mine


ENDS = [lambda: SystemExit(0), lambda: SystemExit("bye"), GeneratorExit, OwnEnd, asyncio.CancelledError, StopIteration,
        Unreadable, lambda: BaseExceptionGroup("two", [SystemExit(0), OwnEnd()])]  # fmt: skip


@pytest.mark.parametrize("error", ENDS)
@pytest.mark.parametrize("limit", [None, 5.0])
def test_what_ends_a_program_is_an_error_of_the_reward(error, limit) -> None:
    part = Part("mine", reward_function("mine", raising(error)), time_limit=limit)
    with pytest.raises(BurnishError, match=r"^reward 'mine' raised \w+.*test_misbehaving.py, line \d+\) on prompt 'p'"):
        Combination([part]).score([answer()])


@pytest.mark.parametrize("error", [*ENDS, KeyboardInterrupt])
@pytest.mark.parametrize("limit", [None, 5.0])
def test_in_an_async_function_too_and_the_loop_goes_on(error, limit) -> None:
    async def mine(text: str) -> float:
        if text == "bad":
            raise error()
        await asyncio.sleep(0)
        return 1.0

    part = Part("mine", reward_function("mine", mine), time_limit=limit, max_errors=0.5)
    scores = Combination([part]).score([answer(), answer("bad")], step=1)
    assert scores.counts == {"mine/errors": 1.0} and scores.parts["mine"][0] == 1.0


def test_a_function_may_stop_the_loop_or_cancel_all_that_runs_in_it() -> None:
    async def stops(text: str) -> float:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        return 1.0

    async def cancels(text: str) -> float:
        for task in asyncio.all_tasks():
            task.cancel()
        await asyncio.sleep(0)
        return 1.0

    assert combine({stops: 1.0}).score([answer()]).total.tolist() == [1.0]
    with pytest.raises(BurnishError, match="reward 'cancels' raised CancelledError"):
        combine({cancels: 1.0}).score([answer()])
    assert combine({stops: 1.0}).score([answer()]).total.tolist() == [1.0]


def test_ctrl_c_is_known_from_a_function_that_raises_the_same() -> None:
    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def raised_anew() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    with Interrupts():
        for call in (interrupted, raised_anew):
            with pytest.raises(KeyboardInterrupt):
                outcomes([call], None, stop_early=True)
        assert failed(outcomes([raising(KeyboardInterrupt).__get__("")], None, stop_early=True)[0])


def test_a_message_is_read_or_said_to_be_unreadable_and_cut() -> None:
    assert one_line(Unreadable()) == "(its message cannot be read)"
    assert one_line(ValueError("a\n b")) == "a b"
    assert len(one_line(ValueError("x" * 10**6))) == 2000

    class Own(BurnishError):
        def __str__(self) -> str:
            raise ValueError

    with pytest.raises(BurnishError, match=r"^\(its message cannot be read\)$"):
        combine({raising(Own): 1.0}).score([answer()])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 10**400, "must be finite"), (lambda: Fraction(10**400), "must be finite"),
        (lambda: -(10**5000), r"an object that cannot be shown \(int\).*must be finite"),
        (lambda: 2 * LARGEST, r"must be from -1e\+100 to 1e\+100"), (Exits, r"\(Exits\).*\(SystemExit: 0\)"),
        (Hostile, r"an object that cannot be shown \(Hostile\) for prompt 'p'.*\(ZeroDivisionError: \)"),
        (lambda: torch.ones((), device="meta"), "must be one number"), (lambda: np.array(1j), "must be one number"),
        (lambda: np.array([True, False]), "2 values for 1 tokens"), (lambda: [1.0, [2.0]], "2 values for 1 tokens"),
        (lambda: {"score": 10**400, "other": 10**400}, "must be finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_a_number_is_named(make, message) -> None:
    for function in (lambda text: make(), lambda texts: [make()]):
        part = Part("mine", reward_function("mine", function))
        with pytest.raises(ContractError, match=rf"reward 'mine' returned .*{message}") as caught:
            Combination([part]).score([answer()])
        assert "\n" not in str(caught.value)


def test_a_sequence_needs_as_many_values_as_tokens_even_if_there_are_none() -> None:
    with pytest.raises(ContractError, match="1 values for 0 tokens"):
        combine({lambda text: [1.0]: 1.0}).score([answer(tokens=())])


def test_a_batch_may_be_an_iterator_with_an_end() -> None:
    assert combine({lambda texts: (1.0 for _ in texts): 1.0}).score([answer()] * 2).total.tolist() == [1.0, 1.0]
    with pytest.raises(ContractError, match="returned 3 values for 2 completions"):
        combine({lambda texts: itertools.repeat(1.0): 1.0}).score([answer()] * 2)

    def late(texts: list[str]) -> Any:
        yield 1.0
        sys.exit(0)

    with pytest.raises(ContractError, match=r"'late' returned <generator.*must return a list.*\(SystemExit: 0\)"):
        combine({late: 1.0}).score([answer()] * 2)


def test_several_references_are_compared_whatever_the_values_raise() -> None:
    with pytest.raises(ContractError, match=r"\(ZeroDivisionError: \)"):
        combine({lambda text, reference: Hostile(): 1.0}).score([answer(alternatives=("other",))])


def test_what_a_function_logs_is_finite_and_has_a_name_of_its_own() -> None:
    def mine(text: str, log_metric: Any, log_count: Any) -> float:
        for value in (1.0, float("nan"), 10**400, -1e300):
            log_metric("value", value)
        log_count("seen", float("inf"))
        return 1.0

    scores = combine({mine: 1.0}).score([answer()], step=1)
    assert scores.logged == {"mine/value": (1.0,)} and scores.counts == {"mine/not_finite": 4.0}

    def taken(text: str, log_count: Any) -> float:
        log_count("errors", 1.0)
        return 1.0

    def twice(text: str, log_metric: Any, log_count: Any) -> float:
        log_count("one", 1.0)
        log_metric("one", 1.0)
        return 1.0

    with pytest.raises(ContractError, match="logged 'errors', which is a count of burnish's own"):
        combine({taken: 1.0}).score([answer()])
    with pytest.raises(ContractError, match="logged 'one' with log_metric and with log_count"):
        combine({twice: 1.0}).score([answer()])


@pytest.mark.parametrize("name", ["mean", "std"])
def test_a_reward_has_no_name_of_a_metric(name: str) -> None:
    def function(text: str) -> float:
        return 1.0

    function.__name__ = name
    with pytest.raises(InputError, match=rf"reward/{name} is a metric of every step"):
        combine({function: 1.0})


def test_rules_of_a_decorator_that_raise_are_named() -> None:
    facts = RewardFacts(check_options=lambda **options: sys.exit(0), needs_reference=raising(OwnEnd))
    entry = RewardFunction("mine", max, reward_function("x", lambda text: 1.0).signature, facts)
    with pytest.raises(InputError, match=r"reward 'mine': its <lambda> raised SystemExit: 0"):
        entry.check_options({})
    with pytest.raises(InputError, match=r"reward 'mine': its mine raised TypeError"):
        Part("mine", RewardFunction("mine", max, entry.signature, RewardFacts(needs_reference=raising(OwnEnd)))
             ).function.needs_reference({"wrong": 1})  # fmt: skip


def process() -> dict[str, Any]:
    """What a reward must leave as it is."""
    return {
        "dtype": torch.get_default_dtype(), "grad": torch.is_grad_enabled(), "threads": torch.get_num_threads(),
        "device": torch.get_default_device(), "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(), "anomaly": torch.is_anomaly_enabled(),
        "errors": np.geterr(), "folder": os.getcwd(), "streams": (sys.stdin, sys.stdout, sys.stderr),
        "filters": list(warnings.filters), "recursion": sys.getrecursionlimit(),
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "random": random.getstate(), "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(), "seed": torch.initial_seed(),
    }  # fmt: skip


KEPT: list[Any] = []


def disturb() -> float:
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_num_threads(3)
    torch.set_default_device("meta")
    KEPT.append(torch.inference_mode())
    KEPT[-1].__enter__()
    torch.use_deterministic_algorithms(True)
    torch.autograd.set_detect_anomaly(True)
    np.seterr(all="raise")
    os.chdir("/")
    sys.stdin = sys.stdout = sys.stderr = None  # type: ignore[assignment]
    warnings.simplefilter("error")
    sys.setrecursionlimit(2000)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    random.seed(0)
    torch.manual_seed(0)
    np.random.seed(0)
    return 1.0


def test_the_process_is_as_it_was_also_after_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def disturb_and_raise() -> float:
        disturb()
        raise OwnEnd

    before = process()
    for call in (disturb, disturb_and_raise):
        outcomes([call], None, stop_early=True)
        assert process() == before


def test_each_call_finds_the_settings_of_the_first() -> None:
    seen: list[Any] = []

    def watch() -> float:
        seen.append((torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), os.getcwd()))
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_num_threads(3)
        os.chdir("/")
        return 1.0

    outcomes([watch] * 3, None, stop_early=True)
    assert len(set(seen)) == 1


def test_rewards_that_draw_continue_and_a_program_that_seeds_reaches_them() -> None:
    def draw(text: str) -> float:
        return random.random() + float(np.random.random()) + float(torch.rand(()))

    def seeded() -> list[list[float]]:
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        scorer = combine({draw: 1.0})
        return [scorer.score([answer()] * 2).total.tolist() for _ in range(3)]

    first = seeded()
    before = process()
    assert len({value for pair in first for value in pair}) == 6
    assert seeded() == first and process() == before


def test_streams_that_a_function_closed_are_open_again() -> None:
    code = (
        "import os, sys\n"
        "from burnish.rewards.calling import outcomes\n"
        "outcomes([sys.stderr.close], None, stop_early=True)\n"
        "outcomes([lambda: sys.stdout.close()], None, stop_early=True)\n"
        "outcomes([lambda: os.closerange(1, 3)], None, stop_early=True)\n"
        "print('result'); print('message', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("result\n", "message\n")


def test_score_names_it_too() -> None:
    with pytest.raises(BurnishError, match="raised SystemExit: 3"):
        score_texts(["x"], rewards=raising(lambda: SystemExit(3)))
