"""Questions about one picture on a CPU, in ratios taken within one run: `python benchmarks/ask_again.py [--bundle DIR]`.

1. a first question (picture encoded, K prompts answered) and a later one about the encoding, for K = 1 ... 600, all decoded;
2. one step against two: `segment(picture)`, and `encode` followed by `segment(encoding)`;
3. where the model has a presence readout with a threshold: K prompts of which a few are there, against one prompt and against
   decoding all.
--processor counts the processor's time of one thread, as a clock that other work on the machine does not disturb.
Prompts are prepared, full-size masks not kept; calls take turns, medians. Writes JSON and the curves of docs/ask-again.png. Run
it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cpu_runtime import medians

from digseg_engine import Engine
from digseg_engine.evaluation.protocols import TEST_SEED
from digseg_engine.named import SHIPPED_BUNDLE
from digseg_engine.runtime.timing import keeping
from digseg_engine.worlds.scenes import CLASSES, scene

RESULTS = Path(__file__).resolve().parent / "results"
DOMAIN, MOST_THERE = "aerial", 6
LOOKS = ("small", "large", "round", "long", "dark", "pale", "broken", "old", "new", "wet", "dry", "striped")
MODEL = ("encode", "presence", "masks")  # steps of a question that the model takes
Question = Callable[[], Any]


def vocabulary(count: int) -> tuple[Any, list[str], list[str]]:
    """A painted picture [H, W, 3], what is in it (a few names), and `count` prompts: those, and words of other domains."""
    painted = scene(TEST_SEED, DOMAIN, 256, "test")
    there = sorted(painted.names())[:MOST_THERE]
    others = [name for domain, names in CLASSES.items() if domain != DOMAIN for name in names]
    words = dict.fromkeys([*there, *others, *(f"a {look} {name}" for look in LOOKS for name in others)])
    return painted.image, there, list(words)[:count]


def questions(
    engine: Engine, size: int, counts: list[int], runs: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """Milliseconds of first and later questions, in one step and in two, by number of prompts; whole, and the model's steps."""
    picture, _, prompts = vocabulary(max(counts))
    encoding, rows = engine.encode(picture, size), {}
    for k in counts:
        asked = engine.prepare(prompts[:k])

        def ask(about: Any, asked: Any = asked, size: int | None = None) -> Any:
            return engine.segment(about, asked, size, keep_masks=False, all_prompts=True)

        steps: dict[str, list[dict[str, float]]] = {"first": [], "later": []}
        whole = medians({
            "first": keeping(lambda ask=ask: ask(picture, size=size), steps["first"]),
            "later": keeping(lambda ask=ask: ask(encoding), steps["later"]),
            "two_steps": lambda ask=ask: ask(engine.encode(picture, size)),
        }, runs, clock=clock)  # fmt: skip
        inside = {name: sorted(sum(each.get(step, 0.0) for step in MODEL) for each in kept[-runs:])
                  for name, kept in steps.items()}  # fmt: skip
        model = {name: 1000 * seconds[runs // 2] for name, seconds in inside.items()}
        if clock is not time.perf_counter:
            model = {}  # steps are timed by the clock on the wall
        rows[str(k)] = {**{f"{name}_ms": ms for name, ms in whole.items()},
                        **{f"{name}_model_ms": ms for name, ms in model.items()},
                        "later_over_first": whole["later"] / whole["first"],
                        "two_steps_over_one": whole["two_steps"] / whole["first"]}  # fmt: skip
    return {"size": size, "encoding_bytes": encoding.nbytes, "prompts": rows}


def few_there(
    engine: Engine, size: int, counts: list[int], runs: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any] | None:
    """K prompts of which a few are there: first and later questions against one prompt, and against decoding all; None for a
    model that leaves nothing out."""
    if engine.gate.threshold is None:
        return None
    picture, there, prompts = vocabulary(max(counts))
    encoding, one = engine.encode(picture, size), engine.prepare(there[:1])
    asked = {k: engine.prepare(prompts[:k]) for k in counts}

    def ask(about: Any, prompts: Any, every: bool = False) -> Any:
        size_of = size if about is picture else None
        return engine.segment(about, prompts, size_of, keep_masks=False, all_prompts=every)

    calls: dict[str, Question] = {"first 1": lambda: ask(picture, one), "later 1": lambda: ask(encoding, one)}
    for k, prepared in asked.items():
        calls |= {f"first {k}": lambda p=prepared: ask(picture, p), f"later {k}": lambda p=prepared: ask(encoding, p),
                  f"all {k}": lambda p=prepared: ask(picture, p, True)}  # fmt: skip
    ms = medians(calls, runs, clock=clock)
    rows = {
        str(k): {"there": len(there), "held_to_be_there": int(ask(encoding, asked[k]).there.sum()),
                 "first_over_one_prompt": ms[f"first {k}"] / ms["first 1"],
                 "later_over_one_prompt": ms[f"later {k}"] / ms["later 1"],
                 "first_over_decoding_all": ms[f"first {k}"] / ms[f"all {k}"]}
        for k in counts
    }  # fmt: skip
    return {"ms": ms, "prompts": rows}


def draw(figures: dict[str, Any], path: Path) -> None:
    """Milliseconds against the number of prompts: first and later questions, and what presence saves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = figures["questions"]["prompts"]
    counts = [int(k) for k in rows]
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(counts, [row["first_ms"] for row in rows.values()], "o-", label="first question")
    axes.plot(counts, [row["later_ms"] for row in rows.values()], "s-", label="later question")
    if figures["few_there"] is not None:
        few = [int(k) for k in figures["few_there"]["prompts"]]
        for kind, mark in (("first", "o--"), ("later", "s--")):
            label = f"{kind} question, at most {MOST_THERE} prompts there"
            axes.plot(few, [figures["few_there"]["ms"][f"{kind} {k}"] for k in few], mark, label=label)
    anew = [k * rows[str(counts[0])]["first_ms"] / counts[0] for k in counts]
    axes.plot(counts, anew, ":", color="grey", label="the picture encoded anew for every prompt (computed)")
    axes.set(xlabel="prompts", ylabel=f"milliseconds (median, {figures['clock']})", xscale="log", yscale="log",
             title=f"CPU, {figures['questions']['size']} px, {figures['machine']['processor']}")  # fmt: skip
    axes.set_xticks(counts, [str(k) for k in counts])
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 2, 5, 10, 20, 50, 150, 300, 600])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, help="of the CPU (default: all)")
    parser.add_argument("--output", type=Path, default=RESULTS / "ask-again.json")
    parser.add_argument("--picture", type=Path, default=RESULTS.parents[1] / "docs" / "ask-again.png")
    parser.add_argument("--processor", action="store_true", help="processor time of one thread in place of the wall's")
    options = parser.parse_args()
    clock = time.process_time if options.processor else time.perf_counter
    from digseg_engine.runtime.machine import device_key

    engine = Engine.load(options.bundle, "onnxruntime", threads=1 if options.processor else options.threads)
    many = [k for k in options.prompts if k >= 100]
    figures: dict[str, Any] = {
        "machine": {**device_key(), "system": platform.system(), "load_before": os.getloadavg()[0]},
        "clock": "processor time of one thread" if options.processor else "time on the wall",
        "versions": {name: version(name) for name in ("onnxruntime", "numpy", "pillow", "tokenizers")},
        "model": {"name": options.bundle.name, "sha256": engine.source.digest, "backend": engine.backend.detail},
        "questions": questions(engine, options.size, options.prompts, options.runs, clock),
        "few_there": few_there(engine, options.size, many, options.runs, clock) if many else None,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(figures, indent=2) + "\n")
    draw(figures, options.picture)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
