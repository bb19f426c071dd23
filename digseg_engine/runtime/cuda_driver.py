"""The few calls of the CUDA driver that an engine needs, through ctypes: no CUDA package has to be installed.

Written from the driver's public documentation; not run by us yet on a GPU.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.errors import BackendError
from digseg_engine.precisions import PRECISIONS

MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_INT, _SIZE, _HANDLE = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
_POINTER = ctypes.c_uint64  # CUdeviceptr is 64 bits
ARGUMENTS = {
    "cuInit": [ctypes.c_uint],
    "cuDeviceGet": [_HANDLE, _INT],
    "cuDevicePrimaryCtxRetain": [_HANDLE, _INT],
    "cuDevicePrimaryCtxRelease_v2": [_INT],
    "cuCtxSetCurrent": [_HANDLE],
    "cuDeviceGetName": [ctypes.c_char_p, _INT, _INT],
    "cuDeviceGetAttribute": [_HANDLE, _INT, _INT],
    "cuDriverGetVersion": [_HANDLE],
    "cuStreamCreate": [_HANDLE, ctypes.c_uint],
    "cuStreamSynchronize": [_HANDLE],
    "cuStreamDestroy_v2": [_HANDLE],
    "cuMemAlloc_v2": [_HANDLE, _SIZE],
    "cuMemFree_v2": [_POINTER],
    "cuMemcpyHtoDAsync_v2": [_POINTER, _HANDLE, _SIZE, _HANDLE],
    "cuMemcpyDtoHAsync_v2": [_HANDLE, _POINTER, _SIZE, _HANDLE],
}


@dataclass(frozen=True)
class Device:
    """What an engine's key says about the GPU."""

    name: str
    compute_capability: str
    cuda: str


class Driver:
    """The primary context of one GPU. Raises BackendError when there is no driver, no GPU, or a call fails.

    It is given back when the last that holds it is gone.
    """

    def __init__(self, index: int = 0, library: Any = None) -> None:
        self._cuda = _load() if library is None else library
        for name, types in ARGUMENTS.items():
            function = getattr(self._cuda, name)
            function.argtypes, function.restype = types, ctypes.c_int
        self._call("cuInit", 0)
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), index)
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        weakref.finalize(self, self._cuda.cuDevicePrimaryCtxRelease_v2, self._device)
        self.make_current()

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status != 0:
            raise BackendError(
                f"the CUDA driver refused {name} with status {status}; check `nvidia-smi` and free memory"
            )

    def make_current(self) -> None:
        """Bind the context to the calling thread; needed once per thread."""
        self._call("cuCtxSetCurrent", self._context)

    def describe(self) -> Device:
        name = ctypes.create_string_buffer(128)
        self._call("cuDeviceGetName", name, 128, self._device)
        parts = []
        for attribute in (MAJOR, MINOR):
            value = ctypes.c_int()
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, self._device)
            parts.append(str(value.value))
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return Device(name.value.decode(), ".".join(parts), cuda)

    def stream(self) -> int:
        handle = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(handle), 1)  # 1: does not wait for the default stream
        return int(handle.value or 0)

    def wait(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def end_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy_v2", stream)

    def allocate(self, size: int) -> int:
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), max(size, 1))
        return pointer.value

    def free(self, pointer: int) -> None:
        self._call("cuMemFree_v2", pointer)

    def upload(self, pointer: int, array: NDArray[Any], stream: int) -> None:
        """Copy a contiguous array to the GPU; the caller keeps it alive until the stream is done."""
        self._call("cuMemcpyHtoDAsync_v2", pointer, array.ctypes.data, array.nbytes, stream)

    def download(self, array: NDArray[Any], pointer: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync_v2", array.ctypes.data, pointer, array.nbytes, stream)


def zeros(shape: tuple[int, ...], kind: str) -> NDArray[Any]:
    """A host array for a tensor of the contract: a precision, or a type as NumPy calls it."""
    return np.zeros(shape, PRECISIONS[kind].host if kind in PRECISIONS else kind)


def _load() -> Any:
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise BackendError("no NVIDIA driver on this machine (libcuda.so.1 not found); expected a GPU with its driver")
