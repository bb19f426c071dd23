"""Prompts at Stable Diffusion 2.1 size on a CPU: `python benchmarks/sd21_prompts.py` (PyTorch, 7 GB, minutes).

Times the folded student: encoding one picture (autoencoder, trunk), and asking 1 and K prompts about it (text injection, mask
head); K passes of one prompt each, encoding included, beside it. Weights are random: time does not depend on them.
float32; writes JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from digseg_engine.model.autoencoder import build_autoencoder
from digseg_engine.model.config import Preset, preset
from digseg_engine.model.folding import fold_student
from digseg_engine.model.graph_modules import ImageGraph, MaskGraph
from digseg_engine.model.pretrained import new_student
from digseg_engine.model.student import FoldedText
from digseg_engine.runtime.machine import device_key

RESULTS = Path(__file__).resolve().parent / "results"
TOKENS = 8


@torch.no_grad()
def random_graphs(sizes: Preset) -> tuple[ImageGraph, MaskGraph]:
    """Image encoder and mask decoder as they ship, with small random weights."""
    with torch.device("meta"):
        vae = build_autoencoder(sizes.vae)
        student = new_student(UNet2DConditionModel(**sizes.unet), sizes.digseg, vae)
    for module in (vae, student):
        module.to_empty(device="cpu")
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.uniform_(-0.02, 0.02)
    folded = fold_student(student)
    return ImageGraph(vae, folded).eval().requires_grad_(False), MaskGraph(folded).eval().requires_grad_(False)


@torch.no_grad()
def random_text(decoder: MaskGraph, prompts: int) -> FoldedText:
    """Folded text of prompts of 3 to TOKENS tokens."""
    width = decoder.student.text_centre.shape[0]
    mask = torch.arange(TOKENS)[None] < torch.randint(3, TOKENS + 1, (prompts, 1))
    return decoder.student.fold_text(torch.randn(prompts, TOKENS, width), mask)


@torch.inference_mode()
def measure(encoder: ImageGraph, decoder: MaskGraph, size: int, prompts: int, runs: int) -> dict[str, Any]:
    """Median seconds of encoding, of asking one prompt and all (in turns, after one warm-up), and one round of single passes."""
    image, text = torch.rand(1, 3, size, size) * 2 - 1, random_text(decoder, prompts)
    encoding = encoder(image)

    def seconds(run: Callable[[], object]) -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    def ask(first: int, last: int, encode: bool = False) -> object:
        made = encoder(image) if encode else encoding
        return decoder(made, text.keys[first:last], text.values[first:last], text.mask[first:last])

    steps = {"encode_s": lambda: encoder(image), "ask_one_s": lambda: ask(0, 1), "ask_all_s": lambda: ask(0, prompts)}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(runs + 1):
        for name, step in steps.items():
            found = seconds(step)
            if i:
                taken[name].append(found)
    each = sum(seconds(lambda k=k: ask(k, k + 1, True)) for k in range(prompts))  # type: ignore[misc]
    medians = {name: statistics.median(values) for name, values in taken.items()}
    one, together = (medians["encode_s"] + medians[name] for name in ("ask_one_s", "ask_all_s"))
    return {**medians, "one_prompt_s": one, "together_s": together, "one_pass_per_prompt_s": each,
            "together_over_one": together / one, "one_pass_per_prompt_over_one": each / one,
            "asked_again_over_one": medians["ask_all_s"] / one}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="sd21", help="sd21 or tiny")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "sd21-prompts.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    encoder, decoder = random_graphs(preset(options.preset))
    body = {
        "model": options.preset,
        "parameters": sum(p.numel() for part in (encoder.vae, decoder.student) for p in part.parameters()),
        "size": options.size,
        "prompts": options.prompts,
        "runs": options.runs,
        **measure(encoder, decoder, options.size, options.prompts, options.runs),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "machine": {**device_key(), "threads": torch.get_num_threads()},
        "torch": torch.__version__,
    }
    options.output.write_text(json.dumps(body, indent=2) + "\n")
    print(json.dumps(body, indent=2))


if __name__ == "__main__":
    main()
