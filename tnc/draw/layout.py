"""Where the nodes of a diagram go: rows, circles, stars, and by graph distance what is none of them.

Positions are in units of one bond, y downwards, and depend on nothing but the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import cos, hypot, pi, sin
from typing import Any, TypeAlias

__all__ = ["Point", "place"]

Node: TypeAlias = Any
Point: TypeAlias = tuple[float, float]


def place(
    nodes: Sequence[Node], links: Iterable[tuple[Node, Node]], low: Node | None = None
) -> tuple[dict[Node, Point], bool]:
    """Positions of the nodes, and whether they stand in a row.

    Parameters
    ----------
    nodes : sequence
        In the order in which rows and circles are to have them.
    links : iterable of pairs
    low : node, optional
        One that stands below its neighbours where the nodes form a chain: the row becomes a zigzag.
    """
    near = {node: {a if b == node else b for a, b in links if node in (a, b)} - {node} for node in nodes}
    places: dict[Node, Point] = {}
    straight, start = True, 0.0
    for part in _parts(nodes, near):
        found, row = _part(part, {node: [n for n in part if n in near[node]] for node in part}, low)
        left = min(x for x, _ in found.values())
        places |= {node: (x - left + start, y) for node, (x, y) in found.items()}
        start, straight = max(x for x, _ in places.values()) + 1.0, straight and row
    return places, straight


def _parts(nodes: Sequence[Node], near: dict[Node, set[Node]]) -> list[list[Node]]:
    """Connected components, each in the order of the nodes."""
    parts: list[list[Node]] = []
    for node in nodes:
        if not any(node in part for part in parts):
            distance = _distances(node, near)
            parts.append([n for n in nodes if n in distance])
    return parts


def _distances(start: Node, near: Mapping[Node, Iterable[Node]]) -> dict[Node, int]:
    """Number of links from `start` to every node it is joined to."""
    found, front = {start: 0}, [start]
    for node in front:  # grows as it goes
        for other in near[node]:
            if other not in found:
                found[other] = found[node] + 1
                front.append(other)
    return found


def _part(nodes: list[Node], near: dict[Node, list[Node]], low: Node | None) -> tuple[dict[Node, Point], bool]:
    count, degrees = len(nodes), [len(near[node]) for node in nodes]
    if max(degrees) <= 2 and sum(degrees) == 2 * (count - 1):
        return _row(_walk(next(n for n in nodes if len(near[n]) < 2), near), low), True
    if set(degrees) == {2}:
        return _circle(_walk(nodes[0], near), 0.85), False
    for hub in nodes:
        if all(near[n] == [hub] for n in nodes if n != hub):
            return _circle([n for n in nodes if n != hub], 1.05) | {hub: (0.0, 0.0)}, False
    for hubs in combinations(nodes, 2):
        leaves = [n for n in nodes if n not in hubs]
        if all(set(near[n]) == set(hubs) for n in leaves):
            return _sandwich(leaves, *hubs), False
    return _stress(nodes, near), False


def _walk(start: Node, near: dict[Node, list[Node]]) -> list[Node]:
    order = [start]
    while ahead := [n for n in near[order[-1]] if n not in order]:
        order.append(ahead[0])
    return order


def _row(order: list[Node], low: Node | None) -> dict[Node, Point]:
    if low not in order or len(order) < 3:
        return {node: (float(k), 0.0) for k, node in enumerate(order)}
    parity = order.index(low) % 2
    return {node: (0.66 * k, 0.72 * (k % 2 == parity)) for k, node in enumerate(order)}


def _circle(order: list[Node], least: float) -> dict[Node, Point]:
    """Clockwise from the upper left, so that rows come above and columns below."""
    radius = max(least, 0.5 / sin(pi / len(order)))
    turns = [pi / 2 + pi / len(order) - 2 * pi * k / len(order) for k in range(len(order))]
    return {node: (radius * cos(turn), -radius * sin(turn)) for node, turn in zip(order, turns, strict=True)}


def _sandwich(leaves: list[Node], below: Node, above: Node) -> dict[Node, Point]:
    """Leaves in a row between two hubs; a line between the hubs finds a gap in the row."""
    middle = 1.4 * (len(leaves) - 1) / 2 + 0.7 * (len(leaves) % 2)
    places: dict[Node, Point] = {leaf: (1.4 * k, 0.0) for k, leaf in enumerate(leaves)}
    return places | {below: (middle, 1.0), above: (middle, -1.0)}


def _stress(nodes: list[Node], near: dict[Node, list[Node]], rounds: int = 300) -> dict[Node, Point]:
    """Distances on the page as near as can be to those in the graph, from a circle on (stress majorization)."""
    apart = {node: _distances(node, near) for node in nodes}
    order = sorted(nodes, key=lambda n: (apart[nodes[0]][n], nodes.index(n)))
    # An uneven circle: an even one has symmetries in which the iteration would stay.
    places = {n: ((1 + 0.1 * k) * cos(2.4 * k), (1 + 0.1 * k) * sin(2.4 * k)) for k, n in enumerate(order)}
    for _ in range(rounds):
        for node in order:
            x = y = total = 0.0
            for other in order:
                if other != node:
                    (ox, oy), want = places[other], apart[node][other]
                    dx, dy = places[node][0] - ox, places[node][1] - oy
                    scale, weight = want / max(hypot(dx, dy), 1e-9), want**-2
                    x, y, total = x + weight * (ox + scale * dx), y + weight * (oy + scale * dy), total + weight
            places[node] = (x / total, y / total)
    return _upright(places, nodes[0], near[nodes[0]][0])


def _upright(places: dict[Node, Point], first: Node, second: Node) -> dict[Node, Point]:
    """Turned so that the second node is to the right of the first and the others mostly below."""
    (ox, oy), (sx, sy) = places[first], places[second]
    length = hypot(sx - ox, sy - oy)
    c, s = (sx - ox) / length, (sy - oy) / length
    turned = {n: (c * (x - ox) + s * (y - oy), c * (y - oy) - s * (x - ox)) for n, (x, y) in places.items()}
    flip = -1 if sum(y for _, y in turned.values()) < 0 else 1
    return {n: (x, flip * y) for n, (x, y) in turned.items()}
