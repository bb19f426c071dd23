"""Graphs traced at once: some of them in a copy of this process. Tracing is Python, one core each."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import onnx

from digseg_engine import crash_points
from digseg_engine.runtime.machine import cores

Graphs = dict[str, onnx.ModelProto]
Make = Callable[[], Graphs]


def second_core() -> bool:
    """Can a forked copy of this process work beside it?"""
    return sys.platform == "linux" and cores() > 1


@contextmanager
def parallel_trace(make: Make) -> Iterator[Make]:
    """Start `make` in a forked copy of this process and yield what waits for its graphs.

    Without a second core, and when the copy fails in any way (out of memory, say), they are made here, when they are asked for.
    """
    if not second_core():
        yield make
        return
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    copy = context.Process(target=_send, args=(make, theirs), daemon=True)
    copy.start()
    theirs.close()
    try:
        yield lambda: _receive(ours) or make()
    finally:
        copy.terminate()
        copy.join()
        ours.close()


def _send(make: Make, pipe: Connection) -> None:
    """In the copy. One thread: OpenMP's others were not copied, and waiting for them would never end. For the same reason
    nothing that came from the parent is collected here: an ONNX Runtime session among it would wait for its own threads."""
    gc.freeze()
    import torch

    crash_points.arm("")  # told to the parent
    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the copy lives; a failure is met again by the parent
    pipe.send({name: graph.SerializeToString() for name, graph in make().items()})


def _receive(pipe: Connection) -> Graphs | None:
    try:
        return {name: onnx.ModelProto.FromString(body) for name, body in pipe.recv().items()}
    except (EOFError, OSError):
        return None
