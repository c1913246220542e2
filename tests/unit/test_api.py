"""The library's verbs: what they make of names and functions before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from burnish import api
from burnish.errors import InputError
from burnish.run import Run
from burnish.types import SamplingParams


@pytest.fixture
def early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder as it is before the first checkpoint; the working folder is the one around it."""
    from burnish.recipe import load_recipe

    monkeypatch.chdir(tmp_path)
    Run.create(load_recipe("toy"), Path("early")).close()
    return Path("early")


@pytest.mark.parametrize("name", ["early", "./early", "absolute"])
def test_a_run_without_a_checkpoint_is_no_hub_id(early: Path, name: str) -> None:
    model = str(early.absolute()) if name == "absolute" else name
    with pytest.raises(
        InputError, match=f"{model}: this run has no checkpoint yet; go on with: burnish train --resume"
    ):
        api.generate(model, "a", sampling=SamplingParams(1))


def test_a_runs_model_is_checked_as_any_folder_is(early: Path) -> None:
    (early / "model").mkdir()
    with pytest.raises(InputError, match=r"model folder early/model has no config\.json"):
        api.generate("early", "a", sampling=SamplingParams(1))
