"""Streams and endings: buffers that are refilled, sources that block, pictures that fail, engines that are closed or sent
to another process."""

import copy
import gc
import multiprocessing
import pickle
import queue
import sys
import threading
import weakref

import numpy as np
import pytest
from programs import run_program

from digseg_engine import Engine
from digseg_engine.errors import BackendError, BundleError, DigsegError, InputError, UsageError

RNG = np.random.default_rng(11)
FRAMES = [RNG.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(3)]
PROMPTS = ["red", "a star"]


@pytest.fixture(scope="module")
def engine(nano_models):
    return Engine.load(nano_models.fp32, "onnxruntime")


def refilled(count, wrap=lambda buffer: buffer):
    """A camera: one buffer, filled anew for every frame."""
    buffer = np.empty((64, 64, 3), np.uint8)
    for i in range(count):
        buffer[:] = FRAMES[i % 3]
        yield wrap(buffer)
    buffer[:] = 0


def as_tensor(buffer):
    import torch

    return torch.from_numpy(buffer)


@pytest.mark.parametrize("wrap", [lambda buffer: buffer, lambda buffer: buffer[:, :], as_tensor])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_refilled_buffer_gives_every_frame_its_own_masks(engine, wrap, batch):
    want = [engine.segment(frame, PROMPTS).masks for frame in FRAMES]
    found = list(engine.stream(refilled(12, wrap), PROMPTS, batch=batch))
    assert len(found) == 12
    for i, result in enumerate(found):
        assert np.array_equal(result.image, FRAMES[i % 3]) and np.array_equal(result.masks, want[i % 3])


def test_a_result_does_not_change_with_the_callers_array(engine):
    for ask in (lambda a: engine.segment(a, PROMPTS), lambda a: engine.segment_batch([a], PROMPTS)[0],
                lambda a: engine.segment(as_tensor(a), PROMPTS)):  # fmt: skip
        given = FRAMES[0].copy()
        result = ask(given)
        given[:] = 0
        assert np.array_equal(result.image, FRAMES[0])


BLOCKED = """
import queue
import numpy as np
from digseg_engine import Engine
def camera():
    yield np.zeros((64, 64, 3), np.uint8)
    queue.Queue().get()  # never another frame
with Engine.load({folder!r}, "onnxruntime") as engine:
    for result in engine.stream(camera(), ["red"], batch={batch}):
        break
    print("left")
"""


def test_leaving_early_does_not_wait_for_a_source_that_blocks(nano_models):
    """The program ends too: a thread that waits for the source would keep it alive until the limit of `run_program`."""
    done = run_program([sys.executable, "-c", BLOCKED.format(folder=str(nano_models.fp32), batch=1)])
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr


def test_after_leaving_the_source_is_read_no_further(engine):
    frames, taken = queue.Queue(), []

    def camera():
        while (frame := frames.get()) is not None:
            taken.append(1)
            yield frame

    before = set(threading.enumerate())
    frames.put(FRAMES[0])
    stream = engine.stream(camera(), PROMPTS)
    next(stream)
    (reader,) = set(threading.enumerate()) - before
    stream.close()
    assert reader.daemon
    for _ in range(5):
        frames.put(FRAMES[1])
    reader.join(600)
    assert not reader.is_alive() and len(taken) <= 2  # the frame that it was waiting for, if it was


def test_a_stream_that_is_never_begun_reads_nothing(engine):
    stream = engine.stream(iter(pytest.fail, None), PROMPTS)
    del stream


def failing_source(error):
    yield FRAMES[0]
    yield FRAMES[1]
    raise error


