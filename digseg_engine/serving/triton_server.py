"""What a model of Triton Inference Server does with its requests: tensors in, one engine, tensors out, an error for each request
that cannot be answered.

`digseg-export --triton-repository` writes the models, `triton_model.py` is what the server calls, and the work is here. Three
models share the code and the borders below: the whole, a picture to its encoding, and an encoding to masks. Requests that the
server hands over together are encoded together, and those with the same question are asked together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from digseg_engine.errors import BackendError, DigsegError, InputError
from digseg_engine.images import Frame, Picture
from digseg_engine.runtime.chunks import Stretch
from digseg_engine.runtime.encoding import Encoding
from digseg_engine.runtime.engine import Engine
from digseg_engine.runtime.pipeline import Clock, check_pictures, encode_pictures
from digseg_engine.runtime.result import Segmentation
from digseg_engine.runtime.rle import encode as run_lengths
from digseg_engine.runtime.streaming import take
from digseg_engine.serving.limits import IN_MEMORY, Limits
from digseg_engine.serving.problems import malformed, too_large, too_many_prompts
from digseg_engine.serving.uploads import Upload, picture_of
from digseg_engine.text import check_prompts

Array = NDArray[Any]
Thing = TypeVar("Thing")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Border:
    """One input or output: its type as the server spells it, and its axes without the one of pictures; -1 is any length.
    optional: a request may leave it out; ragged: requests of different lengths go together."""

    name: str
    kind: str
    dims: tuple[int, ...]
    optional: bool = False
    ragged: bool = False


IMAGE = Border("IMAGE", "STRING", (1,), optional=True)  # the bytes of a picture file
PIXELS = Border("PIXELS", "UINT8", (-1, -1, 3), optional=True, ragged=True)  # [H, W, 3] RGB
PROMPTS = Border("PROMPTS", "STRING", (-1,), ragged=True)
ENCODING = Border("ENCODING", "FP32", (-1, -1, -1), ragged=True)  # [M, H/s, W/s]; half precision fits without loss
FRAME = Border("FRAME", "INT64", (6,))  # heights and widths of `Frame`: working, content, original
ANSWERS = (
    Border("LABELS", "UINT16", (-1, -1)),  # [H, W]: 0 nothing, k + 1 prompt k
    Border("MASKS", "BOOL", (-1, -1, -1)),  # [K, H, W]
    Border("RLE", "STRING", (-1,)),  # [K]: the counts of COCO's run lengths, of [H, W]
    Border("SCORES", "FP32", (-1,)),  # [K]
    Border("THERE", "BOOL", (-1,)),  # [K]
    Border("PRESENCE", "FP32", (-1,)),  # [K], of models with the readout
)
ROLES: dict[str, tuple[tuple[Border, ...], tuple[Border, ...]]] = {
    "whole": ((IMAGE, PIXELS, PROMPTS), ANSWERS),
    "encode": ((IMAGE, PIXELS), (ENCODING, FRAME)),
    "decode": ((ENCODING, FRAME, PROMPTS), ANSWERS),
}
LIMITS = {
    "max_bytes": "body",
    "max_pixels": "pixels",
    "max_prompts": "prompts",
    "max_size": "size",
}  # fields of `Limits`
ENGINE = "engine"  # what runs the graphs: the engine in this process, or models of the server, in one of `triton_graphs.FORMS`


def borders_of(role: str, presence: bool, folded: bool) -> tuple[tuple[Border, ...], tuple[Border, ...]]:
    """Inputs and outputs of a role. presence: the model has that readout; folded: prompts may be left out."""
    inputs, outputs = ROLES[role]
    inputs = tuple(replace(border, optional=True) if folded and border is PROMPTS else border for border in inputs)
    return inputs, tuple(border for border in outputs if presence or border.name != "PRESENCE")


@dataclass(frozen=True)
class Asked:
    """One request: tensors by name, each with the axis of pictures first, its parameters, and the outputs that it wants."""

    tensors: Mapping[str, Array]
    parameters: Mapping[str, Any]
    wanted: frozenset[str]


@dataclass(frozen=True)
class Question:
    """What is asked about a picture; requests of one question are asked together. prompts: None for all of a vocabulary."""

    prompts: tuple[str, ...] | None
    threshold: float
    all_prompts: bool


Answer = dict[str, Array]


class Role:
    """A model over one engine. `answer` never raises for what a request holds."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine, self.limits = engine, limits

    def answer(self, requests: Sequence[Asked]) -> list[Answer | DigsegError]:
        """A dictionary of tensors or an error for every request, in their order."""
        raise NotImplementedError

    def size(self, asked: Asked) -> int | None:
        size = asked.parameters.get("size")
        if size is not None and (type(size) is not int or size < 1):
            raise malformed(f"the parameter size is {size!r:.40}; expected a whole number of pixels")
        if size is not None and size > self.limits.size:
            raise too_large(
                f"a working size of {size} pixels was asked for, this server takes at most {self.limits.size}"
            )
        check_pictures(self.engine, [], size)
        return size

    def question(self, asked: Asked, row: int) -> Question:
        """Of one picture of a request. Raises DigsegError for what cannot be asked."""
        prompts, known = asked.tensors.get("PROMPTS"), asked.parameters
        if prompts is not None and prompts.shape[1] > self.limits.prompts:
            raise too_many_prompts(int(prompts.shape[1]), self.limits.prompts)
        texts = None if prompts is None else check_prompts([_text(prompt) for prompt in prompts[row].tolist()])
        threshold, everything = known.get("threshold", 0.5), known.get("all_prompts", False)
        if type(threshold) not in (int, float) or type(everything) is not bool:
            raise malformed(f"threshold is {threshold!r:.40} and all_prompts {everything!r:.40}; expected a number and true or "
                            "false")  # fmt: skip
        return Question(None if texts is None else tuple(self.engine.texts(texts)), float(threshold), everything)

    def pictures(self, asked: Asked) -> list[Picture]:
        """The pictures of a request, decoded. Raises DigsegError for what is none and what is too large."""
        files, pixels = asked.tensors.get("IMAGE"), asked.tensors.get("PIXELS")
        if (files is None) == (pixels is None):
            raise malformed("expected either IMAGE, the bytes of a picture file, or PIXELS, uint8 [height, width, 3]")
        if files is not None:
            return [self._decoded(body) for body in files[:, 0].tolist()]
        return [_checked(picture, self.limits) for picture in (() if pixels is None else pixels)]

    def _decoded(self, body: bytes) -> Picture:
        if len(body) > self.limits.body:
            raise too_large(f"the picture's file has {len(body)} bytes, this server takes at most {self.limits.body}; reduce the "
                            "picture")  # fmt: skip
        return picture_of(Upload(body, "IMAGE"), self.limits)

    def encode(self, rows: Mapping[int, tuple[Picture, int | None]]) -> dict[int, Encoding | DigsegError]:
        """Encodings by the same numbers. Pictures of one size go through the model together; where that fails, each alone."""
        found: dict[int, Encoding | DigsegError] = {}
        for size, numbers in grouped(rows, lambda number: rows[number][1]).items():
            try:
                made = encode_pictures(self.engine, [rows[n][0] for n in numbers], size, Clock(len(numbers)))
                found.update(zip(numbers, made))
            except (InputError, BackendError) as error:
                alone: list[dict[int, Encoding | DigsegError]]
                alone = [self.encode({n: rows[n]}) for n in numbers] if len(numbers) > 1 else [{numbers[0]: error}]
                for each in alone:
                    found.update(each)
        return found

    def ask(self, rows: Mapping[int, tuple[Encoding, Question]]) -> dict[int, Segmentation | DigsegError]:
        """Results by the same numbers; those of one question are asked together."""
        found: dict[int, Segmentation | DigsegError] = {}
        for question, numbers in grouped(rows, lambda number: rows[number][1]).items():
            pictures = [rows[n][0] for n in numbers]
            count = len(self.engine.vocabulary if question.prompts is None else question.prompts)
            whole = sum(picture.frame.original[0] * picture.frame.original[1] for picture in pictures) * count
            try:
                results = self.engine.segment_batch(
                    pictures, question.prompts, threshold=question.threshold, all_prompts=question.all_prompts,
                    keep_masks=whole <= IN_MEMORY, on_error="return",
                )  # fmt: skip
            except DigsegError as error:  # of the question itself
                results = [error for _ in numbers]
            found.update(zip(numbers, results))
        return found


