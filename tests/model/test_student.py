"""The student: folded injection equals the paired form, prompts are independent, shapes with all-different axes."""

import pytest
import torch

from digseg_engine.errors import UsageError
from digseg_engine.model.autoencoder import encode_image
from digseg_engine.model.config import StudentConfig
from digseg_engine.model.folding import fold_student
from digseg_engine.model.pretrained import deepen_stem, load_checkpoint, save_checkpoint
from digseg_engine.model.student import FoldedText
from digseg_engine.model.text_pathway import TextInjection, text_injection


@torch.no_grad()
def test_folded_form_equals_the_paired_form():
    torch.manual_seed(0)
    injection = TextInjection(width=24, text_dim=10, heads=3, gate=0.7)
    features, text = torch.randn(1, 24, 4, 6), torch.randn(5, 9, 10)
    mask = torch.arange(9)[None] < torch.tensor([[9], [1], [4], [7], [2]])
    paired = injection(features.expand(5, -1, -1, -1), text, mask)  # [K, C, h, w]
    flat = injection.norm(features).flatten(2).transpose(1, 2)
    keys, values = injection.fold(text)
    base = features.flatten(2).transpose(1, 2)
    folded = text_injection(injection.query(flat), base, keys, values, mask)[0]  # [K, hw, C]
    assert keys.shape == (5, 3, 8, 9)
    assert (folded.transpose(1, 2).unflatten(2, (4, 6)) - paired).abs().max() < 1e-5


@torch.no_grad()
def test_reduction_commutes_with_the_residual():
    torch.manual_seed(0)
    injection, cut = TextInjection(16, 10, 2, gate=1.0), torch.randn(5, 16)
    flat, text = torch.randn(2, 12, 16), torch.randn(3, 8, 10)
    mask = torch.ones(3, 8, dtype=torch.bool)
    query = injection.query(flat)
    full = text_injection(query, flat, *injection.fold(text), mask) @ cut.T
    short = text_injection(query, flat @ cut.T, *injection.fold(text, cut), mask)
    assert (full - short).abs().max() < 1e-4


@torch.no_grad()
def test_prompt_without_tokens_contributes_nothing():
    flat, base = torch.randn(1, 6, 8), torch.randn(1, 6, 3)
    out = text_injection(
        flat, base, torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 3), torch.tensor([[False] * 4, [True] * 4])
    )
    assert torch.equal(out[:, 0], base)
    assert not torch.equal(out[:, 1], base)


