"""The reference: exact expansion of conv_in, exact zero start of the text pathway, U-Net pass equal to diffusers'."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel

from digseg_engine.errors import UsageError
from digseg_engine.model.reference import (
    Reference,
    decoder_strides,
    decoder_widths,
    expand_conv_in,
    run_unet,
    time_embedding,
)


@pytest.fixture
def pretrained(nano_preset):
    torch.manual_seed(1)
    return UNet2DConditionModel(**{**nano_preset.unet, "in_channels": 4}).eval()


def inputs(batch=2, height=6, width=10, length=7):
    torch.manual_seed(2)
    z, m = torch.randn(batch, 4, height, width), torch.randn(batch, 4, height, width)
    return z, m, torch.tensor([999, 3]), torch.randn(batch, length, 24)


@torch.no_grad()
def test_zero_slot_expansion_is_the_pretrained_network_exactly(pretrained):
    z, m, t, text = inputs()
    wanted = pretrained(z, t, text).sample
    wide = copy.deepcopy(pretrained)
    expand_conv_in(wide, "zero")
    for slot in (torch.zeros_like(m), m):
        got = wide(torch.cat([z, slot], 1), t, text).sample
        assert (got - wanted).abs().max() <= 1e-5


@torch.no_grad()
def test_noisy_slot_expansion_averages_both_slots(pretrained):
    z, m, t, text = inputs()
    wide = copy.deepcopy(pretrained)
    expand_conv_in(wide, "noisy")
    wanted = pretrained((z + m) / 2, t, text).sample
    assert (wide(torch.cat([z, m], 1), t, text).sample - wanted).abs().max() <= 1e-5
    with pytest.raises(UsageError, match="expected 4"):
        expand_conv_in(wide, "noisy")


@torch.no_grad()
def test_untrained_text_pathway_changes_nothing(pretrained):
    z, m, t, text = inputs()
    wide = copy.deepcopy(pretrained)
    expand_conv_in(wide, "zero")
    reference = Reference(wide, pathway_heads=2).eval()
    got = reference(torch.cat([z, m], 1), t, text)
    assert torch.equal(got, reference(torch.cat([z, m], 1), t, text))
    assert (got - pretrained(z, t, text).sample).abs().max() <= 1e-5
    for injection in reference.pathway.injections:
        injection.gate.fill_(0.5)
    assert (reference(torch.cat([z, m], 1), t, text) - got).abs().max() > 1e-3


@torch.no_grad()
def test_run_unet_reaches_the_features_diffusers_reads(pretrained):
    z, _, t, text = inputs()
    features = run_unet(pretrained, z, time_embedding(pretrained, t), text)
    assert [f.shape[1] for f in features] == decoder_widths(pretrained) == [16, 8]
    strides = decoder_strides(pretrained)
    assert [z.shape[-1] // f.shape[-1] for f in features] == strides and strides[-1] == 1
    v = pretrained.conv_out(pretrained.conv_act(pretrained.conv_norm_out(features[-1])))
    assert (v - pretrained(z, t, text).sample).abs().max() <= 1e-5


@torch.no_grad()
def test_padding_tokens_do_not_reach_the_reference(nano):
    z, m, t, text = inputs()
    for injection in nano.reference.pathway.injections:
        injection.gate.fill_(1.0)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[:, 4:] = False
    a = nano.reference(torch.cat([z, m], 1), t, text, mask)
    text[:, 4:] = 100.0
    assert (nano.reference(torch.cat([z, m], 1), t, text, mask) - a).abs().max() <= 1e-5


@torch.no_grad()
def test_every_row_is_its_own_picture_and_prompt(nano):
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ids, mask = (torch.from_numpy(array) for array in nano.tokenizer.encode(["red circle", "water", "a tree"]))
    text = nano.text_encoder(ids).last_hidden_state
    together = nano.reference.sample(z, text, mask, nano.schedule, 2)  # row b * K + k
    for b in range(2):
        for k in range(3):
            one = nano.reference.sample(z[b : b + 1], text[k : k + 1], mask[k : k + 1], nano.schedule, 2)
            torch.testing.assert_close(together[b * 3 + k], one[0], atol=1e-5, rtol=1e-4)
