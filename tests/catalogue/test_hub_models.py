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
    monkeypatch.setattr("urllib.request.getproxies", dict)


def refuse(*arguments: Any) -> Any:
    raise OSError(101, "Network is unreachable")


def test_offline(online: None) -> None:
    with pytest.raises(InputError, match=r"model 'somebody/something' is not in the hub's cache, and nothing may be"):
        resolve_model("somebody/something", offline=True)


def test_without_a_network(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("scheme", ["https", "all"])
def test_a_proxy_is_left_to_huggingface_hub(online: None, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    monkeypatch.setattr("urllib.request.getproxies", lambda: {scheme: "http://proxy:3128"})
    assert resolve_model("somebody/something") == "somebody/something"


def test_an_address_with_a_path_and_no_port(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: list[Any] = []
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: addresses.append(address) or refuse())
    for endpoint in ("http://hub.example/models", "https://hub.example/models", "https://hub.example:8443/models"):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        with pytest.raises(InputError, match="cannot be reached"):
            resolve_model("somebody/something")
    assert addresses == [("hub.example", port) for port in (80, 443, 8443)]


@pytest.mark.parametrize("endpoint", ["http://hub.example:port", "http://hub.example:99999", "http://[::1"])
def test_an_address_that_cannot_be_one(online: None, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(InputError, match="is not the address of a hub"):
        resolve_model("somebody/something")


@pytest.mark.parametrize("name", ["some--body/something", "somebody/something.git", "-a/b"])
def test_a_name_that_the_hub_does_not_allow(online: None, name: str) -> None:
    with pytest.raises(InputError, match=f"model '{name}' is not a hub id"):
        resolve_model(name, offline=True)
