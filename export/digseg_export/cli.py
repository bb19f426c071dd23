"""`digseg-export [MODEL] --precision fp16`: a checkpoint becomes a verified bundle."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digseg_engine.commands.boundary import guarded
from digseg_engine.commands.declare import Command, Option
from digseg_engine.commands.main import run_command
from digseg_engine.extras import require
from digseg_engine.named import brought, find_model
from digseg_engine.precisions import USUAL, those
from digseg_export.progress import shown

if TYPE_CHECKING:
    from rich.console import Console

    from digseg_export.preflight import Ready
    from digseg_export.request import Request


def export(
    model: Path | None, output: Path | None, dry_run: bool, quiet: bool, as_json: bool, **options: Any
) -> None:  # fmt: skip
    """Export a trained checkpoint to a verified ONNX bundle; `options` are the fields of `Request`."""
    from digseg_export.request import Request

    request, model = Request(**options), None if model is None else find_model(model, on_hub=False)
    if request.bundle is None:
        require(COMMAND.name, "export")
    request.check()
    if request.layout == "diffusers":
        _few_step(request, model, output, dry_run, quiet, as_json)
        return
    if request.bundle is not None:
        _engines_alone(request, request.bundle, dry_run, quiet, as_json)
        return
    from digseg_export.beside import Beside
    from digseg_export.engines import Builder, show, tried_with
    from digseg_export.preflight import check_bundle, default_output

    folder = output or default_output(model, request.precision)
    ready = check_bundle(request, model, folder)
    builder = Builder(request, folder) if request.format != "onnx" else None
    beside = Beside.of(request, folder)
    if dry_run:
        more = {**(builder.preview() if builder else {}), **beside.preview()}
        _dry_run(request, model, folder, ready, more, as_json)
        return
    from digseg_export.publish import export_bundle

    with shown(quiet) as progress:
        done = export_bundle(model, request.precision, folder, request.limits(), progress, request.options())
        engines = builder.run(progress) if builder else None
        written = beside.run(progress)
    if as_json:
        body = {**asdict(done), "folder": str(done.folder), "engines": [], **(engines.to_json() if engines else {}),
                **written.to_json()}  # fmt: skip
        print(json.dumps(body, indent=2, default=str))
        return
    if not quiet:
        _print(_console(), done)
    if engines is not None:
        show(_console(), engines, done.folder, quiet)
    print(f"{request.precision} bundle written to {done.folder} in {sum(done.seconds.values()):.1f} s; try it:")
    print(tried_with(done.folder, request.vocabulary is not None))
    written.say()


def _engines_alone(request: Request, bundle: Path, dry_run: bool, quiet: bool, as_json: bool) -> None:
    """Sign a ready bundle, or build its engines, its page or its repository, or several of them."""
    from digseg_engine.bundle import SIGNATURE, open_bundle
    from digseg_engine.console import telling
    from digseg_engine.errors import UsageError
    from digseg_export.beside import Beside
    from digseg_export.engines import Builder, show

    with telling(quiet):
        folder = brought(bundle) or bundle
    if folder != bundle and request.sign is not None:
        raise UsageError(f"{bundle} is a copy of what a hub has, and a signature in it would reach nobody; sign the folder that "
                         "you push")  # fmt: skip
    if folder != bundle and request.format == "tensorrt-rtx" and request.engines is None:
        raise UsageError(f"say where the plans of {bundle} shall be kept, which is a hub's: add --engines FOLDER")
    bundle, beside = folder, Beside.of(request, folder)
    opened = open_bundle(bundle if beside.builder is None else beside.builder.bundle)
    if request.sign is not None and not dry_run:
        from digseg_engine.signatures import sign

        sign(opened, request.sign, bundle.resolve().name)
    if beside.builder is not None:
        facts: dict[str, Any] = {"bundle": str(opened.folder)}
        if dry_run:
            _say_preview({**facts, **beside.preview()}, as_json)
            return
        with shown(quiet) as progress:
            written = beside.run(progress)
        if as_json:
            print(json.dumps({**facts, **written.to_json()}, indent=2))
        else:
            written.say()
        return
    if request.format == "onnx":
        facts = {"bundle": str(bundle), "signature": str(bundle / SIGNATURE)}
        if dry_run:
            _say_preview(facts, as_json)
        else:
            print(
                json.dumps(facts, indent=2)
                if as_json
                else f"signed {bundle}; check it: digseg verify {bundle} --key PUBLIC-KEY"
            )
        return
    builder = Builder(request, bundle)
    if dry_run:
        _say_preview({"bundle": str(bundle), **builder.preview()}, as_json)
        return
    with shown(quiet) as progress:
        engines = builder.run(progress)
    if as_json:
        print(json.dumps(engines.to_json(), indent=2))
        return
    show(_console(), engines, bundle, quiet)


def _few_step(
    request: Request, model: Path | None, output: Path | None, dry_run: bool, quiet: bool, as_json: bool
) -> None:
    """Export the reference in diffusers' folder layout."""
    from digseg_export.few_step_folder import MARKER
    from digseg_export.preflight import check_few_step, default_output

    folder = output or default_output(model, f"diffusers-{request.precision}")
    check_few_step(model, request.precision, folder)
    from digseg_export.few_step import REFERENCE_GRAPHS, export_few_step

    if dry_run:
        files = [*(spec.file for spec in REFERENCE_GRAPHS.values()), MARKER]
        preview = {"output": str(folder), "precision": request.precision, "layout": "diffusers",
                   "files": files, "limits": vars(request.limits())}  # fmt: skip
        _say_preview(preview, as_json)
        return
    with shown(quiet) as progress:
        done = export_few_step(model, request.precision, folder, request.limits(), progress)
    if as_json:
        print(json.dumps({**asdict(done), "folder": str(done.folder)}, indent=2))
        return
    if not quiet:
        _print_checks(_console(), done)
    print(f"{request.precision} reference written to {done.folder} in {sum(done.seconds.values()):.1f} s")


