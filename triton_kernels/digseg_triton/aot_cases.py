"""The representative kernels compiled ahead of time: model sizes, signature, constants and what to expect."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from .configs import Config, choose
from .constants import cross_attention_constants, mask_argmax_constants, text_injection_constants
from .launch import PRECISION

WIDER = (87, 90)  # the oldest style of matrix instructions and a newer one
_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class Case:
    """One kernel at one size. `signature` lists the runtime parameters, in the order the kernel declares them."""

    name: str
    op: str
    signature: dict[str, str]
    constants: dict[str, Any]
    config: Config
    divisible: tuple[str, ...] = ()  # integers hinted as multiples of 16
    wide_loads: int = 1
    narrow_loads: int = 8  # the token mask is bytes
    wide_stores: int = 1

    def hinted(self) -> list[str]:
        """Parameters promised to be multiples of 16: all pointers, and the integers in `divisible`."""
        return [name for name, kind in self.signature.items() if kind.startswith("*") or name in self.divisible]

    def kernel(self) -> Any:
        """The `triton.jit` function."""
        module = importlib.import_module(f".{self.op}_kernel", __package__)
        return getattr(module, f"{self.op}_kernel")


def _text_injection(
    arch: int,
    label: str,
    dtype: str,
    sizes: tuple[int, int, int, int, int],
) -> Case:
    """`sizes` = C, Co, H, D, L. Keys of an odd token count cannot be read 16 bytes at a time."""
    width, out_width, heads, depth, tokens = sizes
    table = "text_injection" if depth == width else "text_injection_split"
    config = choose(table, arch, bytes=_BYTES[dtype], width=width, tokens=tokens)
    data = "*" + dtype
    return Case(
        name=f"text_injection {label} {dtype}",
        op="text_injection",
        signature={
            "features_ptr": data,
            "base_ptr": data,
            "keys_ptr": data,
            "values_ptr": data,
            "mask_ptr": "*i1",
            "rows": "i32",
            "prompts": "i32",
            "span": "i32",
            "out_ptr": data,
        },
        constants=text_injection_constants(width, out_width, heads, depth, tokens, config) | {"PRECISION": PRECISION},
        config=config,
        wide_loads=4,
        narrow_loads=8 if tokens % 8 == 0 else 1024,
    )


def _cross_attention(arch: int, dtype: str, head_dim: int) -> Case:
    """SD 1.5 has heads of 40, 80 and 160, SD 2.1 of 64; 77 tokens, heads inside the rows."""
    config = choose("cross_attention", arch, bytes=_BYTES[dtype], width=head_dim, tokens=77)
    layout = {"SCALE": head_dim**-0.5, "Q_PACKED": True, "KV_PACKED": True, "PRECISION": PRECISION}
    data = "*" + dtype
    return Case(
        name=f"cross_attention D={head_dim} {dtype}",
        op="cross_attention",
        signature={
            "query_ptr": data,
            "key_ptr": data,
            "value_ptr": data,
            "mask_ptr": "*i1",
            "rows": "i32",
            "out_ptr": data,
        },
        constants=cross_attention_constants(8, 77, head_dim, config) | layout,
        config=config,
        wide_loads=3,
    )


def _latent_concat(arch: int, channels_last: bool, step: bool) -> Case:
    config = choose("latent_concat", arch)
    pointers = {"image_ptr": "*fp32", "mask_ptr": "*fp32", "velocity_ptr": "*fp16", "noise_ptr": "*fp32"}
    numbers = {"pixels": "i32", "prompts": "i32", "a": "fp32", "b": "fp32", "scale": "fp32", "noise_scale": "fp32"}
    return Case(
        name=f"latent_concat {'NHWC' if channels_last else 'NCHW'}{' step' if step else ''}",
        op="latent_concat",
        signature=pointers | numbers | {"next_ptr": "*fp32", "out_ptr": "*fp16"},
        constants={"STEP": step, "SCALED": step, "NOISE": step, "CHANNELS_LAST": channels_last, "BLOCK": config.block},
        config=config,
        divisible=("pixels",),
        wide_loads=2,
        narrow_loads=0,
        wide_stores=4 if step else 2,
    )


def _mask_argmax(arch: int) -> Case:
    """Upsampling 256 to 1024. The reads are gathers, so only the stores can be wide."""
    config = choose("mask_argmax", arch)
    integers = dict.fromkeys(("prompts", "source_h", "source_w", "height", "width"), "i32")
    return Case(
        name="mask_argmax x4",
        op="mask_argmax",
        signature={"logits_ptr": "*fp32", **integers, "threshold": "fp32", "label_ptr": "*i32", "score_ptr": "*fp32"},
        constants=dict(mask_argmax_constants(256, 1024, 1024, config)),
        config=config,
        divisible=("source_h", "source_w", "height", "width"),
        wide_loads=0,
        narrow_loads=1024,
        wide_stores=4,
    )


def cases(arch: int, full: bool = False) -> list[Case]:
    """What is compiled for `arch`: everything if `full`, else the core ones, and more on the two that stand for all."""
    sd21, tiny = (256, 64, 8, 256, 16), (64, 24, 4, 64, 8)
    sd21_split, tiny_split = (256, 64, 8, 32, 16), (64, 24, 4, 16, 8)
    core = [
        _text_injection(arch, "sd21 split", "fp16", sd21_split),
        _cross_attention(arch, "fp16", 64),
        _latent_concat(arch, channels_last=True, step=True),
        _mask_argmax(arch),
    ]
    wider = [
        _text_injection(arch, "sd21", "fp16", sd21),
        _text_injection(arch, "sd21 split", "bf16", sd21_split),
        _text_injection(arch, "sd21 split", "fp32", sd21_split),
        _text_injection(arch, "77 tokens split", "fp16", (256, 64, 8, 32, 77)),
        _cross_attention(arch, "fp16", 160),
        _cross_attention(arch, "fp32", 64),
        _latent_concat(arch, channels_last=False, step=False),
    ]
    others = [
        _text_injection(arch, "sd21", "bf16", sd21),
        _text_injection(arch, "sd21", "fp32", sd21),
        _text_injection(arch, "tiny split", "fp16", tiny_split),
        _text_injection(arch, "tiny", "fp16", tiny),
        _text_injection(arch, "77 tokens", "fp16", (256, 64, 8, 256, 77)),
        _text_injection(arch, "32 tokens split", "fp16", (256, 32, 8, 32, 32)),
        _text_injection(arch, "32 tokens", "fp16", (256, 32, 8, 256, 32)),
        _text_injection(arch, "wide split", "fp16", (640, 64, 8, 80, 16)),
        _text_injection(arch, "wide", "fp16", (640, 64, 8, 640, 16)),
        _cross_attention(arch, "bf16", 64),
        _cross_attention(arch, "fp16", 40),
        _cross_attention(arch, "fp16", 80),
        _latent_concat(arch, channels_last=True, step=False),
        _latent_concat(arch, channels_last=False, step=True),
    ]
    return core + (wider if full or arch in WIDER else []) + (others if full else [])
