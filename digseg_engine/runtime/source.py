"""What an engine is loaded from: a bundle, a checkpoint directory, or a bundle with the checkpoint it came from.

Also the golden sample: one picture, three prompts, the right logits and presence. A bundle carries it (PyTorch's float32
answer at export); for a bare checkpoint it is computed by plain PyTorch.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from digseg_engine.bundle import MANIFEST, Bundle, open_bundle
from digseg_engine.contract import LABEL_MAP, LOGITS
from digseg_engine.errors import BackendError, BundleError, UsageError
from digseg_engine.folders import recover
from digseg_engine.precisions import PLAIN, spec_of
from digseg_engine.runtime.profile import Profile
from digseg_engine.signatures import Signer, verify
from digseg_engine.text import PromptTokenizer
from digseg_engine.vocabulary import Vocabulary
from digseg_engine.working_size import WorkingSize, working_size

LITTLE = 7e11  # pictures x pixels x bytes of weights: one picture of 256 pixels for the bundled model in fp16


@dataclass(frozen=True)
class Golden:
    """image [1, 3, H, W], token_ids and token_mask [3, L], logits [1, 3, h', w']; the largest relative error (L2) and
    smallest mean mask IoU that count as right; presence logits [1, 3], None for a model without the readout.

    Of a folded bundle: no tokens, logits of the first names (of none where it has the map alone), presence of all, label_map
    [1, H, W], and `iou` is the smallest share of it that counts as right.
    """

    image: NDArray[np.float32]
    token_ids: NDArray[np.int64]
    token_mask: NDArray[np.bool_]
    logits: NDArray[np.float32]
    relative: float
    iou: float
    presence: NDArray[np.float32] | None = None
    label_map: NDArray[Any] | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the axes B, K, L, H and W; of a folded bundle without K and L."""
        (b, _, h, w), (k, length) = self.image.shape, self.token_ids.shape
        return {"B": b, "H": h, "W": w, **({"K": k, "L": length} if self.label_map is None else {})}

    @property
    def judged(self) -> str:
        """What `iou` is the least of, in words."""
        return "mask IoU" if self.label_map is None else "share of the label map"

    def allowing(self, precision: str) -> Golden:
        """The same sample with room for a backend that computes in `precision`, where it has less room than that."""
        limits = spec_of(precision).limits
        return replace(self, relative=max(self.relative, limits.relative), iou=min(self.iou, limits.iou))


