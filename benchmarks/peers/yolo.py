"""Ultralytics' networks from their configuration files with random weights, convolutions and batch norms fused as its exporter
does, a graph for each number of classes: the vocabulary is part of the network. Non-maximum suppression and putting masks
together from 32 prototypes come after the graph and are not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import digseg_engine  # noqa: F401 - turns ONNX Runtime's telemetry off; nothing else of it is loaded
from benchmarks.peers.flops import count
from benchmarks.peers.parts import session

CONFIGURATIONS = {  # FastSAM-s is YOLOv8s-seg with one class, "object"
    "yolo11n-seg": "yolo11n-seg.yaml", "yolo26n-seg": "yolo26n-seg.yaml", "yoloe-26n-seg": "yoloe-26n-seg.yaml",
    "fastsam-s": "yolov8s-seg.yaml",
}  # fmt: skip
EMBEDDING = 512  # of a class name, as its text encoder gives it


def classes(name: str, prompts: int) -> int:
    return 1 if name == "fastsam-s" else prompts


def build(name: str, prompts: int) -> Any:
    """A network for so many classes, as it is exported."""
    import torch
    from ultralytics.nn.tasks import SegmentationModel, YOLOESegModel

    torch.manual_seed(0)
    kind = YOLOESegModel if name.startswith("yoloe") else SegmentationModel
    model = kind(CONFIGURATIONS[name], ch=3, nc=classes(name, prompts), verbose=False).eval()
    if name.startswith("yoloe"):
        model.set_classes(
            [f"thing {i}" for i in range(prompts)],
            torch.nn.functional.normalize(torch.randn(1, prompts, EMBEDDING), dim=-1),
        )
        model.model[-1].fuse(model.pe)
    model = model.fuse(verbose=False).requires_grad_(False)
    head = model.model[-1]
    head.export, head.format, head.dynamic = True, "onnx", False
    return model


def prepare(name: str, size: int, prompts: list[int], folder: Path) -> dict[str, Any]:
    """Count and export a network for every number of prompts."""
    import torch

    pixels, flops, parameters = torch.zeros(1, 3, size, size), {}, 0
    for k in prompts:
        model = build(name, k)
        parameters = sum(p.numel() for p in model.parameters())
        taken, _ = count(lambda model=model: model(pixels))
        flops[str(k)] = {"first": taken}
        with torch.no_grad():
            torch.onnx.export(model, (pixels,), str(folder / f"{classes(name, k)}.onnx"), dynamo=True, verbose=False)
    return {"parameters": parameters, "flops": flops}


class Yolo:
    """The exported graphs of a folder."""

    def __init__(self, name: str, folder: Path, size: int, threads: int) -> None:
        import onnxruntime

        self.name, self.folder, self.threads = name, folder, threads
        self.pixels = np.random.default_rng(0).uniform(0, 1, (1, 3, size, size)).astype(np.float32)
        self.detail = f"ONNX Runtime {onnxruntime.__version__}, CPU, float32"
        self._sessions: dict[int, Any] = {}

    def first(self, count: int) -> None:
        key = classes(self.name, count)
        if key not in self._sessions:
            self._sessions[key] = session(self.folder / f"{key}.onnx", self.threads)
        run = self._sessions[key]
        run.run(None, {run.get_inputs()[0].name: self.pixels})
