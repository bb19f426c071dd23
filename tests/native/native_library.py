"""The C library from Python, through ctypes: structs as in digseg.h, arrays in and out. For the tests only."""

from __future__ import annotations

import ctypes as c
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STATUS = ("ok", "invalid argument", "not found", "corrupt", "incompatible", "out of memory", "cancelled", "runtime error",
          "unavailable", "internal error")  # fmt: skip
RGB8, BGR8, RGBA8, NV12, F32 = range(5)
TRUNCATE_PROMPTS, ALL_PROMPTS, NO_MASKS = 1, 2, 4
LOG = c.CFUNCTYPE(None, c.c_void_p, c.c_int32, c.c_char_p)
CANCEL = c.CFUNCTYPE(c.c_int32, c.c_void_p)


class Options(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t), ("backend", c.c_char_p), ("onnxruntime_library", c.c_char_p), ("vocabulary", c.c_char_p),
        ("threads", c.c_int32), ("device", c.c_int32), ("cached_prompts", c.c_int32), ("log_level", c.c_int32),
        ("log", LOG), ("cancel", CANCEL), ("user", c.c_void_p),
        ("cache", c.c_char_p),
    ]  # fmt: skip


class Image(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t), ("data", c.c_void_p), ("data_uv", c.c_void_p), ("width", c.c_int32), ("height", c.c_int32),
        ("format", c.c_int32), ("memory", c.c_int32), ("stride", c.c_int64), ("stride_uv", c.c_int64), ("matrix", c.c_int32),
        ("reserved", c.c_int32),
    ]  # fmt: skip


class RunOptions(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t), ("size", c.c_int32), ("flags", c.c_int32), ("threshold", c.c_float),
        ("labels", c.c_int32), ("cancel", CANCEL), ("user", c.c_void_p), ("against", c.POINTER(c.c_char_p)),
        ("against_count", c.c_size_t),
    ]  # fmt: skip


class View(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        *((name, c.c_int32) for name in ("count", "width", "height", "logits_width", "logits_height", "content_width",
                                         "content_height", "reserved")),
        ("masks", c.POINTER(c.c_uint8)), ("label_map", c.POINTER(c.c_int32)), ("scores", c.POINTER(c.c_float)),
        ("logits", c.POINTER(c.c_float)), ("backend", c.c_char_p),
        *((name, c.c_double) for name in ("seconds_fit", "seconds_text", "seconds_model", "seconds_masks")),
        ("presence", c.POINTER(c.c_float)), ("there", c.POINTER(c.c_uint8)),
    ]  # fmt: skip


class Verification(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t), ("passed", c.c_int32), ("reserved", c.c_int32), ("max_error", c.c_double),
        ("relative", c.c_double), ("iou", c.c_double),
    ]  # fmt: skip


class NativeError(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{STATUS[status]}: {text}")
        self.status, self.text = STATUS[status], text


@dataclass(frozen=True)
class Masks:
    masks: np.ndarray | None
    label_map: np.ndarray
    scores: np.ndarray
    logits: np.ndarray | None
    presence: np.ndarray
    there: np.ndarray
    backend: str

    def equals(self, other: Masks) -> bool:
        """Bit for bit."""
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in vars(self))


def onnxruntime_library() -> Path:
    """The shared library inside the installed onnxruntime package."""
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None and spec.origin is not None
    return next(iter(sorted((Path(spec.origin).parent / "capi").glob("libonnxruntime.so*"))))


class Library:
    """libdigseg.so with its functions declared."""

    def __init__(self, path: Path) -> None:
        self.lib = c.CDLL(str(path))
        for name in ("digseg_version", "digseg_last_error", "digseg_status_string", "digseg_engine_info"):
            getattr(self.lib, name).restype = c.c_char_p
        for name in ("digseg_engine_destroy", "digseg_result_free", "digseg_encoding_free"):
            getattr(self.lib, name).restype = None
            getattr(self.lib, name).argtypes = [c.c_void_p]
        self.lib.digseg_engine_info.argtypes = self.lib.digseg_encoding_bytes.argtypes = [c.c_void_p]
        self.lib.digseg_encoding_bytes.restype = c.c_size_t

    def check(self, status: int) -> None:
        if status:
            raise NativeError(status, self.lib.digseg_last_error().decode())

    def filled(self, kind):
        """A struct with its defaults."""
        name = {
            Options: "options",
            Image: "image",
            RunOptions: "run_options",
            View: "view",
            Verification: "verification",
        }[kind]
        value = kind()
        self.check(getattr(self.lib, f"digseg_{name}_init")(c.byref(value), c.c_size_t(c.sizeof(kind))))
        return value


class Encoding:
    """An encoded picture, freed with this object."""

    def __init__(self, lib: c.CDLL, handle: c.c_void_p) -> None:
        self.lib, self.handle = lib, handle

    def __del__(self) -> None:
        self.lib.digseg_encoding_free(self.handle)

    @property
    def nbytes(self) -> int:
        return self.lib.digseg_encoding_bytes(self.handle)


