"""A run's review: its database, its queue, and the server that shows it."""

from __future__ import annotations

import hashlib
import json
import random
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from burnish.errors import BurnishError, InputError
from burnish.run.folder import read_lines
from burnish.safety.review import access
from burnish.safety.review.database import open_database
from burnish.safety.review.queue import QueueSettings, choose_items
from burnish.safety.review.store import TEXT, ReviewItem, ReviewStore

FILE_NAME = "review.sqlite"
SAMPLES = "samples.jsonl"


def open_review(run: Path, database: str | None = None) -> ReviewStore:
    """Open the review of a run, by default in its folder. Raises InputError if it is not a run folder."""
    if not (run / "recipe.toml").is_file():
        raise InputError(f"{run} is not a run folder: it has no recipe.toml")
    store = ReviewStore(open_database(database or run / FILE_NAME))
    name = _identity(run)
    if database and store.setting("run", name) != name:
        raise InputError(
            "this database holds the review of another run; use another one, or another schema of it: "
            "--database 'postgresql://...?options=-csearch_path=NAME'"
        )
    return store


def queue_samples(store: ReviewStore, run: Path, settings: QueueSettings, overlap: float = 0.0) -> int:
    """Queue a run's samples that are not queued yet, and return their number.

    ``overlap`` is the share of items that two people judge.
    """
    path = run / SAMPLES
    if not path.is_file():
        raise InputError(f"{run} has no {SAMPLES}: only runs of burnish train have samples to judge")
    digest = samples_digest(run)
    seed = store.setting("seed", str(settings.seed))

    def wanted(item: ReviewItem) -> int:
        return 2 if random.Random(f"{seed} {item.key}").random() < overlap else 1

    added = store.add_items(choose_items(read_lines(path), settings), wanted)
    store.replace_setting("samples", digest)
    return added


def samples_digest(run: Path) -> str:
    with open(run / SAMPLES, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def serve_page(store: ReviewStore, host: str, port: int, names: Sequence[str], reviewers: Sequence[str]) -> None:
    """Serve the page until Ctrl-C, and print a link for each reviewer that is named, or for the first one.

    Raises:
        InputError: the address is not of this machine only, and no reviewer was named.
        BurnishError: the address cannot be used.
    """
    import uvicorn

    from burnish.safety.review.app import make_app

    if not access.is_loopback(host) and not (reviewers or store.reviewers()):
        raise InputError(f"--host {host} can be reached from other machines: name who may judge with --reviewer NAME")
    if not reviewers and not store.reviewers():
        reviewers = ["reviewer"]
    shown = f"[{host}]" if ":" in host else host
    wildcard = host in ("0.0.0.0", "::")
    if wildcard and not names:
        raise InputError(f"--host {host} needs the name under which people reach this machine: --name HOST")
    app = make_app(store, [*access.LOOPBACK, *names, *([] if wildcard else [host])])
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise BurnishError(f"{shown}:{port} cannot be used ({error.strerror}): choose another --port") from error
    address = f"http://{names[0] if wildcard else shown}:{listening.getsockname()[1]}/"
    config = uvicorn.Config(app, log_level="warning", server_header=False, access_log=False)
    for name in reviewers:
        print(f"{name}: {address}#{store.add_reviewer(name)}", flush=True)
    if not reviewers:
        print(f"{address} (--reviewer NAME prints a new link)", flush=True)
    with suppress(KeyboardInterrupt):  # the way to end it
        uvicorn.Server(config).run(sockets=[listening])


def flagged_counts(store: ReviewStore) -> tuple[int, int]:
    """Return the numbers of flagged texts, and of those without a judgement."""
    progress = store.progress()
    return progress.total[TEXT], progress.total[TEXT] - progress.done[TEXT]


def _identity(run: Path) -> str:
    """Return what tells a run from others, also when its folder has moved: the time at which it began."""
    try:
        return str(json.loads((run / "environment.json").read_text(encoding="utf-8"))["began"])
    except (OSError, ValueError, TypeError, KeyError):
        return run.resolve().name