class Whole(Role):
    """A picture and prompts to masks."""

    def answer(self, requests: Sequence[Asked]) -> list[Answer | DigsegError]:
        def read(asked: Asked) -> list[tuple[Picture, int | None, Question]]:
            size, count = self.size(asked), rows_of(asked)
            questions = [self.question(asked, row) for row in range(count)]  # cheaper to refuse than pictures
            return [(picture, size, question) for picture, question in zip(self.pictures(asked), questions)]

        rows, numbers, errors = _read(requests, read, {"threshold", "all_prompts", "size"})
        encoded = self.encode({n: (picture, size) for n, (picture, size, _) in rows.items()})
        there = {n: (each, rows[n][2]) for n, each in encoded.items() if isinstance(each, Encoding)}
        return _collected(requests, numbers, errors, {**encoded, **self.ask(there)}, answer_of)


class Encode(Role):
    """A picture to its encoding, to be decoded any number of times."""

    def answer(self, requests: Sequence[Asked]) -> list[Answer | DigsegError]:
        def read(asked: Asked) -> list[tuple[Picture, int | None]]:
            size = self.size(asked)
            return [(picture, size) for picture in self.pictures(asked)]

        rows, numbers, errors = _read(requests, read, {"size"})
        return _collected(requests, numbers, errors, self.encode(rows), _encoded)


