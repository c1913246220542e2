"""The files that end a run: its model card and its report."""

from __future__ import annotations

from pathlib import Path

from burnish.protocols import Observer
from burnish.reports.model_card import write_model_card
from burnish.reports.page.html import write_report


def write_final_reports(run: Path, observer: Observer) -> Path:
    """Write a finished run's model card and its report, and return the report's path.

    A card that cannot be written is a message: it must not end a run.
    """
    try:
        write_model_card(run)
    except Exception as error:
        observer.message(f"the model card was not written: {error}")
    return write_report(run)
