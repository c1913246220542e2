"""Losses and gradients equal TRL's on the same numbers.

TRL computes its own, where ``make bench-peer`` has installed it. test_formulas.py derives values by hand, without TRL.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from burnish.algorithms.kl import k3
from burnish.algorithms.losses import RatioLimits
from burnish.algorithms.ops import log_ratio, sequence_weights
from burnish.algorithms.presets import PRESETS

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-trl" / "bin" / "python"

LENGTHS = torch.tensor([4, 1, 3, 2, 4, 2])
LONGEST = 4

# Preset, limits, and TRL's options for the same loss. By default TRL weights the KL term with the ratio, which is 1 on
# policy; that is switched off.
CASES = {
    "grpo": ("grpo", RatioLimits(), {"loss_type": "grpo"}),
    "grpo with KL": ("grpo", RatioLimits(), {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False}),
    "grpo with a dual clip": ("grpo", RatioLimits(dual=1.5), {"loss_type": "grpo", "delta": 1.5}),
    "dr_grpo": ("dr_grpo", RatioLimits(), {"loss_type": "dr_grpo", "max_completion_length": LONGEST}),
    "dapo": ("dapo", RatioLimits(0.2, 0.28), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "gspo": (
        "gspo", RatioLimits(0.1, 0.15),
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.1, "epsilon_high": 0.15},
    ),
    "cispo": ("cispo", RatioLimits(1.0, 0.5), {"loss_type": "cispo", "epsilon_high": 1.5}),
    "sapo": ("sapo", RatioLimits(), {"loss_type": "sapo"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def numbers() -> dict[str, torch.Tensor]:
    """Return flat tensors [T] whose ratios run from about 1/3 to 3, so that every clip acts on some tokens."""
    generator = torch.Generator().manual_seed(3)

    def drawn(count: int) -> torch.Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    total = int(LENGTHS.sum())
    old = -drawn(total).abs() - 0.1
    advantages = drawn(len(LENGTHS))
    return {
        "old": old, "new": old + 0.7 * drawn(total), "reference": old + 0.3 * drawn(total), "advantages": advantages
    }  # fmt: skip


def rows(values: torch.Tensor) -> list[list[float]]:
    """Return flat values [T] as TRL's padded rows [N, L]."""
    parts = torch.split(values, LENGTHS.tolist())
    return [[*part.tolist(), *[0.0] * (LONGEST - len(part))] for part in parts]


@pytest.fixture(scope="module")
def trl(numbers) -> dict[str, tuple[float, torch.Tensor]]:
    """Return TRL's loss and its gradient [T] by case."""
    if not PYTHON.exists():
        pytest.skip("TRL's environment is not built: make bench-peer")
    given = [
        {
            "logprobs": rows(numbers["new"]), "old_logprobs": rows(numbers["old"]),
            "reference_logprobs": rows(numbers["reference"]), "advantages": numbers["advantages"].tolist(),
            "mask": rows(torch.ones(len(numbers["new"]))), "options": options,
        }
        for _, _, options in CASES.values()
    ]  # fmt: skip
    command = [str(PYTHON), str(ROOT / "bench" / "peers" / "trl_losses.py")]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.strip().splitlines()[-1])
    mask = torch.tensor(rows(torch.ones(len(numbers["new"])))).bool()
    return {
        name: (answer["loss"], torch.tensor(answer["gradient"], dtype=torch.float64)[mask])
        for name, answer in zip(CASES, answers, strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_trls(name, trl, numbers):
    preset_name, limits, options = CASES[name]
    preset = PRESETS[preset_name]
    logprobs = numbers["new"].clone().requires_grad_(True)
    ratio = log_ratio(logprobs, numbers["old"], LENGTHS, preset.ratio or "token")
    advantages = numbers["advantages"].repeat_interleave(LENGTHS)
    token_loss = preset.loss(logprobs, ratio, advantages, limits)
    token_loss = token_loss + options.get("beta", 0.0) * k3(logprobs, numbers["reference"])
    weights = sequence_weights(LENGTHS, preset.aggregation, LONGEST).repeat_interleave(LENGTHS)
    loss = (weights * token_loss).sum()
    loss.backward()
    expected, gradient = trl[name]
    tolerance = 1e-7 if name == "sapo" else 1e-12  # TRL keeps the temperatures of its gate in float32
    assert float(loss.detach()) == pytest.approx(expected, abs=tolerance)
    torch.testing.assert_close(logprobs.grad, gradient, rtol=0, atol=tolerance)
    assert gradient.abs().max() > 0.01
    if preset.clips:
        clipped = preset.clipped(ratio.detach(), advantages, limits)
        assert (clipped[0] | clipped[1]).any(), "the clip has something to do"
