"""The peers: what they are, where they run, and at which sizes. Imports no library, so that every environment reads it."""

from __future__ import annotations

from dataclasses import dataclass

RANDOM = "random"


@dataclass(frozen=True)
class Peer:
    """environment: a name of `environments.ENVIRONMENTS`, or "" for the interpreter that measures. model: what is prepared (a
    builder of `models.py` or a network of `yolo.py`); run: how it runs. asks_again: has a later question about an encoded
    picture. exported: needs its ONNX files."""

    title: str
    environment: str
    model: str
    run: str
    sizes: tuple[int, ...]
    weights: str = RANDOM
    note: str = ""

    @property
    def asks_again(self) -> bool:
        return not self.model.startswith(("yolo", "fastsam"))

    @property
    def exported(self) -> bool:
        return self.run == "onnx"

    @property
    def is_exported(self) -> bool:
        """Is its model wanted as ONNX by this peer or by another?"""
        return any(peer.exported for peer in PEERS.values() if peer.model == self.model)


def ours(backend: str) -> Peer:
    return Peer(f"ours, fp16 bundle, `{backend}`", "", "student", backend, (256, 352, 640), "trained")


OURS = "digseg-onnxruntime"  # what the others are set against
FOLDED = "names folded: another vocabulary is another export"
PEERS = {
    OURS: ours("onnxruntime"),
    "digseg-openvino": ours("openvino"),
    "digseg-openvino-bf16": ours("openvino-bf16"),
    "reference-onnx": Peer("our reference, exported part by part, ONNX Runtime", "", "reference", "onnx", (256,), "trained"),
    "marigold-eager": Peer("Marigold-style one step, our sizes, eager", "diffusers", "marigold", "eager", (256,)),
    "marigold-compile": Peer("Marigold-style one step, our sizes, `torch.compile`", "diffusers", "marigold", "compile", (256,)),
    "clipseg-eager": Peer("CLIPSeg, eager", "transformers", "clipseg", "eager", (352,), note="its own size, 352 px"),
    "clipseg-onnx": Peer("CLIPSeg, ONNX Runtime", "transformers", "clipseg", "onnx", (352,), note="its own size, 352 px"),
    "sam3-eager": Peer("SAM-3-shaped, narrow, eager", "transformers", "sam3", "eager", (256,),
                       note="SAM 3's classes and depth of detector, smallest widths; 1008 px and 848 M in the original"),
    "yolo11n-seg-onnx": Peer("YOLO11n-seg, ONNX Runtime", "ultralytics", "yolo11n-seg", "onnx", (256, 640), note=FOLDED),
    "yolo26n-seg-onnx": Peer("YOLO26n-seg, ONNX Runtime", "ultralytics", "yolo26n-seg", "onnx", (256, 640), note=FOLDED),
    "yoloe-26n-seg-onnx": Peer("YOLOE-26n-seg, folded, ONNX Runtime", "ultralytics", "yoloe-26n-seg", "onnx", (256, 640),
                               note=FOLDED),
    "fastsam-s-onnx": Peer("FastSAM-s, ONNX Runtime", "ultralytics", "fastsam-s", "onnx", (256, 640),
                           note="segments everything; choosing by text with CLIP afterwards is not counted"),
}  # fmt: skip
