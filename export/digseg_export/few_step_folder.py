"""The folder of an exported reference, in diffusers' layout: its configurations, its report, and how it is known as ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from digseg_engine.files import write_json
from digseg_engine.folders import listing

if TYPE_CHECKING:
    from digseg_engine.model.pretrained import Checkpoint
    from digseg_engine.precisions import Limits
    from digseg_export.comparison import Check

MARKER, REPORT = "model_index.json", "verification.json"
FORMAT = "digseg.diffusers/1"

# any diffusers model has a `model_index.json`, ours alone has our report
MARK = listing("an exported reference", REPORT, FORMAT, last=MARKER)


def write_configurations(
    folder: Path, checkpoint: Checkpoint, source: Path, checks: list[Check], limits: Limits
) -> None:
    """The configs that optimum and diffusers read; `model_index.json` is the last file."""
    import diffusers
    from diffusers import DDIMScheduler

    for part, config in (
        ("text_encoder", "text_encoder"),
        ("unet", "unet"),
        ("vae_encoder", "vae"),
        ("vae_decoder", "vae"),
    ):
        body = json.loads((source / config / "config.json").read_text())
        if part.startswith("vae"):
            body["scaling_factor"] = checkpoint.vae.config.scaling_factor
        (folder / part / "config.json").write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_bytes((source / "tokenizer" / "tokenizer.json").read_bytes())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 77}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    zero = checkpoint.config.prediction == "v_prediction"
    sizes = checkpoint.config
    DDIMScheduler(
        num_train_timesteps=sizes.train_timesteps, beta_start=sizes.beta_start, beta_end=sizes.beta_end,
        beta_schedule=sizes.beta_schedule, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing",
        prediction_type="v_prediction", rescale_betas_zero_snr=zero,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    checkpoint.config.save(folder)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    report = {"format": FORMAT, "files": files, "limits": vars(limits), "checks": [vars(check) for check in checks]}
    write_json(folder / REPORT, report)
    index = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "DDIMScheduler"], "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "text_encoder": ["transformers", "CLIPTextModel"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae_encoder": ["diffusers", type(checkpoint.vae).__name__], "vae_decoder": ["diffusers", type(checkpoint.vae).__name__],
        "safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None],
        "requires_safety_checker": False,
    }  # fmt: skip
    write_json(folder / MARKER, index)