class Decode(Role):
    """An encoding and prompts to masks."""

    def answer(self, requests: Sequence[Asked]) -> list[Answer | DigsegError]:
        def read(asked: Asked) -> list[tuple[Array, Frame, Question]]:
            encodings, frames = asked.tensors["ENCODING"], asked.tensors["FRAME"]
            return [(each, self.frame(frame, each.shape), self.question(asked, row))
                    for row, (each, frame) in enumerate(zip(encodings, frames))]  # fmt: skip

        rows, numbers, errors = _read(requests, read, {"threshold", "all_prompts"})
        asked = {}
        for members in grouped(rows, lambda n: rows[n][0].shape).values():  # of one shape lie together: asked together
            kept = np.stack([rows[n][0] for n in members]).astype(_width(self.engine), copy=False)
            for i, n in enumerate(members):
                frame, nothing = rows[n][1], Picture(np.zeros((0, 0, 3), np.uint8))
                encoding = Encoding(nothing, frame, Stretch(kept, i, i + 1, frame.working), self.engine.mark)
                asked[n] = encoding, rows[n][2]
        return _collected(requests, numbers, errors, self.ask(asked), answer_of)

    def frame(self, frame: Array, encoding: tuple[int, ...]) -> Frame:
        """How a picture lies in an encoding [M, H/s, W/s]. Raises RequestError for what no picture has."""
        numbers = [int(number) for number in frame]
        working, content, original = ((numbers[i], numbers[i + 1]) for i in (0, 2, 4))
        stride = self.engine.stride
        fits = working == (encoding[1] * stride, encoding[2] * stride)
        fits = fits and all(0 < inner <= outer for inner, outer in zip(content, working)) and min(original) > 0
        if not fits:
            raise malformed(f"FRAME {numbers} does not go with an encoding of shape {list(encoding)}; give both as one answer of "
                            "the encoding model has them")  # fmt: skip
        if original[0] * original[1] > self.limits.pixels:
            raise too_large(f"FRAME says a picture of {original[1]}x{original[0]} pixels, this server takes at most "
                            f"{self.limits.pixels / 1e6:.4g} million; reduce the picture")  # fmt: skip
        return Frame(working, content, original)


MODELS: dict[str, type[Role]] = {"whole": Whole, "encode": Encode, "decode": Decode}


def answer_of(result: Segmentation, wanted: Iterable[str]) -> Answer:
    """The outputs that are wanted of one result. Raises RequestError for masks that would take too much memory."""
    height, width = result.label_map.shape
    count = len(result.prompts)
    if "MASKS" in wanted and height * width * count > IN_MEMORY:
        raise too_large(f"{count} masks of {width}x{height} pixels take {height * width * count} bytes, at most {IN_MEMORY} are "
                        "answered; name the outputs that you want, RLE in place of MASKS")  # fmt: skip
    made: dict[str, Callable[[], Array]] = {
        "LABELS": lambda: result.label_map.astype(np.uint16),
        "MASKS": lambda: np.stack([result.mask(k) for k in range(count)]),
        "RLE": lambda: np.array([run_lengths(result.mask(k))["counts"].encode("ascii") for k in range(count)], object),
        "SCORES": lambda: np.asarray(result.scores, np.float32),
        "THERE": lambda: np.ones(count, np.bool_) if result.there is None else np.asarray(result.there, np.bool_),
        "PRESENCE": lambda: np.asarray(result.presence, np.float32),
    }
    return {name: make() for name, make in made.items() if name in wanted}


