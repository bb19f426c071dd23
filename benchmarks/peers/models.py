"""The models that are measured as three parts, each from its library's own classes. Weights are random but for those of our own
checkpoint: no time measured here depends on what a network has learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.parts import Parts

OURS = Path(__file__).resolve().parents[2] / "digseg_engine" / "assets" / "digseg-tiny"
SAM3_WIDTH, SAM3_TEXT = 64, {
    "vocab_size": 8192, "hidden_size": 128, "intermediate_size": 384, "projection_dim": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 8191,
}  # fmt: skip


def module(forward: Callable[..., Any], *owned: Any) -> Any:
    """A module that owns others and answers with `forward`."""
    from torch import nn

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.owned = nn.ModuleList(owned)

        def forward(self, *tensors: Any) -> Any:
            return forward(*tensors)

    return Part().eval().requires_grad_(False)


def clipseg(size: int) -> Parts:
    """CLIPSeg (Lueddecke and Ecker 2022) of transformers, of the sizes of `clipseg-rd64-refined`: ViT-B/16 at 352 pixels."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    config = CLIPSegConfig(vision_config={"image_size": size, "patch_size": 16}, text_config={"eos_token_id": 49407})
    model = CLIPSegForImageSegmentation(config).eval()

    def image(pixels: Any) -> tuple[Any, ...]:
        states = model.clip.get_image_features(pixel_values=pixels, output_hidden_states=True).hidden_states
        return tuple(states[layer + 1] for layer in config.extract_layers)

    def masks(*given: Any) -> tuple[Any, ...]:
        *states, text = given
        shared = [state.expand(text.shape[0], -1, -1) for state in states]
        return (model.decoder(shared, text).logits,)

    return Parts(
        module(image, model.clip), module(lambda ids: (model.clip.get_text_features(ids).pooler_output,), model.clip),
        module(masks, model.decoder), size, config.text_config.vocab_size,
    )  # fmt: skip


