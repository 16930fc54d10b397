"""Diagrams of tensor networks: cores are circles, bonds are lines, open indices are legs.

An index of three or more cores is a dot that joins them, one that passes through its core (``t*``) a dashed leg,
and networks that feed one another stand in a stack with the activation between them. No label lies on another,
on a core or on a line where there is room for it, and the same network always gives the same diagram.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import atan2, ceil, cos, degrees, hypot, prod, radians, sin
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from tnc.draw.layout import Point, place
from tnc.draw.shapes import INK, NAME, Bar, Box, Disc, Line, Shape, Word, paint, svg

__all__ = ["draw"]

_STEP, _RADIUS, _LEG, _GAP, _BAR = 112.0, 25.0, 26.0, 44.0, 22.0
_COLOURS = {"m": "#1f77c4", "n": "#d2691e", "k": "#2a9d5c", "s": "#8a63b8"}
_UP, _DOWN = -90.0, 90.0  # the page's y points down

Spot: TypeAlias = tuple[Point, float]
"""A point a label belongs to, and the direction in degrees in which it stands from there."""


def draw(network: Any, path: str | Path | None = None) -> str:
    """SVG text of a network's diagram; written to `path`, too, as its suffix says.

    Parameters
    ----------
    network : Network
    path : str or Path, optional
        ``.svg`` needs no library; ``.png``, ``.pdf`` and others need matplotlib (extra ``plot``).

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    shapes = Sketch(network).shapes
    text = svg(shapes, network.pattern)
    if path is not None and Path(path).suffix.lower() == ".svg":
        Path(path).write_text(text, encoding="utf-8")
    elif path is not None:
        paint(shapes, Path(path))
    return text


class Layer(NamedTuple):
    """One network of a stack: what of it is drawn as cores, what the bar below feeds, what meets a constant."""

    network: Any
    cores: tuple[tuple[str, ...], ...]
    fed: tuple[str, ...] = ()
    caps: tuple[str, ...] = ()

    def homes(self) -> dict[str, list[int]]:
        """Cores of every index."""
        names = dict.fromkeys(i for core in self.cores for i in core)
        return {i: [k for k, core in enumerate(self.cores) if i in core] for i in names}

    def legs(self, node: Any) -> list[str]:
        """Open indices of a core (by number) or of a dot (by index)."""
        open_, dots = {*self.network.outer, *self.fed, *self.caps}, self.dots()
        return [i for i in ([node] if node in dots else self.cores[node]) if i in open_ and (i not in dots or i == node)]

    def dots(self) -> list[str]:
        """Indices that meet in more than two places."""
        ends = {*self.network.outer, *self.fed}
        return [i for i, at in self.homes().items() if len(at) + (i in ends) > 2]

    def links(self) -> dict[tuple[Any, Any], list[str]]:
        """Indices between two nodes."""
        found: dict[tuple[Any, Any], list[str]] = {}
        dots = self.dots()
        for i, at in self.homes().items():
            for pair in [(k, i) for k in at] if i in dots else [(at[0], at[1])] if len(at) == 2 else []:
                found.setdefault(pair, []).append(i)
        return found

    def place(self, stacked: bool) -> tuple[dict[Any, Point], bool]:
        """Centres of cores and dots around x = 0, and whether they stand in a row."""
        count, links, fed = range(len(self.cores)), self.links(), {*self.fed}
        low = [k for k in count if fed & {*self.cores[k]}] or [k for k in count if not self.legs(k)]
        low += [k for k in count if stacked and sum(k in pair for pair in links) < 2]
        found, row = place([*count, *self.dots()], links, next(iter(low), None))
        xs = [x for x, _ in found.values()]
        middle = (min(xs) + max(xs)) / 2
        return {node: (_STEP * (x - middle), _STEP * y) for node, (x, y) in found.items()}, row

    def upwards(self, index: str) -> bool:
        """Whether a leg of a row points up: rows, kernel and stack do, columns do not, and `t` goes with its axis."""
        if index in self.caps or index in self.fed:
            return False
        number, axis = next((k, axis) for k, axis in enumerate(self.network.axes) if index in axis)
        letter = next((i[0] for i in (index, *axis) if i[0] != "t"), "")
        return letter in "mks" if letter in ("m", "k", "s", "n") else number == 0


def layers(network: Any) -> list[Layer]:
    """The stack of feeds, innermost first.

    A single core that is fed as it is, with constants beside it, is drawn as a core; the constants are caps.
    """
    if network.feed is None:
        return [Layer(network, network.operands)]
    (lead, *rest), inner = network.operands, network.feed.network
    own = inner.operands[0]
    if network.feed.activation == "identity" and inner.operands == (own,) and not inner.feed and {*own} <= {*lead}:
        return [Layer(network, (own, *rest), caps=tuple(i for i in lead if i not in own))]
    return [*layers(inner), Layer(network, tuple(rest), fed=lead)]


