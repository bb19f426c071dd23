"""The device that was asked for, as backends of one kind of device understand it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from digseg_engine.errors import BackendError

if TYPE_CHECKING:
    from digseg_engine.runtime.source import Source


def gpu_index(source: Source, name: str) -> int:
    """Number of the GPU a backend of GPUs runs on: the one asked for, else 0. Raises BackendError when the CPU was."""
    if source.device is None:
        return 0
    kind, _, number = source.device.partition(":")
    if kind != "cuda":
        raise BackendError(f"{name} runs on NVIDIA GPUs, and the device {source.device} was asked for; leave the device "
                           "out, or choose another --backend")  # fmt: skip
    return int(number or 0)


def no_gpu(source: Source, name: str) -> None:
    """Raises BackendError when a GPU was asked for and the backend runs on the CPU alone."""
    if source.device not in (None, "cpu"):
        raise BackendError(f"{name} runs on the CPU, and the device {source.device} was asked for; leave the device out, "
                           f"or choose {name}-cuda")  # fmt: skip
