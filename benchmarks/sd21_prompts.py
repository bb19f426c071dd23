"""Prompts at Stable Diffusion 2.1 size on a CPU: `python benchmarks/sd21_prompts.py` (PyTorch, 7 GB, minutes).

Times a first question (picture encoded by autoencoder and trunk; then text injection and mask head) and a later one, for 1 and
K prompts about one picture, and K passes of one prompt each beside them (`--no-single-passes` leaves those out, most of the
time). Weights are random: time does not depend on them. float32; writes JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from digseg_engine.model.autoencoder import build_autoencoder
from digseg_engine.model.config import Preset, preset
from digseg_engine.model.folding import fold_student
from digseg_engine.model.graph_modules import ImageGraph, MaskGraph
from digseg_engine.model.pretrained import new_student
from digseg_engine.model.student import FoldedText, Student
from digseg_engine.runtime.machine import device_key

RESULTS = Path(__file__).resolve().parent / "results"
TOKENS = 8


class Graphs(nn.Module):
    """The two graphs that a question runs."""

    def __init__(self, image: ImageGraph, masks: MaskGraph) -> None:
        super().__init__()
        self.image, self.masks = image, masks


@torch.no_grad()
def random_graphs(sizes: Preset) -> Graphs:
    """The graphs as they ship, with small random weights."""
    with torch.device("meta"):
        vae = build_autoencoder(sizes.vae)
        student = new_student(UNet2DConditionModel(**sizes.unet), sizes.digseg, vae)
    for module in (vae, student):
        module.to_empty(device="cpu")
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.uniform_(-0.02, 0.02)
    folded = fold_student(student)
    return Graphs(ImageGraph(vae, folded), MaskGraph(folded)).eval().requires_grad_(False)


@torch.no_grad()
def random_text(student: Student, prompts: int) -> FoldedText:
    """Folded text of prompts of 3 to TOKENS tokens."""
    mask = torch.arange(TOKENS)[None] < torch.randint(3, TOKENS + 1, (prompts, 1))
    return student.fold_text(torch.randn(prompts, TOKENS, student.text_centre.shape[0]), mask)


@torch.inference_mode()
def measure(graphs: Graphs, size: int, prompts: int, runs: int, single_passes: bool) -> dict[str, Any]:
    """Median seconds of a first question (the picture encoded) and of a later one, for one prompt and for all (in turns, after
    one warm-up), and where wanted one round of first questions with one prompt each."""
    image, text = torch.rand(1, 3, size, size) * 2 - 1, random_text(graphs.masks.student, prompts)
    encoding = graphs.image(image)

    def seconds(known: Any, first: int, last: int) -> float:
        began = time.perf_counter()
        asked = graphs.image(image) if known is None else known
        graphs.masks(asked, text.keys[first:last], text.values[first:last], text.mask[first:last])
        return time.perf_counter() - began

    cases = {"one_prompt_s": (None, 1), "together_s": (None, prompts), "later_one_prompt_s": (encoding, 1),
             "later_together_s": (encoding, prompts)}  # fmt: skip
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for i in range(runs + 1):
        for name, (known, count) in cases.items():
            took = seconds(known, 0, count)
            if i:
                taken[name].append(took)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    one = medians["one_prompt_s"]
    found: dict[str, Any] = {**medians, "together_over_one": medians["together_s"] / one,
                             "later_together_over_first": medians["later_together_s"] / medians["together_s"]}  # fmt: skip
    if single_passes:
        each = sum(seconds(None, k, k + 1) for k in range(prompts))
        found |= {"one_pass_per_prompt_s": each, "one_pass_per_prompt_over_one": each / one}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="sd21", help="sd21 or tiny")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-single-passes", action="store_true", help="leave out K passes of one prompt each")
    parser.add_argument("--output", type=Path, default=RESULTS / "sd21-prompts.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    graphs = random_graphs(preset(options.preset))
    body = {
        "model": options.preset,
        "parameters": sum(p.numel() for p in graphs.parameters()),
        "size": options.size,
        "prompts": options.prompts,
        "runs": options.runs,
        **measure(graphs, options.size, options.prompts, options.runs, not options.no_single_passes),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "date": date.today().isoformat(),
        "machine": {**device_key(), "threads": torch.get_num_threads()},
        "torch": torch.__version__,
    }
    options.output.write_text(json.dumps(body, indent=2) + "\n")
    print(json.dumps(body, indent=2))


if __name__ == "__main__":
    main()
