"""Paths with ``~``, and the cache folder of systems other than Linux (that of Linux: tests/catalogue)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from burnish.errors import InputError
from burnish.rewards.registry import REWARDS
from burnish.supervised.data_rows import DataRows
from burnish.system.paths import expanded, home
from burnish.tasks.data import DataTask
from burnish.types import Completion, Prompt

NOBODY = "~nobody-of-this-name/x"
SAID = [Completion(Prompt("p", "a"), (1,), (2,), "b", (0.0,), "stop")]


@pytest.mark.parametrize(
    "use",
    [
        lambda: DataTask(path=f"{NOBODY}.jsonl"),
        lambda: DataRows(path=NOBODY, format="text"),
        lambda: REWARDS.get("reward_model").check_options({"path": NOBODY}),
        lambda: REWARDS.get("judge").function(SAID, model="m", cache=NOBODY),
    ],
)
def test_it_is_one_line(use: Callable[[], Any]) -> None:
    with pytest.raises(InputError, match="there is no home folder of that name: write the whole path") as found:
        use()
    assert "\n" not in str(found.value)


def test_others_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert (expanded("~/a"), expanded("a/~b"), expanded(Path("/c"))) == (
        Path("/home/me/a"), Path("a/~b"), Path("/c"),
    )  # fmt: skip


def test_an_earlier_cache_is_kept_where_the_system_has_a_folder_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library, earlier = tmp_path / "Library" / "Caches" / "burnish", tmp_path / ".cache" / "burnish"
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, appauthor: library)
    monkeypatch.delenv("BURNISH_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == library
    earlier.mkdir(parents=True)
    assert home() == earlier
    library.mkdir(parents=True)
    assert home() == library
