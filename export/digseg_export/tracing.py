"""A checkpoint's graphs in float32, and the modules they come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx

from digseg_engine.contract import IMAGE_ENCODER, MASK_DECODER, PRESENCE, TEXT_ENCODER, GraphSpec
from digseg_engine.model.graph_modules import graph_modules
from digseg_engine.model.pretrained import Checkpoint
from digseg_export import resumed
from digseg_export.conversion import Models, Traced
from digseg_export.disk_offload import Offloaded, filled
from digseg_export.kept_stages import Stages
from digseg_export.parallel_trace import parallel_trace
from digseg_export.progress import StepTimer
from digseg_export.to_onnx import example_inputs, export_asked, export_image_encoder, export_text_encoder, strip


def trace(checkpoint: Checkpoint, timer: StepTimer, stages: Stages | None = None) -> Traced:
    """All graphs of a checkpoint in float32, and the folded PyTorch modules they were traced from. stages: where each is found
    or kept."""
    stages = stages or Stages()
    timer.start("fold constants")
    how: dict[str, Any] = {"in_place": True, "filled": filled} if isinstance(checkpoint, Offloaded) else {}
    parts = graph_modules(checkpoint, **how)
    inputs = example_inputs(checkpoint, 2 * checkpoint.stride)
    timer.start("trace graphs")

    def kept(spec: GraphSpec, export: Callable[[], onnx.ModelProto]) -> onnx.ModelProto:
        return resumed.graph(stages, spec.file, lambda: strip(export()))

    def others() -> Models:
        found = {TEXT_ENCODER.file: kept(TEXT_ENCODER, lambda: export_text_encoder(parts, inputs))}
        if parts.presence is not None:
            found[PRESENCE.file] = kept(PRESENCE, lambda: export_asked(parts.presence, PRESENCE, inputs))
        return {
            **found,
            MASK_DECODER.file: kept(MASK_DECODER, lambda: export_asked(parts.mask_decoder, MASK_DECODER, inputs)),
        }

    with parallel_trace(others) as made:
        models = {
            IMAGE_ENCODER.file: kept(IMAGE_ENCODER, lambda: export_image_encoder(parts, inputs, checkpoint.stride))
        }
        models |= made()
    return Traced(parts, models, checkpoint.stride)