def sam3_config(size: int) -> Any:
    """SAM 3's networks with its six layers of detector on either side and its 200 queries, of the smallest widths: the shape of
    its curve over prompts, not its size (848 M parameters at 1008 pixels)."""
    from transformers import Sam3Config

    cells, narrow = size // 16, {"hidden_size": SAM3_WIDTH, "num_attention_heads": 4}
    backbone = {"model_type": "sam3_vit_model", "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 8,
                "num_attention_heads": 4, "image_size": size, "pretrain_image_size": size, "patch_size": 16,
                "window_size": cells // 2, "global_attn_indexes": [3, 7]}  # fmt: skip
    vision = {"backbone_config": backbone, "fpn_hidden_size": SAM3_WIDTH,
              "backbone_feature_sizes": [[4 * cells] * 2, [2 * cells] * 2, [cells] * 2]}  # fmt: skip
    detector = {**narrow, "intermediate_size": 4 * SAM3_WIDTH}
    return Sam3Config(
        vision_config=vision, text_config=SAM3_TEXT, geometry_encoder_config={**detector, "num_layers": 1},
        detr_encoder_config=detector, detr_decoder_config=detector, mask_decoder_config=narrow,
    )  # fmt: skip


def sam3(size: int) -> Parts:
    """SAM 3's classes of transformers: the picture once, then detector and masks of every prompt."""
    from transformers import Sam3Model
    from transformers.modeling_outputs import BaseModelOutputWithPooling
    from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

    model = Sam3Model(sam3_config(size)).eval()

    def image(pixels: Any) -> tuple[Any, ...]:
        found = model.get_vision_features(pixel_values=pixels)
        return (*found.fpn_hidden_states, *found.fpn_position_encoding)

    def masks(*given: Any) -> tuple[Any, ...]:
        *picture, text = given
        picture = [each.expand(text.shape[0], -1, -1, -1) for each in picture]
        half = len(picture) // 2
        vision = Sam3VisionEncoderOutput(
            fpn_hidden_states=tuple(picture[:half]), fpn_position_encoding=tuple(picture[half:])
        )
        found = model(vision_embeds=vision, text_embeds=BaseModelOutputWithPooling(pooler_output=text))
        return found.pred_masks, found.semantic_seg, found.presence_logits

    encoders = model.vision_encoder, model.text_encoder, model.text_projection
    detector = model.detr_encoder, model.detr_decoder, model.mask_decoder, model.dot_product_scoring
    return Parts(
        module(image, encoders[0]), module(lambda ids: (model.get_text_features(ids).pooler_output,), *encoders[1:]),
        module(masks, *detector), size, SAM3_TEXT["vocab_size"],
    )  # fmt: skip


def marigold(size: int) -> Parts:
    """A one-step pipeline of Marigold's kind (Ke et al. 2024) from diffusers' classes, of our network's sizes: the picture
    encoded once, then the whole U-Net and the decoder for every prompt; the step itself is z = -v at the last timestep."""
    import torch
    from diffusers import AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    def sizes(part: str) -> dict[str, Any]:
        body = json.loads((OURS / part / "config.json").read_text(encoding="utf-8"))
        return {name: value for name, value in body.items() if not name.startswith("_")}

    vae = AutoencoderTiny.from_config(sizes("vae")).eval()
    unet = UNet2DConditionModel.from_config(sizes("unet")).eval()
    text_encoder = CLIPTextModel(CLIPTextConfig(**sizes("text_encoder"))).eval()
    scale = vae.config.scaling_factor

    def masks(z: Any, text: Any) -> tuple[Any, ...]:
        both = torch.cat([z, torch.zeros_like(z)], 1).expand(text.shape[0], -1, -1, -1)
        v = unet(both, 999, text, return_dict=False)[0]
        return (vae.decode(-v / scale, return_dict=False)[0].mean(1),)

    return Parts(
        module(lambda pixels: (vae.encode(pixels, return_dict=False)[0] * scale,), vae.encoder),
        module(lambda ids: (text_encoder(ids).last_hidden_state,), text_encoder), module(masks, unet, vae.decoder),
        size, text_encoder.config.vocab_size,
    )  # fmt: skip


def reference(size: int) -> Parts:
    """Our own reference, one step for every prompt, its components as they are: what our checkpoint gives to a user of PyTorch's
    exporter who knows nothing of the student."""
    import torch

    from digseg_engine.model.autoencoder import decode_mask, encode_image
    from digseg_engine.model.pretrained import load_checkpoint
    from digseg_engine.model.sampler import ddim_weights

    loaded = load_checkpoint(OURS)
    last = len(loaded.schedule) - 1
    _, of_v = ddim_weights(loaded.schedule, last, None)

    def masks(z: Any, text: Any) -> tuple[Any, ...]:
        both = torch.cat([z, torch.zeros_like(z)], 1).expand(text.shape[0], -1, -1, -1)
        live = torch.ones(text.shape[:2], dtype=torch.bool)
        v = loaded.reference(both, torch.full(text.shape[:1], last), text, live)
        return (decode_mask(loaded.vae, of_v * v),)

    return Parts(
        module(lambda pixels: (encode_image(loaded.vae, pixels),), loaded.vae.encoder),
        module(lambda ids: (loaded.text_encoder(ids).last_hidden_state,), loaded.text_encoder),
        module(masks, loaded.reference, loaded.vae.decoder), size, loaded.text_encoder.config.vocab_size,
    )  # fmt: skip


def student(size: int) -> Parts:
    """Our student as it is exported, to count its operations; every prompt decoded, presence asked."""
    import torch

    from digseg_engine.model.graph_modules import graph_modules
    from digseg_engine.model.pretrained import load_checkpoint

    loaded = load_checkpoint(OURS)
    graphs = graph_modules(loaded)

    def text(ids: Any) -> tuple[Any, ...]:
        return graphs.text_encoder(ids, torch.ones_like(ids, dtype=torch.bool))

    def masks(encoding: Any, keys: Any, values: Any) -> tuple[Any, ...]:
        live = torch.ones(keys.shape[0], keys.shape[-1], dtype=torch.bool)
        said = () if graphs.presence is None else (graphs.presence(encoding, keys, values, live),)
        return (graphs.mask_decoder(encoding, keys, values, live), *said)

    owned = [graphs.mask_decoder, *([graphs.presence] if graphs.presence is not None else [])]
    return Parts(
        module(lambda pixels: (graphs.image_encoder(pixels),), graphs.image_encoder),
        module(text, graphs.text_encoder), module(masks, *owned), size, loaded.text_encoder.config.vocab_size,
    )  # fmt: skip


BUILDERS: dict[str, Callable[[int], Parts]] = {
    "clipseg": clipseg, "sam3": sam3, "marigold": marigold, "reference": reference, "student": student,
}  # fmt: skip


def build(name: str, size: int) -> Parts:
    """A model, the same one every time."""
    import torch

    torch.manual_seed(0)
    return BUILDERS[name](size)
