"""The fused label map: upsampling, argmax and threshold in one, without all prompts at full size."""

import pytest
import torch
import torch.nn.functional as F
from triton_support import assert_close_as_eager

from digseg_triton import ops, twins


@pytest.mark.parametrize("size", [(20, 24), (17, 31), (5, 6), (3, 4), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_mask_argmax_is_upsample_then_argmax(size, dtype):
    logits = torch.randn(2, 7, 5, 6, generator=torch.Generator().manual_seed(8)).to(dtype)
    labels, score = ops.mask_argmax(logits, size, 0.2)
    full = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)  # [B, K, H, W]
    best, winner = full.max(1)
    assert torch.equal(labels, torch.where(best > 0.2, winner + 1, 0).int())
    assert_close_as_eager(score, best, F.interpolate(logits.double(), size, mode="bilinear").amax(1))
    assert labels.dtype == torch.int32


def test_mask_argmax_background_ties_and_nan():
    logits = torch.zeros(1, 3, 2, 2)
    labels, score = ops.mask_argmax(logits, (4, 4))
    assert not labels.any()  # 0 is not above the threshold 0
    assert not score.any()
    labels, _ = ops.mask_argmax(logits + 1, (4, 4))
    assert (labels == 1).all()  # the first of equals
    logits[:, 0] = torch.nan
    labels, _ = ops.mask_argmax(logits + 1, (4, 4))
    assert (labels == 2).all()


def test_mask_argmax_never_holds_all_prompts_at_full_size():
    """The twin allocates nothing with K x H x W elements (the kernel has no such buffer at all)."""
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            seen.extend(value.numel() for value in torch.utils._pytree.tree_leaves(out) if hasattr(value, "numel"))
            return out

    with Watch():
        twins.mask_argmax(torch.randn(1, 20, 4, 4), 32, 32, 0.0)
    assert len(seen) > 20
    assert max(seen) == 32 * 32