class NativeEngine:
    def __init__(self, library: Library, bundle: Path, **options) -> None:
        self.library, self.lib, self.handle = library, library.lib, c.c_void_p()
        self.options = library.filled(Options)
        self.options.onnxruntime_library = str(onnxruntime_library()).encode()
        self.options.threads, self.options.cache = 1, b""
        for name, value in options.items():
            setattr(self.options, name, value)
        library.check(self.lib.digseg_engine_create(str(bundle).encode(), c.byref(self.options), c.byref(self.handle)))

    def __enter__(self) -> NativeEngine:
        return self

    def __exit__(self, *_) -> None:
        self.lib.digseg_engine_destroy(self.handle)

    def image(self, pixels: np.ndarray, width=None, height=None, **fields) -> Image:
        image = self.library.filled(Image)
        image.data = pixels.ctypes.data
        image.height, image.width = height or pixels.shape[0], width or pixels.shape[1]
        for name, value in fields.items():
            setattr(image, name, value)
        return image

    def segment(self, picture: np.ndarray | Encoding, prompts: list[str] | None = None, run=None, **fields) -> Masks:
        """About pixels, or about what `encode` made of them. prompts: None asks a folded bundle for all of its names."""
        result = c.c_void_p()
        prompts = prompts or []
        texts = (c.c_char_p * len(prompts))(*(p.encode() for p in prompts)) if prompts else None
        asked = (texts, c.c_size_t(len(prompts)), c.byref(run) if run is not None else None, c.byref(result))
        if isinstance(picture, Encoding):
            self.library.check(self.lib.digseg_segment_encoded(self.handle, picture.handle, *asked))
        else:
            image = self.image(picture, **fields)
            self.library.check(self.lib.digseg_segment(self.handle, c.byref(image), *asked))
        return self.taken(result)

    def taken(self, result: c.c_void_p) -> Masks:
        """Copies of everything in a result, which is freed."""
        view = self.library.filled(View)
        self.library.check(self.lib.digseg_result_view(result, c.byref(view)))
        shape, prompts = (view.count, view.height, view.width), (view.count,)
        planes = (view.count, view.logits_height, view.logits_width)
        out = Masks(
            np.ctypeslib.as_array(view.masks, shape).astype(bool) if view.masks else None,
            np.ctypeslib.as_array(view.label_map, shape[1:]).copy(),
            np.ctypeslib.as_array(view.scores, prompts).copy(),
            np.ctypeslib.as_array(view.logits, planes).copy() if view.logits else None,
            np.ctypeslib.as_array(view.presence, prompts).copy(),
            np.ctypeslib.as_array(view.there, prompts).astype(bool),
            view.backend.decode(),
        )
        self.lib.digseg_result_free(result)
        return out

    def encode(self, pixels: np.ndarray, run=None, **fields) -> Encoding:
        image, handle = self.image(pixels, **fields), c.c_void_p()
        options = c.byref(run) if run is not None else None
        self.library.check(self.lib.digseg_encode(self.handle, c.byref(image), options, c.byref(handle)))
        return Encoding(self.lib, handle)

    def run_options(self, against: list[str] | None = None, **fields) -> RunOptions:
        run = self.library.filled(RunOptions)
        for name, value in fields.items():
            setattr(run, name, value)
        if against:
            run.against = (c.c_char_p * len(against))(*(text.encode() for text in against))
            run.against_count = len(against)
        return run

    def tokenize(self, text: str, limit: int = 0) -> list[int]:
        room, count = (c.c_int64 * 4096)(), c.c_size_t()
        encoded = text.encode("utf-8")
        self.library.check(self.lib.digseg_engine_tokenize(
            self.handle, encoded, c.c_size_t(limit), room, c.c_size_t(4096), c.byref(count)))  # fmt: skip
        return list(room[: count.value])

    def verify(self) -> Verification:
        out = self.library.filled(Verification)
        self.library.check(self.lib.digseg_engine_verify(self.handle, c.byref(out)))
        return out

    def save_vocabulary(self, prompts: list[str], path: Path) -> None:
        texts = (c.c_char_p * len(prompts))(*(p.encode() for p in prompts))
        self.library.check(self.lib.digseg_engine_save_vocabulary(
            self.handle, texts, c.c_size_t(len(prompts)), str(path).encode()))  # fmt: skip

    def vocabulary(self) -> list[str]:
        texts, count = c.POINTER(c.c_char_p)(), c.c_size_t()
        self.library.check(self.lib.digseg_engine_vocabulary(self.handle, c.byref(texts), c.byref(count)))
        return [texts[i].decode() for i in range(count.value)]

    def info(self) -> str:
        return self.lib.digseg_engine_info(self.handle).decode()
