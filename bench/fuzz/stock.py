"""The stock that cases are made from: undamaged recipes, models, runs and data, and what the verbs make of them."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.fuzz.case import Case, Command, Content, Tree, placed, read_tree
from bench.fuzz.results import produced, run_bits
from bench.fuzz.reward_source import source
from bench.fuzz.samples import BASES, BEGIN, TINY, TOY, TUNED, data_files, toml
from bench.fuzz.server import Server
from bench.tiny_models import write_tiny_model

EVALUATE = ("evaluate", "run", "--quiet", "--json")
GENERATE = ("generate", "run", "What is it?", "--max-new-tokens", "4", "--json", "--plain")


@dataclass
class Stock:
    """Undamaged trees by name, and the results that an accepted command must repeat, by name."""

    trees: dict[str, dict[str, Content]] = field(default_factory=dict)
    expected: dict[str, object] = field(default_factory=dict)
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Recipes with all keys written out."""

    def __repr__(self) -> str:  # Hypothesis shows what a strategy was made from
        return "stock"


def build(server: Server) -> Stock:
    """Make the stock with the commands that users make it with."""
    stock = Stock(expected=server.expected)
    stock.trees["data"] = data_files()
    _add_models(stock, server)
    _add_recipes(stock)
    _add_runs(stock, server)
    tree = {"mine.py": source().encode(), "toy.toml": toml({**TOY, "steps": 2, "reward": [{"use": "mine:f"}]})}
    train = Command(("train", "toy.toml", "--run-dir", "run", "--quiet"))
    _succeed(server, Case("stock", tree, (train,)))
    stock.expected["bits plain reward"] = run_bits(server.place.work / "run")
    return stock


def _add_recipes(stock: Stock) -> None:
    from burnish.recipe.schema import load_recipe
    from burnish.supervised.recipe import PreferRecipe, RewardModelRecipe, SFTRecipe, load_supervised

    whole = {name: load_recipe(BASES[name]).resolved() for name in ("toy", "tiny")}
    for name, kind in (("sft", SFTRecipe), ("prefer", PreferRecipe), ("reward-model", RewardModelRecipe)):
        whole[name] = load_supervised(kind, BASES[name])
    stock.recipes = {name: one.model_dump(mode="json", exclude_none=True) for name, one in whole.items()}


def _add_models(stock: Stock, server: Server) -> None:
    """Add a tiny random model, and a LoRA adapter that was trained on it."""
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()  # what computes may start threads
        if child == 0:
            write_tiny_model("llama", Path(folder))
            os._exit(0)
        os.waitpid(child, 0)
        stock.trees["model"] = placed(read_tree(Path(folder) / "llama"), "model")
    tree = {**stock.trees["model"], **stock.trees["data"], "tiny.toml": toml(TINY)}
    run = _made(server, tree, ("train", "tiny.toml", "--run-dir", "run", "--quiet"))
    start = "checkpoints/step-1/model/"
    adapter = {name.removeprefix(start): what for name, what in run.items() if name.startswith(start)}
    config = json.loads(bytes(adapter["adapter_config.json"]))
    adapter["adapter_config.json"] = json.dumps(config | {"base_model_name_or_path": "model"}).encode()
    stock.trees["adapter"] = placed(adapter, "adapter")


def _add_runs(stock: Stock, server: Server) -> None:
    """Add finished runs and stopped ones, of a table and of a language model, and what the verbs make of them."""
    train = ("train", "recipe.toml", "--run-dir", "run", "--quiet")
    begin = _made(server, {**stock.trees["model"], "recipe.toml": toml(BEGIN)}, train)
    for which, recipe, around in (("toy", TOY, {}), ("tuned", TUNED, placed(begin, "begin"))):
        tree: Tree = {"recipe.toml": toml(recipe), **around}
        stock.trees[which] = _made(server, tree, train)
        stock.trees[f"{which} half"] = _made(server, tree, train, stop="step-2")
        for name in (which, f"{which} half"):
            _add_result(stock, server, name, f"bits {which}", ("train", "--resume", "run", "--quiet"))
    for name in ("tuned", "tuned half"):
        _add_result(stock, server, name, f"evaluate {name}", EVALUATE)
        _add_result(stock, server, name, f"generate {name}", GENERATE)


def _add_result(stock: Stock, server: Server, tree: str, name: str, arguments: tuple[str, ...]) -> None:
    out = _succeed(server, Case("stock", placed(stock.trees[tree], "run"), (Command(arguments),)))
    result = produced(name, server.place.work, out)
    if stock.expected.setdefault(name, result) != result:
        raise SystemExit(f"{name} of {tree} is not that of the run never stopped")


def _made(server: Server, tree: Tree, arguments: tuple[str, ...], stop: str = "") -> dict[str, Content]:
    """Return the run folder that a command leaves behind, interrupted if a checkpoint to stop at is named."""
    case = Case("stock", tree, (Command(arguments),))
    if stop:
        server.before = lambda: _interrupt_after(stop)
    try:
        _succeed(server, case, (130,) if stop else (0,))
    finally:
        server.before = None
    return read_tree(server.place.work / "run")


def _succeed(server: Server, case: Case, statuses: tuple[int, ...] = (0,)) -> str:
    outcome = server.run(case)
    if outcome.fault or outcome.statuses != statuses:
        raise SystemExit(f"{case.commands[-1].arguments}: {outcome.statuses} {outcome.fault}\n{outcome.err}")
    return server.place.streams[1].read_text(encoding="utf-8")


def _interrupt_after(name: str) -> None:
    """Send this process what Ctrl-C sends when a checkpoint gets its name."""
    sent: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and Path(os.fsdecode(arguments[1])).name == name and not sent:
            sent.append(name)
            os.kill(os.getpid(), signal.SIGINT)

    sys.addaudithook(hook)
