"""The five domains of the scene generator. Each painter fills (image, ids) and returns the names of each region.

Names are canonical prompts: a region answers to every name in its tuple ("red circle", "red", "circle").
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from digseg_engine.worlds.nameless import NAMELESS_SHAPES, nameless_colour
from digseg_engine.worlds.painting import (
    SHAPES,
    Field,
    Rng,
    box,
    circle,
    fractal_noise,
    local,
    paint,
    smooth_noise,
    stamp,
)

Ids = NDArray[np.uint8]
Names = list[tuple[str, ...]]
# Outline, colour and names of a coloured shape.
Look = tuple[Callable[[Field, Field, float], Field], tuple[float, float, float], tuple[str, ...]]

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.12),
    "green": (0.12, 0.66, 0.20),
    "blue": (0.12, 0.28, 0.88),
    "yellow": (0.95, 0.87, 0.12),
    "purple": (0.56, 0.16, 0.70),
    "orange": (0.97, 0.52, 0.06),
    "white": (0.97, 0.97, 0.97),
    "black": (0.04, 0.04, 0.05),
}
UNSEEN_PAIRS = ("blue star", "red ring", "yellow cross", "green triangle", "purple square", "orange circle")
ALL_PAIRS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
SEEN_PAIRS = tuple(pair for pair in ALL_PAIRS if pair not in UNSEEN_PAIRS)
NAMELESS_SHAPE, NAMELESS_COLOUR = 0.08, 0.05  # shares of training's shapes of no named shape, of no named colour


def _shade(rng: Rng, base: tuple[float, float, float], spread: float = 0.06) -> Field:
    return np.clip(np.array(base, np.float32) + rng.uniform(-spread, spread, 3).astype(np.float32), 0, 1)


def _blend(weight: Field, low: Field, high: Field) -> Field:
    """weight in about -1..1 -> colour field [H, W, 3] between two colours."""
    part = np.clip(0.5 + 0.5 * weight, 0, 1)[..., None]
    return low * (1 - part) + high * part


def _place(rng: Rng, size: int, margin: float = 0.08) -> tuple[float, float]:
    low, high = margin * size, (1 - margin) * size
    return float(rng.uniform(low, high)), float(rng.uniform(low, high))


def objects(rng: Rng, size: int, image: Field, ids: Ids, split: str) -> Names:
    """Coloured shapes on a noisy ground; later ones hide earlier ones.

    Training never draws an unseen pair, and draws some shapes or colours that have no name (see `nameless.py`).
    """
    ground = rng.uniform(0.25, 0.8, 3).astype(np.float32)
    mean = ground.mean()
    ground = mean + (ground - mean) * rng.uniform(0.1, 0.75)
    other = np.clip(ground + rng.uniform(-0.2, 0.2, 3).astype(np.float32), 0.1, 0.9)
    image[:] = _blend(fractal_noise(rng, size, int(rng.integers(2, 9))), ground, other)
    pairs = SEEN_PAIRS if split == "train" else ALL_PAIRS
    names: Names = []
    low, high = (5, 9) if split == "train" else (2, 7)  # crowded pictures teach more shapes per second
    for number in range(1, int(rng.integers(low, high)) + 1):
        unseen = split != "train" and rng.random() < 0.3
        pair = str(rng.choice(UNSEEN_PAIRS if unseen else pairs))
        colour, shape = pair.split()
        radius = size * rng.uniform(0.085, 0.23)
        u, v = local(size, _place(rng, size), rng.uniform(0, 2 * np.pi))
        light = 1 + 0.12 * smooth_noise(rng, size, 2)[..., None]
        outline, tone, answers = _named(colour, shape) if split != "train" else _unname(rng, colour, shape, ground)
        paint(image, ids, outline(u, v, radius), np.clip(_shade(rng, tone) * light, 0, 1), number)
        names.append(answers)
    return names


def _named(colour: str, shape: str) -> Look:
    return SHAPES[shape], COLOURS[colour], (f"{colour} {shape}", colour, shape)


def _unname(rng: Rng, colour: str, shape: str, ground: Field) -> Look:
    """A training shape: the named one, or one whose shape or colour has no name."""
    draw = rng.random()
    if draw < NAMELESS_SHAPE:
        return NAMELESS_SHAPES[int(rng.integers(len(NAMELESS_SHAPES)))], COLOURS[colour], (colour,)
    if draw < NAMELESS_SHAPE + NAMELESS_COLOUR:
        return SHAPES[shape], nameless_colour(rng, np.array(list(COLOURS.values()), np.float32), ground), (shape,)
    return _named(colour, shape)


@lru_cache(maxsize=3)
def _photograph(name: str) -> Field:
    """A grey photograph that ships inside scikit-image, [512, 512] in 0..1."""
    from skimage import data

    return np.asarray(getattr(data, name)() / 255, np.float32)


def _cut(rng: Rng, name: str, size: int, split: str) -> Field:
    """A random window of a photograph: training uses the left 60 %, everything else the right 36 %."""
    photo = _photograph(name)
    high, wide = photo.shape
    low, top = (0, int(0.6 * wide)) if split == "train" else (int(0.64 * wide), wide)
    window = int(rng.integers(100, top - low + 1))
    y0, x0 = int(rng.integers(0, high - window + 1)), int(rng.integers(low, top - window + 1))
    at = np.linspace(0, window - 1, size, dtype=np.float32)
    index, part = at.astype(np.int64), at - at.astype(np.int64)
    crop = photo[y0 : y0 + window, x0 : x0 + window]
    nxt = np.minimum(index + 1, window - 1)
    rows = crop[index] * (1 - part[:, None]) + crop[nxt] * part[:, None]
    cut = np.asarray(rows[:, index] * (1 - part) + rows[:, nxt] * part, np.float32)
    return cut[:, ::-1] if rng.random() < 0.5 else cut


def textures(rng: Rng, size: int, image: Field, ids: Ids, split: str) -> Names:
    """Two or three regions of random outline, each filled with a real photograph under random light and tint."""
    kinds = rng.permutation(["brick", "grass", "gravel"])[: int(rng.integers(2, 4))]
    fields = np.stack([fractal_noise(rng, size, int(rng.integers(2, 4)), 2) for _ in kinds])
    owner = fields.argmax(0)
    for number, kind in enumerate(kinds):
        tint = _shade(rng, (1.0, 1.0, 1.0), 0.18) * rng.uniform(0.75, 1.15)
        area = owner == number
        image[area] = np.clip(_cut(rng, str(kind), size, split)[..., None] * tint, 0, 1)[area]
        ids[area] = number + 1
    return [(str(kind),) for kind in kinds]


def _ellipse(u: Field, v: Field, squeeze: float, radius: float) -> Field:
    return np.asarray(np.hypot(u * squeeze, v) - radius * squeeze, np.float32)


def microscopy(rng: Rng, size: int, image: Field, ids: Ids, split: str) -> Names:
    """Stained tissue: pale cells with a dark nucleus, and sometimes one dense, ragged lesion."""
    pale, deep = _shade(rng, (0.95, 0.80, 0.88)), _shade(rng, (0.88, 0.62, 0.78))
    image[:] = _blend(fractal_noise(rng, size, 5), pale, deep)
    names: Names = [("lesion",), ("cell",), ("nucleus", "cell")]
    if rng.random() < 0.6:
        u, v = local(size, _place(rng, size, 0.2), 0)
        ragged = circle(u, v, size * rng.uniform(0.14, 0.28)) + 0.07 * size * fractal_noise(rng, size, 6)
        dark, rust = _shade(rng, (0.52, 0.16, 0.22)), _shade(rng, (0.66, 0.30, 0.30))
        paint(image, ids, ragged, _blend(fractal_noise(rng, size, 12), dark, rust), 1)
    for _ in range(int(rng.integers(3, 12))):
        centre, angle = _place(rng, size, 0.05), rng.uniform(0, np.pi)
        radius, squeeze = size * rng.uniform(0.055, 0.10), rng.uniform(0.7, 1.0)
        body = partial(_ellipse, squeeze=squeeze, radius=radius)
        stamp(image, ids, centre, angle, radius, body, _shade(rng, (0.80, 0.66, 0.88)), 2)
        core = partial(circle, r=radius * rng.uniform(0.42, 0.6))
        spot = (centre[0] + rng.uniform(-0.2, 0.2) * radius, centre[1])
        stamp(image, ids, spot, angle, radius, core, _shade(rng, (0.34, 0.16, 0.50)), 3)
    return names


def _fields(rng: Rng, size: int) -> Field:
    """Ploughed farmland: stripes in one direction under slow changes of tone, [H, W, 3]."""
    u, _ = local(size, (0, 0), rng.uniform(0, np.pi))
    stripes = np.sin(u * (2 * np.pi / (size * rng.uniform(0.03, 0.07))))
    low, high = _shade(rng, (0.62, 0.66, 0.30)), _shade(rng, (0.78, 0.74, 0.42))
    return _blend(0.5 * stripes + 0.6 * smooth_noise(rng, size, 4), low, high)


def _houses(rng: Rng, size: int, image: Field, ids: Ids) -> None:
    angle = rng.uniform(0, np.pi / 2)
    for _ in range(int(rng.integers(2, 7))):
        u, v = local(size, _place(rng, size), angle + rng.integers(0, 2) * np.pi / 2)
        a, b = size * rng.uniform(0.04, 0.10), size * rng.uniform(0.04, 0.075)
        shadow = np.clip(0.5 - box(u - 0.02 * size, v - 0.02 * size, a, b), 0, 1)[..., None]
        image *= 1 - 0.45 * shadow
        roofs = ((0.70, 0.30, 0.22), (0.80, 0.78, 0.76), (0.46, 0.32, 0.28))
        roof = _shade(rng, roofs[int(rng.integers(0, 3))], 0.05)
        paint(image, ids, box(u, v, a, b), np.where((v > 0)[..., None], roof, roof * 0.8), 3)


def aerial(rng: Rng, size: int, image: Field, ids: Ids, split: str) -> Names:
    """A view from above: fields, then water, roads, buildings and trees on top."""
    image[:] = _fields(rng, size)
    ids[:] = 1
    if rng.random() < 0.6:
        depth = fractal_noise(rng, size, 2, 2) + rng.uniform(-0.1, 0.5)
        deep, shoal = _shade(rng, (0.10, 0.26, 0.48)), _shade(rng, (0.18, 0.42, 0.56))
        paint(image, ids, depth * size * 0.2, _blend(smooth_noise(rng, size, 8), deep, shoal), 4)
    for _ in range(int(rng.integers(0, 3))):
        u, v = local(size, _place(rng, size, 0.25), rng.uniform(0, np.pi))
        bend = v + 0.05 * size * np.sin(u * (np.pi / size) + rng.uniform(0, 6))
        half = size * rng.uniform(0.022, 0.045)
        paint(image, ids, np.abs(bend) - half, _shade(rng, (0.45, 0.45, 0.47), 0.04), 2)
        dashes = np.maximum(np.abs(bend) - 0.12 * half, np.abs(np.mod(u, 0.12 * size) - 0.06 * size) - 0.03 * size)
        paint(image, ids, dashes, np.array((0.9, 0.9, 0.86), np.float32), 2)
    if rng.random() < 0.75:
        _houses(rng, size, image, ids)
    if rng.random() < 0.75:
        wood = _place(rng, size)
        for _ in range(int(rng.integers(5, 16))):
            spot = (wood[0] + rng.normal(0, 0.13) * size, wood[1] + rng.normal(0, 0.13) * size)
            radius = size * rng.uniform(0.03, 0.065)
            stamp(image, ids, spot, 0, radius, partial(circle, r=radius), _shade(rng, (0.08, 0.26, 0.10), 0.04), 5)
            lit = (spot[0] - 0.25 * radius, spot[1] - 0.25 * radius)
            glow = _shade(rng, (0.20, 0.44, 0.16), 0.04)
            stamp(image, ids, lit, 0, radius, partial(circle, r=0.55 * radius), glow, 5)
    return [("field",), ("road",), ("building",), ("water",), ("trees",)]


def _plant(rng: Rng, image: Field, ids: Ids, spot: tuple[float, float], radius: float, leaves: int, kind: int) -> None:
    """A rosette of `leaves` leaves seen from above: a radius that swings with the angle."""
    base = (0.36, 0.66, 0.20) if kind == 1 else (0.10, 0.40, 0.22)

    def outline(u: Field, v: Field) -> Field:
        swing = 0.76 + 0.24 * np.cos(np.arctan2(v, u) * leaves)
        return np.asarray(np.hypot(u, v) - radius * swing, np.float32)

    stamp(image, ids, spot, rng.uniform(0, 2 * np.pi), radius, outline, _shade(rng, base, 0.05), kind)


def crops(rng: Rng, size: int, image: Field, ids: Ids, split: str) -> Names:
    """Soil with parallel crop rows of broad plants, and darker, spiky weeds between them."""
    dry, wet = _shade(rng, (0.56, 0.42, 0.30)), _shade(rng, (0.38, 0.27, 0.19))
    image[:] = _blend(fractal_noise(rng, size, 10), dry, wet)
    ids[:] = 3
    angle, gap = rng.uniform(-0.5, 0.5) + rng.integers(0, 2) * np.pi / 2, size * rng.uniform(0.24, 0.4)
    along = np.array((np.cos(angle), np.sin(angle)))  # (y, x)
    across = np.array((-along[1], along[0]))
    start = rng.uniform(-0.5, 0.5) * gap
    for row in range(-4, 5):
        for step in np.arange(-0.75, 0.75, 0.085):
            spot = size / 2 + across * (start + row * gap) + along * (step * size + rng.normal(0, 0.008) * size)
            if rng.random() > 0.08:
                _plant(rng, image, ids, (spot[0], spot[1]), size * rng.uniform(0.05, 0.07), 4, 1)
    for _ in range(int(rng.integers(0, 8))):
        _plant(rng, image, ids, _place(rng, size), size * rng.uniform(0.05, 0.085), int(rng.integers(6, 9)), 2)
    return [("crop row",), ("weed",), ("soil",)]


Painter = Callable[[Rng, int, Field, Ids, str], Names]
PAINTERS: dict[str, Painter] = {
    "objects": objects,
    "textures": textures,
    "microscopy": microscopy,
    "aerial": aerial,
    "crops": crops,
}
CLASSES: dict[str, tuple[str, ...]] = {
    "objects": (*ALL_PAIRS, *COLOURS, *SHAPES),
    "textures": ("brick", "grass", "gravel"),
    "microscopy": ("nucleus", "cell", "lesion"),
    "aerial": ("road", "building", "water", "field", "trees"),
    "crops": ("crop row", "weed", "soil"),
}
