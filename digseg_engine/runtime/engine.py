"""The engine: a bundle or checkpoint and a backend, opened once; pictures, batches, streams and tiles go through it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from digseg_engine.bundle import Bundle
from digseg_engine.errors import BackendError, DigsegError, InputError, UsageError
from digseg_engine.named import find_model
from digseg_engine.runtime.backends import Backend, failing_as, kinds
from digseg_engine.runtime.chunks import ChunkedRunner
from digseg_engine.runtime.encoding import Encoding
from digseg_engine.runtime.folded import NO_LOGITS, NameList
from digseg_engine.runtime.labels import USUAL, Rules
from digseg_engine.runtime.pipeline import (
    Clock,
    Options,
    Quality,
    check_pictures,
    contrasts,
    encode_pictures,
    segment_pictures,
)
from digseg_engine.runtime.presence import Asker, gate_of
from digseg_engine.runtime.prompts import Prepared, PromptCache
from digseg_engine.runtime.result import About, Segmentation
from digseg_engine.runtime.source import Portable, Source, open_source
from digseg_engine.runtime.streaming import Taken, batches, check_on_error, check_several, take, take_all
from digseg_engine.runtime.tensors import logits_of, map_of, strongest
from digseg_engine.signatures import Signer
from digseg_engine.text import check_prompts
from digseg_engine.vocabulary import RULE, check_folded

if TYPE_CHECKING:
    from digseg_engine.runtime.tiles import TiledSegmentation


class Engine:
    """Loads a model once and segments pictures with it. One engine may be used from many threads: results are those of
    one thread, bit for bit."""

    def __init__(self, source: Source, backend: Backend, fallbacks: tuple[str, ...] = ()) -> None:
        self.source, self.fallbacks = source, fallbacks
        self.working_size, self.stride = source.size, source.stride
        self.backend = backend
        names = source.vocabulary
        self.runner = ChunkedRunner(backend, profile=source.profile, names=0 if names is None else len(names.names))
        self.gate = gate_of(source)
        self.mark = object()  # what this engine encoded bears it
        self.prompts: Any = (
            PromptCache(source.tokenizer(), self.runner.encode_text) if names is None else NameList(names)
        )
        self._refiner: Any = None
        self._lock = Lock()

    @classmethod
    def load(
        cls, model: Path | str | None = None, backend: str = "auto", checkpoint: Path | str | None = None,
        size: int | None = None, batch: int = 1, prompts: int = 1, pictures: int | None = None, threads: int | None = None,
        device: str | None = None, engines: Path | str | None = None, require_signature: Path | str | Signer | None = None,
    ) -> Engine:  # fmt: skip
        """Open a bundle (every hash is checked) or a checkpoint directory and create a backend.

        model: the directory; None, or the shipped bundle's name `digseg-tiny-fp16`, is the one that comes with the package where
        no other is named ($DIGSEG_BUNDLE) or found in the current folder. `owner/name` or `owner/name@revision` that is no path
        here is a bundle on a hub: fetched once into the user's cache (extra `[hub]`), read like any other, and used without a
        network from then on.
        backend: a name, or `auto` for the fastest one that is right, measured at size x size pixels (default: the
        model's own), `batch` pictures and `prompts` prompts; the verdict is remembered. checkpoint: the directory the
        bundle was exported from, which the torch backends and `refine` need. pictures: how many will follow, if that
        is known: for a few small ones ONNX Runtime starts sooner and runs slower. threads: how many a backend on the CPU
        may use (default: the cores of this process, a container's quota respected). device: "cpu", "cuda", "cuda:1", or of
        OpenVINO "gpu", "gpu:1", "npu" (default: each backend's own). engines: a folder of TensorRT-RTX plans that may be run:
        they are executable code, so it is never looked for elsewhere. require_signature: a public key (PEM), or a `Signer`: the
        bundle is refused unless it carries that signer's signature over exactly its files (extra `[sign]`).
        Raises BundleError for a damaged or foreign bundle, CheckpointError for a broken checkpoint, UsageError for an
        unknown backend name, threads or device, BackendError for a backend that cannot run here.
        """
        known = kinds()
        if backend not in ("auto", *known):
            raise UsageError(f"unknown backend {backend!r}; expected auto or one of {', '.join(known)}")
        signer = require_signature
        if signer is not None and not isinstance(signer, Signer):
            signer = Signer(Path(signer).absolute())
        source = open_source(find_model(model), checkpoint, signer)
        plans = None if engines is None else Path(engines)
        source = replace(source, threads=threads, device=device, engines=plans).with_work(
            pictures, size or source.usual_side
        )
        from digseg_engine.runtime.choice import Task, choose, named

        if backend != "auto":
            return cls(source, named(known[backend], source))
        verdict, chosen = choose(source, Task(size or source.usual_side, batch, prompts))
        wanted = ("tensorrt-rtx",) if plans else ()  # whoever names plans is told why they do not run
        wrong = [row for row in verdict.rows if not row.right and (row.usable or row.backend in wanted)]
        return cls(source, chosen, tuple(f"{row.backend}: {row.reason}" for row in wrong))

    def __repr__(self) -> str:
        model = self.source.bundle.folder if self.source.bundle is not None else self.source.checkpoint
        backend = self.__dict__.get("backend")
        return f"Engine({str(model)!r}, {'closed' if backend is None else backend.detail})"

    @property
    def image_size(self) -> int:
        """Pixels of the longer side that the model was trained for; `working_size` says what a picture is worked at."""
        return self.working_size.usual

    @property
    def bundle(self) -> Bundle:
        """The bundle. Raises BackendError for an engine loaded from a checkpoint alone."""
        return self.source.need_bundle(self.backend.name)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The names that a folded bundle answers for, in the order of their labels; none for what takes any prompt."""
        return () if self.source.vocabulary is None else self.source.vocabulary.names

    def texts(self, prompts: Sequence[str] | None) -> list[str]:
        """Prompts as a list; of a folded bundle names of its vocabulary, and all of them for None. Raises InputError for what
        cannot be asked."""
        if self.source.vocabulary is None:
            return check_prompts(() if prompts is None else prompts)
        texts = list(self.vocabulary) if prompts is None else check_prompts(prompts)
        self.source.vocabulary.numbers(texts)
        return texts

    def __enter__(self) -> Engine:
        _ = self.backend  # raises when closed
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let the backend go, with its weights, sessions and cached prompts; every later use raises UsageError. Other threads
        must have finished. Closing again does nothing."""
        backend = self.__dict__.pop("backend", None)
        for cached in ("runner", "prompts"):
            self.__dict__.pop(cached, None)
        self._refiner = None
        if callable(end := getattr(backend, "close", None)):
            end()

    def __getattr__(self, name: str) -> Any:
        """Reached for what `close` took away."""
        if name in ("backend", "runner", "prompts"):
            raise UsageError("this engine is closed; load it again with Engine.load")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it was opened from: the process that unpickles it opens the same model with the same backend."""
        return _reopen, (self.source.portable(), self.backend.name, self.fallbacks)

    def encode(self, image: object, size: int | None = None) -> Encoding:
        """A picture, encoded once to be asked any number of times: every method that takes pictures takes it in place of one,
        with the same results bit for bit.

        image, size: as for `segment`. What is encoded stays where the backend keeps it, for as long as the encoding is held; it
        belongs to this engine, may be asked from many threads and is neither pickled nor copied. Raises InputError for
        a picture it cannot use, UsageError for a size out of range.
        """
        clock = Clock(1)
        picture = take(image)
        if isinstance(picture, Encoding):
            raise UsageError("this picture is encoded already; ask about it: engine.segment(encoding, prompts)")
        clock.lap("decode")
        check_pictures(self, [picture], size)
        (encoding,) = encode_pictures(self, [picture], size, clock)
        return replace(encoding, seconds=dict(clock.seconds))

    def segment(
        self, image: object, prompts: Sequence[str] | None = None, size: int | None = None, refine: int = 0, steps: int = 4,
        seed: int = 0, threshold: float = 0.5, labels: str | None = None, keep_masks: bool = True, force: bool = False,
        against: Sequence[str] = (), all_prompts: bool = False,
    ) -> Segmentation:  # fmt: skip
        """One mask per prompt; of a folded bundle one per name, all of them where no prompts are given.

        image: path, Pillow picture, uint8 array or DLPack tensor [H, W, 3] RGB; arrays and tensors are copied, so that the
        caller may refill them; or what `encode` returned, for which only the prompts are new work. prompts: K texts. size:
        pixels of the longer side the model works at (default: by `working_size`, as exported for, or as encoded). refine: go
        over the `refine` most confident masks with `steps` steps of the reference (needs a checkpoint; the same seed gives the
        same masks; refused, unless `force`d, for one that was measured to lose by it). threshold, labels, keep_masks: which
        pixels belong to a mask, what the label map shows where masks meet, and whether the full-size masks stay in memory;
        see `labels.Rules`.
        all_prompts: make masks also for prompts that the model says are not in the picture, which otherwise stay empty.
        Raises InputError for a picture or prompt it cannot use, UsageError for a size or steps out of range.
        """
        options = self._options(
            size, Quality(refine, steps, seed, force), threshold, labels, keep_masks, against, all_prompts
        )
        clock = Clock(1)
        picture = take(image)
        clock.lap("decode")
        return segment_pictures(self, [picture], prompts, options, clock)[0]

    def segment_batch(
        self, images: Sequence[object], prompts: Sequence[str] | None = None, size: int | None = None, refine: int = 0,
        steps: int = 4, seed: int = 0, threshold: float = 0.5, labels: str | None = None, keep_masks: bool = True,
        force: bool = False,
        on_error: Literal["raise", "return"] = "raise", against: Sequence[str] = (), all_prompts: bool = False,
    ) -> list[Any]:  # fmt: skip
        """The same prompts about several pictures, one result for each, in their order; options as for `segment`.

        Pictures of one working shape go through the model together. on_error: `raise` the error of the first picture
        that cannot be used, or `return` a DigsegError in the place of its result.
        """
        check_on_error(on_error)
        options = self._options(
            size, Quality(refine, steps, seed, force), threshold, labels, keep_masks, against, all_prompts
        )
        clock = Clock(len(images))
        self._encode_ahead(prompts, against)
        clock.lap("text")
        inputs = take_all(images)
        clock.lap("decode")
        results = self._each(inputs, prompts, options, clock)
        if on_error == "raise":
            for result in results:
                if isinstance(result, DigsegError):
                    raise result
        return results

    def stream(
        self, images: Iterable[object], prompts: Sequence[str] | None = None, size: int | None = None, batch: int = 1,
        refine: int = 0, steps: int = 4, seed: int = 0, threshold: float = 0.5, labels: str | None = None,
        keep_masks: bool = True,
        force: bool = False, on_error: Literal["raise", "return"] = "raise", against: Sequence[str] = (),
        all_prompts: bool = False,
    ) -> Iterator[Any]:  # fmt: skip
        """Results in the order of `images`, which may be endless: the next `batch` pictures are read while the model
        works on these. Options as for `segment`.

        Arrays are copied as they come, so a source may refill one buffer. The stream may be left at any moment, also
        while the source blocks. on_error: a picture that cannot be used `raise`s its error after the results before it,
        or, with `return`, a DigsegError comes in the place of its result and the stream goes on.
        """
        check_several(images)
        check_on_error(on_error)
        if batch < 1:
            raise UsageError(f"a batch must hold at least 1 picture, got {batch}")
        options = self._options(
            size, Quality(refine, steps, seed, force), threshold, labels, keep_masks, against, all_prompts
        )
        self._encode_ahead(prompts, against)
        kept = prompts if prompts is None or isinstance(prompts, Prepared) else list(prompts)
        return self._streamed(images, kept, options, batch, on_error)

    def prepare(self, prompts: Sequence[str]) -> Prepared:
        """Prompts ready to be asked again and again: a list of texts that every method takes where prompts are, with their
        text encoded and stacked. For video and other loops. Raises InputError for what is no prompt."""
        texts = self.texts(prompts)
        return Prepared(texts, self.prompts.fold(texts), self.prompts)

    def _options(
        self, size: int | None, quality: Quality, threshold: float, labels: str | None, keep_masks: bool, against: Sequence[str],
        all_prompts: bool,
    ) -> Options:  # fmt: skip
        """Options of a question. Raises UsageError for what a folded bundle does not do."""
        names = self.source.vocabulary
        if names is not None:
            check_folded(names, against, all_prompts, labels, quality.refine)
        usual = USUAL.labels if names is None else RULE
        return Options(size, quality, Rules(threshold, labels or usual, keep_masks), tuple(against), all_prompts)

    def _encode_ahead(self, prompts: Sequence[str] | None, against: Sequence[str]) -> None:
        """Check and encode prompts ahead: what is wrong with one is no picture's fault."""
        texts = self.texts(prompts)
        self.prompts.check_owner(prompts or ())
        for prompt in [] if isinstance(prompts, Prepared) else texts:
            self.prompts.one(prompt)
        for prompt in contrasts(texts, against):
            self.prompts.one(prompt)

    def _streamed(
        self, images: Iterable[object], prompts: Sequence[str] | None, options: Options, batch: int, on_error: str
    ) -> Iterator[Any]:
        with closing(batches(images, batch)) as coming:
            for inputs in coming:
                clock = Clock(len(inputs))
                clock.lap("decode")  # done beside the model's work
                for result in self._each(inputs, prompts, options, clock):
                    if isinstance(result, DigsegError) and on_error == "raise":
                        raise result
                    yield result

    def _each(
        self, inputs: list[Taken], prompts: Sequence[str] | None, options: Options, clock: Clock
    ) -> list[Segmentation | DigsegError]:
        """A result or an error for every picture. Where a batch fails, each of its pictures is asked about alone."""
        good = [picture for picture in inputs if not isinstance(picture, DigsegError)]
        results: list[Segmentation | DigsegError]
        try:
            results = [*segment_pictures(self, good, prompts, options, clock)]
        except (InputError, BackendError) as error:
            if len(good) > 1:
                results = [answer for picture in good for answer in self._each([picture], prompts, options, Clock(1))]
            else:
                results = [error for _ in good]
                if not good:
                    raise
        answers = iter(results)
        return [picture if isinstance(picture, DigsegError) else next(answers) for picture in inputs]

    def segment_tiles(
        self, image: object, prompts: Sequence[str] | None, output: Path | str, stem: str = "tiled", tile: int = 512,
        overlap: float = 0.25, size: int | None = None, masks: bool = False, threshold: float = 0.5,
        labels: str = "strongest", only: Collection[str] | None = None, against: Sequence[str] = (), all_prompts: bool = False,
    ) -> TiledSegmentation:  # fmt: skip
        """A picture of any size in overlapping tiles with blended seams; memory depends on the tile alone.

        image: as for `segment`, or the path of a `.npy` array or RGB TIFF, which are read piece by piece.
        tile: pixels per side; size: pixels the model works at (default: the tile's own). Label map, overview, JSON and,
        with masks=True, all masks are written under `output`; only: these kinds of overlay, masks and labels alone, and the
        JSON. Raises UsageError for sizes that do not fit and for a label rule other than `strongest`.
        """
        from digseg_engine.runtime.large import open_windows
        from digseg_engine.runtime.tiles import Tiling, check_rule, kinds_of, segment_tiles

        check_rule(labels)
        names = self.source.vocabulary
        if names is not None:
            check_folded(names, against, all_prompts, labels)
        if names is not None and names.labels_only:
            raise UsageError(NO_LOGITS.format("tiles, which are blended by their logits"))
        texts = tuple(self.texts(prompts))
        self.prompts.check_owner(prompts or ())
        rivals = contrasts(texts, against)
        if self.runner.profile is not None and size is None:
            size = self.runner.profile.square(tile)
        tiling = Tiling(tile, overlap, size)
        tiling.check(self.stride)
        text = self.prompts.fold([*texts, *rivals])
        about = About.of(
            self.source, self.backend.detail, tile, Rules(threshold), self.fallbacks, tuple(rivals), all_prompts
        )
        path = str(image) if isinstance(image, (str, Path)) else None
        asker = Asker(self.runner, text, self.gate.opened(all_prompts), self.stride)
        return segment_tiles(
            open_windows(image), asker, texts, tiling, Path(output), stem, kinds_of(only, masks), about, path
        )

    def logits(self, pixels: Any, prompts: Sequence[str] | None = None, all_prompts: bool = False) -> Any:
        """Logits [B, K, h', w'] of pixels [B, 3, H, W] float32 in -1..1, sides multiples of the stride, -20 everywhere for a
        prompt that is not there; see `tensors`."""
        return logits_of(self._asker(prompts, all_prompts), pixels)

    def _asker(self, prompts: Sequence[str] | None, all_prompts: bool) -> Asker:
        if self.source.vocabulary is not None:
            check_folded(self.source.vocabulary, (), all_prompts, None)
        text = self.prompts.fold(prompts if isinstance(prompts, Prepared) else self.texts(prompts))
        return Asker(self.runner, text, self.gate.opened(all_prompts), self.stride)

    def label_map(
        self, pixels: Any, prompts: Sequence[str] | None = None, size: tuple[int, int] | None = None, threshold: float = 0.5,
        all_prompts: bool = False,
    ) -> Any:  # fmt: skip
        """`logits`, and which prompt is the strongest at every pixel: int32 [B, height, width], 0 none, k + 1 prompt k.

        size: height and width of the answer (default: those of the pixels); threshold: the probability below which a pixel is
        none of them. The answer stays where the logits are: for tensors on a GPU it is made there by one kernel, without all
        prompts at full size.
        """
        rules, shape = Rules(threshold, "strongest", False), tuple(pixels.shape[2:])
        if self.source.vocabulary is not None and rules.border == 0 and size in (None, shape):
            return map_of(self._asker(prompts, all_prompts), pixels)  # as the graph answers it
        return strongest(self.logits(pixels, prompts, all_prompts), shape, size or shape, rules)

    def reference(self) -> Any:
        """The reference of the checkpoint, loaded at the first use."""
        with self._lock:
            if self._refiner is None:
                folder = self.source.need_checkpoint("refine")
                from digseg_engine.runtime.backends.torch_backend import checkpoint_at, device

                loaded = checkpoint_at(folder)
                from digseg_engine.model.quality import read_quality
                from digseg_engine.model.refine import Refiner

                with failing_as("refine", "while loading the reference"):
                    self._refiner = Refiner(loaded, device(self.source.device), read_quality(folder))
            return self._refiner


def _reopen(source: Portable, backend: str, fallbacks: tuple[str, ...]) -> Engine:
    """An engine that was pickled, opened again in this process. Raises what `Engine.load` raises, and BundleError when the
    model is another one by now."""
    from digseg_engine.runtime.choice import named

    known = kinds()
    if backend not in known:
        raise UsageError(
            f"the engine was pickled with backend {backend!r}, unknown here; register it in this process too"
        )
    again = source.reopened()
    return Engine(again, named(known[backend], again), fallbacks)
