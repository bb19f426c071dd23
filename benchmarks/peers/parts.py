"""A text-prompted segmenter as three parts, picture, text and masks, and three ways to run them: eager PyTorch, torch.compile,
ONNX Runtime. The picture is encoded once and prompts are one batch, as a careful user of each model would have it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import digseg_engine  # noqa: F401 - turns ONNX Runtime's telemetry off; nothing else of it is loaded

NAMES = ("image", "text", "masks")
TOKENS = 5  # of a prompt, start and end included: "thing 12"


@dataclass
class Parts:
    """image: pixels [1, 3, S, S] -> tensors of a picture; text: ids [K, TOKENS] -> tensors of K prompts; masks: both of them, in
    this order -> logits. Modules in evaluation mode; each returns a tuple."""

    image: Any
    text: Any
    masks: Any
    size: int
    vocabulary: int

    @property
    def modules(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in NAMES}

    def pixels(self) -> np.ndarray:
        """[1, 3, S, S]; nothing of what is measured depends on what it shows."""
        return np.random.default_rng(0).uniform(-1, 1, (1, 3, self.size, self.size)).astype(np.float32)

    def ids(self, count: int) -> np.ndarray:
        """[count, TOKENS], the last one of each the largest, which text encoders of CLIP's kind take for the end."""
        return token_ids(count, self.vocabulary)


def token_ids(count: int, vocabulary: int) -> np.ndarray:
    ids = np.random.default_rng(1).integers(2, vocabulary - 1, (count, TOKENS))
    ids[:, -1] = vocabulary - 1
    return ids


def counted(parts: Parts, prompts: list[int]) -> dict[str, Any]:
    """Parameters, and floating-point operations of a first question by number of prompts (a multiply-add is two), counted by
    PyTorch as the parts run; attention as its matrix products."""
    import torch

    from benchmarks.peers.flops import count

    weights = {id(p): p.numel() for module in parts.modules.values() for p in module.parameters()}
    pixels = torch.from_numpy(parts.pixels())
    picture, image = count(lambda: parts.image(pixels))
    flops = {}
    for k in prompts:
        words, text = count(lambda k=k: parts.text(torch.from_numpy(parts.ids(k))))
        masks, _ = count(lambda text=text: parts.masks(*image, *text))
        flops[str(k)] = {"first": picture + words + masks, "later": masks}
    return {"parameters": sum(weights.values()), "flops": flops}


def export(parts: Parts, folder: Path) -> None:
    """Each part as one ONNX graph with a free number of prompts, by PyTorch's own exporter with what it does by default."""
    import torch

    free = {0: torch.export.Dim("prompts", min=2, max=512)}
    with torch.no_grad():
        pixels, ids = torch.from_numpy(parts.pixels()), torch.from_numpy(parts.ids(4))
        image, text = parts.image(pixels), parts.text(ids)
    inputs = {"image": (pixels,), "text": (ids,), "masks": (*image, *text)}
    shapes = {"image": ({},), "text": (free,), "masks": (*({} for _ in image), *(free for _ in text))}
    for name, module in parts.modules.items():
        torch.onnx.export(
            module, inputs[name], str(folder / f"{name}.onnx"), dynamo=True, verbose=False,
            dynamic_shapes=(shapes[name],),  # one variadic argument
        )  # fmt: skip


class Running:
    """Parts that run: a first question encodes picture and prompts, a later one finds both."""

    detail = ""

    def __init__(self, pixels: np.ndarray, vocabulary: int) -> None:
        self.pixels, self.vocabulary = pixels, vocabulary
        self._kept: dict[int, tuple[Any, ...]] = {}

    def call(self, part: str, *tensors: Any) -> tuple[Any, ...]:
        raise NotImplementedError

    def array(self, values: np.ndarray) -> Any:
        return values

    def first(self, count: int) -> None:
        image = self.call("image", self.array(self.pixels))
        text = self.call("text", self.array(token_ids(count, self.vocabulary)))
        self.call("masks", *image, *text)

    def later(self, count: int) -> None:
        if count not in self._kept:
            image = self.call("image", self.array(self.pixels))
            self._kept[count] = (*image, *self.call("text", self.array(token_ids(count, self.vocabulary))))
        self.call("masks", *self._kept[count])


class InTorch(Running):
    """Eager, or compiled for each number of prompts."""

    def __init__(self, parts: Parts, compiled: bool, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        super().__init__(parts.pixels(), parts.vocabulary)
        self.detail = f"PyTorch {torch.__version__}, {'torch.compile' if compiled else 'eager'}, float32"
        self.modules = parts.modules
        if compiled:
            torch._dynamo.config.recompile_limit = 64
            self.modules = {name: torch.compile(module, dynamic=False) for name, module in self.modules.items()}

    def array(self, values: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(values)

    def call(self, part: str, *tensors: Any) -> tuple[Any, ...]:
        import torch

        with torch.no_grad():
            return tuple(self.modules[part](*tensors))


class InOnnxRuntime(Running):
    """The exported parts of `folder`."""

    def __init__(self, folder: Path, size: int, vocabulary: int, threads: int) -> None:
        import onnxruntime

        super().__init__(Parts(None, None, None, size, vocabulary).pixels(), vocabulary)
        self.sessions = {name: session(folder / f"{name}.onnx", threads) for name in NAMES}
        self.detail = f"ONNX Runtime {onnxruntime.__version__}, CPU, float32"

    def call(self, part: str, *tensors: Any) -> tuple[Any, ...]:
        session = self.sessions[part]
        return tuple(session.run(None, dict(zip((each.name for each in session.get_inputs()), tensors))))


def session(path: Path, threads: int) -> Any:
    """ONNX Runtime as its page on performance sets it up: all optimisations, so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
