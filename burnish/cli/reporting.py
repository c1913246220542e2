"""The verb that shows a run: ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from burnish.errors import InputError

verbs = typer.Typer(rich_markup_mode=None)


@verbs.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Rebuild a run's report.html and model_card.md.

    Prints the report's path.
    """
    from burnish.reports.model_card import write_model_card
    from burnish.reports.page.html import write_report
    from burnish.system.confined import refuse_escapes

    if not (run / "recipe.toml").is_file():
        raise InputError(f"{run} is not a run folder: it has no recipe.toml")
    refuse_escapes(run)
    write_model_card(run)
    print(write_report(run))
