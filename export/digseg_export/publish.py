"""The export itself: checkpoint -> graphs -> precision -> checks -> bundle, all or nothing.

What is finished is kept until the bundle is there (`resumed.py`): after an interruption the same command goes on from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from digseg_engine.bundle import check_target, finish, open_bundle, writing
from digseg_engine.contract import IMAGE_ENCODER, MASK_DECODER, TEXT_ENCODER, GraphSpec
from digseg_engine.data.shares import Share
from digseg_engine.errors import VerificationError
from digseg_engine.files import write_arrays, write_bytes, write_json
from digseg_engine.model.folder import BUNDLED, is_large
from digseg_engine.model.pretrained import Checkpoint, load_checkpoint
from digseg_engine.precisions import USUAL, Limits, spec_of
from digseg_engine.runtime.profile import Profile
from digseg_engine.signatures import sign
from digseg_engine.vocabulary import Vocabulary
from digseg_export import resumed
from digseg_export.calibration import painted_domains
from digseg_export.comparison import Check, CheckError
from digseg_export.conversion import Conversion, Traced, fix_shapes
from digseg_export.disk_offload import Offloaded, open_offloaded
from digseg_export.export_key import checkpoint_hashes, export_key
from digseg_export.external_data import write_external_data
from digseg_export.folded import (
    Folded,
    folded_of,
    folded_report,
    golden_arrays,
    golden_sample,
    name_samples,
    open_maps,
    verify_labels,
    write_labels_graph,
)
from digseg_export.graph_check import check_graph
from digseg_export.kept_stages import Stages, one_export, waits_for
from digseg_export.manifest import manifest_of
from digseg_export.own_pictures import OwnPictures, check_folders, own_mixture, shares_of, trained_on
from digseg_export.preflight import check_size, default_output
from digseg_export.presence_threshold import choose_threshold, labelled
from digseg_export.progress import Progress, StepTimer
from digseg_export.prove import Answer, prove, prove_large
from digseg_export.sbom import SBOM, sbom_of
from digseg_export.tracing import trace
from digseg_export.verify import (
    OWN_PICTURES,
    PROMPTS,
    STAGES,
    Graphs,
    Sample,
    answer_of,
    report,
    samples,
    shaped_sample,
    verify,
)

GOLDEN = "golden.safetensors"


@dataclass(frozen=True)
class Options:
    """What can be asked beside model, precision and limits.

    shapes: makes the shape profile once the checkpoint's size and stride are known; None leaves all axes dynamic.
    calibration, verify_data: folders of labelled pictures, or of pictures and prompts.txt; none takes those that the
    checkpoint's record says it was trained on and that are there, else painted scenes.
    painted: domains of painted scenes to calibrate on beside folders.
    shares: what the record says it was trained on, for what only labelled pictures can say.
    vocabulary: the names of a folded bundle; None exports an open one.
    auto_islands: apply the bisect's cure.
    measured_islands: keep nodes in float32 whose calibration range does not fit fp16.
    """

    shapes: Callable[[Checkpoint], Profile] | None = None
    calibration: tuple[Path, ...] = ()
    verify_data: tuple[Path, ...] = ()
    painted: tuple[str, ...] = ()
    auto_islands: bool = False
    measured_islands: bool = True
    extra: Callable[[Checkpoint, Profile | None], dict[str, bytes]] | None = None  # more files for the bundle
    shares: tuple[Share, ...] = ()
    sign: Path | None = None  # private key
    record: Path | None = None  # the checkpoint's folder: what it says of its making goes into the bill of materials
    vocabulary: Vocabulary | None = None


@dataclass(frozen=True)
class Known:
    """The open graphs of a checkpoint in one precision, converted, verified, and with their presence threshold."""

    conversion: Conversion
    data: list[Sample]
    checks: list[Check]
    presence: dict[str, Any] | None


@dataclass(frozen=True)
class Exported:
    """What an export did: where, what was checked, sizes in bytes, seconds per step, and the precision policy.

    known: what folding more vocabularies need not find out again.
    """

    folder: Path
    precision: str
    checks: list[Check]
    limits: Limits
    sizes: dict[str, int]
    seconds: dict[str, float]
    policy: dict[str, Any]
    presence: dict[str, Any] | None  # of the manifest
    answers: list[Answer]  # of the written bundle, by every backend that can run here
    known: Known


def export_bundle(
    model: Path | None = None, precision: str = USUAL.name, output: Path | None = None,
    limits: Limits | None = None, progress: Progress = lambda step: None, options: Options | None = None,
) -> Exported:  # fmt: skip
    """Export a checkpoint directory (None: the bundled one) and return what was done.

    Raises UsageError for a precision or output that cannot be used, CheckpointError for a broken checkpoint and
    VerificationError when the graphs do not reproduce PyTorch; in every case nothing is left behind.
    """
    options = options or Options()
    target = output or default_output(model, spec_of(precision).name)
    limits = limits or spec_of(precision).limits
    check_target(target)
    folder = model or BUNDLED
    options = recorded(options, folder)
    check_folders(*options.calibration, *options.verify_data)
    timer = StepTimer(progress)
    with one_export(target, partial(waits_for, target)) as stages_of:
        timer.start("load checkpoint")
        check_size(folder, precision, options.vocabulary is not None)
        made_of = checkpoint_hashes(folder)
        checkpoint = open_offloaded(folder) if is_large(folder) else load_checkpoint(folder)
        # raises for sizes that this network does not take, before the long work
        profile = None if options.shapes is None else options.shapes(checkpoint)
        stages = stages_of(_key(made_of, precision, limits, options, profile))
        if stages.names:
            timer.say(f"go on from an interrupted export ({', '.join(stages.names)})")
        traced = trace(checkpoint, timer, stages)
        tokenizer = (folder / "tokenizer" / "tokenizer.json").read_bytes()
        return publish(checkpoint, traced, tokenizer, target, precision, limits, timer, options, stages=stages)


def recorded(options: Options, folder: Path) -> Options:
    """What was not asked for as the checkpoint's record has it."""
    known, shares = trained_on(folder), shares_of(folder)
    painted = () if options.calibration else painted_domains(shares)
    return replace(
        options, calibration=options.calibration or known, verify_data=options.verify_data or known, painted=painted,
        shares=shares, record=folder,
    )  # fmt: skip


