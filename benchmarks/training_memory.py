"""The planner's memory against what a process really takes: stages of the bundled model on the CPU, three steps each.

Usage: python benchmarks/training_memory.py [-o benchmarks/results/training-memory.json] [--sd21] [--lora RANK]
Measured: growth of the resident set at its highest (VmHWM, reset before the networks are built) in a process of its own.
`--sd21` adds the counted memory of Stable Diffusion 2.1 at 512 and 768 px with random weights, which is not measured here.
`--lora RANK` prints that at 512 px with all of the network trained and with adapters of a rank, and measures and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "export"), str(ROOT / "triton_kernels")]

from export_large import processor  # noqa: E402

CASES = {
    "reference, 16 pictures of 256 px": ("reference", {"batch": 16, "optimizer": "adamw"}, 256),
    "one step, 8 pictures of 256 px, activations twice": (
        "one_step", {"batch": 8, "optimizer": "adamw", "gradient_checkpointing": True}, 256),
    "reference, 16 pictures of 256 px, adapters of rank 16": (
        "reference", {"batch": 16, "optimizer": "adamw", "lora": 16}, 256),
    "student, 8 pictures of 128 px, 16 prompts": ("student", {"batch": 8, "prompts": 16, "optimizer": "adamw"}, 128),
    "student, 8 pictures of 256 px, 8 prompts, activations twice": (
        "student", {"batch": 8, "prompts": 8, "gradient_checkpointing": True}, 256),
}  # fmt: skip


def settings(options: dict):
    from digseg_engine.training.loop import StageConfig

    plain = StageConfig(
        3, 8, 1e-4, prompts=16, warmup=1, clip=1.0, ema=0.9, precision="no", optimizer="muon", save_every=1000
    )
    return replace(plain, **options)


def resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def measure(name: str, options: dict, size: int) -> int:
    """Bytes that three steps of a stage take at most, in this process."""
    import torch

    from digseg_engine.model.pretrained import BUNDLED, outline_checkpoint
    from digseg_engine.training.loop import train_stage
    from digseg_engine.training.memory import ShapedBatches, drop, stage_work
    from digseg_engine.training.thrift import recomputing

    torch.set_num_threads(1)
    warm = torch.nn.Conv2d(8, 8, 3)  # what is imported and allocated once, whatever is trained
    with tempfile.TemporaryDirectory() as folder:
        once = settings({"optimizer": options.get("optimizer", "muon")})
        train_stage("warm", warm, lambda module, step: (module(torch.ones(1, 8, 16, 16)).mean(), {"loss": torch.ones(())}),
                    once, Path(folder) / "warm", False)  # fmt: skip
    outline_checkpoint(BUNDLED)
    config = settings(options)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    checkpoint = outline_checkpoint(BUNDLED)
    batches = ShapedBatches(checkpoint, size, True)
    module, loss, used = stage_work(
        lambda: outline_checkpoint(BUNDLED), checkpoint, checkpoint.schedule, name, config, batches, 16, 4
    )
    drop(checkpoint, used)
    with tempfile.TemporaryDirectory() as folder, recomputing(config.gradient_checkpointing, checkpoint.vae):
        train_stage(name, module, loss, config, Path(folder) / name, False)
    return resident("VmHWM") - before


def counted(name: str, options: dict, size: int) -> dict:
    from digseg_engine.model.pretrained import BUNDLED, outline_checkpoint
    from digseg_engine.training.memory import count_stage

    return asdict(count_stage(lambda: outline_checkpoint(BUNDLED), name, settings(options), size, imitate_every=16))


def large() -> list[dict]:
    """Stable Diffusion 2.1's stages, counted at two sizes, as the recipe sd15 has them (activations kept) and made to fit."""
    from digseg_engine.model.config import SD21
    from digseg_engine.model.pretrained import BUNDLED, build, outline_checkpoint
    from digseg_engine.training.planner import plan
    from digseg_engine.training.recipe_files import recipe_settings
    from digseg_engine.training.recipes.finetune import FinetuneConfig
    from digseg_engine.training.run import stages_of

    tokenizer = outline_checkpoint(BUNDLED).tokenizer
    rows = []
    recipe = recipe_settings("sd15", FinetuneConfig)
    for size in (512, 768):
        for each in plan(
            lambda: build(SD21, tokenizer), stages_of(recipe), size, 24e9, imitate_every=recipe.imitate_every
        ):
            rows.append({
                "size": size, "stage": each.name, "peak_gb": round(each.memory.peak / 1e9, 2),
                "fits_80_gb": each.fits(80e9), "fits_24_gb": each.fits(24e9), "changes_for_24_gb": list(each.changes),
                "then_gb": None if each.fitted is None else round(each.fitted.peak / 1e9, 2),
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def with_adapters(rank: int) -> None:
    """Stable Diffusion 2.1 at 512 px in the stages of the recipe sd15, activations computed twice."""
    from digseg_engine.model.config import SD21
    from digseg_engine.model.pretrained import BUNDLED, build, outline_checkpoint
    from digseg_engine.training.memory import count_stage
    from digseg_engine.training.recipe_files import recipe_settings
    from digseg_engine.training.recipes.finetune import FinetuneConfig
    from digseg_engine.training.run import stages_of

    tokenizer = outline_checkpoint(BUNDLED).tokenizer
    for name, stage in stages_of(recipe_settings("sd15", FinetuneConfig)).items():
        for lora in (0, rank):
            config = replace(stage, gradient_checkpointing=True, lora=lora)
            memory = count_stage(lambda: build(SD21, tokenizer), name, config, 512, imitate_every=16)
            sizes = {part: round(size / 1e9, 2) for part, size in asdict(memory).items()}
            print({"stage": name, "lora": lora, **sizes}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "training-memory.json")
    parser.add_argument("--sd21", action="store_true", help="also count Stable Diffusion 2.1")
    parser.add_argument(
        "--lora", type=int, help="only count Stable Diffusion 2.1 with adapters of this rank and without"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(*CASES[options.case])))
        return
    if options.lora:
        return with_adapters(options.lora)
    rows = []
    for case, given in CASES.items():
        # tensors of a megabyte and more go back to the system when they are freed, so that the highest point is theirs
        fixed = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 20)}
        command = [sys.executable, __file__, "--case", case]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=fixed)
        real, memory = int(done.stdout.splitlines()[-1]), counted(*given)
        rows.append({"case": case, "measured_mb": round(real / 1e6, 1), "counted_mb": round(memory["peak"] / 1e6, 1),
                     "ratio": round(memory["peak"] / real, 3)})  # fmt: skip
        print(rows[-1], flush=True)
    hardware = f"{os.cpu_count()} cores, {processor()}"
    body = {
        "hardware": hardware,
        "torch": version("torch"),
        "date": str(date.today()),
        "rows": rows,
        "sd21": large() if options.sd21 else [],
    }
    options.output.write_text(json.dumps(body, indent=2) + "\n")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
