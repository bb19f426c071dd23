"""Export at the full size of Stable Diffusion 2.1: seconds, peak memory, sizes, errors: python benchmarks/export_large.py

1. A random checkpoint of the `sd21` preset is written tensor by tensor (float16; the reference's U-Net is left out,
   export does not read it).
2. `digseg-export CHECKPOINT --precision fp16` runs as a user types it. The peak is that of the whole process: tracing,
   writing, the PyTorch reference in float32 and all graphs verified at 256 px in ONNX Runtime.
3. Another process loads the bundle with the engine's own runtime and answers its golden sample.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "export-sd21.json"
LIMIT_SECONDS, LIMIT_GB = 300, 4.0


def make_checkpoint(preset_name: str, folder: Path) -> int:
    """Write a random checkpoint of a preset; returns the number of its parameters."""
    import torch
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from digseg_engine.model.autoencoder import build_autoencoder
    from digseg_engine.model.config import preset
    from digseg_engine.model.pretrained import BUNDLED, new_student

    sizes = preset(preset_name)
    with init_empty_weights(include_buffers=False):
        unet = UNet2DConditionModel(**sizes.unet)
        vae = build_autoencoder(sizes.vae)
        text = CLIPTextModel(CLIPTextConfig(**sizes.text))
        student = new_student(unet, sizes.digseg, vae)
    sizes.digseg.save(folder)
    for part, network in (("unet", unet), ("vae", vae)):
        network.save_config(folder / part)
    text.config.save_pretrained(folder / "text_encoder")
    shutil.copytree(BUNDLED / "tokenizer", folder / "tokenizer")
    (folder / "student").mkdir()
    torch.manual_seed(0)
    write_random(vae, folder / "vae" / "diffusion_pytorch_model.safetensors")
    write_random(text, folder / "text_encoder" / "model.safetensors")
    write_random(student, folder / "student" / "model.safetensors")
    return sum(p.numel() for network in (vae, text, student) for p in network.parameters())


def write_random(module: Any, path: Path) -> None:
    """PyTorch's own start (uniform within 1/sqrt of the inputs; norms 1, biases 0), one tensor in memory at a time."""
    import torch

    header, end, tensors = {}, 0, module.state_dict()
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [end, end + 2 * tensor.numel()]}
        end += 2 * tensor.numel()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            if not tensor.is_meta:
                values = tensor
            elif tensor.ndim > 1:
                values = torch.empty(tensor.shape).uniform_(-1, 1) * (tensor[0].numel() ** -0.5)
            else:
                values = torch.zeros(tensor.shape) if name.endswith("bias") else torch.ones(tensor.shape)
            values.half().numpy().tofile(file)


def run_measured(*command: str) -> tuple[float, float, str]:
    """(seconds, peak resident GB, stdout) of a command. Raises SystemExit with its last lines when it fails."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command[:4])} failed: {said[-2000:]}")
    return time.perf_counter() - began, usage.ru_maxrss * 1024 / 1e9, said


def answer_golden(bundle: Path) -> None:
    """Load a bundle with the engine's runtime and print how far its golden sample is off (in a process of its own)."""
    import numpy as np
    from safetensors.numpy import load_file

    from digseg_engine.runtime.backends.ort_backend import OrtBackend
    from digseg_engine.runtime.source import open_source

    backend, golden = OrtBackend(open_source(bundle)), load_file(bundle / "golden.safetensors")
    keys, values = backend.encode_text(golden["token_ids"], golden["token_mask"])
    logits = backend.decode(backend.encode_image(golden["image"]), keys, values, golden["token_mask"])
    off = float(np.linalg.norm(logits - golden["logits"]) / np.linalg.norm(golden["logits"]))
    print(json.dumps({"backend": backend.detail, "relative_error": off, "shape": list(logits.shape)}))


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    """Run the three steps; exit code 1 when the export needs more time or memory than the project promises."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=Path("export-sd21"), help="folder for 5.5 GB of files, removed after"
    )
    parser.add_argument("--preset", default="sd21")
    parser.add_argument("--keep", action="store_true", help="leave checkpoint and bundle in the folder")
    parser.add_argument("--step", choices=("make", "golden"), help=argparse.SUPPRESS)
    typed = parser.parse_args()
    checkpoint, bundle = typed.work / "checkpoint", typed.work / "bundle"
    if typed.step == "make":
        print(make_checkpoint(typed.preset, checkpoint))
        return 0
    if typed.step == "golden":
        answer_golden(bundle)
        return 0
    again = [sys.executable, __file__, "--work", str(typed.work), "--preset", typed.preset, "--step"]
    if not checkpoint.exists():
        checkpoint.mkdir(parents=True)
        run_measured(*again, "make")
    command = "from digseg_export.cli import main; main()"
    seconds, peak, said = run_measured(sys.executable, "-c", command, str(checkpoint), "--precision", "fp16",
                                       "-o", str(bundle), "--json")  # fmt: skip
    done = json.loads(said)
    load_seconds, load_peak, answer = run_measured(*again, "golden")
    holds = seconds <= LIMIT_SECONDS and peak <= LIMIT_GB
    result = {
        "command": "python benchmarks/export_large.py", "date": date.today().isoformat(), "preset": typed.preset,
        "export": {"seconds": round(seconds, 1), "peak_gb": round(peak, 2), "steps": done["seconds"],
                   "limits": {"seconds": LIMIT_SECONDS, "peak_gb": LIMIT_GB}, "holds": holds},
        "sizes": done["sizes"], "checks": done["checks"], "calibrated_on": done["policy"]["calibrated_on"],
        "golden": {**json.loads(answer), "seconds": round(load_seconds, 1), "peak_gb": round(load_peak, 2)},
        "hardware": f"{os.cpu_count()} cores, {len(os.sched_getaffinity(0))} usable, {processor()}",
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")},
    }  # fmt: skip
    result["parameters"] = {"stored_bytes": sum(p.stat().st_size for p in checkpoint.rglob("*.safetensors"))}
    target = RESULT if typed.preset == "sd21" else typed.work / "result.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    if not typed.keep:
        shutil.rmtree(typed.work)
    print(f"{seconds:.0f} s, peak {peak:.2f} GB; wrote {target}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
