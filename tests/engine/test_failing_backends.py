"""A backend that fails in whatever way is a row with its reason, and another one runs; by name it is an error, not garbage."""

import json

import numpy as np
import pytest
from nano_models import AsItIs, Shifted

from digseg_engine import Engine
from digseg_engine.errors import BackendError, BundleError, DigsegError
from digseg_engine.runtime import backends, choice, verdicts
from digseg_engine.runtime.backends import BackendKind, Usable
from digseg_engine.runtime.backends.ort_backend import OrtBackend
from digseg_engine.runtime.choice import Task, check_golden, choose, measure, within_limits
from digseg_engine.runtime.source import Golden, open_source

TASK = Task(64)
PICTURE = np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)
CALLS = ("probe", "create", "encode", "picture", "presence", "run")
ERRORS = (
    RuntimeError("CUDA error: no kernel image"), OSError("libnvinfer.so.10: cannot open shared object file"),
    MemoryError(), KeyError("manifest"), ImportError("numpy.core"), AttributeError("no such"), RecursionError("deep"),
    StopIteration(), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
)  # fmt: skip


class Failing(OrtBackend):
    """Fails in one method, from its `after`th call on."""

    method, error, after, calls = "", RuntimeError("?"), 0, 0

    @classmethod
    def reach(cls, method):
        if method == cls.method:
            cls.calls += 1
            if cls.calls > cls.after:
                raise cls.error

    def __init__(self, source):
        self.reach("create")
        super().__init__(source)

    def encode_text(self, token_ids, token_mask):
        self.reach("encode")
        return super().encode_text(token_ids, token_mask)

    def encode_image(self, image):
        self.reach("picture")
        return super().encode_image(image)

    def presence(self, encoding, keys, values, token_mask):
        self.reach("presence")
        return super().presence(encoding, keys, values, token_mask)

    def decode(self, encoding, keys, values, token_mask):
        self.reach("run")
        return super().decode(encoding, keys, values, token_mask)


@pytest.fixture
def failing():
    """Register a backend `failing` that fails as told; taken out again at the end."""

    def add(method, error, after=0, base=Failing, version=""):
        made = type("Made", (base,), {"method": method, "error": error, "after": after, "calls": 0})

        def probe():
            made.reach("probe")
            return Usable("failing", True, "made for a test")

        def create(source):
            backend = made(source)
            backend.name = "failing"
            return backend

        backends.register(BackendKind("failing", probe, create, version=version))
        return made

    yield add
    if "failing" in backends.kinds():
        backends.unregister("failing")


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_backend_raises_is_a_row(nano_models, failing, method, error):
    failing(method, error)
    source, kind = open_source(nano_models.fp32), backends.kinds()["failing"]
    row = choice.assess(kind, choice.look(kind, source), source, TASK)
    assert not row.usable and not row.right and row.reason and "\n" not in row.reason


@pytest.mark.parametrize("method", CALLS)
def test_the_engine_loads_without_it(nano_models, failing, method):
    failing(method, RuntimeError("broken\nin two lines"))
    engine = Engine.load(nano_models.fp32)
    assert engine.backend.name != "failing" and engine.segment(PICTURE, ["red"]).masks.shape == (1, 64, 48)


@pytest.mark.parametrize("method", CALLS[1:])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_by_name_its_failure_is_our_error(nano_models, failing, method, error):
    failing(method, error)
    with pytest.raises((DigsegError, MemoryError)) as caught:
        Engine.load(nano_models.fp32, "failing")
    if isinstance(caught.value, DigsegError):
        assert "failing" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("method", CALLS)
