"""The networks: reference and student, their parts, the sampler, and checkpoints on disk. Needs PyTorch."""