@torch.no_grad()
def test_shapes_with_all_different_axes(nano):
    b, k, length, height, width = 2, 3, 8, 32, 48
    student = nano.student
    folded = student.fold_text(torch.randn(k, length, 24), torch.ones(k, length, dtype=torch.bool))
    assert folded.keys.shape == (k, 2, 2, 8, length)  # [K, S, H, d, L]
    assert folded.values.shape == (k, 2, 2, length, 8)  # [K, S, H, L, Co]
    image = torch.randn(b, 3, height, width)
    z = encode_image(nano.vae, image)
    assert z.shape == (b, 4, height // 4, width // 4)
    assert [tuple(f.shape) for f in student.trunk(z)] == [(b, 16, 8, 12), (b, 8, 8, 12)]
    assert student(image, z, folded).shape == (b, k, height // 2, width // 2)


@torch.no_grad()
def test_adding_a_prompt_changes_no_other_mask(tiny):
    image = torch.randn(1, 3, 64, 96).clamp(-1, 1)
    z = encode_image(tiny.vae, image)

    def ask(prompts):
        ids, mask = tiny.tokenizer.encode(prompts)
        text = tiny.text_encoder(torch.from_numpy(ids)).last_hidden_state
        return tiny.student(image, z, tiny.student.fold_text(text, torch.from_numpy(mask)))

    alone = ask(["red circle"])
    largest = max(1.0, float(alone.abs().max()))
    assert (ask(["red circle", "grass"])[:, :1] - alone).abs().max() <= 1e-5 * largest
    longer = ask(["a much longer prompt that needs the next bucket of tokens", "red circle"])
    assert (longer[:, 1:] - alone).abs().max() <= 1e-4 * largest


@torch.no_grad()
@pytest.mark.parametrize("source", ["nano", "tiny"])
def test_folding_is_exact(source, request):
    checkpoint = request.getfixturevalue(source)
    student, config = checkpoint.student, checkpoint.config.student
    before = {name: value.clone() for name, value in student.state_dict().items()}
    folded = fold_student(student)
    image, z = torch.randn(2, 3, 64, 64), torch.randn(2, 4, 16, 16)
    s = len(student.injections)
    text = FoldedText(
        torch.randn(3, s, config.heads, config.width // config.heads, 8),
        torch.randn(3, s, config.heads, 8, config.head_width),
        torch.ones(3, 8, dtype=torch.bool),
    )
    wanted = student(image, z, text)
    assert (folded(image, z, text) - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))
    assert folded.unet.conv_in.in_channels == 4 and folded.unet.time_embedding is None
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    count = [sum(p.numel() for p in m.parameters()) for m in (folded, student)]
    assert count[0] < count[1]


@torch.no_grad()
def test_fused_and_unfused_agree_and_unfuse_restores(nano):
    from digseg_triton import fuse, unfuse

    torch.manual_seed(0)
    image, z, text = torch.randn(2, 3, 32, 48), torch.randn(2, 4, 8, 12), torch.randn(3, 8, 24)
    mask = torch.arange(8)[None] < torch.tensor([[8], [3], [5]])
    for injection in nano.reference.pathway.injections:
        injection.gate.fill_(0.7)

    def answers():
        student = nano.student(image, z, nano.student.fold_text(text, mask))
        noise = torch.randn(6, 4, 8, 12, generator=torch.Generator().manual_seed(1))
        return student, nano.reference.sample(z, text, mask, nano.schedule, 2, noise)

    plain, slots = answers(), [nano.student.kernel_slots, nano.reference.kernel_slots]
    report = fuse(nano.student)
    assert report.fused == (":text_injection", *(f"injections.{i}:cross_attention" for i in range(2)))
    assert fuse(nano.reference).unknown == ()
    fused = answers()
    assert all((a - b).abs().max() <= 1e-5 for a, b in zip(plain, fused))
    unfuse(nano.student), unfuse(nano.reference)
    assert nano.student.kernel_slots is slots[0]
    assert nano.reference.kernel_slots is slots[1]
    assert all(torch.equal(a, b) for a, b in zip(plain, answers()))


def test_whitening_gives_equal_weight_to_every_direction(nano):
    torch.manual_seed(0)
    strong_and_weak = torch.randn(500, 24) * torch.logspace(1, 0, 24) + 7
    nano.student.set_whitening(strong_and_weak, floor=1e-6)
    white = (strong_and_weak - nano.student.text_centre) @ nano.student.text_whiten
    assert white.mean(0).abs().max() < 1e-3
    assert (white.T @ white / 500 - torch.eye(24)).abs().max() < 1e-2
    raw = nano.student.fold_text(torch.randn(2, 8, 24), torch.ones(2, 8, dtype=torch.bool))
    assert raw.keys.isfinite().all()


def test_impossible_student_sizes_are_refused():
    with pytest.raises(UsageError, match="multiple of its heads"):
        StudentConfig(width=30, heads=4)
    with pytest.raises(UsageError, match="upsample"):
        StudentConfig(upsample=3)


@torch.no_grad()
def test_a_deeper_stem_starts_as_the_same_student_and_is_stored(nano, raw_tokenizer, tmp_path):
    image = torch.randn(1, 3, 32, 48)
    z, text = (
        encode_image(nano.vae, image),
        nano.student.fold_text(torch.randn(3, 8, 24), torch.ones(3, 8, dtype=torch.bool)),
    )
    before = nano.student(image, z, text)
    deepen_stem(nano, 2)
    assert torch.equal(nano.student(image, z, text), before)
    for name, weight in nano.student.named_parameters():
        if "detail.fine" in name or "detail.coarse" in name:
            weight.add_(0.1)  # as training would
    changed = nano.student(image, z, text)
    assert (changed - before).abs().max() > 1e-3
    save_checkpoint(nano, raw_tokenizer.to_str(), tmp_path / "deep")
    loaded = load_checkpoint(tmp_path / "deep")
    assert loaded.config.student.detail_blocks == 2
    torch.testing.assert_close(loaded.student(image, z, text), changed, atol=1e-2, rtol=1e-2)  # stored in fp16
    with pytest.raises(UsageError, match="can only be deepened: this student has detail_width 8 and 2 blocks, got 1"):
        deepen_stem(loaded, 1)
    with pytest.raises(UsageError, match="0 without an image stem"):
        StudentConfig(detail_width=0, detail_blocks=1)
