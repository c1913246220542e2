"""The verbs for what burnish knows by name: ``list`` and ``fetch``."""

from __future__ import annotations

from typing import Annotated

import typer

from burnish.cli.options import AsJson, Offline, Quiet, print_json
from burnish.errors import InputError

verbs = typer.Typer(rich_markup_mode=None)


@verbs.command("list")
def list_names(
    what: Annotated[str, typer.Argument(help="algorithms, rewards, tasks, models, data or recipes.")],
    json: AsJson = False,
) -> None:
    """List the names that a recipe can use."""
    from burnish.listing import listing

    rows = listing(what)
    if json:
        print_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        print(f"{row['name']:{width}}  {row['summary']}")


@verbs.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A catalogue name; see burnish list models and burnish list data.")],
    accept_licence: Annotated[
        str, typer.Option(metavar="TERMS", help="Accept a model's terms of use by their name, such as gemma.")
    ] = "",
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Download a catalogue model or data set into the cache.

    Checks the hash of every file.
    """
    from burnish.catalogue import entries, store
    from burnish.catalogue.convert import model_folder
    from burnish.catalogue.fetch import fetch as fetch_files
    from burnish.reports.terminal.progress import make_observer

    observer, terms = make_observer(quiet=quiet), entries.lookup(name).terms
    if accept_licence and accept_licence != terms:
        actual = f"is under the terms '{terms}'" if terms else "has no terms to accept"
        raise InputError(f"--accept-licence {accept_licence}: '{name}' {actual}")
    if accept_licence:
        store.accept(terms)
    if entries.lookup(name).kind == "model":
        print(model_folder(name, offline=offline, observer=observer))
        return
    for path in fetch_files(name, offline=offline, observer=observer).values():
        print(path)
