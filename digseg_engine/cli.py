"""The `digseg` command. Each command imports what it needs inside itself: `segment` never meets torch."""

from __future__ import annotations

import glob
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from digseg_engine.data_command import data
from digseg_engine.errors import DigsegError, InputError, UsageError
from digseg_engine.evaluation.command import evaluate
from digseg_engine.training_commands import distill, train

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Text-prompted segmentation with DiGSeg: segment pictures, check the machine and data, train, evaluate.",
)
app.command()(data)
app.command()(train)
app.command()(distill)
app.command(name="eval")(evaluate)
# Typer carries its own copy of click in some releases; its errors share this base in all of them.
COMMAND_LINE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
DEFAULT_BUNDLE = "digseg-tiny-fp16"


def guarded(command: typer.Typer, name: str) -> None:
    """Run a command line; every expected error is one line on stderr with exit code 2 (usage, input) or 1."""
    code = 0
    try:
        code = command(standalone_mode=False) or 0
    except DigsegError as error:
        code = error.exit_code
        _complain(name, str(error))
    except COMMAND_LINE_ERROR as error:
        code = 2
        _complain(name, error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        code = 130
        _complain(name, "interrupted; nothing half-written is left behind")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _complain(name: str, message: str) -> None:
    print(f"{name}: error: {' '.join(message.split())}", file=sys.stderr)


@app.command()
def segment(
    photos: Annotated[list[str], typer.Argument(help="pictures, folders or patterns such as 'photos/*.jpg'")],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="what to find; repeat for several")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for masks and overlays")] = Path("out"),
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", "-b", help=f"exported bundle [default: $DIGSEG_BUNDLE, else ./{DEFAULT_BUNDLE}]"),
    ] = None,
    backend: Annotated[str, typer.Option(help="auto or onnxruntime")] = "auto",
    imgsz: Annotated[int | None, typer.Option(help="working size in pixels of the longer side")] = None,
) -> int:
    """Segment pictures by text: overlay, one mask per prompt, label map and JSON for each."""
    from digseg_engine.runtime.engine import Engine
    from digseg_engine.text import check_prompts

    prompts = check_prompts(prompt or [])
    paths = find_pictures(photos)
    _check_output(output)
    engine = Engine.load(bundle or os.environ.get("DIGSEG_BUNDLE", DEFAULT_BUNDLE), backend)
    console, failed = Console(), 0
    for path, stem in zip(paths, _stems(paths)):
        try:
            result = engine.segment(path, prompts, size=imgsz)
        except InputError as error:
            failed += 1
            _complain("digseg", str(error))
            continue
        written = result.save(output, stem)
        found = (
            ", ".join(f"{p} {100 * a:.1f} %" for p, a in zip(result.prompts, result.areas) if a > 0) or "nothing found"
        )
        console.print(
            f"{path}: {found}  ->  {written[0]}  ({sum(result.timings.values()):.2f} s)",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if failed and len(paths) > 1:
        _complain("digseg", f"{failed} of {len(paths)} pictures could not be used; the others are in {output}")
    return 2 if failed else 0


def find_pictures(arguments: list[str]) -> list[Path]:
    """Files named, found in folders (not deeper) or matched by patterns, each once, in order.

    Raises InputError when a folder or pattern yields nothing; a named file is taken as it is and judged when read.
    """
    from digseg_engine.images import SUFFIXES

    found: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise InputError(f"folder {path} holds no picture; expected files ending in {', '.join(SUFFIXES)}")
        elif glob.has_magic(argument) and not path.exists():
            inside = sorted(Path(name) for name in glob.glob(argument, recursive=True) if Path(name).is_file())
            if not inside:
                raise InputError(
                    f"pattern {argument} matches no file; check it, or quote it for this program to expand"
                )
        else:
            inside = [path]
        found.update(dict.fromkeys(inside))
    return list(found)


def _stems(paths: list[Path]) -> list[str]:
    """Output names: the file's stem, or its whole name with the folder where stems clash."""
    plain = [path.stem for path in paths]
    names: list[str] = []
    for path, stem in zip(paths, plain):
        name = stem if plain.count(stem) == 1 else f"{path.parent.name}-{path.name}".strip("-.")
        while name in names:
            name += "_"
        names.append(name)
    return names


def _check_output(folder: Path) -> None:
    """Raises UsageError when `folder` is a file or cannot be written, before any work is done."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output {folder} is a file; expected a folder; choose another with -o")
    parent = folder.absolute()
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK) or not parent.is_dir():
        raise UsageError(f"cannot write to {parent}; choose another output folder with -o")


@app.command()
def doctor(
    bundle: Annotated[Path | None, typer.Option("--bundle", "-b", help="also check a bundle and run it")] = None,
) -> int:
    """Show what is usable on this machine, how to install the rest, and whether a bundle is sound."""
    from digseg_engine.runtime.doctor import check_bundle, inspect_machine

    console = Console()
    table = Table(title="usable on this machine", title_justify="left")
    for column in ("part", "usable", "what was found", "to get it"):
        table.add_column(column, overflow="fold")
    for row in inspect_machine():
        found = row.detail if row.usable else row.reason
        table.add_row(*(Text(cell) for cell in (row.name, "yes" if row.usable else "no", found, row.install)))
    console.print(table)
    if bundle is not None:
        for line in check_bundle(bundle):
            console.print(line, highlight=False, markup=False)
    return 0


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

    from digseg_engine.training.scenes import DOMAINS, scene

    _check_output(output)
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


def main() -> None:
    """Entry point of `digseg`."""
    guarded(app, "digseg")