@dataclass(frozen=True)
class Source:
    """At least one of bundle and checkpoint is given. Every hash of the bundle has been checked.

    brief: little work follows; a backend that can should start sooner rather than run faster. threads: how many a
    backend on the CPU may use (None: as many as this process has cores); device: "cpu", "cuda", "cuda:1", or of OpenVINO "gpu",
    "gpu:1", "npu" (None: the backend's own choice). engines: a folder of plans that the user named, for the backend that runs
    them. signer: whose signature the bundle was found to carry. Raises UsageError for other threads or devices, and for parts
    that a signature does not cover beside one that is required.
    """

    bundle: Bundle | None
    checkpoint: Path | None
    brief: bool = False
    threads: int | None = None
    device: str | None = None
    engines: Path | None = None
    signer: Signer | None = None

    def __post_init__(self) -> None:
        for name, given in (("checkpoint", self.checkpoint), ("engines", self.engines)):
            if self.signer is not None and given is not None:
                raise UsageError(f"{name} {given} is not covered by the bundle's signature, which is required here; leave one of "
                                 "the two out")  # fmt: skip
        count = self.threads
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1024):
            raise UsageError(
                f"threads must be a whole number from 1 to 1024, got {count!r}; leave it out for all cores"
            )
        if self.device is not None and not re.fullmatch(r"cpu|npu|(cuda|gpu)(:\d{1,3})?", str(self.device)):
            raise UsageError(
                f"unknown device {self.device!r}; expected cpu, cuda or cuda:NUMBER, or for OpenVINO "
                "gpu, gpu:NUMBER or npu"
            )

    def need_bundle(self, backend: str) -> Bundle:
        """The bundle. Raises BackendError when there is none."""
        if self.bundle is None:
            raise BackendError(f"backend {backend} needs a bundle, got the checkpoint {self.checkpoint}; "
                               "export it with `digseg-export`")  # fmt: skip
        return self.bundle

    def need_checkpoint(self, backend: str) -> Path:
        """The checkpoint directory. Raises BackendError when there is none."""
        if self.checkpoint is None:
            raise BackendError(f"{backend} needs a checkpoint, and a bundle alone was given; pass checkpoint=DIRECTORY "
                               "(--checkpoint DIRECTORY), the one the bundle was exported from")  # fmt: skip
        return self.checkpoint

    def with_work(self, pictures: int | None, size: int) -> Source:
        """The same source; brief when optimising its graphs would take longer than it saves on so many pictures."""
        if pictures is None:
            return self
        if self.bundle is not None:
            files = self.bundle.manifest["files"]
            weights = sum(int(entry["size"]) for name, entry in files.items() if name.endswith(".data"))
        else:
            weights = sum(path.stat().st_size for path in self.need_checkpoint("torch").rglob("*.safetensors"))
        return replace(self, brief=pictures * size**2 * weights <= LITTLE)

    def portable(self) -> Portable:
        """What another process needs to open the same again."""
        folder = None if self.bundle is None else self.bundle.folder.absolute()
        trained = None if self.checkpoint is None else self.checkpoint.absolute()
        plans = None if self.engines is None else self.engines.absolute()
        return Portable(folder, trained, self.brief, self.threads, self.device, self.digest, plans, self.signer)

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The names of a folded bundle; None for what takes any prompt."""
        return None if self.bundle is None else self.bundle.vocabulary

    def tokenizer(self) -> PromptTokenizer:
        """The model's own. Raises BundleError when it cannot be read."""
        if self.bundle is not None:
            return PromptTokenizer.parse(self.bundle.read("tokenizer.json"), self.bundle.file("tokenizer.json"))
        return PromptTokenizer.load(self.need_checkpoint("the tokenizer") / "tokenizer" / "tokenizer.json")

    @cached_property
    def size(self) -> WorkingSize:
        """What pictures are worked at by default, where the shapes are free."""
        if self.bundle is not None:
            return working_size(self.bundle.manifest)
        size: WorkingSize = self._trained.config.working_size
        return size

    @cached_property
    def stride(self) -> int:
        """What the sides of the model's pixels must be multiples of."""
        return int(self._trained.stride if self.bundle is None else self.bundle.manifest["model"]["stride"])

    @property
    def _trained(self) -> Any:
        from digseg_engine.runtime.backends import torch_backend

        return torch_backend.checkpoint_at(self.need_checkpoint("torch"))

    @cached_property
    def presence_threshold(self) -> float | None:
        """The logit under which a prompt is not in a picture, as the bundle says, or where there is none the checkpoint; None
        for a model that leaves nothing out."""
        if self.bundle is not None:
            stated = self.bundle.manifest.get("presence") or {}
            return None if stated.get("threshold") is None else float(stated["threshold"])
        from digseg_engine.runtime.backends import torch_backend

        return torch_backend.presence_threshold(self.need_checkpoint("torch"))

    @cached_property
    def cell(self) -> int:
        """Pixels of one logit along a side."""
        if self.bundle is not None:
            if self.golden.logits.size == 0:
                return 1  # of a folded bundle with the map alone
            return int(self.golden.image.shape[2] // self.golden.logits.shape[2])
        from digseg_engine.runtime.backends import torch_backend

        return torch_backend.cell(self.need_checkpoint("torch"))

    @cached_property
    def profile(self) -> Profile | None:
        """The shapes a bundle was exported for; None where they are free. Raises BundleError when they cannot be read."""
        if self.bundle is None:
            return None
        try:
            return Profile.from_json(self.bundle.manifest["shapes"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"the shapes in the manifest of {self.bundle.folder} cannot be read: {error!r:.500}; "
                              "export the bundle again") from error  # fmt: skip

    @property
    def usual_side(self) -> int:
        """Pixels of the longer side that backends are measured at by default."""
        return self.size.usual if self.profile is None else self.profile.usual_side

    @cached_property
    def digest(self) -> str:
        """Identifies the weights in cache keys: hashes of a bundle's files; names, sizes and times of a checkpoint's."""
        parts = [] if self.bundle is None else [self.bundle.digest]
        if self.checkpoint is not None:
            for path in sorted(p for p in self.checkpoint.rglob("*") if p.is_file()):
                about = path.stat()
                parts.append(f"{path.relative_to(self.checkpoint)}:{about.st_size}:{about.st_mtime_ns}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def plans(self) -> str:
        """Identifies the folder of plans in cache keys; "" without one."""
        if self.engines is None:
            return ""
        try:
            return hashlib.sha256((self.engines / MANIFEST).read_bytes()).hexdigest()
        except OSError:  # whoever opens it says what is wrong
            return str(self.engines)

    @cached_property
    def golden(self) -> Golden:
        if self.bundle is None:
            from digseg_engine.runtime.backends import torch_backend

            path = self.need_checkpoint("torch")
            image, ids, mask, logits, presence = torch_backend.golden_arrays(path)
            return Golden(image, ids, mask, logits, PLAIN.limits.relative, PLAIN.limits.iou, presence)
        path, body = self.bundle.file("golden.safetensors"), self.bundle.read("golden.safetensors")
        try:
            arrays = load(body)
            limits = self.bundle.manifest["verification"]["limits"]
            if self.bundle.vocabulary is not None:
                return self._folded_golden(arrays, limits)
            parts = [arrays[name] for name in ("image", "token_ids", "token_mask", "logits")]
            golden = Golden(*parts, float(limits["relative"]), float(limits["iou"]), arrays.get("presence"))  # type: ignore[call-arg, arg-type, misc]
            sizes = golden.sizes
        except BundleError:
            raise
        except Exception as error:  # safetensors raises an error of its own
            raise BundleError(
                f"{path} holds no golden sample that can be read: {error!r:.500}; export the bundle again"
            ) from error
        self._check_golden(path, sizes)
        return golden

    def _folded_golden(self, arrays: dict[str, Any], limits: dict[str, Any]) -> Golden:
        """Of a folded bundle. Raises KeyError for what lacks, ValueError for what has another shape than the map."""
        image, label_map, none = arrays["image"], arrays[LABEL_MAP.name], np.zeros((0, 0), np.int64)
        logits = arrays.get(LOGITS.name, np.zeros((len(image), 0, 1, 1), np.float32))
        if label_map.shape != (len(image), *image.shape[2:]) or len(logits) != len(image):
            raise ValueError(f"a label map of shape {list(label_map.shape)} of pictures {list(image.shape)}")
        least = float(limits["labels"])
        golden = Golden(
            image,
            none,
            none.astype(np.bool_),
            logits,
            float(limits["relative"]),
            least,
            arrays.get("presence"),
            label_map,
        )
        self._check_golden(self.need_bundle("a golden sample").file("golden.safetensors"), golden.sizes)
        return golden

    def _check_golden(self, path: Path, sizes: dict[str, int]) -> None:
        if self.profile is not None and not self.profile.holds(sizes):
            raise BundleError(f"{path} does not fit the shapes in the manifest: {sizes}; export the bundle again")


@dataclass(frozen=True)
class Portable:
    """A source as paths and options, with the digest of its weights: small, and pickled with an engine."""

    bundle: Path | None
    checkpoint: Path | None
    brief: bool
    threads: int | None
    device: str | None
    digest: str
    engines: Path | None = None
    signer: Signer | None = None

    def reopened(self) -> Source:
        """The source. Raises BundleError when its files are gone, damaged or other ones by now."""
        opened = None if self.bundle is None else open_bundle(self.bundle)
        if opened is not None and self.signer is not None:
            verify(opened, self.signer)
        source = Source(opened, self.checkpoint, self.brief, self.threads, self.device, self.engines, self.signer)
        if source.digest != self.digest:
            raise BundleError(
                f"{self.bundle or self.checkpoint} has changed since the engine was opened; load it again"
            )
        return source


def open_source(folder: Path | str, checkpoint: Path | str | None = None, signer: Signer | None = None) -> Source:
    """A bundle directory (with the checkpoint it came from, for the torch backends) or a checkpoint directory. signer: whose
    signature it must carry.

    Raises BundleError for a damaged or foreign bundle and one that is not so signed, BackendError for a checkpoint that is
    not there.
    """
    folder = Path(folder)
    recover(folder)
    if signer is not None:
        if checkpoint is None and (folder / "digseg.json").is_file():
            raise UsageError(
                f"{folder} is a checkpoint, which carries no signature; export it with `digseg-export --sign KEY`"
            )
        signer.check()
        opened = open_bundle(folder)
        verify(opened, signer)
        return Source(opened, None if checkpoint is None else Path(checkpoint), signer=signer)
    if (folder / "digseg.json").is_file() and checkpoint is None:
        return Source(None, folder)
    trained = None if checkpoint is None else Path(checkpoint)
    if trained is not None and not (trained / "digseg.json").is_file():
        raise BackendError(f"{trained} is not a checkpoint: digseg.json not found; expected the directory written by "
                           "`digseg train`")  # fmt: skip
    return Source(open_bundle(folder), trained)