class Sketch:
    """A diagram in the making: layers from the bottom up, and in each what has least room first."""

    def __init__(self, network: Any) -> None:
        self.lines: list[Shape] = []
        self.nodes: list[Shape] = []
        self.taken: list[Box] = []  # where no label may go
        stack, number, floor = layers(network), 0, 0.0
        placed = [layer.place(len(stack) > 1) for layer in stack]
        half = max(abs(x) for places, _ in placed for x, _ in places.values()) + 2 * _RADIUS
        for depth, (layer, (places, row)) in enumerate(zip(stack, placed, strict=True)):
            lift = floor - max(y for _, y in places.values()) - (_RADIUS + _GAP) * bool(layer.fed)
            places = {node: (x, y + lift) for node, (x, y) in places.items()}
            roof = min(y for _, y in places.values()) - _RADIUS - _GAP if depth < len(stack) - 1 else None
            self._nodes(layer, places, number)
            self._bonds(layer, places)
            self._legs(layer, places, row, floor, roof)
            number += len(layer.cores)
            if roof is not None:
                floor, name = roof - _BAR, stack[depth + 1].network.feed.activation
                self.nodes += [Bar((-half, floor, half, roof)), Word((0.0, floor + _BAR / 2), name, 12, NAME)]
                self.taken.append((-half, floor, half, roof))

    @property
    def shapes(self) -> list[Shape]:
        """Everything, in the order in which it is painted."""
        return [*self.lines, *self.nodes]

    def _nodes(self, layer: Layer, places: dict[Any, Point], number: int) -> None:
        sizes = layer.network.sizes
        for node, (x, y) in places.items():
            if node in layer.dots():
                self.nodes.append(Disc((x, y), 4.5, "dot", f"{node}={sizes[node]}"))
                self.taken.append((x - 6, y - 6, x + 6, y + 6))
                continue
            shape = [sizes[i] for i in layer.cores[node]]
            name, written = f"G{number + node}", "×".join(map(str, shape))
            self.nodes.append(Disc((x, y), _RADIUS, "core", f"{name}: {written}, {prod(shape):,} parameters"))
            self.nodes.append(Word((x, y - 6), name, 13, NAME, bold=True))
            self.nodes.append(Word((x, y + 8), written, min(10.0, 80 / len(written)), NAME))
            self.taken.append((x - 20, y - 20, x + 20, y + 20))

    def _bonds(self, layer: Layer, places: dict[Any, Point]) -> None:
        spots: dict[str, list[Spot]] = {}
        for (a, b), names in layer.links().items():
            others = [centre for node, centre in places.items() if node not in (a, b)]
            for k, index in enumerate(names):
                curve = _curve(places[a], places[b], 44 * (k - (len(names) - 1) / 2), others)
                self._line(curve, INK)
                spots.setdefault(index, []).extend(_beside(curve))
        for index, beside in spots.items():
            if index in layer.dots():
                beside = [(places[index], float(turn)) for turn in range(0, 360, 30)]
                beside = [] if index in layer.legs(index) else beside
            self._label(f"{index}={layer.network.sizes[index]}", beside, INK)

    def _legs(self, layer: Layer, places: dict[Any, Point], row: bool, floor: float, roof: float | None) -> None:
        links, outer = layer.links(), layer.network.outer
        for node, centre in places.items():
            wanted: dict[float, list[str]] = {}
            near = [places[b if a == node else a] for a, b in links if node in (a, b)]
            for index in layer.legs(node):
                if index in layer.fed or (roof is not None and index in outer):
                    way = _DOWN if index in layer.fed else _UP
                else:
                    way = (_UP if layer.upwards(index) else _DOWN) if row else _outward(centre, near)
                wanted.setdefault(way, []).append(index)
            for way, names in wanted.items():
                end = roof if way == _UP else floor if layer.fed else None
                for index, turn in zip(names, _fan(way, len(names)), strict=True):
                    shift = centre[0] + 26 * (names.index(index) - (len(names) - 1) / 2)
                    reach = None if end is None or index in layer.caps else (shift, end)
                    self._leg(layer, index, centre, turn, reach)
        for index in {*layer.fed} & {*outer} - {*layer.homes()}:  # from the bar straight up and out
            x = max(x for x, _ in places.values()) + 1.6 * _RADIUS
            self._leg(layer, index, (x, floor), _UP, None if roof is None else (x, roof))

    def _leg(self, layer: Layer, index: str, centre: Point, turn: float, reach: Point | None) -> None:
        """A leg to the point `reach`, or about in the direction `turn`, where there is room for it and its label."""
        text, colour = f"{index}={layer.network.sizes[index]}", _COLOURS.get(index[0], INK)
        dashed = index.startswith("t")
        if reach is not None:
            foot = (reach[0], centre[1])
            self._line((foot, reach), colour, dashed)
            self._label(text, [((reach[0], y), way) for y in _between(centre[1], reach[1]) for way in (0.0, 180.0)], colour)
            return
        tries = [(turn + sign * off, _LEG + far) for off in range(0, 100, 12) for far in (0, 22) for sign in (1, -1)]
        tries.sort(key=lambda t: abs(t[0] - turn) + t[1])
        legs = [(_towards(centre, way, _RADIUS + 10), _towards(centre, way, _RADIUS + long)) for way, long in tries]
        costs = [
            self._overlap([*_samples(leg), _word(text, leg[-1], way, colour).box])
            for leg, (way, _) in zip(legs, tries, strict=True)
        ]
        best = costs.index(min(costs))
        self._line((centre, legs[best][-1]), colour, dashed)
        self._label(text, [(legs[best][-1], tries[best][0])], colour)

    def _line(self, points: tuple[Point, ...], colour: str, dashed: bool = False) -> None:
        self.lines.append(Line(points, colour, dashed))
        self.taken += _samples(points)

    def _label(self, text: str, spots: Iterable[Spot], colour: str) -> None:
        """Write a label at the first free of the given spots, or at that where it hides least."""
        words = [_word(text, point, way, colour) for point, way in spots]
        if words:
            costs = [self._overlap([word.box]) for word in words]
            self.nodes.append(words[costs.index(min(costs))])
            self.taken.append(self.nodes[-1].box)

    def _overlap(self, boxes: Sequence[Box]) -> float:
        """Area shared with what is there."""
        return sum(
            max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
            for a, b in product(boxes, self.taken)
        )


