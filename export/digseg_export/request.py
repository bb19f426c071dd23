"""What the command line asked for, checked before anything is loaded: arguments that do not apply are refused."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from digseg_engine.bundle import SIGNATURE
from digseg_engine.contract import MASK_DECODER, PRESENCE, graphs_of
from digseg_engine.errors import UsageError
from digseg_engine.precisions import USUAL, Limits, spec_of, those
from digseg_engine.runtime.profile import Profile, make_profile, parse_shapes
from digseg_engine.signatures import signing_with
from digseg_engine.vocabulary import Vocabulary, read_vocabulary
from digseg_export.sbom import SBOM
from digseg_export.targets import MemoryBudget, build_script, find_target, memory_budget

WEB = "web"  # the target that is no device: a page that runs the bundle in the visitor's browser
FORMATS = ("onnx", "tensorrt", "tensorrt-rtx", "all")
LAYOUTS = ("bundle", "diffusers")


@dataclass(frozen=True)
class Request:
    """The options of `digseg-export` as typed; None means not given."""

    precision: str = USUAL.name
    format: str = "onnx"
    target: str | None = None
    imgsz: str | None = None
    batch: int | None = None
    prompts: int | None = None
    min_shapes: str | None = None
    opt_shapes: str | None = None
    max_shapes: str | None = None
    calibration: Path | None = None
    verify_data: Path | None = None
    auto_islands: bool = False
    islands: str = "measured"
    atol: float | None = None
    rtol: float | None = None
    min_iou: float | None = None
    workspace: int | None = None
    timing_cache: Path | None = None
    builder_level: int | None = None
    layout: str = "bundle"
    bundle: Path | None = None
    compute_capability: str | None = None
    engines: Path | None = None
    sign: Path | None = None
    vocabulary: Path | None = None
    labels_only: bool = False
    site: Path | None = None
    web_runtime: Path | None = None
    triton_repository: Path | None = None
    triton_backend: str | None = None
    triton_device: str | None = None
    triton_instances: int | None = None

    @property
    def device(self) -> str | None:
        """The target whose build script is added; None for none, and for a page."""
        return None if self.target == WEB else self.target

    def check(self) -> None:
        """Raises UsageError for the first argument that is unknown or does not apply, with the reason."""
        if self.bundle is None:  # a ready bundle needs nothing of what exports one
            spec_of(self.precision)
        if self.format not in FORMATS:
            raise UsageError(f"unknown format {self.format!r}; expected one of {', '.join(FORMATS)}")
        if self.layout not in LAYOUTS:
            raise UsageError(f"unknown layout {self.layout!r}; expected one of {', '.join(LAYOUTS)}")
        if self.device is not None:
            find_target(self.device, self.precision)
        self._check_shapes()
        for given, option, applies, reason in self._conditions():
            if given and not applies:
                raise UsageError(f"{option} does not apply: {reason}")
        if self.islands not in ("measured", "kinds"):
            raise UsageError(f"unknown --islands {self.islands!r}; expected measured or kinds")
        for value, option in ((self.atol, "--atol"), (self.rtol, "--rtol")):
            if value is not None and value < 0:
                raise UsageError(f"{option} is {value}; expected 0 or more")
        if self.min_iou is not None and not 0 <= self.min_iou <= 1:
            raise UsageError(f"--min-iou is {self.min_iou}; expected 0 to 1")
        if self.workspace is not None and self.workspace < 1:
            raise UsageError(f"--workspace is {self.workspace}; expected 1 or more MiB")
        if self.builder_level is not None and not 0 <= self.builder_level <= 5:
            raise UsageError(f"--builder-optimization-level is {self.builder_level}; expected 0 to 5")
        if self.sign is not None:
            signing_with(self.sign)

    def _conditions(self) -> list[tuple[Any, str, bool, str]]:
        p, spec = self.precision, spec_of(self.precision)
        builds, page = self.format != "onnx" or self.device is not None, self.target == WEB
        repository = self.triton_repository
        rtx, level, engine = (
            self.format == "tensorrt-rtx",
            builds,
            "it is for building an engine; add --format all or --target",
        )
        timed, why_not = self.format in ("tensorrt", "all"), "no engine is built; add --format all"
        if rtx:
            level, why_not = False, "TensorRT-RTX times no kernels when it builds"
        data = self.calibration is not None
        bundle, free = (
            self.layout == "bundle",
            "the diffusers layout holds the few-step reference with free shapes, for ",
        )
        return [
            (self.sizes(), "a shape option", bundle, f"{free}ONNX Runtime"),
            (builds or page, "--format or --target", bundle, f"{free}ONNX Runtime"),
            (repository is not None, "--triton-repository", bundle, f"{free}ONNX Runtime"),
            (repository is not None, "--triton-repository", self.bundle is None or self.format == "onnx",
             "the engines of a ready bundle are built by themselves; leave out --format"),
            (self.site is not None, "--site", page, "it is the folder of a page; add --target web"),
            (self.web_runtime is not None, "--web-runtime", page, "it is what a page runs on; add --target web"),
            *((value is not None, option, repository is not None, "it is of a repository for Triton Inference Server; add "
               "--triton-repository FOLDER")
              for value, option in ((self.triton_backend, "--triton-backend"), (self.triton_device, "--triton-device"),
                                    (self.triton_instances, "--triton-instances"))),
            (data or self.auto_islands or self.islands != "measured", "a calibration or island option", bundle,
             "islands of the diffusers layout are decided by operator kind"),
            (self.vocabulary is not None, "--vocabulary", bundle, "the diffusers layout holds the reference, which asks prompts"),
            (self.labels_only, "--labels-only", self.vocabulary is not None, "it says what a folded bundle answers; add "
             "--vocabulary FILE"),
            (self.vocabulary is not None and any(axis in ends for ends in self.sizes() or () for axis in "KL"),
             "--prompts, or a shape of prompts or tokens,", False, "the vocabulary says how many names there are and how long"),
            (self.verify_data is not None, "--verify-data", bundle, "the diffusers layout is verified on painted scenes"),
            (data, "--calibration", not spec.unmeasured, f"{p} measures nothing; use {those(lambda s: not s.unmeasured)}"),
            (self.auto_islands, "--auto-islands", spec.reduced, f"{p} has no float32 islands; use {those(lambda s: s.reduced)}"),
            (self.islands != "measured", "--islands", spec.reduced and not spec.unmeasured,
             f"ranges are measured for {those(lambda s: s.reduced and not s.unmeasured)} only, not for {p}"),
            (self.workspace is not None, "--workspace", builds, engine),
            (self.timing_cache is not None, "--timing-cache", timed, why_not),
            (self.builder_level is not None, "--builder-optimization-level", level, why_not if rtx else engine),
            (self.compute_capability is not None, "--compute-capability", rtx,
             "it names the GPUs of a TensorRT-RTX plan; add --format tensorrt-rtx"),
            (self.engines is not None, "--engines", rtx, "it is the folder of TensorRT-RTX plans; add --format tensorrt-rtx"),
            (self.bundle is not None and self.device is not None, "--target", False, "a ready bundle has no script added; add "
             "--target web, or export it again"),
            (self.bundle is not None, "--bundle",
             page or repository is not None or self.format != "onnx" or self.sign is not None,
             "a ready bundle is signed, its engines are built or its page or repository is written; add --sign KEY, --format "
             "tensorrt-rtx or tensorrt, --target web, or --triton-repository FOLDER"),
            (self.sign is not None, "--sign", bundle, "a bundle is what is signed, and the diffusers layout is none"),
            (self.target is not None, "--target", self.format == "onnx", "the script builds on the device; --format builds here"),
        ]  # fmt: skip

    def _check_shapes(self) -> None:
        short = [o for v, o in ((self.imgsz, "--imgsz"), (self.batch, "--batch"), (self.prompts, "--prompts"))
                 if v is not None]  # fmt: skip
        if short and any(text is not None for text in (self.min_shapes, self.opt_shapes, self.max_shapes)):
            raise UsageError(f"{', '.join(short)} and --min/opt/maxShapes both set shapes; give one kind")
        self.sizes()

    def sizes(self) -> tuple[dict[str, int], dict[str, int], dict[str, int]] | None:
        """(min, opt, max) sizes by axis, or None when no shape option was given."""
        spelled = [(self.min_shapes, "--minShapes"), (self.opt_shapes, "--optShapes"), (self.max_shapes, "--maxShapes")]
        if any(text is not None for text, _ in spelled):
            low, usual, high = ({} if text is None else parse_shapes(text, option) for text, option in spelled)
            return low, usual, high
        fixed: dict[str, int] = {}
        if self.imgsz is not None:
            sides = self.imgsz.lower().split("x")
            if len(sides) > 2 or not all(side.isdigit() for side in sides):
                raise UsageError(f"--imgsz is {self.imgsz!r}; expected pixels such as 512, or HEIGHTxWIDTH")
            fixed = {"H": int(sides[0]), "W": int(sides[-1])}
        for axis, value in (("B", self.batch), ("K", self.prompts)):
            if value is not None:
                if value < 1:
                    raise UsageError(f"{'--batch' if axis == 'B' else '--prompts'} is {value}; expected 1 or more")
                fixed[axis] = value
        return (fixed, fixed, fixed) if fixed else None

    def profile(self, size: int, stride: int) -> Profile | None:
        """The shape profile for a model of this picture size and stride; None leaves every axis dynamic."""
        sizes = self.sizes()
        return make_profile(*sizes, size, stride) if sizes else None

    def names(self) -> Vocabulary | None:
        """The vocabulary of a folded bundle. Raises InputError for a file that cannot be used."""
        return None if self.vocabulary is None else read_vocabulary(self.vocabulary, self.labels_only)

    def limits(self) -> Limits:
        """The precision's limits with --atol, --rtol and --min-iou applied."""
        found = spec_of(self.precision).limits
        if self.rtol is not None:
            found = replace(found, relative=self.rtol)
        if self.min_iou is not None:
            found = replace(found, iou=self.min_iou)
        return replace(found, absolute=self.atol)

    def build_options(self) -> Any:
        """How engines are built: what was not given is the builder's default; 0 is a level like any other."""
        from digseg_export.plan_builder import BuildOptions

        given: dict[str, Any] = {
            "workspace_mib": self.workspace,
            "level": self.builder_level,
            "timing_cache": self.timing_cache,
        }
        return BuildOptions(**{name: value for name, value in given.items() if value is not None})

    def options(self) -> Any:
        """What `export_bundle` needs beside model, precision and limits."""
        from digseg_export.publish import Options

        def shapes(checkpoint: Any) -> Any:
            return self.profile(checkpoint.config.image_size, checkpoint.stride)

        own, apart = ((folder,) if folder is not None else () for folder in (self.calibration, self.verify_data))
        return Options(shapes if self.sizes() else None, own, apart, auto_islands=self.auto_islands,
                       measured_islands=self.islands == "measured", extra=self._script if self.device else None,
                       sign=self.sign, vocabulary=self.names())  # fmt: skip

    def _script(self, checkpoint: Any, profile: Profile | None) -> dict[str, bytes]:
        parts = (checkpoint.student, checkpoint.vae, checkpoint.text_encoder)
        budget = self.memory(sum(p.numel() for m in parts for p in m.parameters()))
        target = find_target(str(self.device), self.precision)
        return {f"build-{target.name}.sh": build_script(target, budget, profile, self.precision).encode()}

    def memory(self, parameters: int) -> MemoryBudget:
        """What a build of so many parameters may use on the target."""
        target = find_target(str(self.device), self.precision)
        return memory_budget(
            target, parameters * spec_of(self.precision).width >> 20, self.workspace, self.builder_level
        )

    def preview(self, output: Path, presence: bool) -> dict[str, Any]:
        """The --dry-run answer: what would be written where, with which limits. presence: the model has that readout."""
        sizes = self.sizes()
        names = self.names()
        specs = tuple(graphs_of(presence, names.folding if names else None).values())
        files = ["manifest.json", "precision.json", "golden.safetensors", SBOM, *([] if names else ["tokenizer.json"])]
        files += [name for graph in specs for name in (graph.file, graph.data_file)]
        spec = spec_of(self.precision)
        with_cpu_graph = specs if spec.reduced else () if spec.quantised else (PRESENCE, MASK_DECODER, specs[-1])
        files += [graph.cpu_file for graph in specs if graph in with_cpu_graph]
        if self.device:
            files.append(f"build-{self.device}.sh")
        if self.sign:
            files.append(SIGNATURE)
        return {"output": os.fspath(output), "precision": self.precision, "format": self.format, "files": files,
                "shapes": "dynamic" if not sizes else {"min": sizes[0], "opt": sizes[1], "max": sizes[2]},
                "limits": vars(self.limits())}  # fmt: skip
