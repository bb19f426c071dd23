"""Batches, streams, threads, tensors, memory: all give what one call for one picture gives."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from digseg_engine import Engine
from digseg_engine.errors import BackendError, InputError, UsageError
from digseg_engine.images import fit, unfit
from digseg_engine.runtime.chunks import BYTES_PER_PIXEL, ChunkedRunner
from digseg_engine.runtime.labels import Rules, label
from digseg_engine.runtime.presence import Asker, Gate
from digseg_engine.runtime.prompts import PromptCache

RNG = np.random.default_rng(3)
PICTURES = [RNG.integers(0, 255, (48 + 16 * (i % 3), 64, 3), np.uint8) for i in range(6)]
PROMPTS = ["red circle", "water", "a tree"]


@pytest.fixture(scope="module")
def engine(nano_models):
    return Engine.load(nano_models.fp32, "onnxruntime")


def test_a_batch_gives_what_single_calls_give(engine):
    together = engine.segment_batch(PICTURES, PROMPTS)
    for picture, found in zip(PICTURES, together):
        alone = engine.segment(picture, PROMPTS)
        assert found.label_map.shape == picture.shape[:2]
        assert np.abs(found.logits - alone.logits).max() <= 1e-4 * np.abs(alone.logits).max()
    assert engine.segment_batch([], PROMPTS) == []


def test_a_stream_keeps_order_and_reads_one_batch_ahead(engine):
    taken = []

    def endless():
        for i in range(10**9):
            taken.append(i)
            yield PICTURES[i % len(PICTURES)]

    stream = engine.stream(endless(), PROMPTS, batch=2)
    for i in range(5):
        assert next(stream).label_map.shape == PICTURES[i].shape[:2]
    assert len(taken) <= 8
    stream.close()
    assert [r.label_map.shape for r in engine.stream(PICTURES[:3], PROMPTS, batch=2)] == [
        p.shape[:2] for p in PICTURES[:3]
    ]
    with pytest.raises(InputError, match="uint8 array"):
        list(engine.stream([PICTURES[0], b"text"], PROMPTS))
    with pytest.raises(UsageError, match="at least 1"):
        list(engine.stream(PICTURES, PROMPTS, batch=0))


@pytest.mark.slow
def test_8_threads_200_pictures_bit_equal_to_serial(nano_models):
    jobs = [(PICTURES[i % 6], [PROMPTS[i % 3], f"thing {i % 40}"]) for i in range(200)]
    with Engine.load(nano_models.fp32, "onnxruntime") as one:
        serial = [one.segment(*job).logits for job in jobs]
    with Engine.load(nano_models.fp32, "onnxruntime") as many, ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda job: many.segment(*job).logits, jobs))
    assert all(np.array_equal(a, b) for a, b in zip(serial, parallel))


def test_tensors_in_and_out(nano_models, engine):
    torch = pytest.importorskip("torch")
    picture = torch.from_numpy(PICTURES[0])
    assert np.array_equal(engine.segment(picture, PROMPTS).logits, engine.segment(PICTURES[0], PROMPTS).logits)
    pixels = torch.rand(2, 3, 64, 96) * 2 - 1
    answer = engine.logits(pixels, PROMPTS)
    assert isinstance(answer, np.ndarray) and answer.shape == (2, 3, 32, 48)
    assert torch.from_dlpack(answer).data_ptr() == answer.ctypes.data
    native = Engine.load(nano_models.checkpoint, "torch")
    tensor = native.logits(pixels, PROMPTS)
    assert isinstance(tensor, torch.Tensor)
    assert np.abs(tensor.numpy() - answer).max() <= 1e-3 * np.abs(answer).max()
    for wrong in (pixels.double(), pixels[:, :2], pixels[..., :33], pixels[0]):
        with pytest.raises(InputError, match="pixels must be float32"):
            engine.logits(wrong, PROMPTS)
    with pytest.raises(InputError, match="cannot be read in host memory"):
        engine.logits(torch.empty(1, 3, 64, 64, device="meta"), PROMPTS)


def test_label_maps_of_tensors_and_arrays_are_alike(nano_models, engine):
    """The kernel's map of a torch backend, and that of planes on a CPU: the strongest prompt, where it is above the threshold."""
    torch = pytest.importorskip("torch")
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(3)) * 2 - 1
    native = Engine.load(nano_models.checkpoint, "torch")
    for size, threshold in ((None, 0.5), ((100, 70), 0.45)):
        array, tensor = (one.label_map(pixels, PROMPTS, size, threshold) for one in (engine, native))
        assert array.shape == tuple(tensor.shape) == (2, *(size or (64, 96)))
        assert array.dtype == np.int32 and tensor.dtype == torch.int32
        assert (array != tensor.numpy()).mean() < 0.01 and len(np.unique(array)) > 2
    with pytest.raises(UsageError, match="threshold is a probability"):
        engine.label_map(pixels, PROMPTS, threshold=1.5)


