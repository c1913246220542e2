"""The verbs that train: ``train``, ``sft``, ``prefer`` and ``reward-model``."""

from __future__ import annotations

import typer

from burnish.cli.options import TrainCommand, train_verb

verbs = typer.Typer(rich_markup_mode=None)


@train_verb(verbs)
def train(command: TrainCommand) -> None:
    """Train a model by reinforcement learning.

    Ends with an evaluation on held-out prompts and an HTML report.
    """
    from burnish.recipe.schema import load_recipe

    if command.dry_run:
        from burnish.backends.held_out_sets import check_recipe_data

        recipe = load_recipe(command.source, command.overrides)
        check_recipe_data(recipe, offline=command.offline, observer=command.observer())
        command.show(recipe.resolved())
        return
    # A mistake shows before torch is loaded.
    checked = None if command.recipe is None else load_recipe(command.recipe, command.overrides)
    command.prepare_threads(checked.threads if checked else None)
    from burnish.api import train as run_training

    result = command.run(run_training)
    command.print_result(result, report=result.report, model=result.model)


@train_verb(verbs)
def sft(command: TrainCommand) -> None:
    """Fine-tune a model on example answers."""
    from burnish.supervised.recipe import SFTRecipe

    command.run_supervised("sft", SFTRecipe)


@train_verb(verbs)
def prefer(command: TrainCommand) -> None:
    """Train a model on preferences (DPO, IPO or KTO)."""
    from burnish.supervised.recipe import PreferRecipe

    command.run_supervised("prefer", PreferRecipe)


@train_verb(verbs)
def reward_model(command: TrainCommand) -> None:
    """Train a reward model on pairs of answers (Bradley-Terry)."""
    from burnish.reports.terminal.tables import print_calibration
    from burnish.supervised.recipe import RewardModelRecipe

    result = command.run_supervised("reward_model", RewardModelRecipe)
    if result is not None and result.calibration is not None and not command.json:
        print_calibration(result.calibration)
