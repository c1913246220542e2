"""The seconds that a run still needs: a guess before its first step, then from the steps it made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

RECENT = 5
"""Steps whose median is the present pace: one slow step is ignored, and a new pace is known after three."""
UPDATE_PASSES, ADAPTER_PASSES = (3.5, 2.3), (2.5, 1.8)
"""Seconds of an update, in forward passes over its tokens: one forward, a backward pass of two, or one where the
weights are frozen, and the optimizer; the second number holds where sampling's products are reused."""
FIXED_ROWS, MOST_ROWS = 20, 64
"""A decoding step takes as long as if it had that many rows more, since it reads all weights; the most at once."""


@dataclass
class TimeLeft:
    """Seconds that a run still needs, from the seconds of what it has done; nothing is measured here.

    Attributes:
        guess: seconds of a step, for as long as none was made.
    """

    steps: int
    checkpoint_every: int
    measure_every: int = 0
    guess: float | None = None
    _made: list[float] = field(default_factory=list)
    _repeated: dict[str, tuple[float, int]] = field(default_factory=dict)
    """The latest "checkpoint" and "measurement": seconds, and the number of steps made before it."""

    def add(self, work: str, seconds: float) -> None:
        """Record the seconds of a "step", a "checkpoint" or a "measurement"."""
        if work == "step":
            self._made.append(seconds)
        else:
            self._repeated[work] = (seconds, len(self._made))

    def left(self, done: int) -> float | None:
        """Return the seconds from the end of step ``done`` to the end of the run; None before anything is known.

        The checkpoint and the measurement that are due after this step are part of it. Work that has not been done
        yet, such as the first checkpoint, counts nothing.
        """
        pace = self._pace(len(self._made))
        if pace is None:
            return None
        checkpoints = self._seconds("checkpoint") * self._times(self.checkpoint_every, done)
        measurements = self._seconds("measurement") * self._times(self.measure_every, done)
        return pace * (self.steps - done) + checkpoints + measurements

    def _times(self, every: int, done: int) -> int:
        """Return how often work that is done every so many steps, and at the end, follows step ``done``."""
        return 1 + ((self.steps - 1) // every - (max(1, done) - 1) // every if every else 0)

    def _pace(self, made: int) -> float | None:
        """Return the seconds of a step when ``made`` had been made; the first one is slower and counts only alone."""
        steps = self._made[max(1, made - RECENT) : made] or self._made[1 : 1 + RECENT] or self._made[:1]
        return median(steps) if steps else self.guess

    def _seconds(self, work: str) -> float:
        """Return the seconds of the latest work of a kind, at today's pace."""
        if work not in self._repeated:
            return 0.0
        seconds, made = self._repeated[work]
        now, then = self._pace(len(self._made)), self._pace(made)
        return seconds * now / then if now and then else seconds


@dataclass(frozen=True, slots=True)
class Work:
    """The size of a measurement or a step.

    Attributes:
        prompt_tokens: mean number of tokens of a prompt.
        tokens: number of sampled tokens in all.
        rows: number of completions that could be sampled at once.
    """

    prompts: int
    prompt_tokens: float
    tokens: float
    rows: int

    @property
    def read(self) -> float:
        """Tokens of a pass over all completions; a prompt counts once for all of its samples."""
        return self.prompts * self.prompt_tokens + self.tokens


def guess_step(
    seconds: Mapping[str, float], measured: Work, step: Work, *, passes: float, true_tokens: int = 0,
    reads_reference: bool = True,
) -> float:  # fmt: skip
    """Return the seconds that a step will take, from those of a measurement by the model before training.

    Args:
        seconds: of the measurement: "generate"; "score", the rewards; "likelihood" under the reference, short where a
            reward has computed it already; "truths", a pass over prompts and true continuations.
        passes: of the update, in forward passes.
        true_tokens: number of tokens of the true continuations; 0 without any.
        reads_reference: whether the step needs the likelihood under the reference, whatever the rewards.
    """
    rates = {name: seconds.get(name, 0.0) / measured.read for name in ("score", "likelihood")}
    sampled = seconds["generate"] / measured.tokens
    if true_tokens:
        forward = seconds["truths"] / (measured.prompts * measured.prompt_tokens + true_tokens)
    else:
        # A reward may take long without the model. To read a token never takes longer than to sample it.
        forward = min(max(rates.values()), sampled)
    then, now = (1 + FIXED_ROWS / min(MOST_ROWS, work.rows) for work in (measured, step))
    sampled *= now / then
    scored = rates["score"] + (rates["likelihood"] if reads_reference else 0.0)
    return step.tokens * sampled + step.read * (scored + passes * forward)
