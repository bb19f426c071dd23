"""The road from a Stable Diffusion directory to masks, on real pictures: python benchmarks/sd_road.py -o FOLDER

Two small directories in exactly the format of Stable Diffusion 1.5 (predicts noise) and 2.1 (v-prediction), random weights,
their autoencoder trained for some minutes on the same pictures, as a pretrained one would be. Each goes through the commands
that users type: `digseg train --init` (all stages), `digseg distill`, `digseg-export`, `digseg segment`; every stage takes 200
steps. Measured: the denoising error on held-out pictures at ten timesteps before and after the first stage, the one-step
answer's mean IoU, the student's, and seconds of every command. A directory whose scheduler is linear goes through the
first stage, one whose scheduler is a cosine must be refused.

Pictures: `nuclei` of $DIGSEG_REALDATA (docs/data.md says where the originals are), 24 to train on. The networks are a
thousandth of the originals' size: what is shown is that every stage learns, not what Stable Diffusion reaches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from digseg_engine.data.batch import to_tensor
from digseg_engine.data.batches import FolderOptions, folder_batches
from digseg_engine.data.datasets import Dataset, open_dataset
from digseg_engine.evaluation.predictors import reference_predictor, student_predictor
from digseg_engine.evaluation.protocols import LabelledPictures
from digseg_engine.evaluation.score import evaluate
from digseg_engine.files import replacing, write_json
from digseg_engine.model.autoencoder import draw_mask, raw_latent
from digseg_engine.model.pretrained import Checkpoint, load_checkpoint
from digseg_engine.model.stable_diffusion import load_stable_diffusion
from digseg_engine.runtime.machine import device_key
from digseg_engine.training.loop import StageConfig
from digseg_engine.training.objectives.denoising import noise_weights
from digseg_engine.training.objectives.noise import generator
from digseg_engine.training.objectives.pairs import Pairs, PairSource
from digseg_engine.worlds.vocabulary import train_tokenizer
from tests.model.sd_directories import write_directory

RESULTS = Path(__file__).resolve().parent / "results"
SIZE, STEPS, PICTURES = 128, 200, 24
AUTOENCODER_STEPS, CROP = 400, 64
PLACES = 10  # timesteps at which the denoising error is measured
STAGE = {"batch": 4, "accumulate": 1, "warmup": 20, "ema": 0.95, "learning_rate": 0.001, "steps": STEPS, "precision": "no",
         "gradient_checkpointing": False}  # fmt: skip
REFERENCE_BATCH = (
    16  # at the lowest noise v is nearly all noise: with 4 pictures a step 200 steps do not learn to see it
)


def few_pictures(source: Path, folder: Path) -> Path:
    """A data set of the first training pictures of another one, and its validation pictures."""
    for split, most in (("train", PICTURES), ("val", 16)):
        for record in open_dataset(source, split=split).records[:most]:
            for kind, path in (("images", record.image), ("masks", record.mask)):
                place = folder / kind / split / path.name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(path.read_bytes())
    (folder / "classes.json").write_bytes((source / "classes.json").read_bytes())
    return folder


def train_autoencoder(vae: Any, dataset: Dataset) -> float:
    """Some minutes on crops of the pictures and of their masks drawn as pictures; returns the last mean error."""
    optimizer = torch.optim.AdamW(vae.parameters(), 2e-3)
    items = [dataset[i] for i in range(len(dataset))]
    error = torch.zeros(())
    for step in range(AUTOENCODER_STEPS):
        random = generator(0, step)
        crops = []
        for i in torch.randint(0, len(items), (16,), generator=random).tolist():
            image, ids, _ = items[i]
            top, left = (int(torch.randint(0, max(1, n - CROP), (), generator=random)) for n in ids.shape)
            window = slice(top, top + CROP), slice(left, left + CROP)
            crops.append(to_tensor(image[window][None].copy())[0])
            crops.append(draw_mask(torch.from_numpy(ids[window] == 0).float()[None])[0])
        x = torch.stack([crop for crop in crops if crop.shape == (3, CROP, CROP)])
        error = (vae.decode(raw_latent(vae, x)).sample - x).abs().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    with torch.no_grad():
        images = to_tensor(
            items[0].image[None, : 8 * (items[0].image.shape[0] // 8), : 8 * (items[0].image.shape[1] // 8)]
        )
        vae.register_to_config(scaling_factor=float(1 / raw_latent(vae, images).std()))
    return float(error)


def pretrained_directory(folder: Path, style: str, data: Path) -> Path:
    """A directory of the style whose autoencoder has learned the pictures; the other networks are random."""
    from diffusers import AutoencoderKL

    write_directory(folder, train_tokenizer(704), style)
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    error = train_autoencoder(vae, open_dataset(data, split="train"))
    vae.save_pretrained(folder / "vae")
    print(json.dumps({"style": style, "autoencoder error": round(error, 4)}), flush=True)
    return folder


def held_out_pairs(checkpoint: Checkpoint, data: Path, cache: Path) -> Pairs:
    """The same pictures and prompts of the validation split every time."""
    batches = folder_batches(checkpoint.vae, str(data), SIZE, 7, FolderOptions(split="val", workers=0), cache)
    stage = StageConfig(1, 16, 1e-3)
    source = PairSource(batches, checkpoint.vae, checkpoint.text_encoder, checkpoint.tokenizer, stage)
    return source.draw(0, generator(7, 0), torch.device("cpu"))


@torch.no_grad()
def errors_by_timestep(checkpoint: Checkpoint, pairs: Pairs) -> dict[int, float]:
    """The denoising stage's error of held-out mask latents, weighted as its loss is, by timestep."""
    schedule, found = checkpoint.schedule, {}
    last = len(schedule) - 1
    noise = torch.randn(pairs.clean.shape, generator=generator(7, 1))
    for place in range(PLACES):
        t = torch.full((len(pairs.z),), round(last * (place + 1) / PLACES))
        noisy = schedule.add_noise(pairs.clean, noise, t)
        v = checkpoint.reference(torch.cat([pairs.z, noisy], 1), t, pairs.text, pairs.token_mask)
        error = (v - schedule.velocity(pairs.clean, noise, t)).square().mean((1, 2, 3))
        if checkpoint.config.prediction == "epsilon":
            error = error * noise_weights(schedule, t)
        found[int(t[0])] = float(error.mean())
    return found


