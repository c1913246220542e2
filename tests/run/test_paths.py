"""A recipe's relative paths become absolute when a run begins; what is not a path stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from burnish.recipe.schema import RewardSection, TaskSection
from burnish.run.launch import resolve_section_path


@pytest.mark.parametrize(
    ("options", "resolved"),
    [
        ({"path": "a.csv", "held_out": "b.csv"}, ("path", "held_out")),
        ({"path": "part-*.jsonl", "held_out": "last/*.jsonl"}, ("path", "held_out")),
        ({"path": "saved", "held_out": "test"}, ("path",)),
        ({"dataset": "owner/name", "held_out": "test"}, ()),
        ({"dataset": "owner/name", "held_out": "folder"}, ()),
        ({"dataset": "file", "held_out": "test"}, ()),
        ({"dataset": "saved", "held_out": "test"}, ("dataset",)),
    ],
)
def test_the_paths_of_data(
    options: dict[str, Any], resolved: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "saved" / "dataset_dict.json").write_text("{}", encoding="utf-8")
    expected = {key: str(tmp_path / value) if key in resolved else value for key, value in options.items()}
    assert resolve_section_path(TaskSection(use="data", **options)).options == expected


@pytest.mark.parametrize(("policy", "is_path"), [("strict.toml", True), ("default", False), ("", False)])
def test_the_policy_of_the_content_filter(policy: str, is_path: bool, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    section = RewardSection(use="content_filter", policy=policy)
    assert resolve_section_path(section).options["policy"] == (str(tmp_path / policy) if is_path else policy)
