"""After a build the engines answer the bundle's golden sample, or they are not kept. A stand-in answers zeros."""

import gc
import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from tensorrt_standin import standin
from test_tensorrt import EVERY, HALF_11, SHAPES, FakeDriver, folder, script  # noqa: F401

from digseg_engine.bundle import finish
from digseg_engine.errors import VerificationError
from digseg_export import to_tensorrt
from digseg_export.plan_builder import BuildOptions


def with_golden(folder, logits):  # noqa: F811
    """The bundle with a golden sample that expects these logits."""
    arrays = {"image": np.zeros((1, 3, 128, 128), np.float32), "token_ids": np.ones((2, 8), np.int64),
              "token_mask": np.ones((2, 8), bool), "logits": logits,
              "presence": np.zeros(SHAPES["presence"], np.float32)}  # fmt: skip
    save_file(arrays, str(folder / "golden.safetensors"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").unlink()
    del manifest["files"]
    finish(folder, {**manifest, "verification": {"limits": {"relative": 0.02, "iou": 0.99}}})


@pytest.mark.parametrize("wanted", [0.0, 1.0])
def test_engines_are_held_to_the_golden_sample(folder, wanted):  # noqa: F811
    with_golden(folder, np.full(SHAPES["logits"], wanted, np.float32))
    trt = standin("10.16.1", {
        **script(HALF_11), ("ICudaEngine", "num_io_tensors"): len(EVERY),
        ("ICudaEngine", "get_tensor_name"): lambda i: EVERY[i],
        ("IExecutionContext", "set_input_shape"): True, ("IExecutionContext", "infer_shapes"): [],
        ("IExecutionContext", "get_tensor_shape"): lambda name: SHAPES[name], ("IExecutionContext", "execute_async_v3"): True,
    })  # fmt: skip
    paths = to_tensorrt.build_engines(folder, BuildOptions(), lambda text: None, trt, FakeDriver())
    if wanted == 0:
        driver = FakeDriver()
        assert to_tensorrt.check_engines(folder, paths, trt, driver) == (0.0, 1.0)
        gc.collect()
        assert not driver.held and driver.freed and driver.ended == 1  # buffers and streams go with the backend
        assert all(path.is_file() for path in paths)
        return
    with pytest.raises(VerificationError, match=r"wrong: error 1.00e\+00 on the golden sample.*nothing was kept"):
        to_tensorrt.check_engines(folder, paths, trt, FakeDriver())
    assert not any(path.exists() or path.with_suffix(".json").exists() for path in paths)
