"""The encoding: one tensor out of which the same answers come, and presence, which reads a prefix of it."""

from dataclasses import replace

import pytest
import torch

from digseg_engine.model.autoencoder import encode_image
from digseg_engine.model.config import StudentConfig
from digseg_engine.model.encoding import Layout
from digseg_engine.model.mask_head import upsample_sum
from digseg_engine.model.presence import CoarseScale, PresenceHead, meaning_of
from digseg_engine.model.pretrained import new_student

LAYOUT = Layout(width=5, head_width=3, ratios=(1, 2, 4))


def test_everything_comes_back_from_where_it_was_packed():
    torch.manual_seed(0)
    b, rows, columns = 2, 3, 7
    sizes = [(ratio * rows, ratio * columns) for ratio in LAYOUT.ratios]
    queries, bases = ([torch.randn(b, c, *size) for size in sizes] for c in (5, 3))
    detail = torch.randn(b, 3, *sizes[-1])
    encoding = LAYOUT.pack([torch.cat(pair, dim=1) for pair in zip(queries, bases)], detail)
    assert encoding.shape == (b, LAYOUT.channels, rows, columns)
    for (query, base), wanted_query, wanted_base in zip(LAYOUT.scales(encoding), queries, bases):
        assert torch.equal(query, wanted_query) and torch.equal(base, wanted_base)
    assert torch.equal(LAYOUT.detail(encoding), detail)
    assert [q.shape[1:] for q, _ in LAYOUT.scales(encoding, 2)] == [(5, 3, 7), (5, 6, 14)]


@pytest.mark.parametrize(("ratios", "coarse"), [((2, 4, 4), 1), ((2, 4, 8, 8), 2), ((2, 2), 1), ((4,), 1)])
def test_presence_leaves_the_finest_scales_alone(ratios, coarse):
    assert Layout(5, 3, ratios).coarse == coarse


@pytest.fixture
def asked(nano):
    """A student with a readout, two pictures of it encoded, three folded prompts."""
    torch.manual_seed(0)
    config = replace(nano.config, student=replace(nano.config.student, presence_width=6))
    student = new_student(nano.student.unet, config, nano.vae).eval().requires_grad_(False)
    student.load_state_dict(nano.student.state_dict(), strict=False)
    image = torch.randn(2, 3, 32, 48).clamp(-1, 1)
    features, to_head = student.describe(image, encode_image(nano.vae, image))
    text = student.fold_text(torch.randn(3, 8, 24), torch.arange(8)[None] < torch.tensor([[8], [3], [5]]))
    return student, features, to_head, text


@torch.no_grad()
def test_answers_are_those_of_the_features_themselves(asked):
    """The same sum written from the features, scale by scale, without an encoding between."""
    student, features, to_head, text = asked
    maps = []
    for s, (hidden, inject, reduce) in enumerate(zip(features, student.injections, student.reduce)):
        flat = hidden.flatten(2).transpose(1, 2)
        mixed = student.kernel_slots["text_injection"](
            inject.query(flat), reduce(flat), text.keys[:, s], text.values[:, s], text.mask
        )
        maps.append(mixed.transpose(2, 3).unflatten(3, hidden.shape[-2:]).flatten(0, 1))
    fused = upsample_sum(maps, student.strides).unflatten(0, (2, -1))
    fused = fused if to_head is None else fused + to_head[:, None]
    wanted = student.head(fused.flatten(0, 1)).unflatten(0, (2, -1))
    assert (student.answer(student.encode(features, to_head), text) - wanted).abs().max() < 1e-5


@torch.no_grad()
def test_presence_reads_a_prefix_and_one_prompt_at_a_time(asked):
    student, features, to_head, text = asked
    encoding = student.encode(features, to_head)
    presence = student.presence(encoding, text)
    assert presence.shape == (2, 3)
    layout = student.layout
    prefix = sum((layout.width + layout.head_width) * r**2 for r in layout.ratios[: layout.coarse])
    rest = encoding.clone()
    rest[:, prefix:] = 1e3
    assert torch.equal(student.presence(rest, text), presence)
    rest[:, :prefix] += 1
    assert not torch.equal(student.presence(rest, text), presence)
    alone = student.presence(encoding, type(text)(text.keys[1:2], text.values[1:2], text.mask[1:2]))
    assert (alone - presence[:, 1:2]).abs().max() < 1e-6


@torch.no_grad()
def test_one_telling_cell_decides_wherever_it_lies_and_however_many_lie_around():
    """What attention pooling is for: a mean would drown the cell."""
    torch.manual_seed(0)
    head = PresenceHead(5, 3, 7, 4, strides=[1])
    for layer in (*head.see, head.near, *head.read, head.weigh, head.mix, head.evidence):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    head.read[0].weight[0, 0] = 1.0  # channel 0 of the map is what counts ...
    head.evidence.weight[:, 0] = 10.0  # ... for what a cell says

    def said_of(rows, columns, row, column):
        query, mixed = torch.zeros(1, 5, rows, columns), torch.zeros(1, 1, 3, rows, columns)
        mixed[0, 0, 0, row, column] = 5.0
        return head([CoarseScale(query, mixed[:, 0], mixed)], torch.zeros(1, 7))

    said = torch.cat([said_of(4, 4, 1, 1), said_of(64, 64, 62, 32)])
    assert said.min() > 0.99 * said.max() > 10


def test_a_readout_has_a_width():
    with pytest.raises(Exception, match=r"presence_width must be a whole number from 0 .*got -1"):
        StudentConfig(presence_width=-1)


def test_what_a_prompt_means_is_what_its_last_token_says():
    keys, values = torch.randn(3, 2, 2, 5, 8), torch.randn(3, 2, 2, 8, 3)
    mask = torch.arange(8)[None] < torch.tensor([[8], [3], [5]])
    found = meaning_of(keys, values, mask)
    assert found.shape == (3, 2 * 2 * (5 + 3))
    for k, last in enumerate((7, 2, 4)):
        wanted = torch.cat([keys[k, ..., last], values[k, :, :, last]], -1).flatten()
        assert torch.equal(found[k], wanted)
