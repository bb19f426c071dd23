"""Asks a bundle that Triton Inference Server serves: `python triton_server_client.py PHOTO road building`.

The server's HTTP protocol (KServe v2, with binary tensors) in a few lines of the standard library and NumPy; NVIDIA's
`tritonclient` speaks the same. The repository is written by `digseg-export --triton-repository`, see docs/triton-server.md.
"""

from __future__ import annotations

import argparse
import json
import struct
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

KINDS = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
}


class ServerError(Exception):
    """What the server says is wrong with a request; `status` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def infer(
    address: str, model: str, inputs: Mapping[str, Any], outputs: Iterable[str] = (),
    parameters: Mapping[str, Any] | None = None, seconds: float = 120.0,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Ask a model. inputs: arrays, or lists of bytes or texts, of one picture; outputs: which are wanted, all where none is
    named.

    Returns the outputs of the picture, texts as an array of bytes. Raises ServerError.
    """
    tensors, bodies = [], []
    for name, value in inputs.items():
        kind, shape, body = packed(value)
        bodies.append(body)
        tensors.append(
            {"name": name, "datatype": kind, "shape": [1, *shape], "parameters": {"binary_data_size": len(body)}}
        )
    head: dict[str, Any] = {"inputs": tensors, "parameters": {**(parameters or {}), "binary_data_output": True}}
    if wanted := list(outputs):
        head["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in wanted]
    text = json.dumps(head).encode()
    request = urllib.request.Request(
        f"{address}/v2/models/{model}/infer",
        b"".join([text, *bodies]),
        {"Inference-Header-Content-Length": str(len(text))},
    )
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            length, body = int(answer.headers["Inference-Header-Content-Length"]), answer.read()
    except urllib.error.HTTPError as error:
        said = error.read()
        try:
            message = json.loads(said)["error"]
        except (ValueError, KeyError, TypeError):
            message = said.decode("utf-8", "replace")
        raise ServerError(error.code, message) from error
    found, at = {}, length
    for tensor in json.loads(body[:length])["outputs"]:
        size = tensor["parameters"]["binary_data_size"]
        found[tensor["name"]] = unpacked(tensor, body[at : at + size])
        at += size
    return found


def packed(value: Any) -> tuple[str, tuple[int, ...], bytes]:
    """Type, shape and bytes of a tensor; each text stands behind its length."""
    if isinstance(value, np.ndarray):
        kind = next(name for name, dtype in KINDS.items() if value.dtype == dtype)
        return kind, value.shape, np.ascontiguousarray(value).tobytes()
    texts = [each.encode() if isinstance(each, str) else each for each in value]
    return "BYTES", (len(texts),), b"".join(struct.pack("<I", len(text)) + text for text in texts)


def unpacked(tensor: Mapping[str, Any], body: bytes) -> np.ndarray:
    """The tensor of the first picture."""
    if tensor["datatype"] == "BYTES":
        texts, at = [], 0
        while at < len(body):
            (length,) = struct.unpack_from("<I", body, at)
            texts.append(body[at + 4 : at + 4 + length])
            at += 4 + length
        return np.array(texts, object).reshape(tensor["shape"])[0]
    return np.frombuffer(body, KINDS[tensor["datatype"]]).reshape(tensor["shape"])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo")
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--address", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="digseg-tiny-fp16")
    typed = parser.parse_args()
    with open(typed.photo, "rb") as file:
        photo = file.read()
    answer = infer(
        typed.address, typed.model, {"IMAGE": [photo], "PROMPTS": typed.prompts}, ("LABELS", "SCORES", "THERE")
    )
    for k, prompt in enumerate(typed.prompts):
        share = (answer["LABELS"] == k + 1).mean()
        print(f"{prompt}: {100 * share:.1f} % of the picture, score {answer['SCORES'][k]:.2f}, "
              f"{'there' if answer['THERE'][k] else 'not there'}")  # fmt: skip

    # the same in two steps: the picture is encoded once, each further question costs its own work alone
    encoded = infer(typed.address, f"{typed.model}_encode", {"IMAGE": [photo]})
    for prompt in typed.prompts:
        again = infer(typed.address, f"{typed.model}_decode", {**encoded, "PROMPTS": [prompt]}, ("MASKS",))
        print(f"{prompt}: a mask of {int(again['MASKS'][0].sum())} pixels")


if __name__ == "__main__":
    main()
