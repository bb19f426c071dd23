"""What backends have in common that run a bundle's graphs on arrays: which graph answers what, and what each is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.bundle import Bundle
from digseg_engine.contract import IMAGE_ENCODER, LABELS, MASK_DECODER, PRESENCE, TEXT_ENCODER, GraphSpec
from digseg_engine.precisions import PLAIN
from digseg_engine.runtime.backends import Array, TokenMask, Tokens, failing_as
from digseg_engine.runtime.profile import Profile


class GraphBackend:
    """A backend over graphs that something else runs: `answers` is what a library of inference adds."""

    name: str
    detail: str
    precision = PLAIN.name  # that of the bundle, whose golden sample already allows for it
    _text_dtype: Any = np.float32  # what the folded text is given as

    @property
    def graph_dtype(self) -> Any:
        """The type in which graphs are given text and encodings."""
        return self._text_dtype

    def open(self, bundle: Bundle, make: Callable[[Bundle, GraphSpec], Any]) -> None:
        """Make every graph of a bundle ready to run."""
        self._profile = Profile.from_json(bundle.manifest["shapes"])  # None: free shapes
        made = {spec.file: make(bundle, spec) for spec in bundle.graphs.values()}
        self._image = made[IMAGE_ENCODER.file]
        graphs: list[Any] = [made.get(spec.file) for spec in (TEXT_ENCODER, MASK_DECODER, PRESENCE, LABELS)]
        self._text, self._masks, self._presence, self._labels = graphs  # of a folded bundle the last alone

    def named(self, graph: Any, feeds: dict[str, Array], wanted: tuple[str, ...]) -> dict[str, Array]:
        """Run one graph for some of its outputs, by name; those that it has not are left out."""
        raise NotImplementedError

    def answers(self, graph: Any, feeds: dict[str, Array]) -> list[Array]:
        """Run one graph; whatever it raises is told by the caller."""
        raise NotImplementedError

    def encode_text(self, token_ids: Tokens, token_mask: TokenMask) -> tuple[Array, Array]:
        keys, values = self._run(self._text, {"token_ids": token_ids, "token_mask": token_mask})
        return keys, values

    def encode_image(self, image: Array) -> Any:
        self.check_picture(image.shape)
        (encoding,) = self._run(self._image, {"image": image})
        return encoding

    def presence(
        self, encoding: Any, keys: Array, values: Array, token_mask: TokenMask
    ) -> NDArray[np.float32] | None:  # fmt: skip
        return None if self._presence is None else self._ask(self._presence, encoding, keys, values, token_mask)

    def decode(self, encoding: Any, keys: Array, values: Array, token_mask: TokenMask) -> NDArray[np.float32]:
        return self._ask(self._masks, encoding, keys, values, token_mask)

    def labels(self, encoding: Any, wanted: tuple[str, ...]) -> dict[str, Array]:
        """Of a folded bundle: outputs of its graph, by name. What leads to others alone is not computed, where that is to be
        had."""
        if self._profile is not None:
            self._profile.check({"B": len(encoding)})
        with failing_as(self.name, f"on {len(encoding)} pictures"):
            return self.named(self._labels, {"encoding": encoding}, wanted)

    def _ask(
        self, graph: Any, encoding: Any, keys: Array, values: Array, token_mask: TokenMask
    ) -> NDArray[np.float32]:  # fmt: skip
        (found,) = self._run(graph, {"encoding": encoding, **self.asked(len(encoding), keys, values, token_mask)})
        result: NDArray[np.float32] = found
        return result

    def asked(self, pictures: int, keys: Array, values: Array, token_mask: TokenMask) -> dict[str, Array]:
        """The text of a question about so many pictures. Raises InputError outside the bundle's profile."""
        if self._profile is not None:
            k, length = token_mask.shape
            self._profile.check({"B": pictures, "K": k, "L": length})
        return {"text_keys": keys.astype(self._text_dtype, copy=False),
                "text_values": values.astype(self._text_dtype, copy=False), "token_mask": token_mask}  # fmt: skip

    def check_picture(self, shape: tuple[int, ...]) -> None:
        """Raises InputError for pictures [B, 3, H, W] outside the bundle's profile."""
        if self._profile is not None:
            b, _, h, w = shape
            self._profile.check({"B": b, "H": h, "W": w})

    def _run(self, graph: Any, feeds: dict[str, Array]) -> list[Array]:
        shapes = {name: list(array.shape) for name, array in feeds.items()}
        with failing_as(self.name, f"on shapes {shapes}"):
            return self.answers(graph, feeds)
