"""Self-attention to averaged cells: the formula, the places where it stands, and the road to a bundle."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention

from digseg_engine import Engine
from digseg_engine.errors import UsageError
from digseg_engine.evaluation.predictors import student_predictor
from digseg_engine.model.folding import fold_student
from digseg_engine.model.pooled_attention import CrossAttention, PooledSelfAttention
from digseg_engine.model.pretrained import load_checkpoint, save_checkpoint, with_attention_pool


def test_every_cell_looks_at_averages_of_four():
    torch.manual_seed(0)
    attention = Attention(8, heads=2, dim_head=4).eval()
    x = torch.randn(2, 4 * 6, 8)
    found = PooledSelfAttention(2)(attention, x, grid=(4, 6))
    cells = x.view(2, 2, 2, 3, 2, 8).mean((2, 4)).flatten(1, 2)  # [2, 2 * 3, 8]
    q, k, v = attention.to_q(x), attention.to_k(cells), attention.to_v(cells)
    heads = []
    for h in range(2):
        own = slice(4 * h, 4 * h + 4)
        heads.append(torch.softmax(q[..., own] @ k[..., own].transpose(1, 2) / 2, -1) @ v[..., own])
    assert torch.allclose(found, attention.to_out[0](torch.cat(heads, -1)), atol=1e-6)


def test_only_blocks_finer_than_the_coarsest_are_pooled_and_the_reference_is_not(tiny):
    unet = with_attention_pool(tiny, 2).student.unet
    kinds = {name: type(processor) for name, processor in unet.attn_processors.items()}
    fine = {name for name in kinds if name.startswith(("down_blocks.1", "up_blocks.1"))}
    assert fine and {kinds[name] for name in fine if "attn1" in name} == {PooledSelfAttention}
    assert {kinds[name] for name in fine if "attn2" in name} == {CrossAttention}
    others = {kind for name, kind in kinds.items() if name not in fine}
    assert others and not others & {PooledSelfAttention, CrossAttention}
    assert not {type(p) for p in tiny.reference.unet.attn_processors.values()} & {PooledSelfAttention, CrossAttention}
    plain = with_attention_pool(tiny, 1).student.unet
    assert not {type(p) for p in plain.attn_processors.values()} & {PooledSelfAttention, CrossAttention}


def test_a_constant_picture_is_seen_alike(tiny):
    z = torch.zeros(1, 4, 32, 48)  # averages of equal cells are the cells
    plain, few = with_attention_pool(tiny, 1).student, with_attention_pool(tiny, 2).student
    with torch.no_grad():
        inner = slice(4, -4)
        for a, b in zip(plain.trunk(z), few.trunk(z)):
            near = (a - b).abs()[..., inner, inner]
            assert not near.numel() or near.max() < 0.2 * a.abs().max()
        x = torch.randn(1, 4, 32, 48)
        assert max((a - b).abs().max() for a, b in zip(plain.trunk(x), few.trunk(x))) > 1e-3


def test_a_pooled_checkpoint_is_kept_folded_and_exported(nano, raw_tokenizer, tmp_path):
    from digseg_export.publish import export_bundle

    c = with_attention_pool(nano, 2)
    save_checkpoint(c, raw_tokenizer.to_str(), tmp_path / "checkpoint")
    loaded = load_checkpoint(tmp_path / "checkpoint")
    assert loaded.config.student.attention_pool == 2
    z = torch.randn(1, 4, 8, 12)
    with torch.no_grad():
        whole, folded = loaded.student.trunk(z), fold_student(loaded.student).trunk(z)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(whole, folded))
    export_bundle(tmp_path / "checkpoint", "fp32", tmp_path / "bundle")
    picture = np.random.default_rng(0).integers(0, 255, (50, 90, 3), np.uint8)
    asked = {"prompts": ["soil", "weed"], "all_prompts": True}
    ours = Engine.load(tmp_path / "bundle", "onnxruntime").segment(picture, **asked)
    theirs = student_predictor(loaded, readout=False)(picture, asked["prompts"])
    assert np.array_equal(ours.masks, theirs.masks())


def test_other_numbers_are_refused(tiny):
    with pytest.raises(UsageError, match="attention_pool must be 1 or 2, got 3"):
        replace(tiny.config.student, attention_pool=3)
