"""The verbs of human review: ``review`` and ``release``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.options import AsJson, Seed, print_json

verbs = typer.Typer(rich_markup_mode=None)

Database = Annotated[
    str | None,
    typer.Option(envvar="BURNISH_REVIEW_DATABASE", help="A PostgreSQL URL.  [default: review.sqlite of the run]"),
]


@verbs.command()
def review(
    run: Annotated[Path, typer.Argument(help="A run folder of burnish train.")],
    pairs: Annotated[int, typer.Option(min=0, help="Pairs to queue; flagged texts are always queued.")] = 500,
    random: Annotated[float, typer.Option(min=0, max=1, help="Share of the pairs that is drawn by chance.")] = 0.2,
    overlap: Annotated[float, typer.Option(min=0, max=1, help="Share of the items that two people judge.")] = 0.0,
    reviewer: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Print a new link for NAME.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen at; 0 takes a free one.")] = 8765,
    name: Annotated[list[str] | None, typer.Option(metavar="HOST", help="A name under which HOST is reached.")] = None,
    database: Database = None,
    export: Annotated[Path | None, typer.Option(help="Write the preferred texts of pairs to a file, and end.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Write the approved and rejected texts, and end.")] = None,
    status: Annotated[bool, typer.Option("--status", help="Print progress and agreement, and end.")] = False,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Serve a page on which people judge a run's samples.

    Prints a link with a token for each reviewer. Ctrl-C ends the server.
    """
    _need_packages("burnish review")
    from burnish.safety.review import exports, session
    from burnish.safety.review.queue import QueueSettings

    store = session.open_review(run, database)
    if export or labels or status:
        judgements = list(store.judgements())
        for path, rows in ((export, exports.preference_rows(judgements)), (labels, exports.labelled_rows(judgements))):
            if path is not None:
                print(f"{path}: {exports.write_rows(path, rows)} rows")
        if status:
            from burnish.safety.review.summary import summarise, summary_lines

            summary = summarise(store)
            print_json(summary) if json else print("\n".join(summary_lines(summary)))
        return
    added = session.queue_samples(store, run, QueueSettings(pairs, random, seed), overlap)
    total, waiting = session.flagged_counts(store)
    print(f"queued {added} items; {waiting} of {total} flagged texts wait for a judgement", flush=True)
    session.serve_page(store, host, port, name or [], reviewer or [])


@verbs.command()
def release(
    run: Annotated[Path, typer.Argument(help="A reviewed run folder.")],
    despite: Annotated[str, typer.Option(metavar="REASON", help="Release although texts were rejected.")] = "",
    database: Database = None,
    json: AsJson = False,
) -> None:
    """Release a run's model, once people approved what was flagged.

    Writes release.json and the model card. Refuses while flagged texts are unjudged or rejected.
    """
    _need_packages("burnish release")
    from burnish.reports.model_card import CARD
    from burnish.safety.release import RECORD, release_run
    from burnish.safety.review.session import open_review

    record = release_run(run, open_review(run, database), despite=despite)
    print_json(record) if json else print(f"{run / RECORD}\n{run / CARD}")


def _need_packages(verb: str) -> None:
    from burnish.system.optional_packages import needed

    for module in ("fastapi", "uvicorn", "sqlalchemy", "alembic", "python_multipart"):
        needed(module, "web", verb)
