"""An adapter whose base lies in its run's folder: a changed base is refused wherever the adapter is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import burnish
from burnish.catalogue.checkpoints import refuse_damaged_checkpoint
from burnish.errors import InputError
from tests.fakes import RecordingObserver


@pytest.mark.slow
def test_a_changed_base_beside_an_adapter_is_refused(tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    base = tmp_path / "base"
    shutil.copytree(tiny("llama"), base)
    recipe = {
        "name": "small", "steps": 1, "policy": {"model": str(base), "lora": {"rank": 2}}, "task": {"use": "toy"},
        "sampling": {"prompts_per_step": 2, "samples_per_prompt": 2, "max_new_tokens": 4},
        "reward": [{"use": "repetition"}], "evaluation": {"samples_per_prompt": 1, "resamples": 100, "prompts": 4},
    }  # fmt: skip
    burnish.train(recipe, run_dir=run, observer=RecordingObserver(), offline=True)
    shutil.copytree(base, run / "start")
    text = (run / "inputs.json").read_text(encoding="utf-8")
    (run / "inputs.json").write_text(text.replace(str(base), "<run>/start"), encoding="utf-8")
    model = (run / "model").resolve()
    refuse_damaged_checkpoint(model)
    weights = bytearray((run / "start" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (run / "start" / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match=r"start/model\.safetensors is not what was saved.*burnish check"):
        refuse_damaged_checkpoint(model)
