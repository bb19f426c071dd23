"""The class that the Python backend of Triton Inference Server looks for: its requests to `triton_server.Role` and back.

A model's `model.py` is `TritonPythonModel = python_model(pb_utils)`; its configuration says which role, over which bundle.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from digseg_engine.errors import BackendError, DigsegError, InputError, UsageError
from digseg_engine.runtime.engine import Engine
from digseg_engine.serving.limits import Limits
from digseg_engine.serving.problems import RequestError
from digseg_engine.serving.triton_graphs import FORMS, engine_over
from digseg_engine.serving.triton_server import ENGINE, LIMITS, MODELS, ROLES, Answer, Asked, Role


def python_model(utils: Any) -> type:
    """The class that the server's Python backend looks for in `model.py`. utils: its `triton_python_backend_utils`."""

    class TritonPythonModel:
        def initialize(self, args: dict[str, str]) -> None:
            self.role = open_role(args, utils)

        def execute(self, requests: list[Any]) -> list[Any]:
            try:
                asked = [_asked(request, utils, self.role) for request in requests]
                answers = self.role.answer(asked)
            except Exception:  # no request may end the process of all the others
                traceback.print_exc()
                answers = [BackendError("the model failed; the server's log says why")] * len(requests)
            return [_response(answer, utils) for answer in answers]

        def finalize(self) -> None:
            self.role.engine.close()

    return TritonPythonModel


def _asked(request: Any, utils: Any, role: Role) -> Asked:
    names = {border.name for inputs, _ in ROLES.values() for border in inputs}
    tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs() if tensor.name() in names}
    return Asked(tensors, json.loads(request.parameters() or "{}"), frozenset(request.requested_output_names()))


def _response(answer: Answer | DigsegError, utils: Any) -> Any:
    if isinstance(answer, DigsegError):
        ours = isinstance(answer, (RequestError, InputError, UsageError))
        code = utils.TritonError.INVALID_ARG if ours else utils.TritonError.INTERNAL
        return utils.InferenceResponse(error=utils.TritonError(" ".join(str(answer).split()), code))
    return utils.InferenceResponse([utils.Tensor(name, array) for name, array in answer.items()])


def open_role(args: Mapping[str, str], utils: Any) -> Role:
    """The model that a configuration describes, warm. args: what the server gives to `initialize`. Raises DigsegError."""
    config = json.loads(args["model_config"])
    given = {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
    try:
        limits = Limits(**{field: int(given[name]) for name, field in LIMITS.items()})
        role, bundle = MODELS[given["role"]], Path(args["model_repository"], given["bundle"])
        threads = int(given["threads"]) if given.get("threads") else None
        graphs, backend = given["graphs"], given["backend"]
        if graphs not in (ENGINE, *FORMS):
            raise ValueError(f"graphs = {graphs!r:.40}")
    except (KeyError, ValueError) as error:
        raise UsageError(f"config.pbtxt of {args.get('model_name')}: {type(error).__name__} at parameter {error}; write the "
                         "repository again, or set it right") from error  # fmt: skip
    gpu = args.get("model_instance_kind") == "GPU"
    device = f"cuda:{args.get('model_instance_device_id', 0)}" if gpu and graphs == ENGINE else None
    if graphs == ENGINE:
        engine = Engine.load(bundle, backend, threads=threads, device=device)
        engine.segment(np.zeros((64, 64, 3), np.uint8), list(engine.vocabulary[:1]) or ["a thing"], keep_masks=False)
    else:
        engine = engine_over(bundle, given["models"], graphs, utils)
    return role(engine, limits)
