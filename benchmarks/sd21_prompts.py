"""Prompts at Stable Diffusion 2.1 size on a CPU: `python benchmarks/sd21_prompts.py` (PyTorch, 7 GB, minutes).

Times the folded segmenter (autoencoder, trunk, text injection, mask head) for 1 and K prompts about one picture, and K
passes of one prompt each beside it. Weights are random: time does not depend on them. float32; writes JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from digseg_engine.model.autoencoder import build_autoencoder
from digseg_engine.model.config import Preset, preset
from digseg_engine.model.folding import fold_student
from digseg_engine.model.pretrained import new_student
from digseg_engine.model.student import FoldedText, Segmenter
from digseg_engine.runtime.machine import device_key

RESULTS = Path(__file__).resolve().parent / "results"
TOKENS = 8


@torch.no_grad()
def random_segmenter(sizes: Preset) -> Segmenter:
    """The segmenter as it ships, with small random weights."""
    with torch.device("meta"):
        vae = build_autoencoder(sizes.vae)
        student = new_student(UNet2DConditionModel(**sizes.unet), sizes.digseg, vae)
    for module in (vae, student):
        module.to_empty(device="cpu")
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.uniform_(-0.02, 0.02)
    return Segmenter(vae, fold_student(student)).eval().requires_grad_(False)


@torch.no_grad()
def random_text(segmenter: Segmenter, prompts: int) -> FoldedText:
    """Folded text of prompts of 3 to TOKENS tokens."""
    width = segmenter.student.text_centre.shape[0]
    mask = torch.arange(TOKENS)[None] < torch.randint(3, TOKENS + 1, (prompts, 1))
    return segmenter.student.fold_text(torch.randn(prompts, TOKENS, width), mask)


@torch.inference_mode()
def measure(segmenter: Segmenter, size: int, prompts: int, runs: int) -> dict[str, Any]:
    """Median seconds for one prompt and for all (in turns, after one warm-up), and one round of single passes."""
    image, text = torch.rand(1, 3, size, size) * 2 - 1, random_text(segmenter, prompts)

    def seconds(first: int, last: int) -> float:
        began = time.perf_counter()
        segmenter(image, text.keys[first:last], text.values[first:last], text.mask[first:last])
        return time.perf_counter() - began

    taken: dict[int, list[float]] = {1: [], prompts: []}
    for i in range(runs + 1):
        for count, values in taken.items():
            found = seconds(0, count)
            if i:
                values.append(found)
    each = sum(seconds(k, k + 1) for k in range(prompts))
    one, together = (statistics.median(values) for values in taken.values())
    return {"one_prompt_s": one, "together_s": together, "one_pass_per_prompt_s": each,
            "together_over_one": together / one, "one_pass_per_prompt_over_one": each / one}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="sd21", help="sd21 or tiny")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "sd21-prompts.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    segmenter = random_segmenter(preset(options.preset))
    body = {
        "model": options.preset,
        "parameters": sum(p.numel() for p in segmenter.parameters()),
        "size": options.size,
        "prompts": options.prompts,
        "runs": options.runs,
        **measure(segmenter, options.size, options.prompts, options.runs),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "machine": {**device_key(), "threads": torch.get_num_threads()},
        "torch": torch.__version__,
    }
    options.output.write_text(json.dumps(body, indent=2) + "\n")
    print(json.dumps(body, indent=2))


if __name__ == "__main__":
    main()