def _encoded(encoding: Encoding, wanted: Iterable[str]) -> Answer:
    place, frame = encoding.place, encoding.frame
    array = place.kept[place.first : place.last]
    if not isinstance(array, np.ndarray):
        raise BackendError("the backend keeps encodings on a GPU, where this model does not fetch them; set its backend to "
                           "onnxruntime, or write the repository with --triton-backend onnxruntime")  # fmt: skip
    return {"ENCODING": np.asarray(array[0], np.float32),
            "FRAME": np.array([*frame.working, *frame.content, *frame.original], np.int64)}  # fmt: skip


def _width(engine: Engine) -> Any:
    """The type in which the graphs that are asked take encodings."""
    return getattr(engine.backend, "graph_dtype", np.float32)


def _checked(pixels: Array, limits: Limits) -> Picture:
    height, width = pixels.shape[:2]
    if height * width > limits.pixels:
        raise too_large(f"PIXELS are {width}x{height} = {height * width / 1e6:.1f} million pixels, this server takes at most "
                        f"{limits.pixels / 1e6:.4g} million; reduce the picture")  # fmt: skip
    picture = take(pixels, "PIXELS")
    if isinstance(picture, Encoding):  # what an array never becomes
        raise malformed("PIXELS are no picture; expected uint8 [height, width, 3]")
    return picture


def _text(prompt: bytes) -> str:
    try:
        return prompt.decode("utf-8")
    except UnicodeDecodeError as error:
        raise malformed(f"the prompt {prompt!r:.60} is not valid text; expected UTF-8") from error


def rows_of(asked: Asked) -> int:
    """How many pictures a request has."""
    return int(next(iter(asked.tensors.values())).shape[0]) if asked.tensors else 0


def grouped(things: Iterable[Thing], key: Callable[[Thing], Key]) -> dict[Key, list[Thing]]:
    """Things by their key, in order."""
    found: dict[Key, list[Thing]] = {}
    for thing in things:
        found.setdefault(key(thing), []).append(thing)
    return found


def _read(
    requests: Sequence[Asked], read: Callable[[Asked], list[Thing]], known: set[str]
) -> tuple[dict[int, Thing], list[range], dict[int, DigsegError]]:
    """What every picture of all requests is, numbered through; the numbers of each request; and why some cannot be read."""
    rows: dict[int, Thing] = {}
    numbers: list[range] = []
    errors: dict[int, DigsegError] = {}
    for i, asked in enumerate(requests):
        found: list[Thing] = []
        try:
            if strange := sorted(set(asked.parameters) - known):
                raise malformed(f"unknown parameter {strange[0]!r:.60}; expected some of {', '.join(sorted(known))}")
            found = read(asked)
            if not found:
                raise malformed("the request holds no picture; send one")
        except DigsegError as error:
            errors[i], found = error, []
        numbers.append(range(len(rows), len(rows) + len(found)))
        rows.update(zip(numbers[-1], found))
    return rows, numbers, errors


def _collected(
    requests: Sequence[Asked], numbers: list[range], errors: dict[int, DigsegError], found: Mapping[int, Any],
    shown: Callable[[Any, Iterable[str]], Answer],
) -> list[Answer | DigsegError]:  # fmt: skip
    """The answers of every request's pictures behind one another, or the first thing that is wrong with it."""
    answers: list[Answer | DigsegError] = []
    for i, asked in enumerate(requests):
        try:
            for bad in (
                [errors[i]] if i in errors else [found[n] for n in numbers[i] if isinstance(found[n], DigsegError)]
            ):
                raise bad
            parts = [shown(found[n], asked.wanted) for n in numbers[i]]
            answers.append({name: _stacked(name, [part[name] for part in parts]) for name in parts[0]})
        except DigsegError as error:
            answers.append(error)
    return answers


def _stacked(name: str, arrays: list[Array]) -> Array:
    if len({array.shape for array in arrays}) > 1:
        raise malformed(f"the pictures of one request have answers {name} of different shapes; send each in a request of its "
                        "own, the server puts them together")  # fmt: skip
    return np.stack(arrays)
