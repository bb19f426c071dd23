"""The few-step reference as four graphs in diffusers' folder layout, each verified against PyTorch float32.

    text_encoder/ unet/ vae_encoder/ vae_decoder/    model.onnx (+ model.data), config.json
    tokenizer/ scheduler/ model_index.json digseg.json verification.json

optimum's ONNX Runtime classes load the folder. The U-Net is the reference with its text pathway: it takes
[image latent | mask latent] and, beside optimum's usual inputs, `token_mask`; it answers v (see `sampler.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from digseg_engine.contract import GraphSpec, TensorSpec
from digseg_engine.errors import VerificationError
from digseg_engine.folders import writing
from digseg_engine.images import fit
from digseg_engine.model.autoencoder import raw_latent
from digseg_engine.model.pretrained import BUNDLED, Checkpoint, load_checkpoint
from digseg_engine.model.sampler import sample
from digseg_engine.precisions import Limits, spec_of
from digseg_engine.text import PromptTokenizer
from digseg_engine.worlds.scenes import scene
from digseg_export import resumed
from digseg_export.comparison import Array, Check, compare, hold_to_limits
from digseg_export.conversion import save
from digseg_export.emulate import emulate
from digseg_export.export_key import checkpoint_hashes, export_key
from digseg_export.few_step_folder import MARK, REPORT, write_configurations
from digseg_export.graph_check import check_graph
from digseg_export.kept_stages import one_export, waits_for
from digseg_export.precision import Policy, last_layer, to_precision
from digseg_export.preflight import check_few_step
from digseg_export.progress import Progress, StepTimer
from digseg_export.ranges import session
from digseg_export.to_onnx import export_graph, strip

STEPS = 4  # of the end-to-end check
PROMPTS = ("red circle", "a blue square", "the green star that is large", "zebra")
ROWS, COLUMNS = "H", "W"


def _tensor(name: str, axes: tuple[str | int, ...], kind: str = "float32") -> TensorSpec:
    return TensorSpec(name, kind, axes, "")


TEXT = GraphSpec("text_encoder/model.onnx", (_tensor("input_ids", ("N", "L"), "int64"),),
                 (_tensor("last_hidden_state", ("N", "L", "D")),))  # fmt: skip
IMAGE = GraphSpec("vae_encoder/model.onnx", (_tensor("sample", ("N", 3, ROWS, COLUMNS)),),
                  (_tensor("latent_sample", ("N", 4, "h", "w")),))  # fmt: skip
DENOISER = GraphSpec(
    "unet/model.onnx",
    (_tensor("sample", ("N", 8, "h", "w")), _tensor("timestep", (), "int64"),
     _tensor("encoder_hidden_states", ("N", "L", "D")), _tensor("token_mask", ("N", "L"), "bool")),
    (_tensor("out_sample", ("N", 4, "h", "w")),),
)  # fmt: skip
MASK = GraphSpec("vae_decoder/model.onnx", (_tensor("latent_sample", ("N", 4, "h", "w")),),
                 (_tensor("sample", ("N", 3, ROWS, COLUMNS)),))  # fmt: skip
REFERENCE_GRAPHS = {"text encoder": TEXT, "image encoder": IMAGE, "denoiser": DENOISER, "mask decoder": MASK}


class Function(nn.Module):
    """A function of tensors over modules, as something that can be traced."""

    def __init__(self, call: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.call, self.parts = call, nn.ModuleList(parts)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.call(*tensors)


def modules(checkpoint: Checkpoint) -> dict[str, Function]:
    """The four graphs as modules. Latents are unscaled at the autoencoder's borders, as diffusers and optimum have them."""
    reference, vae, text = checkpoint.reference, checkpoint.vae, checkpoint.text_encoder

    def denoise(latents: Tensor, timestep: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        for other, axis, same in (
            (states, 0, latents.shape[0]),
            (mask, 0, latents.shape[0]),
            (mask, 1, states.shape[1]),
        ):
            torch._check(other.shape[axis] == same)  # said at once, or the tracer takes them for sizes of their own
        return reference(latents, timestep.expand(latents.shape[0]), states, mask)

    return {
        "text encoder": Function(lambda ids: text(ids).last_hidden_state, text).eval(),
        "image encoder": Function(lambda image: raw_latent(vae, image), vae).eval(),
        "denoiser": Function(denoise, reference).eval(),
        "mask decoder": Function(lambda latent: vae.decode(latent).sample, vae).eval(),
    }


@dataclass(frozen=True)
class ExportedReference:
    """What an export did: where, the checks, sizes in bytes by file, seconds per step."""

    folder: Path
    checks: list[Check]
    limits: Limits
    sizes: dict[str, int]
    seconds: dict[str, float]


def export_few_step(
    model: Path | None, precision: str, output: Path, limits: Limits | None = None,
    progress: Progress = lambda step: None,
) -> ExportedReference:  # fmt: skip
    """Export the reference of a checkpoint directory (None: the bundled one); all or nothing.

    Raises UsageError for a precision that does not apply and VerificationError when a graph differs from PyTorch.
    """
    check_few_step(model, precision, output)
    limits, timer, source = limits or spec_of(precision).limits, StepTimer(progress), model or BUNDLED
    timer.start("load checkpoint")
    with one_export(output, partial(waits_for, output)) as stages_of, writing(output, MARK) as folder:
        stages = stages_of(export_key(checkpoint_hashes(source), {"layout": "diffusers"}, []))
        checkpoint = load_checkpoint(source)
        parts, checks = modules(checkpoint), []
        inputs = graph_inputs(checkpoint, parts)
        graphs = {}
        for part, spec in REFERENCE_GRAPHS.items():
            timer.start(f"trace {part}")
            traced = resumed.graph(stages, spec.file, partial(trace_part, spec, parts[part], inputs[part], checkpoint))
            graphs[part] = write_graph(folder, spec, traced, precision)
        timer.start("verify")
        checks = list(verify_few_step(folder, checkpoint, parts, inputs, graphs, limits))
        timer.start("write configurations")
        for spec in REFERENCE_GRAPHS.values():
            check_graph(folder / spec.file)
        write_configurations(folder, checkpoint, source, checks, limits)
        timer.start("open the written folder and ask it")
        checks.append(reopened(folder, checkpoint, parts, inputs, limits))
        sizes = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    timer.stop()
    return ExportedReference(output, checks, limits, sizes, timer.seconds)


@torch.no_grad()
def graph_inputs(checkpoint: Checkpoint, parts: dict[str, Function]) -> dict[str, tuple[Tensor, ...]]:
    """Real inputs of every graph: a test scene, four prompts, the denoiser in the middle of its way, its clean answer."""
    size = checkpoint.config.image_size
    picture = fit(scene(90_000, "objects", size, "test").image, size, checkpoint.stride).pixels
    ids, mask = (torch.from_numpy(array) for array in checkpoint.tokenizer.encode(PROMPTS))
    image, n = torch.from_numpy(picture), len(PROMPTS)
    states, z = parts["text encoder"](ids), parts["image encoder"](image) * checkpoint.vae.config.scaling_factor
    noise = torch.randn(n, *z.shape[1:], generator=torch.Generator().manual_seed(0))
    clean = checkpoint.reference.sample(z, states, mask, checkpoint.schedule, STEPS, noise)
    middle = torch.tensor(checkpoint.config.train_timesteps // 2)
    latents = torch.cat([z.expand(n, -1, -1, -1), checkpoint.schedule.add_noise(clean, noise, middle.expand(n))], 1)
    return {"text encoder": (ids,), "image encoder": (image,), "denoiser": (latents, middle, states, mask),
            "mask decoder": (clean / checkpoint.vae.config.scaling_factor,)}  # fmt: skip


def trace_part(spec: GraphSpec, part: Function, inputs: tuple[Tensor, ...], checkpoint: Checkpoint) -> onnx.ModelProto:
    """One graph in float32."""
    return strip(export_graph(part, spec, small(inputs), {"tensors": axes(spec, checkpoint)}))


def small(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs for tracing: two samples, so that no axis counts as 1."""
    return tuple(x if x.ndim == 0 else torch.cat([x, x])[:2].contiguous() for x in inputs)


def axes(spec: GraphSpec, checkpoint: Checkpoint) -> tuple[dict[int, Any], ...]:
    """The free axes of every input: samples, tokens, and multiples of what the network halves."""
    dim, fine = torch.export.Dim, 2 ** (len(checkpoint.reference.unet.down_blocks) - 1)
    step = checkpoint.stride if spec is IMAGE else fine if spec is DENOISER else 1
    free = {"N": dim("N", min=1, max=4096), "L": dim("L", min=2, max=77)}
    for name, alias in (("h", "rows"), ("w", "columns"), (ROWS, "rows"), (COLUMNS, "columns")):
        span = dim(alias, min=2, max=512)
        free[name] = span if step == 1 else step * span
    return tuple({i: free[a] for i, a in enumerate(t.axes) if a in free} for t in spec.inputs)


def write_graph(folder: Path, spec: GraphSpec, traced: onnx.ModelProto, precision: str) -> list[tuple[str, Any]]:
    """Save one graph in the precision; returns every way to run it: (name, file or model)."""
    borders = {tensor.name: tensor.dtype for tensor in (*spec.inputs, *spec.outputs)}
    policy = Policy(precision, nodes=last_layer(traced))
    converted, _ = to_precision(traced, policy, borders)
    path = folder / spec.file
    path.parent.mkdir()
    rounded = [(f"{spec.file} rounded", emulate(traced, policy, borders))] if spec_of(precision).reduced else []
    if converted is traced:
        converted = onnx.ModelProto()
        converted.CopyFrom(traced)
    save(converted, path)
    return [*rounded, (spec.file, str(path))]


@torch.no_grad()
def verify_few_step(
    folder: Path, checkpoint: Checkpoint, parts: dict[str, Function], inputs: dict[str, tuple[Tensor, ...]],
    graphs: dict[str, list[tuple[str, Any]]], limits: Limits,
) -> Iterator[Check]:  # fmt: skip
    """Every graph alone on PyTorch's inputs, then the saved graphs end to end over `STEPS` steps."""
    runs = {}
    for part, spec in REFERENCE_GRAPHS.items():
        want = parts[part](*inputs[part]).numpy()
        for name, form in graphs[part]:
            run = runs[part] = runner(spec, session(form))
            check = compare(part, name, want, run(*inputs[part]), masks=False)
            hold_to_limits(check, limits)
            yield check
    ids, mask = inputs["text encoder"][0], inputs["denoiser"][3]
    got = answer(checkpoint, {k: lambda *a, r=r: torch.from_numpy(r(*a)) for k, r in runs.items()}, inputs, ids, mask)
    check = compare("end to end", f"{STEPS} steps", answer(checkpoint, parts, inputs, ids, mask), got)
    hold_to_limits(check, limits)
    yield check


@torch.no_grad()
def reopened(
    folder: Path, checkpoint: Checkpoint, parts: dict[str, Function], inputs: dict[str, tuple[Tensor, ...]], limits: Limits
) -> Check:  # fmt: skip
    """The last step: what is in the folder, read as its user will, answers what PyTorch answers. Raises VerificationError."""
    try:
        ids, mask = map(torch.from_numpy, PromptTokenizer.load(folder / "tokenizer" / "tokenizer.json").encode(PROMPTS))
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
        listed = json.loads((folder / REPORT).read_text(encoding="utf-8"))["files"]
        gone = [name for name in listed if not (folder / name).is_file()]
        runs = {part: runner(spec, session(str(folder / spec.file))) for part, spec in REFERENCE_GRAPHS.items()}
    except Exception as error:  # readers of foreign formats raise whatever a damaged file leads them to
        raise VerificationError(f"the written folder cannot be opened: {error}; nothing was published") from error
    same = torch.equal(ids, inputs["text encoder"][0]) and torch.equal(mask, inputs["denoiser"][3])
    if gone or not same or len(scheduler.alphas_cumprod) != checkpoint.config.train_timesteps:
        what = gone[0] if gone else "the scheduler" if same else "the tokenizer"
        raise VerificationError(f"the written folder is not what was exported: {what} differs or is missing; nothing was "
                                "published")  # fmt: skip
    got = answer(checkpoint, {k: lambda *a, r=r: torch.from_numpy(r(*a)) for k, r in runs.items()}, inputs, ids, mask)
    check = compare("written folder", f"{STEPS} steps", answer(checkpoint, parts, inputs, ids, mask), got)
    hold_to_limits(check, limits)
    return check


def runner(spec: GraphSpec, run: Any) -> Callable[..., Array]:
    """The graph as a function of tensors."""
    return lambda *tensors: run.run(None, {t.name: x.numpy() for t, x in zip(spec.inputs, tensors)})[0]


def answer(checkpoint: Checkpoint, parts: Any, inputs: Any, ids: Tensor, mask: Tensor) -> Array:
    """Logits [1, K, H, W] of the four parts in a row, whatever computes them."""
    scale = checkpoint.vae.config.scaling_factor
    states, z = parts["text encoder"](ids), parts["image encoder"](inputs["image encoder"][0]) * scale
    noise = torch.randn(len(ids), *z.shape[1:], generator=torch.Generator().manual_seed(0))
    m = sample(
        lambda latents, t: parts["denoiser"](latents, t[0], states, mask),
        z,
        checkpoint.schedule,
        STEPS,
        noise,
        len(ids),
    )
    value = parts["mask decoder"](m / scale).mean(1).clamp(-0.999, 0.999)
    return np.asarray((2 * torch.atanh(value))[None])
