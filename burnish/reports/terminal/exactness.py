"""The output of ``burnish verify``: a table per estimator and a plot of the toy run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console

if TYPE_CHECKING:
    from burnish.exactness.verify import Finding, World

ROWS = 8


def print_findings(findings: Sequence[Finding], world: World, *, samples: int, group: int) -> None:
    """Print each estimator's exact gradient, mean with standard error, bias and variance."""
    print(f"{samples:,} estimates per estimator, {group} samples per estimate, in the world of 我爱你。 (J = 0.24)")
    print("bias: exact expectation over all pairs of sequences (G = 2) minus the exact gradient")
    names = [*world.vocabulary, "start"]
    for finding in findings:
        estimator = finding.estimator
        print(f"\n{estimator.name}  ->  {estimator.target}:  {_conclusion(finding)}")
        print(f"    {'d/dlogit':12}{'exact':>10}{'mean':>12}  {'standard error':<16}{'bias':>9}")
        for row, token in ((len(world.vocabulary), 0), (0, 1), (1, 2)):
            logit = f"{world.vocabulary[token]}|{names[row]}"
            # A Chinese character is two columns wide.
            print(
                f"    {logit}{' ' * (12 - cell_len(logit))}"
                f"{finding.exact[row, token]:+10.5f}{finding.mean[row, token]:+12.5f}  "
                f"± {finding.standard_error[row, token]:<14.5f}{finding.bias[row, token]:+9.1e}"
            )
        print(
            f"    all components: largest deviation {finding.deviation:.2f} SE (limit {finding.limit:.2f}), "
            f"variance {finding.variance:.4f}"
        )
        if estimator.why:
            print(f"    {estimator.why}")


def findings_json(findings: Sequence[Finding], world: World, *, samples: int, group: int, seed: int) -> dict[str, Any]:
    """Return the findings as JSON-compatible data."""
    from burnish.exactness.verify import as_rows

    return {
        "samples": samples, "group": group, "seed": seed,
        "estimators": [
            {"estimator": f.estimator.name, "target": f.estimator.target, "claims_unbiased": f.estimator.unbiased,
             "agrees": f.agrees, "passed": f.passed, "variance": f.variance, "deviation": f.deviation,
             "limit": f.limit, "exact_bias": float(f.bias.abs().max())}
            for f in findings
        ],
        "components": as_rows(findings, world),
    }  # fmt: skip


def _conclusion(finding: Finding) -> str:
    if finding.agrees:
        return "unbiased" if finding.estimator.unbiased else "no bias detected"
    return "WRONG: biased, but claims to be unbiased" if finding.estimator.unbiased else "biased, by design"


def plot_rewards(values: Sequence[float], width: int = 75) -> None:
    """Plot mean rewards between 0 and 1 with characters; each column is the mean of several steps."""
    console = Console()
    width = min(width, len(values))
    edges = [round(column * len(values) / width) for column in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    console.print(f"\nshare of samples that say 我爱你。 over {len(values)} steps of rloo", highlight=False)
    blocks = " ▁▂▃▄▅▆▇█"
    for row in range(ROWS - 1, -1, -1):
        line = "".join(blocks[max(0, min(8, round((mean * ROWS - row) * 8)))] for mean in means)
        label = {ROWS - 1: "1.0", 0: "0.0"}.get(row, "   ")
        console.print(f"{label} │{line}", highlight=False)
    console.print("    └" + "─" * width)
    last = sum(values[-10:]) / len(values[-10:])
    console.print(f"first step {values[0]:.2f}, last ten steps {last:.3f}", highlight=False)
