"""Tables of the pages on data, evaluation, export, training and the runtime's measurements; part of `report.py`.

Each function takes the reader of committed figures and gives a head and lines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Figures = Callable[[str], dict[str, Any]]
Table = tuple[list[str], list[list[str]]]
LOADER = ("threads, crops", "threads, echo 4, crops", "processes, echo 4, crops")
BATCH = "threads, echo 4, batch"
ALARMS = {"objects": "objects (48 prompts)", "objects, reworded": "objects, reworded", "textures": "textures (3 prompts)",
          "microscopy": "microscopy (3 prompts)", "aerial": "aerial (5 prompts)", "crops": "crops (3 prompts)"}  # fmt: skip
BASES = ("zeros, mask loss", "with text pathway", "one pass per prompt", "pretrained diffusion U-Net")  # the base again
BASE = "**base**: `W \\| 0`, zero slot, mask loss, text pathway, one pass per prompt"
LEFT_OUT = {"never seen": "before", "after 100 pictures, 200 steps": "after"}


def loader(figures: Figures) -> Table:
    head = ["pictures, crop", "peer", "threads", "threads, echo 4", "processes, echo 4", "peer, whole batch",
            "threads, echo 4, whole batch"]  # fmt: skip
    lines = []
    for row in figures("loader")["rows"]:
        rate, times = row["crops_per_second"], row["times_the_peer"]
        cells = {name: f"{rate[name]:.0f} ({times[name]:.1f} x)" for name in (*LOADER, BATCH)}
        lines.append([f"{row['pictures']}, {row['side']} px", f"{rate['peer, crops']:.0f}", *(cells[name] for name in LOADER),
                      f"{rate['peer, batch']:.0f}", cells[BATCH]])  # fmt: skip
    return head, lines


def false_alarms(figures: Figures) -> Table:
    found = figures("eval-tiny-bundle")["figures"]
    lines = []
    for name, said in ALARMS.items():
        area, rate, pictures = (100 * found[f"{name}, {kind}, each prompt alone"]
                                for kind in ("false area", "false alarms", "pictures with a false alarm"))  # fmt: skip
        lines.append([said, f"{area:.2f} %", f"{rate:.1f} %", f"{pictures:.0f} %"])
    return ["set", "false area", "false alarms, of absent prompts", "pictures with any"], lines


def precisions(figures: Figures) -> Table:
    lines = []
    for name, found in figures("precisions")["precisions"].items():
        losses: dict[bool, list[float]] = {True: [0.0], False: [0.0]}
        for where, lost in found["points_lost"].items():
            losses["each prompt alone" in where].append(lost)
        alone, together = max(losses[True]), max(losses[False])
        said = (
            f"{max(alone, together):.2f}"
            if name != "int8"
            else f"{together:.2f} label map, {alone:.2f} each prompt alone"
        )
        lines.append(
            [name, said, f"{found['weights_ratio']:.2f}" if name == "int8" else f"{found['weights_ratio']:.1f}"]
        )
    return ["", "largest loss of any test set, points of mIoU", "weights against fp32"], lines


def int8_on_cpus(figures: Figures) -> Table:
    rows = figures("int8-cpu")["rows"]
    found = {(row["backend"], row["bundle"], row["prompts"]): row for row in rows}
    counts = list(dict.fromkeys(row["prompts"] for row in rows))
    lines = []
    for backend in dict.fromkeys(row["backend"] for row in rows):
        pairs = [(found[backend, "float", k], found[backend, "int8", k]) for k in counts]
        lines.append(
            [f"`{backend}`", *(f"{a['ms']:.1f} -> {b['ms']:.1f} ({b['float_over_int8']:.2f} x)" for a, b in pairs)]
        )
    return ["fp16 bundle -> int8 bundle, ms", *(f"K = {k}" for k in counts)], lines


STARTS = {"camvid": "the bundled model", "camvid-words": "the bundled model, words taught beside their neighbours"}


def unread_words(figures: Figures) -> Table:
    lines = []
    for found in figures("unread-words")["results"]:
        rate = [f"{found[name]:.3f}" for name in ("trained_names", "unread_words")]
        most = sum(word["iou"] >= 0.8 * word["trained_name"] for word in found["words"])
        lines.append([STARTS[found["checkpoint"]], *rate, f"{found['share']:.2f}", f"{most} of {len(found['words'])}"])
    return ["fine-tuned on CamVid from", "trained names", "unread words", "share", "words at 0.8 of their name"], lines


def ceilings(figures: Figures) -> Table:
    lines = []
    for backend, found in figures("cpu-ceiling")["backends"].items():
        parts, ceiling = found["parts"], found["ceiling_gflop_per_s"]
        cells = [
            f"{parts[kind]['ms']:.1f}, {parts[kind]['gflop_per_s']:.0f} of {ceiling[kind]:.0f}" for kind in ceiling
        ]
        whole = f"{found['encoder_ms']:.1f}, {found['gflop_per_s']:.0f}: {found['share_of_convolution_ceiling']:.2f}"
        lines.append([f"`{backend}`", *cells, f"{parts['rest']['ms']:.1f}", whole])
    return ["image encoder: ms, GFLOP/s", "convolutions", "matrix products", "the rest", "whole"], lines


def ablations(figures: Figures) -> Table:
    rows = figures("ablations")["table"]
    lines, before = [], ""
    for row in rows:
        if row["variant"] in BASES:
            continue
        base = row is rows[0]
        question = "" if base or row["question"] == before else row["question"]
        before = "" if base else row["question"]
        spread = f" ({row['low']:.3f} to {row['high']:.3f})" if row["seeds"] > 1 else ""
        said = BASE if base else row["variant"].replace("|", "\\|")
        said = f"`{said}`" if said.startswith("W/2") else said
        lines.append([question, said, f"{row['miou']:.3f}", f"{row['seeds']}{spread}"])
    return ["question", "variant", "mean IoU", "seeds (lowest to highest)"], lines


def leave_one_out(figures: Figures) -> Table:
    found = figures("leave-one-out")
    rows = {said: found[part] for said, part in LEFT_OUT.items()}
    rows["the same 100 pictures and steps from random weights, nothing trained before"] = found["from_nothing"]["after"]
    student = figures("eval-tiny-student")
    said = f"the bundled model, trained on more and on all domains ({student['pictures']['crops']} test scenes)"
    rows[said] = {"mIoU": student["figures"]["crops"], **student["iou"]["crops"]}
    names = ["mIoU", "crop row", "weed", "soil"]
    lines = [[said, *(f"{row[name]:.3f}" for name in names)] for said, row in rows.items()]
    return ["", "mean IoU", *names[1:]], lines


def learning(figures: Figures) -> Table:
    """What every method reaches on so many labelled pictures of a set: mean over its seeds, lowest and highest."""
    lines = figures("learn")["summary"]
    places = list(dict.fromkeys((line["set"], line["pictures"]) for line in lines))
    methods = list(dict.fromkeys(line["method"] for line in lines))
    found = {(line["set"], line["pictures"], line["method"]): line for line in lines}

    def cell(line: dict[str, Any] | None) -> str:
        if line is None:
            return "-"
        spread = f" ({line['lowest']:.3f} to {line['highest']:.3f})" if line["seeds"] > 1 else ""
        return f"{line['miou']:.3f}{spread}"

    head = ["start", *(f"{name}, {count} pictures" for name, count in places)]
    return head, [[method, *(cell(found.get((*place, method))) for place in places)] for method in methods]


def working_sizes(figures: Figures) -> Table:
    """Mean IoU by the rule that pictures are worked by."""
    rows = figures("working-size")["rows"]
    rules, sets = list(dict.fromkeys(row["rule"] for row in rows)), list(dict.fromkeys(row["set"] for row in rows))
    found = {(row["set"], row["split"], row["rule"]): row["miou"] for row in rows}
    head = ["worked at", *(f"{name}, {split}" for name in sets for split in ("val", "test"))]
    said = {
        rule: f"{low} px" if low == high else f"{low} to {high} px" for rule in rules for low, high in [rule.split("-")]
    }
    return head, [
        [said[rule], *(f"{found[name, split, rule]:.3f}" for name in sets for split in ("val", "test"))]
        for rule in rules
    ]


def refinement(figures: Figures) -> str:
    """A sentence: what the reference makes of the student's masks."""
    body = figures("refine")
    found = body["means"]
    most = max(found["refine_student"], key=int)
    how = found["measured"]
    return (
        f"The bundled model is refused: {found['student']:.2f} falls to {found['refine_student'][most]:.2f} in {most} steps, and "
        f"even true masks come back at {found['refine_truth'][most]:.2f}\n({how['masks']} masks of {how['scenes']} generated "
        f"scenes, `{how['command']}`, {body['machine']['processor']}; `benchmarks/results/refine.json`).\n"
    )


