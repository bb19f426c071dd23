"""Configuration table and the integer arithmetic between tensor sizes and kernel constants."""

from __future__ import annotations

import itertools

import pytest

from digseg_triton import configs
from digseg_triton import constants as launch
from digseg_triton.configs import Config, choose

KNOWN = (80, 86, 87, 89, 90, 100, 120)


def test_split_covers_every_token_count_with_little_padding():
    assert [launch.split(n) for n in (1, 16, 17, 32, 33, 64, 77, 80, 81, 97, 128)] == [
        (16, 0), (16, 0), (32, 0), (32, 0), (32, 16), (64, 0), (64, 16), (64, 16), (64, 32), (128, 0), (128, 0),
    ]  # fmt: skip
    for count in range(1, 257):
        main, tail = launch.split(count)
        assert main + tail >= count
        assert main + tail - count < max(16, count / 3)
        assert all(part == 0 or part & (part - 1) == 0 for part in (main, tail))


def test_text_injection_plan_is_something_the_kernel_can_compile():
    sizes = itertools.product((40, 64, 256, 640), (3, 24, 64), (1, 4, 5, 8), (1, 8, 16, 32, 77), (False, True))
    for width, out, heads, tokens, split in sizes:
        if split and (heads == 1 or width % heads):
            continue
        depth = width // heads if split else width
        config = choose("text_injection_split" if split else "text_injection", 90, bytes=2, width=width, tokens=tokens)
        constants = launch.text_injection_constants(width, out, heads, depth, tokens, config)
        assert not split or constants["CHUNK"] >= constants["GROUP"] * depth
        assert not split or constants["GROUP"] == 1 or constants["CHUNK"] == constants["GROUP"] * depth
        assert heads % constants["GROUP"] == 0
        assert constants["GROUP"] * constants["MAIN"] >= 16
        assert constants["GROUP"] == 1 or constants["TAIL"] == 0
        assert constants["MAIN"] + constants["TAIL"] >= tokens
        assert constants["COP"] >= out
        for name in ("CHUNK", "COP", "MAIN", "GROUP", "BLOCK_M"):
            assert constants[name] & (constants[name] - 1) == 0, name


def test_known_plans():
    config = Config(block=64, warps=4, stages=2, chunk=256, columns=32)
    sd21 = launch.text_injection_constants(256, 64, 8, 256, 16, config)
    assert (sd21["GROUP"], sd21["MAIN"], sd21["TAIL"], sd21["CHUNK"]) == (2, 16, 0, 256)
    tiny = launch.text_injection_constants(64, 24, 4, 64, 8, config)
    assert (tiny["GROUP"], tiny["MAIN"], tiny["COP"], tiny["CHUNK"]) == (4, 8, 32, 64)
    clip = launch.text_injection_constants(256, 64, 8, 256, 77, config)
    split = launch.text_injection_constants(
        64, 24, 4, 16, 8, Config(block=64, warps=4, stages=2, chunk=256, columns=16)
    )
    assert (split["GROUP"], split["MAIN"], split["CHUNK"], split["RESIDENT"]) == (2, 8, 32, True)
    assert (clip["GROUP"], clip["MAIN"], clip["TAIL"]) == (1, 64, 16)


@pytest.mark.parametrize(("source", "size"), [(256, 1024), (6, 25), (5, 5), (9, 3), (2, 70), (1, 4096), (100, 101)])
def test_mask_argmax_bands_cover_every_row_once(source, size):
    constants = launch.mask_argmax_constants(source, size, 64, Config(block=1024, warps=4, stages=1))
    ceil = lambda a, b: -(-a // b)  # noqa: E731
    seen = []
    for band in range(-1, source):
        start = ceil(max(size * (2 * band + 1) - source, 0), 2 * source)
        stop = ceil(max(size * (2 * band + 3) - source, 0), 2 * source)
        assert stop - start <= constants["PARTS"] * constants["ROWS"]
        seen += range(start, min(stop, size))
    assert seen == list(range(size))


@pytest.mark.parametrize(
    ("tiles", "prompts", "processors"), [(32, 150, 132), (1, 1, 132), (64, 20, 16), (1, 37, 1), (4096, 150, 8)]
)
def test_prompt_span_keeps_every_processor_busy(tiles, prompts, processors):
    span = launch.prompt_span(tiles, prompts, processors)
    programs = tiles * -(-prompts // span)
    assert 1 <= span <= prompts
    assert programs >= min(tiles * prompts, 2 * processors)


@pytest.mark.parametrize(
    "op", ["text_injection", "text_injection_split", "cross_attention", "latent_concat", "mask_argmax"]
)
@pytest.mark.parametrize("arch", [*KNOWN, 75, 103, 121, 999])
def test_every_architecture_finds_a_configuration(op, arch):
    for bytes_, width, tokens in itertools.product((2, 4), (8, 64, 160, 256), (1, 16, 77, 128)):
        found = choose(op, arch, bytes=bytes_, width=width, tokens=tokens)
        assert found.warps in (4, 8)
        assert found.block & (found.block - 1) == 0


def test_nearest_architecture():
    assert configs.nearest([80, 86, 90], 89) == 86
    assert configs.nearest([80, 86, 90], 103) == 90
    assert configs.nearest([80, 86, 90], 75) == 80
    assert choose("cross_attention", 121, bytes=2, width=64, tokens=77) == choose(
        "cross_attention", 120, bytes=2, width=64, tokens=77
    )


def test_rules_go_from_small_to_large_and_the_limit_is_an_error():
    small = choose("text_injection", 90, bytes=2, width=64, tokens=8)
    large = choose("text_injection", 90, bytes=2, width=1280, tokens=8)
    assert small.chunk == 128
    assert large.chunk < 1280
    with pytest.raises(LookupError, match="no configuration"):
        choose("text_injection", 90, bytes=2, width=10**6, tokens=8)


def test_table_says_that_it_was_not_measured():
    assert "not yet measured on a GPU" in configs.table()["note"]
