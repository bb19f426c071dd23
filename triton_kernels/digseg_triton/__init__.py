"""Triton kernels of DiGSeg Engine, each with a plain-PyTorch twin. Needs torch; triton only to launch.

Functions are in `digseg_triton.ops`: `text_injection`, `cross_attention`, `latent_concat`, `sampler_step`,
`mask_argmax`. `fuse(model)` and `unfuse(model)` put them into a model and take them out. DIGSEG_TRITON=0 turns the
kernels off, DIGSEG_TRITON=force makes an unusable kernel an error.
"""

from .environment import KernelUnavailableError
from .fusing import FuseReport, fuse, unfuse

__all__ = ["FuseReport", "KernelUnavailableError", "fuse", "unfuse"]
