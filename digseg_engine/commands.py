"""All commands of `digseg`. Each one imports what it needs inside itself: `segment` never meets torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from digseg_engine.arguments import check_output
from digseg_engine.data_command import data
from digseg_engine.evaluation.command import evaluate
from digseg_engine.runtime.command import doctor, segment
from digseg_engine.training_commands import distill, train

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Text-prompted segmentation with DiGSeg: segment pictures, check the machine and data, train, evaluate.",
)
app.command()(segment)
app.command()(doctor)
app.command()(data)
app.command()(train)
app.command()(distill)
app.command(name="eval")(evaluate)


@app.command()
def scenes(
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the pictures")] = Path("scenes"),
    domain: Annotated[str, typer.Option(help="objects, textures, microscopy, aerial, crops or all")] = "all",
    count: Annotated[int, typer.Option(help="pictures per domain")] = 1,
    size: Annotated[int, typer.Option(help="pixels per side")] = 256,
    seed: Annotated[int, typer.Option(help="number of the first scene")] = 0,
) -> None:
    """Paint labelled test pictures (PNG) to try the model on."""
    from PIL import Image

    from digseg_engine.worlds.scenes import DOMAINS, scene

    check_output(output)
    for name in DOMAINS if domain == "all" else (domain,):
        for number in range(seed, seed + count):
            one = scene(number, name, size, "demo")
            output.mkdir(parents=True, exist_ok=True)
            path = output / f"{name}-{number}.png"
            Image.fromarray(one.image).save(path)
            print(f"{path}: {', '.join(one.names())}")


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False) -> None:
    if show:
        from digseg_engine import __version__

        print(f"digseg-engine {__version__}")
        raise typer.Exit
