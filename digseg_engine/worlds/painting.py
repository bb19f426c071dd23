"""Drawing primitives of the scene generator: signed distances, smooth noise, anti-aliased paint. NumPy only.

Every function is a pure function of its arguments (the random generator included), so a seed gives one picture.
Distances are in pixels, negative inside. Colours are float RGB in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating]
Rng = np.random.Generator


def grid(size: int) -> tuple[Field, Field]:
    """Pixel-centre coordinates y, x, each [size, size]."""
    axis = np.arange(size, dtype=np.float32) + 0.5
    return np.broadcast_to(axis[:, None], (size, size)), np.broadcast_to(axis[None, :], (size, size))


def local(size: int, centre: tuple[float, float], angle: float) -> tuple[Field, Field]:
    """Coordinates u, v of a frame at `centre` (y, x) turned by `angle` radians, each [size, size]."""
    y, x = grid(size)
    dy, dx = y - np.float32(centre[0]), x - np.float32(centre[1])
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * dx + s * dy, c * dy - s * dx


def circle(u: Field, v: Field, r: float) -> Field:
    return np.asarray(np.hypot(u, v) - r, np.float32)


def box(u: Field, v: Field, a: float, b: float) -> Field:
    return np.maximum(np.abs(u) - a, np.abs(v) - b)


def square(u: Field, v: Field, r: float) -> Field:
    return box(u, v, 0.84 * r, 0.84 * r)


def triangle(u: Field, v: Field, r: float) -> Field:
    side = np.float32(np.sqrt(3) / 2)
    return np.maximum(-v, side * np.abs(u) + 0.5 * v) - 0.56 * r


def star(u: Field, v: Field, r: float) -> Field:
    """Five points: the angle is folded into one tenth of a turn, where the outline is one straight edge."""
    tenth = np.float32(np.pi / 5)
    theta = np.abs(np.mod(np.arctan2(u, -v) + tenth, 2 * tenth) - tenth)
    rho = np.hypot(u, v)
    outer, inner = 1.12 * r, 0.46 * r
    ex, ey = inner * np.cos(tenth) - outer, inner * np.sin(tenth)  # edge from the tip to the notch
    norm = np.hypot(ex, ey)
    return np.asarray(((rho * np.cos(theta) - outer) * ey - rho * np.sin(theta) * ex) / norm, np.float32)


def ring(u: Field, v: Field, r: float) -> Field:
    return np.asarray(np.abs(np.hypot(u, v) - 0.74 * r) - 0.26 * r, np.float32)


def cross(u: Field, v: Field, r: float) -> Field:
    return np.minimum(box(u, v, r, 0.3 * r), box(u, v, 0.3 * r, r))


SHAPES: dict[str, Callable[[Field, Field, float], Field]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "ring": ring,
    "cross": cross,
}


def smooth_noise(rng: Rng, size: int, cells: int) -> Field:
    """Bilinear value noise in -1..1 with about `cells` bumps per side, [size, size]."""
    table = rng.uniform(-1, 1, (cells + 2, cells + 2)).astype(np.float32)
    at = np.linspace(0, cells, size, dtype=np.float32)
    low = np.minimum(at.astype(np.int64), cells)
    part = at - low
    part = part * part * (3 - 2 * part)
    rows = table[low] * (1 - part[:, None]) + table[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def fractal_noise(rng: Rng, size: int, cells: int, octaves: int = 3) -> Field:
    """Sum of value noises, each octave twice as fine and half as strong, about -1..1."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        total += smooth_noise(rng, size, min(cells << octave, size)) * np.float32(0.5**octave)
    return total


def paint(image: Field, ids: NDArray[np.uint8], distance: Field, colour: Field, number: int) -> None:
    """Blend `colour` ([3] or [H, W, 3]) where distance < 0 with a one-pixel soft edge; write `number` into ids."""
    alpha = np.clip(0.5 - distance, 0, 1)[..., None]
    image *= 1 - alpha
    image += alpha * colour
    ids[distance < 0] = number


def stamp(
    image: Field,
    ids: NDArray[np.uint8],
    centre: tuple[float, float],
    angle: float,
    reach: float,
    distance: Callable[[Field, Field], Field],
    colour: Field,
    number: int,
) -> None:
    """`paint` a small shape: only the window within `reach` pixels of `centre` (y, x) is computed."""
    size = image.shape[0]
    top, left = (max(0, int(c - reach - 1)) for c in centre)
    bottom, right = (min(size, int(c + reach + 2)) for c in centre)
    if top >= bottom or left >= right:
        return
    dy = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - centre[0]))[:, None]
    dx = (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - centre[1]))[None, :]
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    area = slice(top, bottom), slice(left, right)
    paint(image[area], ids[area], distance(c * dx + s * dy, c * dy - s * dx), colour, number)


def speckle(rng: Rng, image: Field, strength: float) -> Field:
    """Sensor-like grain, one value per pixel plus a little per channel."""
    shape = image.shape
    grain = rng.standard_normal(shape[:2], dtype=np.float32)[..., None] + 0.4 * rng.standard_normal(
        shape, dtype=np.float32
    )
    return image + np.float32(strength) * grain
