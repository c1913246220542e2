"""Cases of damaged run folders: each verb that opens one refuses it, or gives what the undamaged folder gives."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from bench.fuzz.case import Case, Command, Tree, placed
from bench.fuzz.damage import damaged_times
from bench.fuzz.stock import EVALUATE, GENERATE, Stock


def _newer(tree: Tree) -> dict[str, Any]:
    """Return the run with its newest checkpoint renamed to a later step."""
    return {name.replace("checkpoints/step-4", "checkpoints/step-6"): what for name, what in tree.items()}


@st.composite
def cases(draw: Any, stock: Stock) -> Case:
    """Draw a run folder with some damage, and the verbs that open it."""
    which = draw(st.sampled_from(("toy", "toy half", "tuned", "tuned half")))
    tree, changes = damaged_times(draw, stock.trees[which], "../outside")
    if draw(st.integers(0, 15)) == 15:
        tree, changes = _newer(tree), (*changes, "step-4 is step-6")
    verbs = {
        "resume": Command(("train", "--resume", "run", "--quiet"), equals=f"bits {which.partition(' ')[0]}"),
        "report": Command(("report", "run")),
        "check": Command(("check", "run")),
        "evaluate": Command(EVALUATE, equals=f"evaluate {which}"),
        "generate": Command(GENERATE, equals=f"generate {which}"),
    }
    names = ["check", "report"] + ["evaluate", "generate"] * which.startswith("tuned")
    chosen = draw(st.lists(st.sampled_from(names), unique=True, max_size=2))
    # A resumed run comes last: what it writes is whole again.
    order = [*chosen, "resume"] if not chosen or draw(st.booleans()) else chosen
    return Case("runs", placed(tree, "run"), tuple(verbs[name] for name in order), changes)