class Cramped:
    """A backend that can hold `pairs` masks at once and says so as ONNX Runtime does."""

    name, detail = "cramped", "cramped"

    def __init__(self, pairs, pictures=1000):
        self.pairs, self.pictures, self.calls, self.encoded = pairs, pictures, [], []

    def encode_image(self, image):
        self.encoded.append(len(image))
        if len(image) > self.pictures:
            raise MemoryError
        return image.mean((1, 2, 3))[:, None, None, None]

    def presence(self, encoding, keys, values, token_mask):
        return None

    def decode(self, encoding, keys, values, token_mask):
        self.calls.append((len(encoding), len(keys)))
        if len(encoding) * len(keys) > self.pairs:
            raise BackendError("onnxruntime failed: Failed to allocate memory for requested buffer of size 99")
        return encoding * np.ones((1, 1, 4, 4), np.float32) + keys[None, :, :1, None]


def answered(runner, image, keys, mask):
    """Logits of all prompts about all pictures, and what was said."""
    found, notes = Asker(runner, (keys, keys, mask), Gate(None, 2), 1).about_pixels(image)
    return found.logits, notes


@pytest.mark.parametrize(("fits", "pictures", "prompts"), [(3, 1, 10), (3, 5, 1), (4, 4, 6), (1, 2, 2), (100, 3, 3)])
def test_out_of_memory_halves_the_chunk_and_says_so(fits, pictures, prompts):
    image = np.arange(pictures, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 8, 8), np.float32)
    keys = np.arange(prompts, dtype=np.float32)[:, None]
    mask = np.ones((prompts, 8), np.bool_)
    runner = ChunkedRunner(Cramped(fits))
    logits, notes = answered(runner, image, keys, mask)
    want = np.arange(pictures)[:, None] + np.arange(prompts)[None, :]
    assert np.array_equal(logits, np.broadcast_to(want[..., None, None], (pictures, prompts, 4, 4)).astype(np.float32))
    assert bool(notes) == (fits < pictures * prompts)
    if notes:
        assert (
            notes[0] == f"out of memory with {pictures * prompts} masks at once, went on with {pictures * prompts // 2}"
        )
        assert answered(runner, image, keys, mask)[1] == ()  # remembered
    assert runner.backend.encoded == [pictures] * (1 + bool(notes))  # a picture is not encoded again for smaller chunks


def test_pictures_are_encoded_fewer_at_once_where_memory_runs_out():
    runner = ChunkedRunner(Cramped(1000, pictures=2))
    image = np.arange(5, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 8, 8), np.float32)
    keys, mask = np.zeros((1, 1), np.float32), np.ones((1, 8), np.bool_)
    logits, notes = answered(runner, image, keys, mask)
    assert logits[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4] and runner.backend.encoded == [5, 2, 2, 1]
    assert notes == ("out of memory with 5 pictures at once, went on with 2",)
    assert answered(runner, image, keys, mask)[1] == ()
    with pytest.raises(BackendError, match=r"out of memory for one picture of 8x8 pixels; .*--tile"):
        answered(ChunkedRunner(Cramped(1, pictures=0)), image, keys, mask)


