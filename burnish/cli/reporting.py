"""The verb that shows a run: ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from burnish.errors import InputError

verbs = typer.Typer(rich_markup_mode=None)


@verbs.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Rebuild a run's report.html and print its path."""
    from burnish.reports.page.html import write_report

    if not (run / "recipe.toml").is_file():
        raise InputError(f"{run} is not a run folder: it has no recipe.toml")
    print(write_report(run))
