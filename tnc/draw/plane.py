"""Geometry of a diagram: labels beside points, and lines around obstacles.

Directions are in degrees, and y points downwards: -90 is up, and angles grow clockwise.
"""

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
"""Radius of a core."""

UP, DOWN = -90.0, 90.0

Spot: TypeAlias = tuple[Point, float]
"""A point that a label belongs to, and the direction from the point to the label."""


def towards(point: Point, turn: float, distance: float) -> Point:
    """A point in some direction from another one.

    Parameters
    ----------
    point : (x, y)
    turn : float
        Direction, in degrees.
    distance : float
    """
    return point[0] + distance * cos(radians(turn)), point[1] + distance * sin(radians(turn))


def word(text: str, point: Point, turn: float, colour: str) -> Word:
    """A label beside a point, as near as its box allows without touching the point.

    Parameters
    ----------
    text : str
    point : (x, y)
    turn : float
        Direction from the point to the label, in degrees.
    colour : str
    """
    _, _, half_width, half_height = Word((0.0, 0.0), text).box
    # Distances from the centre of the box to its upright and to its level sides, in the direction of the point.
    upright = half_width / max(abs(cos(radians(turn))), 1e-9)
    level = half_height / max(abs(sin(radians(turn))), 1e-9)
    return Word(towards(point, turn, min(upright, level) + 5), text, colour=colour)


def curve(start: Point, end: Point, bow: float, others: Sequence[Point]) -> tuple[Point, ...]:
    """Points of a line, bent so that it passes none of the other cores too closely.

    Parameters
    ----------
    start, end : (x, y)
    bow : float
        How far the middle point stands aside, if nothing is in the way there.
    others : sequence of (x, y)
        Centres of the other cores.

    Returns
    -------
    tuple of (x, y)
        Start and end of a straight line; start, middle point and end of a bent one.
    """
    (ax, ay), (bx, by) = start, end
    length = hypot(bx - ax, by - ay) or 1.0
    for more in (0, 80, -80, 160, -160, 240, -240):
        side = (bow + more) / length
        middle = (ax + bx) / 2 + side * (ay - by), (ay + by) / 2 + side * (bx - ax)
        bent = start, middle, end
        if not _touches(bent, others):
            break
    return bent if bow + more else (start, end)


def _touches(path: tuple[Point, ...], centres: Sequence[Point]) -> bool:
    """Whether a line comes too close to a core."""
    return any(hypot(x - cx, y - cy) < RADIUS + 8 for x, y in _along(path) for cx, cy in centres)


def _along(points: tuple[Point, ...], steps: int = 0) -> Iterator[Point]:
    """Points on a line or on a quadratic Bézier curve, about eight units apart unless the number of steps is given."""
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
    """Places for a label along a line. Those near the middle come first, and above or to the right of the line."""
    spots: list[Spot] = []
    path = list(_along(points, 20))
    for k in (10, 9, 11, 8, 12, 7, 13, 6, 14):
        (ax, ay), (bx, by) = path[k - 1], path[k + 1]
        normal = degrees(atan2(by - ay, bx - ax)) + 90
        ways = sorted((normal, normal + 180), key=lambda way: (round(sin(radians(way)), 3), -cos(radians(way))))
        spots += [(path[k], way) for way in ways]
    return spots


def outward(centre: Point, near: Sequence[Point], count: int) -> float:
    """The direction of a leg away from the neighbours of its node.

    Where the neighbours are all around, each leg gets a gap between two of them.

    Parameters
    ----------
    centre : (x, y)
    near : sequence of (x, y)
        Centres of the neighbours.
    count : int
        Number of the leg among those of the node.
    """
    if not near:
        return UP
    ways = [atan2(y - centre[1], x - centre[0]) for x, y in near]
    x, y = sum(map(cos, ways)), sum(map(sin, ways))
    if hypot(x, y) > 0.2:
        return round(degrees(atan2(-y, -x)), 6)
    turns = sorted((way - ways[0]) % tau for way in ways)
    gaps = [(a + b) / 2 for a, b in zip(turns, [*turns[1:], tau], strict=True)]
    return round(degrees(ways[0] + gaps[count % len(gaps)]), 6)


def fan(way: float, count: int, clockwise: bool) -> list[float]:
    """Directions of several legs, spread around one.

    Parameters
    ----------
    way : float
        The middle direction, in degrees.
    count : int
        Number of legs.
    clockwise : bool
        Whether to go clockwise. If not, the end of the fan that is higher comes first, and of two equally high ends
        the left one.
    """
    apart = min(44, 300 / count)
    turns = [way + apart * (k - (count - 1) / 2) for k in range(count)]
    first, last = ((round(sin(radians(turn)), 3), cos(radians(turn))) for turn in (turns[0], turns[-1]))
    return turns[::-1] if first > last and not clockwise else turns


def shared(a: Box, b: Box) -> float:
    """Area of the intersection of two boxes."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0