def run(words: list[str], seconds: dict[str, float], name: str) -> str:
    """A command as users type it, timed."""
    done = attempt(words, seconds, name)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def attempt(words: list[str], seconds: dict[str, float], name: str) -> subprocess.CompletedProcess[str]:
    """A command that may be refused, timed."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *words], text=True, capture_output=True)
    seconds[name] = round(time.perf_counter() - began, 1)
    return done


def exported(checkpoint: Path, bundle: Path, seconds: dict[str, float]) -> dict[str, str]:
    """Export in fp16, and where its verification refuses that, as it advises, in fp32. What was published, what was refused.

    After so few steps many logits lie near zero, where rounding decides the mask."""
    words = ["digseg_export", str(checkpoint), "-o", str(bundle), "--precision"]
    done = attempt([*words, "fp16"], seconds, "export")
    if done.returncode == 0:
        return {"precision": "fp16"}
    refused = next((line for line in done.stderr.splitlines()[::-1] if "error:" in line), done.stderr[-200:])
    run([*words, "fp32"], seconds, "export in fp32")
    return {"precision": "fp32", "fp16 refused": refused}


def miou(predict: Any, data: Path) -> float:
    return round(evaluate(predict, LabelledPictures(data, split="val")).together.miou(), 4)


def travel(style: str, data: Path, room: Path) -> dict[str, Any]:
    """Directory, three stages, distillation, export, masks of one picture; the measurements of the whole way."""
    source = pretrained_directory(room / f"sd-{style}", style, data)
    seconds: dict[str, float] = {}
    before, _ = load_stable_diffusion(source)
    pairs = held_out_pairs(before, data, room / "latents")
    curve = {"before": errors_by_timestep(before, pairs)}
    shared = [
        f"--set={stage}.{name}={value}"
        for stage in ("reference", "one_step", "student")
        for name, value in STAGE.items()
    ]
    trained = room / f"run-{style}"
    digseg = ["digseg_engine"]
    run([*digseg, "train", "--init", str(source), "--data", str(data), "--size", str(SIZE), "-o", str(trained), *shared,
         f"--set=reference.batch={REFERENCE_BATCH}", "--set=student.prompts=4"], seconds, "train")  # fmt: skip
    before.reference.load_state_dict(load_file(trained / "reference" / "weights.safetensors"))
    curve["after"] = errors_by_timestep(before, pairs)
    checkpoint = load_checkpoint(trained / "checkpoint")
    figures = {"student": miou(student_predictor(checkpoint, SIZE), data),
               "reference, one step": miou(reference_predictor(checkpoint, 1, SIZE), data)}  # fmt: skip
    distilled = room / f"distilled-{style}"
    few = [f"--set={stage}.{name}={value}" for stage in ("few_step", "student") for name, value in STAGE.items()]
    run([*digseg, "distill", str(trained / "checkpoint"), "--data", str(data), "-o", str(distilled), *few,
         "--set=student.prompts=4"], seconds, "distill")  # fmt: skip
    after = load_checkpoint(distilled / "checkpoint")
    figures["distilled student"] = miou(student_predictor(after, SIZE), data)
    figures["distilled reference, one step"] = miou(reference_predictor(after, 1, SIZE), data)
    bundle = room / f"bundle-{style}"
    published = exported(distilled / "checkpoint", bundle, seconds)
    picture = open_dataset(data, split="val").records[0].image
    said = run([*digseg, "segment", str(picture), "-p", "nucleus", "--bundle", str(bundle), "-o", str(room / f"masks-{style}"),
                "--json"], seconds, "segment")  # fmt: skip
    pixels = json.loads(said.splitlines()[0])
    return {"prediction": checkpoint.config.prediction, "error_by_timestep": curve, "mean_iou": figures, "seconds": seconds,
            "bundle": published, "segmented": pixels.get("prompts", pixels.get("masks"))}  # fmt: skip


def travelled(style: str, data: Path, room: Path) -> dict[str, Any]:
    """`travel`, or what an interrupted run of this program found there."""
    stored = room / f"road-{style}.json"
    if not stored.is_file():
        write_json(stored, travel(style, data, room / style))
    found: dict[str, Any] = json.loads(stored.read_text())
    return found


def other_schedulers(data: Path, room: Path) -> dict[str, str]:
    """What becomes of directories with other noise schedules."""
    found = {}
    for kind in ("linear", "squaredcos_cap_v2"):
        folder = write_directory(room / f"sd-{kind}", train_tokenizer(704))
        DDIMScheduler(beta_schedule=kind, prediction_type="v_prediction").save_pretrained(folder / "scheduler")
        words = ["digseg_engine", "train", "--init", str(folder), "--data", str(data), "--size", str(SIZE), "-o",
                 str(room / f"run-{kind}"),
                 *(f"--set={s}.steps=3" for s in ("reference", "one_step", "student", "presence"))]  # fmt: skip
        done = subprocess.run([sys.executable, "-m", *words], text=True, capture_output=True)
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        found[kind] = f"exit {done.returncode}: {lines[-1].replace(str(room), 'FOLDER')}"
    return found


def draw(roads: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(roads), figsize=(5.5 * len(roads), 4), squeeze=False)
    for axis, (style, road) in zip(axes[0], roads.items()):
        for label, errors in road["error_by_timestep"].items():
            axis.plot(list(map(int, errors)), list(errors.values()), marker="o", markersize=3, label=label)
        axis.set(
            title=f"style {style}, {road['prediction']}",
            xlabel="timestep",
            ylabel="error as the loss weighs it",
            yscale="log",
        )
        axis.legend()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--folder", type=Path, required=True, help="where runs and bundles go")
    parser.add_argument("--output", type=Path, default=RESULTS / "sd-road.json")
    options = parser.parse_args()
    real = os.environ.get("DIGSEG_REALDATA")
    if real is None or not (Path(real) / "nuclei").is_dir():
        raise SystemExit("set DIGSEG_REALDATA to a folder with the data set nuclei/ in the layout of docs/data.md")
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    data = few_pictures(Path(real) / "nuclei", options.folder / "nuclei")
    roads = {style: travelled(style, data, options.folder) for style in ("1.5", "2.1")}
    body = {"command": "python -m benchmarks.sd_road -o FOLDER", "date": date.today().isoformat(), "machine": device_key(),
            "torch": torch.__version__, "steps": STEPS, "pictures": PICTURES, "size": SIZE, "roads": roads,
            "other_schedulers": other_schedulers(data, options.folder)}  # fmt: skip
    write_json(options.output, body)
    draw(roads, options.output.with_suffix(".png"))
    print(json.dumps(body, indent=2))


if __name__ == "__main__":
    main()
