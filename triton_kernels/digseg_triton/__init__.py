"""Triton kernels of DiGSeg Engine, each with a plain-PyTorch twin. Needs torch; triton only to launch."""