def _key(
    made_of: dict[str, Any], precision: str, limits: Limits, options: Options, profile: Profile | None
) -> str:  # fmt: skip
    """Of all that the kept stages depend on."""
    asked = {"precision": precision, "limits": limits, "profile": profile and profile.to_json(), "shares": options.shares,
             "calibration": options.calibration, "painted": options.painted,
             "verify_data": options.verify_data, "vocabulary": options.vocabulary,
             "islands": [options.auto_islands, options.measured_islands]}  # fmt: skip
    folders = [*options.calibration, *options.verify_data, *(Path(share.data) for share in options.shares)]
    return export_key(made_of, asked, [folder for folder in folders if folder.is_dir()])


def publish(
    checkpoint: Checkpoint, traced: Traced, tokenizer: bytes, target: Path, precision: str, limits: Limits,
    timer: StepTimer, options: Options, known: Known | None = None, stages: Stages | None = None,
) -> Exported:  # fmt: skip
    """Traced graphs -> precision -> checks -> bundle at `target`, all or nothing.

    known: of an export of the same checkpoint, traced graphs, precision, limits and data before this one. The same bytes are
    written again and not verified again; what is folded of them is. stages: what an interrupted export had finished.
    """
    stages = stages or Stages()
    profile = options.shapes(checkpoint) if options.shapes else None
    with writing(target) as folder:
        stored = _store(checkpoint, traced, folder, precision, timer, stages)
        own = own_mixture(options.verify_data, OWN_PICTURES, PROMPTS) if options.verify_data else None
        if known is None:
            known = _known(folder, checkpoint, traced, precision, limits, timer, options, own, stored, stages)
        else:
            known.conversion.write(folder, traced)
        conversion, data, presence, checks = known.conversion, known.data, known.presence, list(known.checks)
        folded = None
        golden = data[0]
        if options.vocabulary is not None:
            folded, golden, more = _fold(
                folder, checkpoint, traced, conversion, data, presence, limits, timer, options.vocabulary, stages
            )
            checks += more
        if profile:
            timer.start("fix shapes")
            golden = resumed.answers(stages, "shaped", lambda: [_shaped(checkpoint, profile, folded)])[0]
            checks += _fix_and_verify(folder, traced, profile, golden, limits, timer, folded, precision, stages)
        timer.start("check graphs")
        graphs = {path.name: check_graph(path) for path in sorted(folder.glob("*.onnx"))}
        timer.start("write bundle")
        if folded is None:
            write_bytes(folder / "tokenizer.json", tokenizer)
            _write_golden(folder, golden, whole=profile is not None)
        else:
            write_arrays(folder / GOLDEN, golden_arrays(folded, golden), {"picture": golden.domain})
        for name, body in (options.extra(checkpoint, profile) if options.extra else {}).items():
            write_bytes(folder / name, body)
        words = conversion.report() if folded is None else folded_report(conversion.report())
        policy = {"format": "digseg.precision/1", **words}
        write_json(folder / "precision.json", policy, sort_keys=True)
        verified = report(checks, limits, data, own)
        manifest = manifest_of(checkpoint, words, graphs, verified, profile, presence, options.vocabulary)
        write_json(folder / SBOM, sbom_of(folder, manifest, options.record), sort_keys=True)
        finish(folder, manifest)
        if options.sign is not None:
            sign(open_bundle(folder), options.sign, target.name)
        timer.start("open the written bundle and ask it")
        answers = _prove(folder, checkpoint, golden, profile, timer, folded)
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    timer.stop()
    return Exported(target, precision, checks, limits, sizes, timer.seconds, words, presence, answers, known)


