"""Geometry of a diagram: directions in degrees, y downwards, labels beside points, lines around what is in the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import atan2, ceil, cos, degrees, hypot, radians, sin, tau
from typing import TypeAlias

from tnc.draw.shapes import Box, Point, Word

__all__ = [
    "DOWN",
    "RADIUS",
    "UP",
    "Spot",
    "beside",
    "curve",
    "fan",
    "outward",
    "samples",
    "shared",
    "towards",
    "word",
]

RADIUS = 28.0
"""Of a core."""
UP, DOWN = -90.0, 90.0

Spot: TypeAlias = tuple[Point, float]
"""A point a label belongs to, and the direction in which it stands from there."""


def towards(point: Point, turn: float, distance: float) -> Point:
    """The point that far away in that direction."""
    return point[0] + distance * cos(radians(turn)), point[1] + distance * sin(radians(turn))


def word(text: str, point: Point, turn: float, colour: str) -> Word:
    """A label beside a point, so that its box just does not touch it."""
    *_, right, bottom = Word((0.0, 0.0), text).box
    across = [half / max(abs(f(radians(turn))), 1e-9) for half, f in ((right, cos), (bottom, sin))]
    return Word(towards(point, turn, min(across) + 5), text, colour=colour)


def curve(start: Point, end: Point, bow: float, others: Sequence[Point]) -> tuple[Point, ...]:
    """A line, bent further where it would run through one of the others."""
    (ax, ay), (bx, by) = start, end
    length = hypot(bx - ax, by - ay) or 1.0
    for more in (0, 80, -80, 160, -160, 240, -240):
        side = (bow + more) / length
        bent = start, ((ax + bx) / 2 + side * (ay - by), (ay + by) / 2 + side * (bx - ax)), end
        if not any(hypot(x - ox, y - oy) < RADIUS + 8 for x, y in _along(bent) for ox, oy in others):
            break
    return bent if bow + more else (start, end)


def _along(points: tuple[Point, ...], steps: int = 0) -> Iterator[Point]:
    """Points on a line or on a quadratic curve, about eight units apart unless the number of steps is given."""
    (ax, ay), (bx, by) = points[0], points[-1]
    mx, my = points[1] if len(points) == 3 else ((ax + bx) / 2, (ay + by) / 2)
    steps = steps or max(2, ceil((hypot(mx - ax, my - ay) + hypot(bx - mx, by - my)) / 8))
    for t in (k / steps for k in range(steps + 1)):
        u, v, w = (1 - t) ** 2, 2 * t * (1 - t), t * t
        yield u * ax + v * mx + w * bx, u * ay + v * my + w * by


def samples(points: tuple[Point, ...]) -> list[Box]:
    """Small boxes all along a line."""
    return [(x - 2, y - 2, x + 2, y + 2) for x, y in _along(points)]


def beside(points: tuple[Point, ...]) -> list[Spot]:
    """Places for a label along a line: above it or on its right first, near the middle first."""
    found, path = [], list(_along(points, 20))
    for k in (10, 9, 11, 8, 12, 7, 13, 6, 14):
        (ax, ay), (bx, by) = path[k - 1], path[k + 1]
        normal = degrees(atan2(by - ay, bx - ax)) + 90
        ways = sorted((normal, normal + 180), key=lambda way: (round(sin(radians(way)), 3), -cos(radians(way))))
        found += [(path[k], way) for way in ways]
    return found


def outward(centre: Point, near: Sequence[Point], count: int) -> float:
    """The direction away from the neighbours; where they are all around, each leg has a gap between two of them."""
    ways = [atan2(y - centre[1], x - centre[0]) for x, y in near]
    x, y = sum(map(cos, ways)), sum(map(sin, ways))
    if not near or hypot(x, y) > 0.2:
        return round(degrees(atan2(-y, -x)), 6) if near else UP
    turns = sorted((way - ways[0]) % tau for way in ways)
    gaps = [(a + b) / 2 for a, b in zip(turns, [*turns[1:], tau], strict=True)]
    return round(degrees(ways[0] + gaps[count % len(gaps)]), 6)


def fan(way: float, count: int, clockwise: bool) -> list[float]:
    """Directions around `way`: clockwise, or the highest first and of two as high the left one."""
    turns = [way + min(44, 300 / count) * (k - (count - 1) / 2) for k in range(count)]
    first, last = ((round(sin(radians(turn)), 3), cos(radians(turn))) for turn in (turns[0], turns[-1]))
    return turns[::-1] if first > last and not clockwise else turns


def shared(a: Box, b: Box) -> float:
    """Area of two boxes' intersection."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0
