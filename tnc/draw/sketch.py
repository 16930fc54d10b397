"""From layers to shapes: nodes first, then bonds, legs and labels.

Lines and labels avoid what is drawn already. So shapes that cannot be moved are drawn first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, product
from math import prod
from typing import NamedTuple

from tnc.draw import plane
from tnc.draw.plane import DOWN, RADIUS, UP, Spot
from tnc.draw.shapes import INK, NAME, Bar, Box, Disc, Line, Point, Shape, Word
from tnc.draw.stack import Diagrammed, Layer, Node, layers

__all__ = ["Sketch"]

_LEG, _GAP, _BAR = 26.0, 44.0, 22.0
"""Length of a leg, distance from a core to a bar, and height of a bar."""

_COLOURS = {"m": "#1f77c4", "n": "#d2691e", "k": "#2a9d5c", "s": "#8a63b8"}
"""Colours of legs, by the first letter of their index."""


class _Level(NamedTuple):
    """A layer with its positions on the page; y points downwards."""

    layer: Layer
    centres: dict[Node, Point]
    row: bool  # whether the cores stand in a row
    floor: float  # upper edge of the bar below, or 0
    roof: float | None  # lower edge of the bar above, if there is one

    @property
    def stacked(self) -> bool:
        """Whether there is a bar below or above: the rebuilt tensor then leaves the layer at the top."""
        return bool(self.layer.fed) or self.roof is not None

    @property
    def zigzag(self) -> bool:
        """Whether the cores of the row stand at different heights."""
        return self.row and len({y for _, y in self.centres.values()}) > 1


class Sketch:
    """A diagram: its shapes are added layer by layer, from the bottom to the top.

    Parameters
    ----------
    network : Network

    Attributes
    ----------
    lines, nodes : list of shapes
        Nodes are painted over lines.
    taken : list of boxes
        Where no label may be written.
    """

    def __init__(self, network: Diagrammed) -> None:
        self.lines: list[Shape] = []
        self.nodes: list[Shape] = []
        self.taken: list[Box] = []
        stack = layers(network)
        placed = [layer.place(len(stack) > 1) for layer in stack]
        widths = [abs(x) for centres, _ in placed for x, _ in centres.values()]
        half = max(widths, default=0.0) + 2 * RADIUS  # of the width of a bar
        first, floor = 0, 0.0
        for depth, (layer, (centres, row)) in enumerate(zip(stack, placed, strict=True)):
            top = depth == len(stack) - 1
            level = _level(layer, centres, row, floor, top)
            self._nodes(level, first)
            self._bonds(level)
            self._legs(level)
            first += len(layer.cores)
            if level.roof is not None:
                floor = level.roof - _BAR
                self._bar((-half, floor, half, level.roof), stack[depth + 1].activation)

    @property
    def shapes(self) -> list[Shape]:
        """All shapes, in the order in which they are painted."""
        return [*self.lines, *self.nodes]

    # ---------------------------------------------------------------- cores and bars

    def _bar(self, box: Box, activation: str) -> None:
        left, top, right, bottom = box
        middle = (left + right) / 2, top + (bottom - top) / 2
        self.nodes += [Bar(box), Word(middle, activation, 12, NAME)]
        self.taken.append(box)

    def _nodes(self, level: _Level, first: int) -> None:
        """Cores, numbered from `first`, and dots."""
        for node, centre in level.centres.items():
            if isinstance(node, str):
                self._dot(_text(level.layer, node), centre)
            else:
                sizes = level.layer.network.sizes
                shape = [sizes[i] for i in level.layer.cores[node]]
                self._core(f"G{first + node}", shape, centre)

    def _dot(self, title: str, centre: Point) -> None:
        x, y = centre
        self.nodes.append(Disc(centre, 4.5, "dot", title))
        self.taken.append((x - 6, y - 6, x + 6, y + 6))

    def _core(self, name: str, shape: list[int], centre: Point) -> None:
        """A circle with the name and the shape of a core. Long shapes are written with powers."""
        x, y = centre
        full = "×".join(map(str, shape))
        short = full
        if len(full) >= 10:
            short = "×".join(f"{n}{_power(len([*run]))}" for n, run in groupby(shape))
        self.nodes.append(Disc(centre, RADIUS, "core", f"{name}: {full}, {prod(shape):,} parameters"))
        self.nodes.append(Word((x, y - 6), name, 13, NAME, bold=True))
        self.nodes.append(Word((x, y + 8), short, min(10.0, 66 / len(short)), NAME))
        self.taken.append((x - 26, y - 26, x + 26, y + 26))

    # ---------------------------------------------------------------- bonds

    def _bonds(self, level: _Level) -> None:
        """Lines between nodes, and the labels of their indices."""
        spots: dict[str, list[Spot]] = {}
        for (a, b), names in level.layer.links().items():
            others = [centre for node, centre in level.centres.items() if node not in (a, b)]
            for k, index in enumerate(names):
                bow = 44 * (k - (len(names) - 1) / 2)  # parallel bonds are bent away from one another
                path = plane.curve(level.centres[a], level.centres[b], bow, others)
                self._line(path, INK)
                spots.setdefault(index, []).extend(plane.beside(path))
        dots = level.layer.dots()
        for index, beside in spots.items():
            self._label(level.layer, index, self._around(level, index) if index in dots else beside, INK)

    def _around(self, level: _Level, dot: str) -> list[Spot]:
        """Places for the label of a dot. A dot with a leg has none: the label stands at the leg."""
        if level.layer.legs(dot):
            return []
        centre, turns = level.centres[dot], range(0, 360, 15)
        return [(plane.towards(centre, turn, far), float(turn)) for far in (6, 18, 30) for turn in turns]

    # ---------------------------------------------------------------- legs

    def _legs(self, level: _Level) -> None:
        links = list(level.layer.links())
        for node in level.centres:
            near = [b if a == node else a for a, b in links if node in (a, b)]
            for way, names in self._ways(level, node, near).items():
                self._fan(level, node, way, names)
        self._risers(level)

    def _ways(self, level: _Level, node: Node, near: list[Node]) -> dict[float, list[str]]:
        """Open indices of a node with the neighbours `near`, by the direction of their legs."""
        centre, around = level.centres[node], [level.centres[other] for other in near]
        ways: dict[float, list[str]] = {}
        for count, index in enumerate(level.layer.legs(node)):
            if level.row or level.stacked:
                way = UP if _is_upward(level, index) else DOWN
            else:
                way = plane.outward(centre, around, count)
            ways.setdefault(way, []).append(index)
        return ways

    def _fan(self, level: _Level, node: Node, way: float, names: list[str]) -> None:
        """The legs of a node that share a direction: straight to a bar, or spread if there is no bar."""
        layer, centre = level.layer, level.centres[node]
        floor = level.floor if layer.fed else None
        bar = level.roof if way == UP else floor
        passing = any(index.startswith("t") for index in names)
        turns = plane.fan(way, len(names), clockwise=passing and not level.row)
        for k, (index, turn) in enumerate(zip(names, turns, strict=True)):
            if bar is None or index in layer.caps:
                self._leg(layer, index, centre, turn)
                continue
            shift = 26 * (k - (len(names) - 1) / 2)
            side = 180.0 if shift < 0 else 0.0
            self._riser(layer, index, (centre[0] + shift, centre[1]), bar, side)

    def _risers(self, level: _Level) -> None:
        """Legs of indices that no core has: from the bar below straight to the bar above, or out of the diagram."""
        layer, outer, homes = level.layer, {*level.layer.network.outer}, level.layer.homes()
        right = max((x for x, _ in level.centres.values()), default=-RADIUS)
        end = level.floor - _GAP if level.roof is None else level.roof
        for k, index in enumerate(i for i in layer.fed if i in outer and i not in homes):
            foot = right + 1.6 * RADIUS + 56 * k, level.floor
            self._riser(layer, index, foot, end, 0.0)

    def _riser(self, layer: Layer, index: str, foot: Point, end: float, side: float) -> None:
        """A straight leg from `foot` up or down to the height `end`, with its label on one of its sides."""
        x, y = foot
        colour = _colour(index)
        self._line((foot, (x, end)), colour, index.startswith("t"))
        heights = [y + part * (end - y) for part in (0.8, 0.72, 0.88, 0.64, 0.56, 0.48)]
        self._label(layer, index, [((x, height), way) for way in (side, 180 - side) for height in heights], colour)

    def _leg(self, layer: Layer, index: str, centre: Point, turn: float) -> None:
        """A leg near the direction `turn`, where there is room for it and for its label."""
        text, colour = _text(layer, index), _colour(index)
        tries = [(turn + sign * off, _LEG + far) for off in range(0, 100, 12) for far in (0, 22) for sign in (1, -1)]
        tries.sort(key=lambda t: abs(t[0] - turn) + t[1])
        ends = [plane.towards(centre, way, RADIUS + length) for way, length in tries]
        needed = (
            [
                *plane.samples((plane.towards(centre, way, RADIUS + 13), end)),
                plane.word(text, end, way, colour).box,
            ]
            for (way, _), end in zip(tries, ends, strict=True)
        )
        best = self._freest(needed)
        (way, _), tip = tries[best], ends[best]
        self._line((centre, tip), colour, index.startswith("t"))
        if index in layer.caps:
            self._line((plane.towards(tip, way + 90, 7), plane.towards(tip, way - 90, 7)), colour)
        self._label(layer, index, [(tip, way)], colour)

    # ---------------------------------------------------------------- lines and labels

    def _line(self, points: tuple[Point, ...], colour: str, dashed: bool = False) -> None:
        self.lines.append(Line(points, colour, dashed))
        self.taken += plane.samples(points)

    def _label(self, layer: Layer, index: str, spots: Iterable[Spot], colour: str) -> None:
        """Name and size of an index, at the first free one of the given places."""
        words = [plane.word(_text(layer, index), point, way, colour) for point, way in spots]
        if words:
            word = words[self._freest([word.box] for word in words)]
            self.nodes.append(word)
            self.taken.append(word.box)

    def _freest(self, candidates: Iterable[Sequence[Box]]) -> int:
        """Number of the first group of boxes that covers nothing, or of the group that covers least."""
        least, best = float("inf"), 0
        for number, boxes in enumerate(candidates):
            covered = sum(plane.shared(a, b) for a, b in product(boxes, self.taken))
            if covered < least:
                least, best = covered, number
            if not covered:
                break
        return best


def _level(layer: Layer, centres: dict[Node, Point], row: bool, floor: float, top: bool) -> _Level:
    """A layer, moved to stand above the height `floor`."""
    lowest = max((y for _, y in centres.values()), default=0.0)
    room = RADIUS + _GAP if layer.fed else 0.0
    lift = floor - lowest - room
    moved = {node: (x, y + lift) for node, (x, y) in centres.items()}
    if top:
        return _Level(layer, moved, row, floor, None)
    highest = min((y for _, y in moved.values()), default=lift)
    return _Level(layer, moved, row, floor, highest - RADIUS - _GAP)


def _is_upward(level: _Level, index: str) -> bool:
    """Whether the leg of an index in a row or a stack points up."""
    if index not in level.layer.network.outer:
        return False
    return level.zigzag or level.stacked or level.layer.upwards(index)


def _colour(index: str) -> str:
    return _COLOURS.get(index[0], INK)


def _text(layer: Layer, index: str) -> str:
    return f"{index}={layer.network.sizes[index]}"


def _power(count: int) -> str:
    """An exponent in superscript; nothing for 1."""
    return str(count).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")) if count > 1 else ""