def test_an_interruption_passes_through(nano_models, failing, method):
    failing(method, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        measure(open_source(nano_models.fp32), TASK)
    if method != "probe":
        with pytest.raises(KeyboardInterrupt):
            Engine.load(nano_models.fp32, "failing")


def test_a_winner_that_does_not_start_a_second_time_gives_way(nano_models, failing, monkeypatch):
    failing("create", OSError("gone"), after=1)
    times = {"onnxruntime": 9.0, "failing": 4.0}
    monkeypatch.setattr(choice, "time_backend", lambda backend, task, source: times[backend.name])
    verdict, backend = choose(open_source(nano_models.fp32), TASK)
    rows = {row.backend: row for row in verdict.rows}
    assert backend.name == verdict.chosen.backend == "onnxruntime" and "gone" in rows["failing"].reason


@pytest.mark.parametrize("method", ["encode", "picture", "presence", "run"])
def test_a_failure_after_loading_names_the_backend(nano_models, failing, method):
    made = failing(method, RuntimeError("device lost"), after=1)
    engine = Engine.load(nano_models.fp32, "failing")
    assert made.calls == 1  # verified
    with pytest.raises(BackendError, match=r"backend failing failed .*device lost"):
        engine.segment(PICTURE, ["red"])
    with pytest.raises(BackendError, match=r"backend failing failed .*device lost"):
        engine.logits(np.zeros((1, 3, 64, 64), np.float32), ["blue"])


def test_a_wrong_backend_asked_for_by_name_is_refused_every_time(nano_models, failing):
    failing("", None, base=type("Wrong", (Failing, Shifted), {}))
    for _ in range(2):
        with pytest.raises(BackendError, match=r"failing cannot be used here .*wrong: error .* on the golden sample"):
            Engine.load(nano_models.fp32, "failing")


def test_a_right_one_is_verified_once_per_version(nano_models, failing, own_cache):
    def verified(version):
        made = failing("run", RuntimeError("?"), after=99, version=version)
        engine = Engine.load(nano_models.fp32, "failing")
        backends.unregister("failing")
        return made.calls, engine

    assert [verified(version)[0] for version in ("1.0", "1.0", "1.1", "1.0", "")] == [1, 0, 1, 0, 1]
    for path in own_cache.iterdir():
        path.write_text(json.dumps({"right": "yes"}))  # nothing that we wrote
    assert verified("1.0")[0] == 1


def test_what_is_wrong_with_the_model_is_no_backends_fault(nano_models, monkeypatch):
    source = open_source(nano_models.fp32)
    del source.bundle.manifest["verification"]["limits"]
    with pytest.raises(BundleError, match="no golden sample that can be read"):
        choose(source, TASK)


@pytest.mark.parametrize(
    "hostile",
    [
        "[]", "null", "[" * 100_000, '{"rows": 3}', '{"rows": [1]}', '{"rows": [{"backend": "x"}]}', '{"rows": []}', "",
        '{"rows": [{"backend": "os.system", "usable": true, "right": true, "chosen": true}]}',
        '{"rows": [{"backend": ["onnxruntime"], "usable": true, "right": true, "chosen": true}]}',
        '{"rows": [{"backend": "onnxruntime", "usable": true, "right": false, "chosen": true}]}',
        '{"rows": [{"backend": "onnxruntime", "usable": 1, "right": true, "chosen": true}]}',
        '{"rows": [{"backend": "onnxruntime", "usable": true, "right": true, "chosen": true, "ms": "soon"}]}',
        '{"rows": [{"backend": "onnxruntime", "usable": true, "right": true, "chosen": true, "more": 1}]}',
        '{"rows": [{"backend": "onnxruntime", "usable": true, "right": true, "chosen": true, "reason": {}}]}',
    ],
)  # fmt: skip
def test_a_verdict_that_we_could_not_have_written_is_measured_again(nano_models, hostile):
    source = open_source(nano_models.fp32)
    choose(source, TASK)
    path = verdicts.folder() / f"choice-{choice.verdict_key(source, TASK.rounded)}.json"
    assert path.is_file()
    path.write_text(hostile)
    verdict, backend = choose(source, TASK)
    assert not verdict.cached and backend.name == verdict.chosen.backend in backends.kinds()


def test_agreement_counts_where_something_is_there():
    """Three prompts, two of them absent: half a mask is an IoU of 0.5 and not of 0.83."""
    want = np.full((1, 3, 4, 4), -1.0, np.float32)
    want[0, 0, :2] = 1.0
    got = want.copy()
    got[0, 0, 0] = -1.0

    class Told(AsItIs):
        name = "told"

        def encode_text(self, ids, mask):
            return ids, ids

        def decode(self, encoding, keys, values, mask):
            return got

    ids = np.zeros((3, 8), np.int64)
    golden = Golden(np.zeros((1, 3, 8, 8), np.float32), ids, ids > 0, want, 9.0, 0.8)
    error, iou = check_golden(Told(), golden)
    assert iou == pytest.approx(0.5)
    assert "mask IoU 0.5000" in within_limits(error, iou, golden)[1]
    want[:], got[:] = -1.0, -1.0
    assert check_golden(Told(), golden) == (0.0, 1.0)
