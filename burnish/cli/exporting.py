"""The verb that hands a model on: ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.options import Offline, Quiet

verbs = typer.Typer(rich_markup_mode=None)


@verbs.command()
def export(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder or a catalogue name.")],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to write; it must not exist.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge an adapter into its base model.")] = False,
    gguf: Annotated[bool, typer.Option("--gguf", help="Write a GGUF file for llama.cpp.")] = False,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; with --gguf f32, f16, bf16 or q8_0.  [default: as saved]"),
    ] = None,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Write a run's model to a plain folder, with a model card.

    The folder opens in transformers 4 and 5, peft, vLLM and, with --gguf, llama.cpp.
    """
    from burnish.backends.export import export_model
    from burnish.reports.terminal.progress import make_observer

    observer = make_observer(quiet=quiet)
    print(export_model(model, to, merge=merge, gguf=gguf, dtype=dtype, offline=offline, observer=observer))
