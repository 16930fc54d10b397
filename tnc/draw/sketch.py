"""From layers to shapes: what has least room is drawn first, the rest goes where nothing is yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, product
from math import prod
from typing import Any

from tnc.draw import plane
from tnc.draw.plane import DOWN, RADIUS, UP, Spot
from tnc.draw.shapes import INK, NAME, Bar, Box, Disc, Line, Point, Shape, Word
from tnc.draw.stack import Layer, Node, layers

__all__ = ["Sketch"]

_LEG, _GAP, _BAR = 26.0, 44.0, 22.0
_COLOURS = {"m": "#1f77c4", "n": "#d2691e", "k": "#2a9d5c", "s": "#8a63b8"}


class Sketch:
    """A diagram in the making, layer by layer from the bottom."""

    def __init__(self, network: Any) -> None:
        self.lines: list[Shape] = []
        self.nodes: list[Shape] = []
        self.taken: list[Box] = []  # where no label may go
        stack, number, floor = layers(network), 0, 0.0
        placed = [layer.place(len(stack) > 1) for layer in stack]
        half = max((abs(x) for places, _ in placed for x, _ in places.values()), default=0.0) + 2 * RADIUS
        for depth, (layer, (places, row)) in enumerate(zip(stack, placed, strict=True)):
            lift = floor - max((y for _, y in places.values()), default=0.0) - (RADIUS + _GAP) * bool(layer.fed)
            places = {node: (x, y + lift) for node, (x, y) in places.items()}
            roof = (
                min((y for _, y in places.values()), default=lift) - RADIUS - _GAP if depth < len(stack) - 1 else None
            )
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

    def _nodes(self, layer: Layer, places: dict[Node, Point], number: int) -> None:
        sizes = layer.network.sizes
        for node, (x, y) in places.items():
            if isinstance(node, str):
                self.nodes.append(Disc((x, y), 4.5, "dot", f"{node}={sizes[node]}"))
                self.taken.append((x - 6, y - 6, x + 6, y + 6))
                continue
            shape = [sizes[i] for i in layer.cores[node]]
            name, title = f"G{number + node}", "×".join(map(str, shape))
            short = title if len(title) < 10 else "×".join(f"{n}{_power(len([*run]))}" for n, run in groupby(shape))
            self.nodes.append(Disc((x, y), RADIUS, "core", f"{name}: {title}, {prod(shape):,} parameters"))
            self.nodes.append(Word((x, y - 6), name, 13, NAME, bold=True))
            self.nodes.append(Word((x, y + 8), short, min(10.0, 66 / len(short)), NAME))
            self.taken.append((x - 26, y - 26, x + 26, y + 26))

    def _bonds(self, layer: Layer, places: dict[Node, Point]) -> None:
        spots: dict[str, list[Spot]] = {}
        for (a, b), names in layer.links().items():
            others = [centre for node, centre in places.items() if node not in (a, b)]
            for k, index in enumerate(names):
                path = plane.curve(places[a], places[b], 44 * (k - (len(names) - 1) / 2), others)
                self._line(path, INK)
                spots.setdefault(index, []).extend(plane.beside(path))
        for index, found in spots.items():
            if index in layer.dots():  # with a leg it is labelled there
                around = [] if layer.legs(index) else [(turn, far) for far in (6, 18, 30) for turn in range(0, 360, 15)]
                found = [(plane.towards(places[index], turn, far), float(turn)) for turn, far in around]
            self._label(layer, index, found, INK)

    def _legs(self, layer: Layer, places: dict[Node, Point], row: bool, floor: float, roof: float | None) -> None:
        links, outer = layer.links(), {*layer.network.outer}
        stacked = bool(layer.fed) or roof is not None  # the tensor comes out on top
        zigzag = row and len({y for _, y in places.values()}) > 1
        for node, centre in places.items():
            near = [places[b if a == node else a] for a, b in links if node in (a, b)]
            wanted: dict[float, list[str]] = {}
            for count, index in enumerate(layer.legs(node)):
                if row or stacked:
                    up = index in outer and (zigzag or stacked or layer.upwards(index))
                    way = UP if up else DOWN
                else:
                    way = plane.outward(centre, near, count)
                wanted.setdefault(way, []).append(index)
            for way, names in wanted.items():
                end = roof if way == UP else floor if layer.fed else None
                turns = plane.fan(way, len(names), clockwise=not row and any(i[0] == "t" for i in names))
                for k, (index, turn) in enumerate(zip(names, turns, strict=True)):
                    if end is None or index in layer.caps:
                        self._leg(layer, index, centre, turn)
                    else:
                        shift = 26 * (k - (len(names) - 1) / 2)
                        self._riser(layer, index, (centre[0] + shift, centre[1]), end, 180.0 * (shift < 0))
        side = max((x for x, _ in places.values()), default=-RADIUS)
        for k, index in enumerate(i for i in layer.fed if i in outer and i not in layer.homes()):
            foot = side + 1.6 * RADIUS + 56 * k, floor  # from the bar straight up and out
            self._riser(layer, index, foot, floor - _GAP if roof is None else roof, 0.0)

    def _riser(self, layer: Layer, index: str, foot: Point, end: float, side: float) -> None:
        """A leg straight to the bar above or below, its label beside it."""
        colour = _COLOURS.get(index[0], INK)
        self._line((foot, (foot[0], end)), colour, index.startswith("t"))
        heights = [foot[1] + part * (end - foot[1]) for part in (0.8, 0.72, 0.88, 0.64, 0.56, 0.48)]
        self._label(layer, index, [((foot[0], y), way) for way in (side, 180 - side) for y in heights], colour)

    def _leg(self, layer: Layer, index: str, centre: Point, turn: float) -> None:
        """A leg about in the direction `turn`, where there is room for it and its label."""
        text, colour = _text(layer, index), _COLOURS.get(index[0], INK)
        tries = [(turn + sign * off, _LEG + far) for off in range(0, 100, 12) for far in (0, 22) for sign in (1, -1)]
        tries.sort(key=lambda t: abs(t[0] - turn) + t[1])
        ends = [plane.towards(centre, way, RADIUS + long) for way, long in tries]
        best = self._freest(
            [
                *plane.samples((plane.towards(centre, way, RADIUS + 13), end)),
                plane.word(text, end, way, colour).box,
            ]
            for (way, _), end in zip(tries, ends, strict=True)
        )
        (way, _), tip = tries[best], ends[best]
        self._line((centre, tip), colour, index.startswith("t"))
        if index in layer.caps:
            self._line((plane.towards(tip, way + 90, 7), plane.towards(tip, way - 90, 7)), colour)
        self._label(layer, index, [(tip, way)], colour)

    def _line(self, points: tuple[Point, ...], colour: str, dashed: bool = False) -> None:
        self.lines.append(Line(points, colour, dashed))
        self.taken += plane.samples(points)

    def _label(self, layer: Layer, index: str, spots: Iterable[Spot], colour: str) -> None:
        """Write name and size of an index at the first free of the given spots."""
        words = [plane.word(_text(layer, index), point, way, colour) for point, way in spots]
        if words:
            word = words[self._freest([word.box] for word in words)]
            self.nodes.append(word)
            self.taken.append(word.box)

    def _freest(self, tries: Iterable[Sequence[Box]]) -> int:
        """Number of the first of several groups of boxes that hides nothing, or else hides least."""
        least, best = float("inf"), 0
        for number, boxes in enumerate(tries):
            hidden = sum(plane.shared(a, b) for a, b in product(boxes, self.taken))
            if hidden < least:
                least, best = hidden, number
            if not hidden:
                break
        return best


def _text(layer: Layer, index: str) -> str:
    return f"{index}={layer.network.sizes[index]}"


def _power(count: int) -> str:
    return str(count).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")) if count > 1 else ""
