"""Shapes and colours without a name, for training scenes only.

With named shapes alone "red star" can be learned as "red, and none of the other shapes that come in red", which then also
answers to a red ring, a pair that training never draws. Red shapes that are nothing in particular, and rings of no
particular colour, leave only the honest reading: red, and a star.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from digseg_engine.worlds.painting import Field, Rng, box, circle, triangle

CLEARANCE = 0.3  # a nameless colour keeps this RGB distance from every named one
ATTEMPTS = 1000


def bar(u: Field, v: Field, r: float) -> Field:
    return box(u, v, 1.1 * r, 0.28 * r)


def oval(u: Field, v: Field, r: float) -> Field:
    return np.asarray(0.5 * (np.hypot(0.9 * u, 2.0 * v) - r), np.float32)


def frame(u: Field, v: Field, r: float) -> Field:
    return np.abs(np.maximum(np.abs(u), np.abs(v)) - np.float32(0.7 * r)) - np.float32(0.18 * r)


def half(u: Field, v: Field, r: float) -> Field:
    return np.maximum(circle(u, v - np.float32(0.4 * r), r), v - np.float32(0.4 * r))


def crescent(u: Field, v: Field, r: float) -> Field:
    return np.maximum(circle(u, v, r), -circle(u - np.float32(0.5 * r), v, 0.8 * r))


def heart(u: Field, v: Field, r: float) -> Field:
    lobes = circle(np.abs(u) - np.float32(0.42 * r), v + np.float32(0.3 * r), 0.5 * r)
    tip = np.maximum(0.75 * np.abs(u) + 0.62 * v - np.float32(0.55 * r), -0.2 * r - v)
    return np.asarray(np.minimum(lobes, tip), np.float32)


def ell(u: Field, v: Field, r: float) -> Field:
    corner = np.float32(0.6 * r)
    return np.minimum(box(u + corner, v, 0.28 * r, 0.9 * r), box(u, v - corner, 0.9 * r, 0.28 * r))


def tee(u: Field, v: Field, r: float) -> Field:
    top = np.float32(0.65 * r)
    return np.minimum(box(u, v + top, r, 0.27 * r), box(u, v, 0.27 * r, 0.9 * r))


def arrow(u: Field, v: Field, r: float) -> Field:
    return np.minimum(
        triangle(u, v + np.float32(0.45 * r), 0.75 * r), box(u, v - np.float32(0.5 * r), 0.2 * r, 0.55 * r)
    )


def chevron(u: Field, v: Field, r: float) -> Field:
    return np.maximum(np.abs(0.75 * np.abs(u) - 0.66 * v) - np.float32(0.24 * r), np.abs(u) - np.float32(r))


def lozenge(u: Field, v: Field, r: float) -> Field:
    return np.asarray(0.88 * np.abs(u) + 0.47 * np.abs(v) - 0.5 * r, np.float32)


def lobed(u: Field, v: Field, r: float, lobes: int) -> Field:
    """A flower: its radius swings with the angle."""
    swing = 0.72 + 0.3 * np.cos(lobes * np.arctan2(v, u))
    return np.asarray(0.8 * (np.hypot(u, v) - r * swing), np.float32)


def trefoil(u: Field, v: Field, r: float) -> Field:
    return lobed(u, v, r, 3)


def daisy(u: Field, v: Field, r: float) -> Field:
    return lobed(u, v, r, 8)


def wedge(u: Field, v: Field, r: float) -> Field:
    """A disc with a slice cut out."""
    return np.maximum(circle(u, v, r), -np.maximum(0.7 * np.abs(v) - 0.7 * u, -np.float32(4 * r)))


NAMELESS_SHAPES: tuple[Callable[[Field, Field, float], Field], ...] = (
    bar, oval, frame, half, crescent, heart, ell, tee, arrow, chevron, lozenge, trefoil, daisy, wedge,
)  # fmt: skip


def nameless_colour(rng: Rng, named: Field, ground: Field) -> tuple[float, float, float]:
    """A random RGB colour that is none of `named` [N, 3] and stands out against `ground` [3]."""
    others = np.concatenate([named, ground[None]])
    for _ in range(ATTEMPTS):
        colour = rng.uniform(0.02, 0.98, 3)
        if np.linalg.norm(others - colour, axis=1).min() > CLEARANCE:
            break
    return float(colour[0]), float(colour[1]), float(colour[2])
