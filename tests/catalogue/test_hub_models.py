"""A hub id that cannot be loaded is refused at once."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from burnish.catalogue.convert import resolve_model
from burnish.errors import InputError


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_offline(online: None) -> None:
    with pytest.raises(InputError, match=r"model 'somebody/something' is not in the hub's cache, and nothing may be"):
        resolve_model("somebody/something", offline=True)


def test_without_a_network(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(InputError, match=r"cannot be reached \(Network is unreachable\)"):
        resolve_model("somebody/something")


def test_a_real_server_that_listens_is_enough(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert resolve_model("somebody/something") == "somebody/something"
    with pytest.raises(InputError, match="cannot be reached"):
        resolve_model("somebody/something")


def test_a_cached_model_needs_no_network(online: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache",
        lambda model, name: str(tmp_path / name) if name == "adapter_config.json" else None,
    )  # fmt: skip
    assert resolve_model("somebody/something", offline=True) == "somebody/something"
