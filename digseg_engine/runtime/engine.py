"""The engine: a bundle, a backend, and the one function of numbered stages that turns a picture into masks."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from digseg_engine.bundle import Bundle, open_bundle
from digseg_engine.contract import token_bucket
from digseg_engine.errors import BackendError, UsageError
from digseg_engine.images import as_rgb, fit, unfit
from digseg_engine.runtime.backends import Array, Backend, kinds
from digseg_engine.runtime.result import Segmentation
from digseg_engine.text import PromptTokenizer, check_prompts, pad_tokens

CACHED_PROMPTS = 4096


@dataclass(frozen=True)
class PromptText:
    """Folded text of one prompt: keys [S, H, d, L], values [S, H, L, Co]; the first `tokens` of L are real."""

    keys: Array
    values: Array
    tokens: int


class Engine:
    """Loads a bundle once and segments pictures with it. One engine may be used from many threads."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle, self.backend = bundle, backend
        model = bundle.manifest["model"]
        self.image_size, self.stride = int(model["image_size"]), int(model["stride"])
        self._tokenizer = PromptTokenizer.load(bundle.file("tokenizer.json"))
        self._prompts: OrderedDict[str, PromptText] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def load(cls, bundle: Path | str, backend: str = "auto") -> Engine:
        """Open a bundle directory, check every hash, and create a backend.

        Raises BundleError for a damaged or foreign bundle, UsageError for an unknown backend name, BackendError for
        one that cannot run here.
        """
        opened = open_bundle(bundle)
        known = kinds()
        if backend not in ("auto", *known):
            raise UsageError(f"unknown backend {backend!r}; expected auto or one of {', '.join(known)}")
        if backend != "auto":
            return cls(opened, known[backend].create(opened))
        refusals = []
        for kind in known.values():
            usable = kind.probe()
            if usable.usable:
                return cls(opened, kind.create(opened))
            refusals.append(f"{kind.name}: {usable.reason}; {usable.install}")
        raise BackendError(f"no backend can run here ({' | '.join(refusals)}); see `digseg doctor`")

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._prompts.clear()

    def segment(self, image: object, prompts: Sequence[str], size: int | None = None) -> Segmentation:
        """One mask per prompt.

        image: path, Pillow picture or uint8 array [H, W, 3] RGB. prompts: K texts. size: pixels of the longer side the
        model works at (default: what it was trained for). Raises InputError for a picture or prompt it cannot use.
        """
        clock = _Clock()
        # 1 check the input
        texts = check_prompts(prompts)
        longer = self._working_size(size)
        rgb = as_rgb(image)  # [H, W, 3]
        clock.lap("decode")
        # 2 fit the picture
        canvas = fit(rgb, longer, self.stride)  # pixels [1, 3, Hc, Wc]
        clock.lap("fit")
        # 3 prompts, encoded once each
        keys, values, mask = self._folded(texts)  # [K, S, H, d, L], [K, S, H, L, Co], [K, L]
        clock.lap("text")
        # 4 the model: picture once, all prompts together
        logits = self.backend.segment(canvas.pixels, keys, values, mask)[0]  # [K, h', w']
        clock.lap("model")
        # 5 back to the picture's own pixels
        full = unfit(logits, canvas)  # [K, H, W]
        masks = full > 0
        clock.lap("unfit")
        # 6 scores and label map
        label_map = np.where(masks.any(0), full.argmax(0) + 1, 0).astype(np.int32)  # [H, W]
        scores = _scores(full, masks)  # [K]
        clock.lap("label")
        return Segmentation(tuple(texts), masks, scores, label_map, logits, rgb, self.backend.detail, clock.seconds)

    def _working_size(self, size: int | None) -> int:
        longer = self.image_size if size is None else size
        if not 2 * self.stride <= longer <= 4096:
            raise UsageError(f"working size must be {2 * self.stride} to 4096 pixels, got {longer}")
        return longer

    def _folded(self, prompts: list[str]) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Folded text of K prompts, from the cache where it is known, padded to one token bucket."""
        parts = [self._prompt(prompt) for prompt in prompts]
        length = token_bucket(max(part.tokens for part in parts))
        keys = np.stack([_to_length(part.keys, length, 3) for part in parts])
        values = np.stack([_to_length(part.values, length, 2) for part in parts])
        return keys, values, np.arange(length)[None, :] < np.array([[part.tokens] for part in parts])

    def _prompt(self, prompt: str) -> PromptText:
        with self._lock:
            if prompt in self._prompts:
                self._prompts.move_to_end(prompt)
                return self._prompts[prompt]
        row = self._tokenizer.ids(prompt)
        ids, mask = pad_tokens([row])
        keys, values = self.backend.encode_text(ids, mask)
        known = PromptText(keys[0], values[0], len(row))
        with self._lock:
            self._prompts[prompt] = known
            while len(self._prompts) > CACHED_PROMPTS:
                self._prompts.popitem(last=False)
        return known


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


def _to_length(array: Array, length: int, axis: int) -> Array:
    """Cut or zero-pad one axis; what is cut or added is padding, which the model masks out."""
    have = array.shape[axis]
    if have >= length:
        return array.take(range(length), axis=axis)
    widths = [(0, length - have) if i == axis else (0, 0) for i in range(array.ndim)]
    return np.pad(array, widths)


def _scores(logits: NDArray[np.float32], masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Mean probability inside each mask: logits, masks [K, H, W] -> [K]."""
    inside = [logits[k][mask] for k, mask in enumerate(masks)]
    means = [float((1 / (1 + np.exp(-values))).mean()) if values.size else 0.0 for values in inside]
    return np.array(means, np.float32)
