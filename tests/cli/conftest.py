"""Models of the command line's tests: each is loaded once, since no verb changes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from burnish import api
from burnish.policies.causal_lm import CausalModel
from burnish.policies.loading import load_model

_MODELS: dict[str, CausalModel] = {}


@pytest.fixture
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``burnish.load`` return the model that it loaded before from the same folder with the same options."""

    def load_once(source: str | Path, **options: Any) -> CausalModel:
        key = repr((str(source), sorted((name, value) for name, value in options.items() if name != "observer")))
        if key not in _MODELS:
            _MODELS[key] = load_model(source, **options)
        return _MODELS[key]

    monkeypatch.setattr(api, "load_model", load_once)
