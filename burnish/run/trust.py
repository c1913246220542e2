"""Trust in the code that a run's recipe names: runs that began on this machine, and those that a user has trusted.

``recipes.json`` of a run holds the folder in which its modules are looked up, and a seal: an HMAC of that folder and of
the recipe, with a key that lies in burnish's home and never leaves it. A folder that came from somebody else has no
valid one, and neither has a run whose recipe was changed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from burnish.errors import InputError
from burnish.named_code import CodeRules, code_folder, code_rules
from burnish.run.history import HISTORY, RecipeHistory, lasting, parsed, read_history
from burnish.system.files import regular_bytes, write_text
from burnish.system.paths import expanded, home

KEY = "trust.key"
ASK = "look at it, then add --trust (Python: trust=True)"


def sealed(history: RecipeHistory) -> RecipeHistory:
    """Return a run's history with the seal of this machine, or as it is if burnish's home cannot be written."""
    seal = _seal(history)
    return replace(history, seals=[*history.seals, seal]) if seal and seal not in history.seals else history


def begun_here(recipe: str) -> RecipeHistory:
    """Return the history of a run that begins now, with the text of its recipe."""
    return sealed(replace(RecipeHistory.of(recipe), code_folder=str(code_folder())))


def with_recipe(run: Path, recipe: str) -> RecipeHistory | None:
    """Return a run's history with the text of one more recipe, which is trusted as the one before; None without one."""
    history = read_history(run)
    if history is None:
        return None
    longer = replace(history, recipes=[*history.recipes, parsed(recipe)])
    return sealed(longer) if is_trusted(run) else longer


def is_trusted(run: Path) -> bool:
    """Whether the code that a run's recipe names may run here: the run began on this machine, or was trusted."""
    try:
        history, now = read_history(run), parsed(regular_bytes(run / "recipe.toml").decode("utf-8"))
    except (InputError, OSError, UnicodeDecodeError):
        return False
    # The seal is of the newest recipe that the run had, which has to be the one that is there.
    if history is None or lasting(history.recipes[-1]) != lasting(now):
        return False
    seal = _seal(history)
    return bool(seal) and any(hmac.compare_digest(seal, one) for one in history.seals)


def trust_run(run: Path) -> None:
    """Seal a run, whose user has looked at its code; a run of an earlier version looks modules up in the working folder."""
    text = regular_bytes(run / "recipe.toml").decode("utf-8")
    history = read_history(run) or RecipeHistory.of(text)
    if lasting(history.recipes[-1]) == lasting(parsed(text)):
        folder = history.code_folder or str(Path.cwd())
        write_text(run / HISTORY, sealed(replace(history, code_folder=folder)).text())


def recipe_home(recipe: object) -> Path:
    """Return the folder in which a recipe was given: that of its file, or the working folder."""
    if isinstance(recipe, str | Path) and (path := expanded(str(recipe))).is_file():
        return path.absolute().parent
    return Path.cwd()


@contextmanager
def code_of(
    recipe: object,
    run: str | Path | None,
    *,
    trust: bool = False,
    refusal: str = "",
    never: str = "",
) -> Iterator[None]:
    """Look up the code of a recipe, or of a run, where it was given, and run it only if it is trusted.

    A recipe file in a run folder counts as the run.

    Args:
        trust: the user has looked at the code.
        never: why no code may run at all, not even if it is trusted.
        refusal: why not even a recipe of the user may run code; a run that is trusted may.
    """
    place = expanded(str(run)) if run is not None else recipe_home(recipe)
    rules = CodeRules(place, never or ("" if trust else refusal))
    if run is not None or _is_run(place):
        history = None
        with suppress(InputError):
            history = read_history(place)
        folder = Path(history.code_folder) if history and history.code_folder else None
        may = trust or is_trusted(place)
        rules = CodeRules(folder, never or ("" if may else f"{place} did not begin on this machine; {ASK}"))
    with code_rules(rules):
        yield


def _is_run(folder: Path) -> bool:
    return (folder / "recipe.toml").is_file() and ((folder / HISTORY).exists() or (folder / "checkpoints").is_dir())


def _seal(history: RecipeHistory) -> str:
    """Return the seal of a history with this machine's key, "" without one."""
    key = _key()
    content: Mapping[str, Any] = {"folder": history.code_folder, "recipe": lasting(history.recipes[-1])}
    text = json.dumps(content, sort_keys=True).encode("utf-8", "backslashreplace")
    return hmac.new(key, text, hashlib.sha256).hexdigest() if key else ""


def _key() -> bytes:
    """Return this machine's key, made on first use; b"" if burnish's home cannot be written."""
    path = home() / KEY
    with suppress(OSError):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            made = path.with_name(f".{KEY}.{secrets.token_hex(8)}")
            with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
            try:
                os.link(made, path)  # of two processes, the first one's stays
            except FileExistsError:
                pass
            finally:
                made.unlink()
        return path.read_bytes().strip()
    return b""
