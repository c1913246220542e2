"""Cases of damaged run folders: each verb that opens one refuses it, or gives what the undamaged folder gives."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import strategies as st

from bench.fuzz.case import Case, Command, Content, Tree, placed
from bench.fuzz.damage import Draw, damaged_times
from bench.fuzz.stock import EVALUATE, GENERATE, Stock

PLANTED = b"open('../outside/ran', 'w').write('code of a run folder has run')\n\n\ndef run(text):\n    return 1.0\n"
"""A module that a damaged recipe may name. No verb may import it: the run was not trusted with it."""


def _rearranged(draw: Draw, tree: Tree) -> tuple[dict[str, Content], str]:
    """Draw a change of whole checkpoints: renamed, exchanged, mixed, without a part, or a recipe that names code."""
    way = draw(st.sampled_from(("rename", "exchange", "mix", "lose", "code")))
    if way == "rename":
        return {name.replace("/step-4/", "/step-6/"): what for name, what in tree.items()}, "step-4 is step-6"
    if way == "exchange":
        other = {"step-2": "step-4", "step-4": "step-2"}
        changed = {re.sub("step-[24]", lambda found: other[found[0]], name): what for name, what in tree.items()}
        return changed, "step-2 and step-4 are exchanged"
    part = draw(st.sampled_from(("model/", "optimizer.safetensors", "state.json", "manifest.json")))
    if way == "mix":
        mixed = {name: tree.get(name.replace("/step-4/", "/step-2/"), what) if f"/step-4/{part}" in name else what
                 for name, what in tree.items()}  # fmt: skip
        return mixed, f"{part} of step-4 is that of step-2"
    if way == "lose":
        step = draw(st.sampled_from(("step-2", "step-4")))
        return {name: what for name, what in tree.items() if f"/{step}/{part}" not in name}, f"no {part} in {step}"
    recipe = bytes(tree["recipe.toml"]).replace(b'use = "exact"', b'use = "planted:run"')
    return {**tree, "recipe.toml": recipe, "planted.py": PLANTED}, "the recipe names planted:run"


@st.composite
def cases(draw: Any, stock: Stock) -> Case:
    """Draw a run folder with some damage, and the verbs that open it."""
    which = draw(st.sampled_from(("toy", "toy half", "tuned", "tuned half")))
    tree: Tree = stock.trees[which]
    changes: tuple[str, ...] = ()
    rearranged = draw(st.integers(0, 4)) == 4
    if rearranged:
        tree, text = _rearranged(draw, tree)
        changes = (text,)
    if not rearranged or draw(st.booleans()):
        tree, texts = damaged_times(draw, tree, "../outside")
        changes = (*changes, *texts)
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
    return Case("runs", {**placed(tree, "run"), "planted.py": PLANTED}, tuple(verbs[name] for name in order), changes)
