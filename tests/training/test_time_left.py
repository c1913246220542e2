"""How long a run will take: derived from given seconds."""

from __future__ import annotations

import pytest

from burnish.training.time_left import TimeLeft, Work, guess_step


def test_before_the_first_step_the_guess_counts_and_the_measurements() -> None:
    left = TimeLeft(steps=16, checkpoint_every=10, measure_every=5)
    assert left.left(0) is None
    left.add("measurement", 100.0)
    left.guess = 30.0
    # Measured after steps 5, 10 and 15, and at the end.
    assert left.left(0) == 16 * 30 + 4 * 100
    left.measure_every = 0
    assert left.left(0) == 16 * 30 + 100


def test_the_first_step_counts_only_while_it_is_alone() -> None:
    left = TimeLeft(steps=10, checkpoint_every=100, guess=1.0)
    left.add("step", 50.0)
    assert left.left(1) == 9 * 50
    left.add("step", 20.0)
    assert left.left(2) == 8 * 20


def test_one_slow_step_is_ignored_and_a_new_pace_is_known_after_three_steps() -> None:
    left = TimeLeft(steps=100, checkpoint_every=1000)
    for seconds in (9.0, 2.0, 2.0, 2.0, 2.0, 2.0, 50.0):
        left.add("step", seconds)
    assert left.left(7) == 93 * 2
    for seconds in (4.0, 4.0, 4.0):
        left.add("step", seconds)
    assert left.left(10) == 90 * 4


def test_repeated_work_is_counted_at_the_present_pace() -> None:
    left = TimeLeft(steps=20, checkpoint_every=8, measure_every=10, guess=7.0)
    left.add("measurement", 100.0)
    for _ in range(8):
        left.add("step", 10.0)
    assert left.left(8) == 12 * 10 + 2 * 100, "no checkpoint has been timed"
    left.add("checkpoint", 3.0)
    left.add("step", 10.0)
    # Checkpoints after steps 16 and 20, measurements after 10 and 20.
    assert left.left(9) == 11 * 10 + 2 * 3 + 2 * 100
    for _ in range(5):
        left.add("step", 20.0)
    assert left.left(14) == 6 * 20 + 2 * 6 + 200
    left.add("measurement", 150.0)
    assert left.left(14) == 6 * 20 + 2 * 6 + 150, "measured at this pace"
    assert left.left(20) == 6 + 150, "what follows the last step"


MEASURED = Work(prompts=30, prompt_tokens=40.0, tokens=2400.0, rows=60)
STEP = Work(prompts=4, prompt_tokens=40.0, tokens=960.0, rows=24)
SECONDS = {"generate": 24.0, "score": 36.0, "likelihood": 0.0, "truths": 12.0}


def test_a_step_is_guessed_by_tokens() -> None:
    """10 ms per sampled token with 60 rows at once, 10 ms per scored one, 5 ms per token of the true continuations."""
    sampled = 960 * 0.010 * (1 + 20 / 24) / (1 + 20 / 60)
    read = 4 * 40 + 960
    guess = guess_step(SECONDS, MEASURED, STEP, passes=3.5, true_tokens=1200)
    assert guess == pytest.approx(sampled + read * 0.010 + 3.5 * read * 0.005)


def test_without_true_texts_the_likelihood_counts_and_a_slow_reward_is_no_forward_pass() -> None:
    read = 4 * 40 + 960
    sampled = guess_step({"generate": 24.0}, MEASURED, STEP, passes=3.5)
    seconds = {"generate": 24.0, "score": 0.0, "likelihood": 18.0}
    assert guess_step(seconds, MEASURED, STEP, passes=3.5) == pytest.approx(sampled + 4.5 * read * 0.005)
    unread = guess_step(seconds, MEASURED, STEP, passes=3.5, reads_reference=False)
    assert unread == pytest.approx(sampled + 3.5 * read * 0.005)
    slow = guess_step({**seconds, "score": 3600.0}, MEASURED, STEP, passes=3.5, reads_reference=False)
    assert slow == pytest.approx(sampled + read * 1.0 + 3.5 * read * 0.010)


def test_at_most_64_rows_are_sampled_at_once() -> None:
    many = Work(prompts=30, prompt_tokens=40.0, tokens=2400.0, rows=900)
    full = Work(prompts=30, prompt_tokens=40.0, tokens=2400.0, rows=64)
    assert guess_step({"generate": 24.0}, many, STEP, passes=0) == guess_step({"generate": 24.0}, full, STEP, passes=0)
