"""The manifest of a bundle: what was exported, from what, with which tools, checked how."""

from __future__ import annotations

import datetime
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import digseg_engine
from digseg_engine.contract import BUNDLE_FORMAT, contract_json
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.runtime.profile import AXES, Profile
from digseg_engine.vocabulary import Vocabulary

INHERITED = "that of the weights and data it was trained from"
TOOLS = (
    "torch",
    "diffusers",
    "transformers",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "numpy",
)  # by which an export is made


def manifest_of(
    checkpoint: Checkpoint, precision: dict[str, Any], graphs: dict[str, Any], verified: dict[str, Any],
    profile: Profile | None, presence: dict[str, Any] | None = None, vocabulary: Vocabulary | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Everything `manifest.json` says but the file list. presence: threshold and how it was chosen, of a model with that
    readout; vocabulary: of a folded bundle. What differs between two equal exports: `created` alone."""
    student = checkpoint.config.student
    body = {
        "format": BUNDLE_FORMAT,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "contract": contract_json(presence is not None, vocabulary.folding if vocabulary else None),
        "model": {
            "name": checkpoint.config.name,
            "image_size": checkpoint.config.image_size,
            "image_size_max": checkpoint.config.image_size_max,
            "stride": checkpoint.stride,
            "scales": len(checkpoint.student.injections),
            "encoding": checkpoint.student.layout.channels,
            "student": asdict(student),
        },
        "precision": precision,
        "shapes": profile.to_json() if profile else dict.fromkeys(AXES, "dynamic"),
        "graphs": graphs,
        "verification": verified,
        "tools": {
            "digseg-engine": digseg_engine.__version__,
            "python": platform.python_version(),
            **{t: version(t) for t in TOOLS},
        },
        "licence": {"code": "Apache-2.0", "weights": checkpoint.config.licence or INHERITED},
    }
    of_readout = {} if presence is None else {"presence": presence}
    return {**body, **of_readout, **({} if vocabulary is None else {"vocabulary": vocabulary.to_json()})}
