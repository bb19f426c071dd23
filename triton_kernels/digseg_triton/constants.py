"""From tensor sizes and a configuration to the compile-time constants of a kernel. Integers only, no torch."""

from __future__ import annotations

from .configs import Config

SMALLEST = 16  # narrowest side of a matrix product on tensor cores
MOST_TOKENS = 128
_PROGRAMS_PER_PROCESSOR = 4


def power_of_two(count: int) -> int:
    """Smallest power of two >= count."""
    return 1 << (count - 1).bit_length()


def padded(count: int) -> int:
    """Smallest power of two >= count that a matrix product can take."""
    return max(SMALLEST, power_of_two(count))


def split(count: int) -> tuple[int, int]:
    """Cover `count` by two powers of two where that is less than one: 77 -> (64, 16), 20 -> (32, 0)."""
    main = padded(count) // 2
    if main < SMALLEST or main >= count:
        return padded(count), 0
    tail = padded(count - main)
    return (main, tail) if tail < main else (2 * main, 0)


def head_group(heads: int, tokens: int, columns: int) -> int:
    """Most heads, a power of two that divides `heads`, whose tokens fit side by side in `columns`."""
    group = 1
    while heads % (2 * group) == 0 and 2 * group * tokens <= max(columns, SMALLEST):
        group *= 2
    return group


def text_injection_constants(
    width: int, out_width: int, heads: int, depth: int, tokens: int, config: Config
) -> dict[str, int | bool]:
    """Constants of `text_injection_kernel` for C, Co, H, D, L; D = C is the absorbed form, D = C / H the split one."""
    main, tail = split(tokens)
    absorbed = depth == width
    can_group = heads % 2 == 0 and (absorbed or depth == power_of_two(depth))
    if tokens <= SMALLEST // 2 and can_group:
        main = SMALLEST // 2  # two heads fill the narrowest product
    group = head_group(heads, main, config.columns) if can_group and not tail else 1
    reach = min(config.chunk, padded(width)) if absorbed else padded(group * depth)
    return {
        "C": width,
        "CO": out_width,
        "H": heads,
        "D": depth,
        "L": tokens,
        "CHUNK": reach,
        "RESIDENT": reach >= width if absorbed else not tail and config.chunk >= width,
        "COP": padded(out_width),
        "GROUP": group,
        "MAIN": main,
        "TAIL": tail,
        "BLOCK_M": config.block,
    }


def cross_attention_constants(heads: int, tokens: int, head_dim: int, config: Config) -> dict[str, int]:
    """Constants of `cross_attention_kernel` for H, L, D, without scale and layout."""
    main, tail = split(tokens)
    dim, dim_tail = split(head_dim)
    return {
        "H": heads,
        "L": tokens,
        "D": head_dim,
        "DM": dim,
        "DT": dim_tail,
        "MAIN": main,
        "TAIL": tail,
        "BLOCK_M": config.block,
    }


def mask_argmax_constants(source_height: int, height: int, width: int, config: Config) -> dict[str, int]:
    """Constants of `mask_argmax_kernel`: output rows per program (at most 16), programs per band, columns."""
    band = -(-height // source_height)  # most output rows between two source rows
    rows = min(16, power_of_two(band))
    return {"PARTS": -(-band // rows), "ROWS": rows, "BLOCK": min(padded(width), config.block // rows)}


def prompt_span(tiles: int, prompts: int, processors: int) -> int:
    """Prompts per program: as many as keep every processor busy with several programs."""
    return max(1, min(prompts, tiles * prompts // (processors * _PROGRAMS_PER_PROCESSOR)))