def measured(figures: Figures) -> Table:
    """What has a command of its own, and what it found."""
    at_once, later = figures("sd21-prompts"), figures("sd21-later")
    (whole,), memory, refined = figures("tiles")["rows"], figures("tiles-memory")["rows"], figures("refine")["means"]
    most = max(refined["refine_student"], key=int)
    lost = refined["student"] - refined["refine_student"][most]
    lowest, highest = whole["seam_where_none_is"]
    peaks = ", ".join(f"{row['peak_mib']:.0f} MiB at {row['side']:,} px" for row in memory)
    lines = [
        ["20 and 150 prompts against one, fp16 against fp32 bundle, cold start", "`python benchmarks/cpu_runtime.py`",
         "`benchmarks/results/cpu-runtime.json`"],
        ["first and later questions, one step and two, K = 1 ... 600; 150 and 600 prompts of which at most 6 are there",
         "`python benchmarks/ask_again.py`", "`benchmarks/results/ask-again.json`, `docs/ask-again.png`"],
        ["prompts at Stable Diffusion 2.1 size, random weights", "`python benchmarks/sd21_prompts.py`",
         f"20 prompts {at_once['together_over_one']:.2f} x one; a pass per prompt "
         f"{at_once['one_pass_per_prompt_over_one']:.0f} x "
         "(one core of an AMD EPYC, 256 px, 2026-11-26; `benchmarks/results/sd21-prompts.json`)"],
        ["a second question at Stable Diffusion 2.1 size, random weights",
         "`python benchmarks/sd21_prompts.py --no-single-passes --output benchmarks/results/sd21-later.json`",
         f"20 prompts about the encoded picture {later['later_together_over_first']:.3f} x the first question (PyTorch, "
         "float32, all decoded, 256 px, one thread of a busy two-core Intel Xeon, 2026-11-30; "
         "`benchmarks/results/sd21-later.json`)"],
        ["tiles: mean IoU and seams at 4,096 px, working size 512, five prompts",
         "`python benchmarks/tiles.py --sides 4096 --size 512`",
         f"mean IoU {whole['miou']:.3f} against {whole['miou_scene_by_scene']:.3f} scene by scene; peak memory "
         f"{whole['peak_mib']:.0f} MiB; label changes at tile borders {whole['seam']:.2f} x the average place, the truth there "
         f"{whole['seam_of_the_truth']:.2f} x, places without a border {lowest:.2f} to {highest:.2f} x (AMD EPYC, 2026-11-26; "
         "`benchmarks/results/tiles.json`)"],
        ["tiles: memory against picture size, working size 128, two prompts",
         "`python benchmarks/tiles.py --sides 4096 16384 --size 128 --prompts 2 --compare 0 --output "
         "benchmarks/results/tiles-memory.json`",
         f"peak {peaks} (mean IoU {memory[0]['miou']:.2f}: tiles of 512 px seen at 128; AMD EPYC, 2026-11-26)"],
        ["what reference and `refine` reach, by steps", f"`{refined['measured']['command']}`",
         f"`refine` takes {lost:.2f} from the bundled model, whose reference is weak (`benchmarks/results/refine.json`)"],
        ["every backend of a GPU machine end to end", "`python benchmarks/gpu.py --engine BUNDLE --checkpoint DIR`",
         "not run by us yet; `--dry-run` walks it on a CPU"],
    ]  # fmt: skip
    return ["what", "command", "result"], lines
