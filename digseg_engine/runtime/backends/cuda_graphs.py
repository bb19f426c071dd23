"""CUDA graphs for a function of tensors: one per set of shapes, captured at its second call, replayed from then on.

A replay costs one launch instead of hundreds. Not run by us yet on a GPU; the bookkeeping is tested on a CPU.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

MOST = 8  # graphs kept; each holds the activations of its shapes
Key = tuple[tuple[tuple[int, ...], Any], ...]


class CudaGraph:
    """One captured call: its inputs and output stay at fixed addresses."""

    def __init__(self, function: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
        import torch

        self._inputs = [tensor.clone() for tensor in inputs]
        self._device = torch.cuda.device(inputs[0].device)
        with self._device:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # warm-up: allocations and autotuning must not happen while capturing
                function(*self._inputs)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output = function(*self._inputs)

    def replay(self, inputs: tuple[Any, ...]) -> Any:
        with self._device:
            for held, given in zip(self._inputs, inputs):
                held.copy_(given, non_blocking=True)
            self._graph.replay()
            return self._output.clone()


class Replayed:
    """Calls `function` with tensors. Not thread-safe: graphs share their buffers, so the caller holds a lock.

    A shape met once runs as it is; met again, it is captured. The least recently used graph leaves when MOST are held.
    If a capture is refused, everything runs without graphs from then on and `refused` says why.
    """

    def __init__(self, function: Callable[..., Any], capture: Callable[..., Any] = CudaGraph, most: int = MOST) -> None:
        self._function, self._capture, self._most = function, capture, most
        self._met: set[Key] = set()
        self._graphs: OrderedDict[Key, Any] = OrderedDict()
        self.refused = ""

    def __call__(self, *inputs: Any) -> Any:
        key = tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs)
        if key not in self._graphs and (self.refused or not self._known(key, inputs)):
            return self._function(*inputs)
        self._graphs.move_to_end(key)
        return self._graphs[key].replay(inputs)

    def _known(self, key: Key, inputs: tuple[Any, ...]) -> bool:
        """Capture a shape that was met before; whether there is a graph now."""
        if key not in self._met:
            self._met.add(key)
            return False
        try:
            self._graphs[key] = self._capture(self._function, inputs)
        except RuntimeError as error:
            self.refused = (str(error).strip().splitlines() or ["no reason given"])[0]
            return False
        if len(self._graphs) > self._most:
            self._graphs.popitem(last=False)
        return True
