"""What each precision costs in quality, and int8 in speed: python benchmarks/precisions.py --count 40

The bundled model is traced once and exported as fp32, fp16, bf16 and int8 by the code behind `digseg-export`. Each is
scored on the test scenes by the code behind `digseg eval`. A CPU has no half arithmetic worth the name: fp16 and bf16 are
scored on the graph that rounds every reduced result (see docs/export.md), fp32 and int8 as bundles in the engine.
Exit code 1 when a test set loses more points of mIoU than its precision may, or int8 stores too much.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from compare_bundles_cpu import compare
from export_large import processor
from safetensors.numpy import load_file

from digseg_engine.contract import IMAGE_ENCODER, MASK_DECODER, TEXT_ENCODER, GraphSpec
from digseg_engine.evaluation.predictors import Predict, bundle_predictor, student_predictor
from digseg_engine.evaluation.protocols import open_samples
from digseg_engine.evaluation.score import evaluate
from digseg_engine.evaluation.tables import parts_of
from digseg_engine.images import fit, unfit
from digseg_engine.model.pretrained import BUNDLED, Checkpoint, load_checkpoint
from digseg_engine.precisions import spec_of
from digseg_export.conversion import Conversion
from digseg_export.progress import StepTimer
from digseg_export.publish import Options, Traced, publish, trace
from digseg_export.verify import Graphs

import onnxruntime  # isort: skip - after ours, which turns its telemetry off

RESULT = Path(__file__).parent / "results" / "precisions.json"
POINTS = {"fp32": 0.2, "fp16": 0.5, "bf16": 0.5, "int8": 1.0}  # of mIoU that a test set may lose
WEIGHTS = 0.3  # of float32's bytes that int8 may store
PROFILED_RUNS = 5


def rounded_predictor(graphs: Graphs, checkpoint: Checkpoint) -> Predict:
    """The rounded graphs as `digseg eval` wants a model: picture and prompts in, full-size logits out."""
    size = checkpoint.config.image_size

    @lru_cache(maxsize=4)
    def folded(prompts: tuple[str, ...]) -> dict[str, Any]:
        ids, mask = checkpoint.tokenizer.encode(prompts)
        keys, values = graphs.run(TEXT_ENCODER, {"token_ids": ids, "token_mask": mask})
        return {"text_keys": keys, "text_values": values, "token_mask": mask}

    def predict(image: Any, prompts: list[str]) -> Any:
        canvas = fit(image, size, checkpoint.stride)
        (encoding,) = graphs.run(IMAGE_ENCODER, {"image": canvas.pixels})
        (logits,) = graphs.run(MASK_DECODER, {"encoding": encoding, **folded(tuple(prompts))})
        return unfit(logits[0].astype(np.float32), canvas)

    return predict


def score(predict: Predict, count: int, size: int) -> dict[str, float]:
    """mIoU in points of every part of every test set; all prompts of a picture together, and each alone."""
    found = {}
    for samples in open_samples("scenes", count, size):
        scores = evaluate(predict, samples)
        for part, names in parts_of(samples.name).items():
            found[part] = 100 * scores.together.miou(names)
            found[f"{part}, each prompt alone"] = 100 * scores.alone.miou(names)
    return found


def golden_feeds(bundle: Path) -> dict[str, Any]:
    """The golden sample for every input of every graph, those that another graph answers included."""
    feeds: dict[str, Any] = dict(load_file(bundle / "golden.safetensors"))
    for spec in (TEXT_ENCODER, IMAGE_ENCODER):
        run = onnxruntime.InferenceSession(str(bundle / spec.file), providers=["CPUExecutionProvider"])
        feeds |= zip([tensor.name for tensor in spec.outputs], run.run(None, of(feeds, spec)))
    return feeds


def of(feeds: dict[str, Any], spec: GraphSpec) -> dict[str, Any]:
    return {tensor.name: feeds[tensor.name] for tensor in spec.inputs}


def profile(bundle: Path, folder: Path) -> dict[str, float]:
    """Milliseconds per picture of image encoder and mask decoder by operator, the largest ten."""
    feeds, spent = golden_feeds(bundle), Counter[str]()
    for spec in (IMAGE_ENCODER, MASK_DECODER):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.enable_profiling, options.log_severity_level = 1, True, 4
        options.profile_file_prefix = str(folder / f"{bundle.name}-{spec.file}")
        run = onnxruntime.InferenceSession(str(bundle / spec.file), options, providers=["CPUExecutionProvider"])
        for _ in range(PROFILED_RUNS):
            run.run(None, of(feeds, spec))
        for event in json.loads(Path(run.end_profiling()).read_text()):
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                spent[event["args"]["op_name"]] += event["dur"]
    return {name: round(us / 1000 / PROFILED_RUNS, 2) for name, us in spent.most_common(10)}


def dynamic_ratio(bundle: Path, folder: Path) -> dict[str, float]:
    """What was tried beside Q/DQ: onnxruntime's dynamic quantisation of the products alone, timed against float32."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    feeds, options = golden_feeds(bundle), onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    runs: tuple[list[Any], list[Any]] = ([], [])
    for spec in (IMAGE_ENCODER, MASK_DECODER):
        path = folder / f"dynamic.{spec.file}"
        quantize_dynamic(bundle / spec.file, path, op_types_to_quantize=["MatMul", "Gemm"],
                         weight_type=QuantType.QInt8, extra_options={"DefaultTensorType": 1})  # fmt: skip
        for kept, file in zip(runs, (bundle / spec.file, path)):
            session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            kept.append(partial(session.run, None, of(feeds, spec)))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(12):
        for graphs, kept in zip(runs, times):
            began = time.perf_counter()
            for run in graphs:
                run()
            kept.append(1000 * (time.perf_counter() - began))
    a, b = (float(np.median(kept[2:])) for kept in times)
    return {"fp32_ms": round(a, 2), "dynamic_ms": round(b, 2), "speed_ratio": round(a / b, 3)}


