"""CUDA graphs for a function of tensors: one per set of shapes, captured at its second call, replayed from then on.

A replay costs one launch instead of hundreds. Not run by us yet on a GPU; the bookkeeping and the order of streams and
events are tested on a CPU.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

MOST = 8  # graphs kept; each holds the activations of its shapes
REMEMBERED = 64  # shapes met once that are remembered
Key = tuple[tuple[tuple[int, ...], Any], ...]


class CudaGraph:
    """One captured call: its inputs and output stay at fixed addresses, so replays take turns on the GPU.

    `_free` is an event behind the last replay; the next one, from whichever stream, waits for it before it touches the
    inputs. Capturing minds its own thread alone: what other threads do meanwhile neither fails nor breaks it.
    """

    def __init__(self, function: Callable[..., Any], inputs: tuple[Any, ...], cuda: Any = None) -> None:
        cuda = cuda or _cuda()
        self._cuda, self._where = cuda, inputs[0].device
        self._inputs = [tensor.clone() for tensor in inputs]
        with cuda.device(self._where):
            here, side = cuda.current_stream(self._where), cuda.Stream(self._where)
            side.wait_stream(here)
            with cuda.stream(side):  # warm-up: allocations and autotuning must not happen while capturing
                function(*self._inputs)
            here.wait_stream(side)
            self._graph = cuda.CUDAGraph()
            with cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._output = function(*self._inputs)
            self._free = cuda.Event()
            self._free.record(here)

    def replay(self, inputs: tuple[Any, ...]) -> Any:
        """The function's answer to `inputs`, a tensor of its own, in the order of the caller's stream."""
        with self._cuda.device(self._where):
            here = self._cuda.current_stream(self._where)
            here.wait_event(self._free)  # another stream's replay may still read the inputs
            for buffer, value in zip(self._inputs, inputs):
                buffer.copy_(value, non_blocking=True)
            self._graph.replay()
            answer = self._output.clone()
            self._free.record(here)
            return answer

    def close(self) -> None:
        """Wait for the last replay: its memory may be given to others after this."""
        self._free.synchronize()


def _cuda() -> Any:
    from torch import cuda

    return cuda


class Replayed:
    """Calls `function` with tensors. Not thread-safe: graphs share their buffers, so the caller holds a lock.

    A shape met once runs as it is; met again, it is captured. The least recently used graph leaves when MOST are held.
    If a capture is refused, everything runs without graphs from then on and `refused` says why.
    """

    def __init__(self, function: Callable[..., Any], capture: Callable[..., Any] = CudaGraph, most: int = MOST) -> None:
        self._function, self._capture, self._most = function, capture, most
        self._met: OrderedDict[Key, None] = OrderedDict()
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
            self._met[key] = None
            if len(self._met) > REMEMBERED:
                self._met.popitem(last=False)
            return False
        try:
            self._graphs[key] = self._capture(self._function, inputs)
        except RuntimeError as error:
            self.refused = (str(error).strip().splitlines() or ["no reason given"])[0]
            return False
        if len(self._graphs) > self._most:
            self._graphs.popitem(last=False)[1].close()
        return True
