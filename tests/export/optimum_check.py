"""Two halves of optimum.sh: `expect` answers in the project's PyTorch, `check` runs the exported folder in optimum."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

STEPS, LIMIT = 4, 1e-4


def expect(room: Path, model: Path | None = None) -> None:
    """Inputs and PyTorch's answers of every part and of four steps, to expected.safetensors."""
    from digseg_engine.model.pretrained import load_checkpoint
    from digseg_export.few_step import answer, graph_inputs, modules

    checkpoint = load_checkpoint(model)
    parts = modules(checkpoint)
    with torch.no_grad():
        inputs = graph_inputs(checkpoint, parts)
        held = {f"{part}.{i}": x.contiguous() for part, some in inputs.items() for i, x in enumerate(some)}
        held |= {f"{part}.out": parts[part](*some).contiguous() for part, some in inputs.items()}
        ids, mask = inputs["text encoder"][0], inputs["denoiser"][3]
        held["logits"] = torch.from_numpy(answer(checkpoint, parts, inputs, ids, mask)[0])
    save_file(held, room / "expected.safetensors")


def check(room: Path) -> None:
    """Load the folder with optimum and compare. Exits with 1 over the limit."""
    import diffusers
    import optimum.version
    import transformers
    from optimum.onnxruntime import ORTDiffusionPipeline

    want = load_file(room / "expected.safetensors")
    pipe = ORTDiffusionPipeline.from_pretrained(room / "reference", local_files_only=True)
    print(f"optimum {optimum.version.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}: "
          f"{type(pipe).__name__} loaded")  # fmt: skip

    def denoise(both, step, states, mask):
        return pipe.unet(
            sample=both, timestep=step, encoder_hidden_states=states, cross_attention_kwargs={"token_mask": mask}
        )

    d = [want[f"denoiser.{i}"] for i in range(4)]
    found = {
        "text encoder": pipe.text_encoder(input_ids=want["text encoder.0"]).last_hidden_state,
        "image encoder": pipe.vae_encoder(sample=want["image encoder.0"]).latents,
        "denoiser": denoise(*d).sample,
        "mask decoder": pipe.vae_decoder(latent_sample=want["mask decoder.0"]).sample,
    }
    worst = 0.0
    for part, got in found.items():
        worst = max(worst, report(part, got, want[f"{part}.out"]))
    scale, n = pipe.vae_decoder.config.scaling_factor, len(d[3])
    z = (found["image encoder"] * scale).expand(n, -1, -1, -1)
    m = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    pipe.scheduler.set_timesteps(STEPS)
    for step in pipe.scheduler.timesteps:
        v = denoise(torch.cat([z, m], 1), step, found["text encoder"], d[3]).sample
        m = pipe.scheduler.step(v, step, m).prev_sample
    value = pipe.vae_decoder(latent_sample=m / scale).sample.mean(1).clamp(-0.999, 0.999)
    worst = max(worst, report(f"{STEPS} steps, diffusers' scheduler", 2 * torch.atanh(value), want["logits"]))
    sys.exit(worst > LIMIT)


def report(part: str, got: torch.Tensor, want: torch.Tensor) -> float:
    """Print and return the relative error (L2)."""
    error = float((got - want).norm() / want.norm())
    print(f"{part}: relative error {error:.1e}")
    return error


if __name__ == "__main__":
    {"expect": expect, "check": check}[sys.argv[1]](*map(Path, sys.argv[2:]))