def test_no_memory_at_all_is_one_clear_error():
    with pytest.raises(BackendError, match=r"out of memory for one prompt about one picture of 8x8.*--tile"):
        answered(ChunkedRunner(Cramped(0)), np.zeros((1, 3, 8, 8)), np.zeros((4, 1)), np.ones((4, 8)))


def test_other_failures_are_not_taken_for_memory():
    class Broken(Cramped):
        def decode(self, *given):
            raise BackendError("onnxruntime failed: bad shape")

    with pytest.raises(BackendError, match="bad shape"):
        answered(ChunkedRunner(Broken(9)), np.zeros((1, 3, 8, 8)), np.zeros((4, 1)), np.ones((4, 8)))


def test_chunks_respect_the_budget():
    backend = Cramped(100)
    keys = np.zeros((7, 1), np.float32)
    answered(ChunkedRunner(backend, 2 * BYTES_PER_PIXEL * 64), np.zeros((3, 3, 8, 8), np.float32), keys, keys > 0)
    assert max(b * k for b, k in backend.calls) == 2 and sum(b * k for b, k in backend.calls) == 21
    assert backend.encoded == [2, 1]


def test_chunked_answers_of_the_real_model(engine):
    many = [f"thing number {i}" for i in range(9)]
    whole = engine.segment(PICTURES[2], many).logits
    small = Engine(engine.source, engine.backend)
    small.runner = ChunkedRunner(engine.backend, 4 * BYTES_PER_PIXEL * 64 * 64)
    assert np.abs(small.segment(PICTURES[2], many).logits - whole).max() <= 1e-4 * np.abs(whole).max()


def test_the_prompt_cache_encodes_once_and_is_bounded(engine):
    calls = []
    lock = threading.Lock()

    def encode(ids, mask):
        with lock:
            calls.append(ids.tolist())
        return engine.backend.encode_text(ids, mask)

    cache = PromptCache(engine.prompts.tokenizer, encode)
    cache.fold(["red", "blue"])
    cache.fold(["blue", "red", "blue"])
    assert len(calls) == 2 and len(cache) == 2
    one = cache.one("red").size
    cache = PromptCache(engine.prompts.tokenizer, encode, most_bytes=3 * one)
    for i in range(10):
        cache.one(f"red {i}")
        assert cache.size <= 3 * one
    cache.one("red 8")
    cache.one("green 1")
    cache.one("red 8")
    assert len(calls) == 2 + 10 + 1  # the one used last was kept
    cache.clear()
    assert len(cache) == cache.size == 0


def test_labels_without_all_full_size_logits():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 16, 24)).astype(np.float32)
    logits[3] = logits[1]  # a tie goes to the first
    canvas = fit(rng.integers(0, 255, (30, 45, 3), np.uint8), 48, 16)
    full = unfit(logits, canvas)
    seen = []

    def enlarge(plane):
        seen.append(plane.shape)
        return unfit(plane[None], canvas)[0]

    found = label(list(logits), enlarge, (30, 45), Rules(labels="strongest"))
    assert np.array_equal(found.masks, full > 0) and np.array_equal(found.pixels, (full > 0).sum((1, 2)))
    assert np.array_equal(found.label_map, np.where((full > 0).any(0), full.argmax(0) + 1, 0))
    for k in range(5):
        assert found.scores[k] == pytest.approx((1 / (1 + np.exp(-full[k][full[k] > 0]))).mean(), rel=1e-5)
    assert len(seen) == 5


def test_coco_annotations(engine):
    from digseg_engine.runtime.rle import decode

    result = engine.segment(PICTURES[1], PROMPTS)
    found = result.as_coco(image_id=7)
    assert [a["category_id"] for a in found] == [k + 1 for k in range(3) if result.masks[k].any()] and found
    for note in found:
        mask = result.masks[note["category_id"] - 1]
        assert (
            np.array_equal(decode(note["segmentation"]), mask) and note["area"] == mask.sum() and note["image_id"] == 7
        )
        x, y, width, height = note["bbox"]
        assert mask[y : y + height, x : x + width].sum() == mask.sum()