@pytest.mark.parametrize("error", [OSError("camera unplugged"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_an_exception_of_the_source_comes_after_the_results_before_it(engine, error, batch):
    found = []
    with pytest.raises(type(error)):
        found.extend(engine.stream(failing_source(error), PROMPTS, batch=batch, on_error="return"))
    assert len(found) == 2 and all(np.array_equal(result.image, frame) for result, frame in zip(found, FRAMES))


MIXED = [FRAMES[0], "nowhere.png", FRAMES[1], b"text", np.zeros((3, 3, 3), np.uint8), FRAMES[2]]


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_a_failed_picture_loses_no_other(engine, batch):
    found = list(engine.stream(MIXED, PROMPTS, batch=batch, on_error="return"))
    assert [isinstance(result, InputError) for result in found] == [False, True, False, True, True, False]
    assert "nowhere.png" in str(found[1]) and "picture 3" in str(found[3]) and "picture 4" in str(found[4])
    for result, frame in zip((found[0], found[2], found[5]), FRAMES):
        assert np.array_equal(result.masks, engine.segment(frame, PROMPTS).masks)
    together = engine.segment_batch(MIXED, PROMPTS, on_error="return")
    assert [type(result) for result in together] == [type(result) for result in found]


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_by_default_its_error_is_raised_after_the_results_before_it(engine, batch):
    found = []
    with pytest.raises(InputError, match=r"nowhere\.png"):
        found.extend(engine.stream(MIXED, PROMPTS, batch=batch))
    assert len(found) == 1
    with pytest.raises(InputError, match=r"nowhere\.png"):
        engine.segment_batch(MIXED, PROMPTS)


def test_a_picture_the_model_fails_on_loses_no_other(nano_models):
    engine = Engine.load(nano_models.fp32, "onnxruntime")
    run = engine.backend.encode_image

    def encode_image(image):
        if (image.mean((1, 2, 3)) < -0.9).any():
            raise RuntimeError("black")
        return run(image)

    engine.backend.encode_image = encode_image
    given = [FRAMES[0], np.zeros_like(FRAMES[0]), FRAMES[1]]
    first, black, last = engine.segment_batch(given, PROMPTS, on_error="return")
    assert isinstance(black, BackendError) and "black" in str(black)
    assert first.masks.shape == last.masks.shape == (2, 64, 64)
    with pytest.raises(BackendError, match="black"):
        engine.segment_batch(given, PROMPTS)


def test_what_is_wrong_with_the_request_is_raised_at_once(engine):
    for wrong in ([], [""], ["red " * 90]):
        with pytest.raises(InputError):
            engine.segment_batch(FRAMES, wrong, on_error="return")
        with pytest.raises(InputError):
            engine.stream(FRAMES, wrong, on_error="return")
    for options in ({"on_error": "ignore"}, {"threshold": 2.0}, {"labels": "best"}):
        with pytest.raises(UsageError):
            engine.stream(FRAMES, PROMPTS, **options)
        with pytest.raises(UsageError):
            engine.segment_batch(FRAMES, PROMPTS, **options)
    with pytest.raises(UsageError, match="working size"):
        engine.segment_batch(FRAMES, PROMPTS, size=1, on_error="return")


def test_the_same_options_everywhere(engine):
    options = {"size": 32, "threshold": 0.3, "labels": "smallest", "keep_masks": False}
    alone = engine.segment(FRAMES[0], PROMPTS, **options)
    for result in (engine.segment_batch([FRAMES[0]], PROMPTS, **options)[0],
                   next(engine.stream([FRAMES[0]], PROMPTS, **options))):  # fmt: skip
        assert np.array_equal(result.label_map, alone.label_map) and np.array_equal(result.logits, alone.logits)
        assert result.about == alone.about and result.about.size == 32


def test_a_picture_that_was_shrunk_a_lot_says_so(engine):
    large = np.zeros((100, 200, 3), np.uint8)
    assert any("worked at 64 px, the picture has 200" in note for note in engine.segment(large, ["a"]).fallbacks)
    assert engine.segment(large, ["a"], size=96).fallbacks == ()
    small, big = engine.segment_batch([FRAMES[0], large], ["a"])
    assert small.fallbacks == () and len(big.fallbacks) == 1


def test_closing_lets_the_backend_go_and_later_use_says_so(nano_models):
    engine = Engine.load(nano_models.fp32, "onnxruntime")
    kept = engine.segment(FRAMES[0], PROMPTS)
    backend, ended = weakref.ref(engine.backend), []
    engine.backend.close = lambda: ended.append(1)
    engine.close()
    engine.close()
    gc.collect()
    assert backend() is None and ended == [1]
    uses = (
        lambda: engine.segment(FRAMES[0], PROMPTS), lambda: engine.segment_batch([FRAMES[0]], PROMPTS),
        lambda: engine.segment_batch([], PROMPTS), lambda: list(engine.stream(FRAMES, PROMPTS)), lambda: engine.backend,
        lambda: engine.logits(np.zeros((1, 3, 64, 64), np.float32), PROMPTS), lambda: engine.bundle,
        lambda: engine.segment_tiles(FRAMES[0], PROMPTS, "."), lambda: pickle.dumps(engine), lambda: engine.__enter__(),
    )  # fmt: skip
    for use in uses:
        with pytest.raises(UsageError, match=r"engine is closed; load it again"):
            use()
    assert kept.masks.shape == (2, 64, 64)
    with pytest.raises(AttributeError, match="'Engine' object has no attribute 'nothing'"):
        _ = engine.nothing


def work(engine, picture):
    return engine.segment(picture, PROMPTS).masks, engine.backend.name, engine.source.threads


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_an_engine_goes_to_another_process(nano_models, engine, method, monkeypatch):
    monkeypatch.chdir(nano_models.fp32.parent)
    given = Engine.load("fp32", threads=1)  # a relative path
    with multiprocessing.get_context(method).Pool(1) as pool:
        masks, name, threads = pool.apply_async(work, (given, FRAMES[0])).get(3000)
    assert np.array_equal(masks, engine.segment(FRAMES[0], PROMPTS).masks) and (name, threads) == ("onnxruntime", 1)


def test_a_pickle_is_small_and_opens_the_same(engine):
    body = pickle.dumps(engine)
    assert len(body) < 2000
    for again in (pickle.loads(body), copy.deepcopy(engine)):
        assert again is not engine and np.array_equal(again.segment(FRAMES[1], PROMPTS).logits,
                                                      engine.segment(FRAMES[1], PROMPTS).logits)  # fmt: skip


def test_a_pickle_of_a_model_that_changed_is_refused(nano_models, tmp_path):
    import shutil

    folder = shutil.copytree(nano_models.fp32, tmp_path / "model")
    body = pickle.dumps(Engine.load(folder, "onnxruntime"))
    shutil.rmtree(folder)
    with pytest.raises(DigsegError, match="not found"):
        pickle.loads(body)
    shutil.copytree(nano_models.fp16, folder)
    with pytest.raises(BundleError, match="has changed"):
        pickle.loads(body)
