"""The verb that estimates a run on GPUs: ``plan``."""

from __future__ import annotations

from typing import Annotated

import typer

from burnish.cli.options import AsJson, Overrides, escape, print_json

verbs = typer.Typer(rich_markup_mode=None)

Recipe = Annotated[str, typer.Argument(help="The name of a built-in recipe, or a TOML file.")]


@verbs.command()
def plan(
    recipe: Recipe,
    gpus: Annotated[int, typer.Option(help="Number of GPUs.")],
    gpu: Annotated[str, typer.Option(help="Kind: b200, h200, h100, h100-pcie, a100, a100-40gb, l40s, ...")] = "h100",
    model: Annotated[
        str | None, typer.Option(help="A catalogue name, a folder or a size such as 7b.  [default: the recipe's]")
    ] = None,
    overrides: Overrides = None,
    price: Annotated[float | None, typer.Option(help="Price of one GPU and hour.")] = None,
    prompt_tokens: Annotated[float | None, typer.Option(help="Mean number of tokens of a prompt.")] = None,
    answer_tokens: Annotated[float | None, typer.Option(help="Mean number of tokens of a sample.")] = None,
    max_staleness: Annotated[int, typer.Option(help="Steps by which samples may be late.")] = 0,
    training_utilisation: Annotated[float | None, typer.Option(help="Share of the arithmetic in training.")] = None,
    bandwidth_utilisation: Annotated[float | None, typer.Option(help="Share of the memory's bandwidth.")] = None,
    link_utilisation: Annotated[float | None, typer.Option(help="Share of the bandwidth between GPUs.")] = None,
    usable_memory: Annotated[float | None, typer.Option(help="Share of the memory for tensors.")] = None,
    network: Annotated[float | None, typer.Option(help="GB per second from one GPU to other machines.")] = None,
    gpus_per_machine: Annotated[int | None, typer.Option(help="GPUs of one machine.")] = None,
    rows: Annotated[int | None, typer.Option(help="Most samples in flight per sampler.")] = None,
    sampling_launch: Annotated[float | None, typer.Option(help="Least ms per layer and decoding step.")] = None,
    training_launch: Annotated[float | None, typer.Option(help="Least ms per layer and microbatch.")] = None,
    json: AsJson = False,
) -> None:
    """Estimate memory, time and cost of a run on GPUs.

    Nothing is loaded or measured. The formulas are in docs/en/planning.md.
    """
    from burnish.planning.constants import Constants
    from burnish.planning.estimate import estimate_run
    from burnish.planning.report_lines import estimate_lines

    given = {
        "training_utilisation": training_utilisation, "bandwidth_utilisation": bandwidth_utilisation,
        "link_utilisation": link_utilisation, "usable_memory": usable_memory, "network": network,
        "gpus_per_machine": gpus_per_machine, "rows": rows, "sampling_launch": sampling_launch,
        "training_launch": training_launch,
    }  # fmt: skip
    chosen = {name: value for name, value in given.items() if value is not None}
    found = estimate_run(
        recipe, gpus=gpus, gpu=gpu, model=model, overrides=overrides or [], price=price, prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens, max_staleness=max_staleness, constants=Constants(**chosen),  # type: ignore[arg-type]
    )  # fmt: skip
    if json:
        print_json(found.to_json())
    else:
        for line in estimate_lines(found):
            print(escape(line))
    if not found.outcome.fits:
        raise typer.Exit(1)