def _console() -> Console:
    """Where tables go; in a pipe or a narrow terminal they are as wide as they must be, never cut."""
    from rich.console import Console

    console = Console()
    console.width = max(console.width, 132)
    return console


def _dry_run(
    request: Request,
    model: Path | None,
    output: Path,
    ready: Ready,
    more: dict[str, Any],
    as_json: bool,
) -> None:
    """Say what the export would do. more: what else would be written."""
    from digseg_engine.model.folder import BUNDLED, weights_of

    preview = {
        "model": ready.name,
        **request.preview(output, ready.presence),
        "replaces": ready.replaces,
        **more,
    }
    if ready.profile is not None:
        preview["shapes"] = {end: {axis: getattr(span, end) for axis, span in ready.profile.ranges.items()}
                          for end in ("min", "opt", "max")}  # fmt: skip
    if request.device is not None:
        stored = sum(path.stat().st_size for path in weights_of(model or BUNDLED))
        preview["memory plan"] = vars(request.memory(stored // 2))  # checkpoints hold two bytes a number
    _say_preview(preview, as_json)


def _say_preview(preview: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(preview, indent=2))
        return
    for name, value in preview.items():
        print(f"{name}: {_words(value)}")
    print("nothing was written (--dry-run)")


def _words(value: Any) -> str:
    """A value of the preview as people read it."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        pairs = [(name, _words(inner)) for name, inner in value.items() if inner is not None]
        nested = any(isinstance(inner, dict) for inner in value.values())
        return ("; " if nested else ", ").join(f"{name} {inner}" for name, inner in pairs)
    return str(value)


def _print_checks(console: Console, done: Any) -> None:
    """The verification table, its limits, and the size of every file."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"verified against PyTorch float32: {done.folder}"), title_justify="left")
    for column in ("stage", "graph", "max error", "mean error", "relative", "mask IoU", "labels", "pairs"):
        table.add_column(column, justify="left" if column in ("stage", "graph") else "right")
    for check in done.checks:
        iou, same = ("" if v is None else f"{v:.5f}" for v in (check.iou, check.label_agreement))
        numbers = (f"{v:.2e}" for v in (check.max_error, check.mean_error, check.relative))
        table.add_row(check.stage, check.graph, *numbers, iou, same, str(check.pairs or ""))
    console.print(table)
    console.print(f"limits: relative <= {done.limits.relative:g}, mean mask IoU >= {done.limits.iou:g}; all passed"
                  " (PyTorch autocast is a yardstick, held to no limit)")  # fmt: skip
    for name, size in done.sizes.items():
        console.print(f"  {size / 1e6:8.2f} MB  {name}", highlight=False)


def _print(console: Console, done: Any) -> None:
    from rich.text import Text

    _print_checks(console, done)
    for file, words in done.policy["graphs"].items():
        console.print(Text(f"  {file}: {_policy_line(words)}"))
    total = sum(done.seconds.values())
    steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in done.seconds.items())
    console.print(f"  {verify_words(done)}", highlight=False, markup=False)
    if done.presence is not None:
        from digseg_export.presence_threshold import in_words

        console.print(f"  presence: {in_words(done.presence)}", highlight=False, markup=False)
    judged = "share of the label map" if "labels.onnx" in done.sizes else "mask IoU"
    for answer in done.answers:
        words = answer.reason or f"error {answer.error:.1e}, {judged} {answer.iou:.4f}"
        console.print(f"  written bundle, {answer.backend} at {answer.at}: {words}", highlight=False, markup=False)
    console.print(f"  {total:.1f} s: {steps}", highlight=False, markup=False)


def verify_words(done: Any) -> str:
    from digseg_export.verify import evidence

    return evidence(done.checks)


def _policy_line(words: dict[str, Any]) -> str:
    if "reason" in words:
        return f"in float32: {words['reason']}"
    if "left_out" in words:
        return f"{words['quantised']} layers in {words['name']}, {len(words['left_out'])} left in float32"
    count = sum(kind["count"] for kind in words["islands"].values())
    return f"{count} float32 islands, {len(words['nodes'])} of them single nodes"


EXPORTS = (
    "model", "--precision", "--output", "--imgsz", "--batch", "--prompts", "--minShapes", "--optShapes",
    "--maxShapes", "--calibration", "--verify-data", "--auto-islands", "--islands", "--atol", "--rtol", "--min-iou", "--layout",
    "--vocabulary", "--labels-only",
)  # fmt: skip

COMMAND = Command(
    name="digseg-export",
    summary="Export a trained checkpoint to a verified ONNX bundle.",
    run=export,
    options=(
        Option("model", "checkpoint directory", kind=Path, shown="digseg-tiny, the bundled one"),
        Option("--precision", those(lambda spec: True), default=USUAL.name, metavar="NAME"),
        Option("--output -o", "bundle to write", kind=Path, shown="MODEL-PRECISION, RUN-PRECISION of runs/RUN/checkpoint",
               metavar="FOLDER"),
        Option("--format", "onnx; all: also build TensorRT engines here; tensorrt: the same; tensorrt-rtx: also build "
               "TensorRT-RTX plans, on any machine", default="onnx", metavar="NAME"),
        Option("--bundle", "sign this ready bundle, build its engines, page or repository; export nothing", kind=Path,
               metavar="FOLDER", not_with=EXPORTS),
        Option("--compute-capability", "GPUs that TensorRT-RTX plans are for", metavar="NUMBERS",
               shown="those of 75,80,86,89,120 that take the precision"),
        Option("--engines", "folder of TensorRT-RTX plans to write", kind=Path, metavar="FOLDER", shown="BUNDLE-tensorrt-rtx"),
        Option("--target", "device whose on-device build script to add, as jetson-orin; web: also write a page that runs the "
               "bundle in the browser", metavar="DEVICE"),
        Option("--site", "folder of the page to write", kind=Path, metavar="FOLDER", shown="BUNDLE-web"),
        Option("--web-runtime", "folder of onnxruntime-web, as npm installs it", kind=Path, metavar="FOLDER",
               shown="fetched by npm"),
        Option("--triton-repository", "also write a model repository for Triton Inference Server", kind=Path, metavar="FOLDER"),
        Option("--triton-backend", "what runs its graphs: python, the engine; onnxruntime or tensorrt, the server's own",
               metavar="NAME", shown="python"),
        Option("--triton-device", "cpu or gpu", metavar="NAME", shown="cpu"),
        Option("--triton-instances", "of every model", kind=int, shown="1"),
        Option("--imgsz --size", "fixed picture size: 512, or HEIGHTxWIDTH", metavar="SIZE"),
        Option("--batch", "fixed number of pictures", kind=int),
        Option("--prompts", "fixed number of prompts", kind=int),
        Option("--minShapes", "smallest shapes of a request, as image_encoder.image:1x3x256x256", metavar="SHAPES",
               into="min_shapes"),
        Option("--optShapes", "shapes to be fastest at, in trtexec's spelling, comma separated", metavar="SHAPES",
               into="opt_shapes"),
        Option("--maxShapes", "largest shapes a request may have", metavar="SHAPES", into="max_shapes"),
        Option("--calibration", "folder of labelled pictures, or of pictures and prompts.txt", kind=Path, metavar="FOLDER",
               shown="the training data where they are at hand, else painted scenes"),
        Option("--verify-data", "verify on these pictures: labelled, or with prompts.txt", kind=Path, metavar="FOLDER",
               shown="the same"),
        Option("--vocabulary", "fold these names into the graphs: one prompt a line, or name = prompt", kind=Path,
               metavar="FILE"),
        Option("--labels-only", "of a vocabulary: answer the label map alone, neither logits nor scores", kind=bool,
               default=False),
        Option("--auto-islands", "keep in float32 what the bisect names", kind=bool, default=False),
        Option("--islands", "measured: by kind and by measured range; kinds: by kind alone", default="measured",
               metavar="RULE"),
        Option("--atol", "largest absolute error allowed", kind=float),
        Option("--rtol", "largest relative error (L2) allowed", kind=float),
        Option("--min-iou", "smallest mean mask IoU with PyTorch", kind=float),
        Option("--workspace", "MiB the engine build may use for tactics", kind=int),
        Option("--timing-cache", "TensorRT timing cache to use and keep", kind=Path, metavar="FILE"),
        Option("--builder-optimization-level", "0 to 5", kind=int, into="builder_level"),
        Option("--layout", "bundle; diffusers: the few-step reference, for optimum", default="bundle", metavar="NAME"),
        Option("--dry-run", "check the arguments, say what would be done", kind=bool, default=False),
        Option("--sign", "sign the bundle with this private key (PEM, ECDSA); its password in $DIGSEG_SIGN_PASSWORD", kind=Path,
               metavar="KEY"),
        Option("--quiet", "no progress and no tables", kind=bool, default=False),
        Option("--json", "print the result as JSON", kind=bool, default=False, into="as_json"),
    ),
    examples=(
        "digseg-export --precision fp16",
        "digseg-export runs/mine/checkpoint                      # to mine-fp16/",
        "digseg-export runs/mine/checkpoint --precision int8 --dry-run",
        "digseg-export runs/mine/checkpoint --vocabulary names.txt --labels-only",
        "digseg-export --bundle mine-fp16 --format tensorrt-rtx  # to mine-fp16-tensorrt-rtx/",
        "digseg-export --bundle mine-fp16 --sign key.pem         # adds mine-fp16/model.sig",
        "digseg-export --bundle mine-fp16 --target web           # to mine-fp16-web/, for any static server",
        "digseg-export --bundle mine-fp16 --triton-repository models",
    ),
)  # fmt: skip


def _main(words: list[str]) -> int:
    if words[:1] == ["--version"]:
        from digseg_engine import __version__

        print(f"digseg-export {__version__}")
        return 0
    return run_command(COMMAND, COMMAND.name, words)


def main() -> None:
    """Entry point of `digseg-export`."""
    guarded(lambda: _main(sys.argv[1:]), COMMAND.name)