def _known(
    folder: Path, checkpoint: Checkpoint, traced: Traced, precision: str, limits: Limits, timer: StepTimer, options: Options,
    own: OwnPictures | None, stored: Path | None, stages: Stages,
) -> Known:  # fmt: skip
    """The open graphs, written into the folder and judged. Raises VerificationError."""
    timer.start("calibrate")
    conversion = resumed.measured(
        stages, stored, lambda: Conversion.measure(checkpoint, traced.models, precision, options, timer.detail, stored)
    )
    timer.start("answer pictures of your own in PyTorch" if own else "answer test scenes in PyTorch")
    data = resumed.answers(stages, "answered", lambda: samples(checkpoint, own))
    conversion, checks = _convert_and_verify(folder, traced, conversion, data, limits, timer, options, stages)
    return Known(conversion, data, checks, _choose_threshold(folder, checkpoint, traced, timer, options, stages))


def _fold(
    folder: Path, checkpoint: Checkpoint, traced: Traced, conversion: Conversion, data: list[Sample],
    presence: dict[str, Any] | None, limits: Limits, timer: StepTimer, vocabulary: Vocabulary, stages: Stages,
) -> tuple[Folded, Sample, list[Check]]:  # fmt: skip
    """The verified graphs of an open bundle made those of a folded one, which is verified again; its golden sample."""
    timer.start(f"fold {len(vocabulary.names)} names")
    precision, threshold = conversion.precision, None if presence is None else presence["threshold"]
    folded = folded_of(checkpoint, vocabulary, data[0].image.shape[2] // data[0].logits.shape[2], threshold)
    named = resumed.answers(stages, "names", lambda: name_samples(checkpoint, vocabulary, data))

    def fold() -> list[Check]:
        opened = open_maps(folder, traced, folded, named, precision)
        write_labels_graph(folder, traced, conversion, folded)
        timer.start("verify the label map")
        return verify_labels(folder, folded, named, opened, limits, precision, timer.detail)

    checks = resumed.labels(stages, folder, folded, fold)
    return folded, golden_sample(folder, folded, named), checks


def _shaped(checkpoint: Checkpoint, profile: Profile, folded: Folded | None, end: str = "opt") -> Sample:
    """A sample at an end of a profile: with prompts of its own, or asked for all names of a folded bundle."""
    sample = shaped_sample(checkpoint, profile, end)
    if folded is None:
        return sample
    return answer_of(checkpoint, sample.domain, sample.image, folded.vocabulary.prompts)


def _prove(
    folder: Path, checkpoint: Checkpoint, golden: Sample, profile: Profile | None, timer: StepTimer,
    folded: Folded | None = None,
) -> list[Answer]:  # fmt: skip
    """The finished folder answers as its user will ask it: the golden sample and every other corner of the profile."""
    if isinstance(checkpoint, Offloaded):
        return prove_large(folder, golden)
    ends = {"min": "the smallest shape", "max": "the largest shape"} if profile else {}
    if profile and all(span.static for axis, span in profile.ranges.items() if folded is None or axis in "BHW"):
        ends = {}
    corners = {words: _shaped(checkpoint, profile, folded, end) for end, words in ends.items() if profile}
    return prove(folder, golden, corners, timer.detail, folded)


def _store(
    checkpoint: Checkpoint, traced: Traced, folder: Path, precision: str, timer: StepTimer, stages: Stages
) -> Path | None:  # fmt: skip
    """Write the weights of a large model into the bundle to be; returns the folder of its weights, None for all others."""
    if not isinstance(checkpoint, Offloaded):
        return None
    timer.start("store weights")

    def store() -> None:
        for spec in traced.specs:
            write_external_data(traced.models[spec.file], traced.module(spec), folder / spec.data_file, precision)

    resumed.stored(stages, folder, traced, store)
    return folder


def _convert_and_verify(
    folder: Path,
    traced: Traced,
    conversion: Conversion,
    data: list[Sample],
    limits: Limits,
    timer: StepTimer,
    options: Options,
    stages: Stages,
) -> tuple[Conversion, list[Check]]:
    """Write the graphs and judge them; over the limits, bisect, and with --auto-islands apply the cure and try again."""
    cured = False
    while True:
        timer.start(f"convert to {conversion.precision}")
        conversion = resumed.converted(stages, folder, traced, conversion, again=cured)
        timer.start("verify")
        try:
            judge = partial(_judge, conversion, folder, traced, data, limits, timer)
            return conversion, resumed.checks(stages, "verified", resumed.graph_files(folder, traced.specs), judge)
        except CheckError as failure:
            if not conversion.spec.reduced:
                raise VerificationError(f"{failure}; {conversion.spec.else_try}") from failure
            timer.start("bisect")
            file = _failed(failure.check).file
            cure = conversion.cure(traced, file, data, limits, timer.detail)
            words = "; ".join(map(str, cure.culprits)) or "no single node: the error is spread over the graph"
            if not cure.complete or not cure.culprits:
                raise VerificationError(f"{failure}; bad nodes: {words}; {conversion.spec.else_try}") from failure
            if not options.auto_islands:
                raise VerificationError(f"{failure}; first bad node: {cure.culprits[0]}; float32 islands that cure it: "
                                        f"{', '.join(cure.islands)}; apply them with --auto-islands") from failure  # fmt: skip
            conversion, cured = conversion.with_islands(file, cure.islands), True


def _judge(
    conversion: Conversion, folder: Path, traced: Traced, data: list[Sample], limits: Limits, timer: StepTimer
) -> list[Check]:  # fmt: skip
    return verify(conversion.forms(folder, traced), data, limits, timer.detail)


def _choose_threshold(
    folder: Path, checkpoint: Checkpoint, traced: Traced, timer: StepTimer, options: Options, stages: Stages
) -> dict[str, Any] | None:  # fmt: skip
    """What the manifest says of presence; None for a model without the readout."""
    if traced.parts.presence is None:
        return None
    timer.start("choose the presence threshold")
    weights = folder if isinstance(checkpoint, Offloaded) else None
    specs = tuple(spec for spec in traced.specs if spec is not MASK_DECODER)

    def choose() -> dict[str, Any]:
        sets = labelled(checkpoint, options.verify_data, options.shares)
        return choose_threshold(checkpoint, Graphs.of(folder, specs, True, weights), sets, timer.detail)

    chosen: dict[str, Any] = resumed.found_of(stages, "threshold", resumed.graph_files(folder, specs), choose)
    return chosen


def _failed(check: Check) -> GraphSpec:
    """The graph that a failed check is about; what holds alone and fails in a row is looked for in the image encoder."""
    return next((spec for spec, stage in STAGES.items() if stage == check.stage), IMAGE_ENCODER)


def _fix_and_verify(
    folder: Path, traced: Traced, profile: Profile, golden: Sample, limits: Limits, timer: StepTimer,
    folded: Folded | None, precision: str, stages: Stages,
) -> list[Check]:  # fmt: skip
    """Fix the static axes in the files of all graphs but the text encoder's, and verify what a CPU can run of them at the
    profile's shape."""
    specs = traced.specs if folded is None else folded.specs
    for spec in specs:
        for name in (spec.file, spec.cpu_file):
            if spec is not TEXT_ENCODER and (folder / name).is_file():
                fix_shapes(folder / name, spec, profile, traced.stride)

    def judge() -> list[Check]:
        if folded is not None:
            return verify_labels(folder, folded, [golden], {}, limits, precision, timer.detail)
        fixed = Graphs.of(folder, traced.specs, on_cpu=True)
        fixed.names[MASK_DECODER.file] += " at its profile"
        return verify([fixed], [golden], limits, timer.detail)

    return resumed.checks(stages, "verified-shapes", resumed.graph_files(folder, specs), judge)


def _write_golden(folder: Path, sample: Sample, whole: bool = False) -> None:
    """PyTorch's answers about one picture and three prompts (whole: all of the sample), so that any runtime can check itself."""
    pictures, prompts = sample.logits.shape[:2] if whole else (1, 3)
    arrays = {
        "image": sample.image[:pictures].astype(np.float32),
        "token_ids": sample.token_ids[:prompts],
        "token_mask": sample.token_mask[:prompts],
        "logits": sample.logits[:pictures, :prompts].astype(np.float32),
    }
    if sample.presence is not None:
        arrays["presence"] = sample.presence[:pictures, :prompts].astype(np.float32)
    write_arrays(folder / GOLDEN, arrays, {"prompts": json.dumps(sample.prompts[:prompts])})