def predictor(precision: str, bundle: Path, checkpoint: Checkpoint, traced: Traced) -> tuple[Predict, str]:
    """(predictor, what it runs) of one exported precision."""
    if precision in ("fp16", "bf16"):
        conversion = Conversion.measure(checkpoint, traced.models, precision, Options(), lambda text: None)
        return rounded_predictor(conversion.rounded(traced), checkpoint), "the rounded graphs"
    return bundle_predictor(bundle, checkpoint.config.image_size), "the bundle in the engine, onnxruntime on a CPU"


def measure(model: Path | None, count: int, room: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Export, score and time everything; returns the results file's body."""
    checkpoint = load_checkpoint(model)
    traced = trace(checkpoint, StepTimer(say))
    tokenizer = ((model or BUNDLED) / "tokenizer" / "tokenizer.json").read_bytes()
    say("score PyTorch float32")
    size = checkpoint.config.image_size
    base = score(student_predictor(checkpoint), count, size)
    rows: dict[str, Any] = {}
    for precision, allowed in POINTS.items():
        done = publish(
            checkpoint,
            traced,
            tokenizer,
            room / precision,
            precision,
            spec_of(precision).limits,
            StepTimer(say),
            Options(),
        )
        predict, how = predictor(precision, room / precision, checkpoint, traced)
        say(f"score {precision}")
        points = score(predict, count, size)
        lost = {name: round(base[name] - points[name], 3) for name in base}
        judged = {name: value for name, value in lost.items() if "alone" not in name}
        bytes_ = sum(n for name, n in done.sizes.items() if name.endswith(".data"))
        rows[precision] = {
            "runs": how, "points_lost": lost, "largest_loss": max(judged.values()), "allowed": allowed, "weights_bytes": bytes_,
            "checks": [{"graph": c.graph, "relative": c.relative, "iou": c.iou} for c in done.checks if c.stage == "end to end"],
        }  # fmt: skip
    for row in rows.values():
        row["weights_ratio"] = round(row["weights_bytes"] / rows["fp32"]["weights_bytes"], 3)
    say("time int8 against fp32")
    speed = {
        **compare(room / "fp32", room / "int8"),
        "profile_ms": {name: profile(room / name, room) for name in ("fp32", "int8")},
        "tried": {"dynamic quantisation of the products": dynamic_ratio(room / "fp32", room)},
    }
    return {
        "points": {name: round(value, 2) for name, value in base.items()},
        "precisions": rows,
        "int8_cpu_speed": speed,
    }


def main() -> int:
    """Measure, print a table, write the results; exit code 1 over a limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40, help="test scenes per domain")
    parser.add_argument("--model", type=Path, help="checkpoint directory [default: the bundled model]")
    parser.add_argument("--out", type=Path, default=RESULT)
    typed = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as room:
        body = measure(typed.model, typed.count, Path(room), lambda text: print(text, file=sys.stderr, flush=True))
    about = {
        "command": f"python benchmarks/precisions.py --count {typed.count}", "date": date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {len(os.sched_getaffinity(0))} usable, {processor()}",
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
        "seconds": round(time.perf_counter() - began),
    }  # fmt: skip
    typed.out.write_text(json.dumps({**about, **body}, indent=1) + "\n")
    over = []
    for name, row in body["precisions"].items():
        lost = f"loses at most {row['largest_loss']:.2f} points ({row['allowed']} allowed)"
        print(f"{name}: {lost}, weights {row['weights_ratio']} x fp32")
        over += [name] if row["largest_loss"] > row["allowed"] else []
    over += ["size of int8"] if body["precisions"]["int8"]["weights_ratio"] > WEIGHTS else []
    print(f"int8 on a CPU: {body['int8_cpu_speed']['speed_ratio']} x the speed of fp32; wrote {typed.out}")
    if over:
        print(f"over the limit: {', '.join(over)}", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