# ------------------------------------------------------------------ plane geometry


def _towards(point: Point, turn: float, distance: float) -> Point:
    return point[0] + distance * cos(radians(turn)), point[1] + distance * sin(radians(turn))


def _word(text: str, point: Point, turn: float, colour: str) -> Word:
    """A label beside a point, so that its box just does not touch it."""
    left, top, right, bottom = Word((0.0, 0.0), text).box
    across = [half / max(abs(f(radians(turn))), 1e-9) for half, f in ((right, cos), (bottom, sin))]
    return Word(_towards(point, turn, min(across) + 5), text, colour=colour)


def _curve(start: Point, end: Point, bow: float, others: Sequence[Point]) -> tuple[Point, ...]:
    """A line, bent further where it would run through one of the others."""
    (ax, ay), (bx, by) = start, end
    length = hypot(bx - ax, by - ay) or 1.0
    for more in (0, 80, -80, 160, -160, 240, -240):
        side = (bow + more) / length
        bent = start, ((ax + bx) / 2 + side * (ay - by), (ay + by) / 2 + side * (bx - ax)), end
        if not any(hypot(x - ox, y - oy) < _RADIUS + 8 for x, y in _along(bent) for ox, oy in others):
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


def _samples(points: tuple[Point, ...]) -> list[Box]:
    return [(x - 2, y - 2, x + 2, y + 2) for x, y in _along(points)]


def _beside(points: tuple[Point, ...]) -> list[Spot]:
    """Places for a label along a line: above it or on its right first, near the middle first."""
    found, path = [], list(_along(points, 20))
    for k in (10, 9, 11, 8, 12, 7, 13, 6, 14):
        (ax, ay), (bx, by) = path[k - 1], path[k + 1]
        normal = degrees(atan2(by - ay, bx - ax)) + 90
        ways = sorted((normal, normal + 180), key=lambda way: (round(sin(radians(way)), 3), -cos(radians(way))))
        found += [(path[k], way) for way in ways]
    return found


def _between(start: float, end: float) -> list[float]:
    return [start + part * (end - start) for part in (0.8, 0.7, 0.9, 0.6, 0.5, 0.4)]


def _outward(centre: Point, near: Sequence[Point]) -> float:
    """The direction away from the neighbours; up where they are all around."""
    ways = [atan2(y - centre[1], x - centre[0]) for x, y in near]
    x, y = sum(map(cos, ways)), sum(map(sin, ways))
    return round(degrees(atan2(-y, -x)), 6) if hypot(x, y) > 0.2 else _UP


def _fan(way: float, count: int) -> list[float]:
    """Directions around `way`, the highest first and of two as high the left one."""
    turns = [way + min(44, 300 / count) * (k - (count - 1) / 2) for k in range(count)]
    first, last = ((round(sin(radians(t)), 3), cos(radians(t))) for t in (turns[0], turns[-1]))
    return turns if first <= last else turns[::-1]
