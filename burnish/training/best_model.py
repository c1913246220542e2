"""The best measured model of a run, kept beside the newest: ``checkpoint.keep_best``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.errors import InputError
from burnish.registry import nearest
from burnish.run.checkpoint import Checkpointer
from burnish.run.folder import BEST_MODEL, Run

PREFIX = "held_out/"


class BestModel:
    """Keeps the checkpoint of the step with the best held-out metric; the link ``model_best`` names it.

    Args:
        key: "held_out/<metric>"; None keeps none.
        skips_alarms: whether a measurement that set off an alarm cannot be the best.
    """

    def __init__(self, key: str | None, run: Run, checkpointer: Checkpointer, *, skips_alarms: bool = False) -> None:
        self.metric = None if key is None else key.removeprefix(PREFIX)
        self.run, self.checkpointer = run, checkpointer
        self._sign, self._skips_alarms = 1.0, skips_alarms
        checkpointer.spared += [self._best_step, self._linked_step]

    def begin(self, directions: Mapping[str, str | None]) -> None:
        """Take the metrics of the measurement before training. Raises InputError if the best one cannot be told."""
        if self.metric is None:
            return
        known = [name for name, better in directions.items() if better]
        if self.metric not in known:
            raise InputError(
                f'checkpoint.keep_best = "{PREFIX}{self.metric}": this run does not measure it, or it has no better '
                f"direction{nearest(self.metric, known)}; known: {', '.join(PREFIX + name for name in known)}"
            )
        self._sign = -1.0 if directions[self.metric] == "lower" else 1.0

    def after_measurement(self, row: Mapping[str, Any]) -> None:
        """Save the learner if its measurement, a row of held_out.jsonl, is the best so far."""
        if self.metric is not None and row["step"] == self._best_step():
            self.checkpointer.save()
            self._link(row["step"])

    def end(self, step: int, summary: Mapping[str, float]) -> str:
        """Compare with the measurement after the last step, which is in no row, and link the best model.

        Returns a sentence about it, "" if none is kept.
        """
        if self.metric is None:
            return ""
        best, last = self._best_step(), summary.get(self.metric)
        if best is None or (last is not None and self._sign * last > self._sign * self._rows()[best]):
            best = step
        self._link(best)
        return f"{self.run.folder / BEST_MODEL} is the best measured model by {PREFIX}{self.metric}, of step {best}"

    def _best_step(self) -> int | None:
        """Return the first of the steps with the best row, None before the first measurement in training."""
        values = self._rows()
        return max(values, key=lambda step: self._sign * values[step]) if values else None

    def _rows(self) -> dict[int, float]:
        """Return step -> metric of the measurements during training; {} if no model is kept."""
        if (metric := self.metric) is None:
            return {}
        rows = [row for row in self.run.rows("held_out.jsonl") if metric in row]
        return {row["step"]: row[metric] for row in rows if not (self._skips_alarms and row.get("alarms"))}

    def _linked_step(self) -> int | None:
        """Return the step whose model is linked: after ``--extend`` it may have no row, as its run's last step."""
        return self.run.linked_step(BEST_MODEL)

    def _link(self, step: int) -> None:
        for checkpoint in self.run.checkpoints():
            if checkpoint.step == step:
                self.run.choose_model(checkpoint, BEST_MODEL)
