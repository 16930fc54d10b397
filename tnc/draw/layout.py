"""Positions of the nodes of a diagram.

Chains become rows, cycles become circles, and stars get their hub in the middle. All other graphs are laid out by graph
distance. Positions are in units of one bond, with y downwards, and depend on the graph only.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from math import cos, hypot, pi, sin
from typing import TypeAlias, TypeVar

__all__ = ["Point", "place"]

Node = TypeVar("Node", bound=Hashable)
Point: TypeAlias = tuple[float, float]


def place(
    nodes: Sequence[Node], links: Iterable[tuple[Node, Node]], low: Node | None = None
) -> tuple[dict[Node, Point], bool]:
    """Positions of the nodes, and whether they stand in a row.

    Parameters
    ----------
    nodes : sequence
        In the order they shall have in rows and on circles.
    links : iterable of pairs of nodes
    low : node, optional
        A node that stands below its neighbours where the nodes form a chain: the row becomes a zigzag.

    Returns
    -------
    positions : dict of node to (x, y)
    row : bool
        Whether every connected part is a row.
    """
    links = list(links)
    places: dict[Node, Point] = {}
    straight, start = True, 0.0
    near = {node: _neighbours(node, links) for node in nodes}
    for part in _parts(nodes, near):
        inside, row = _part(part, {node: [n for n in part if n in near[node]] for node in part}, low)
        left = min(x for x, _ in inside.values())
        places |= {node: (x - left + start, y) for node, (x, y) in inside.items()}
        start = max(x for x, _ in places.values()) + 1.0
        straight = straight and row
    return places, straight


def _neighbours(node: Node, links: list[tuple[Node, Node]]) -> set[Node]:
    return {a if b == node else b for a, b in links if node in (a, b)} - {node}


def _parts(nodes: Sequence[Node], near: Mapping[Node, set[Node]]) -> list[list[Node]]:
    """Connected components, each in the order of the nodes."""
    parts: list[list[Node]] = []
    for node in nodes:
        if not any(node in part for part in parts):
            distance = _distances(node, near)
            parts.append([n for n in nodes if n in distance])
    return parts


def _distances(start: Node, near: Mapping[Node, Iterable[Node]]) -> dict[Node, int]:
    """Number of links from `start` to every node of its component."""
    distances, queue = {start: 0}, [start]
    for node in queue:  # the queue grows during the loop
        for other in near[node]:
            if other not in distances:
                distances[other] = distances[node] + 1
                queue.append(other)
    return distances


def _part(nodes: list[Node], near: dict[Node, list[Node]], low: Node | None) -> tuple[dict[Node, Point], bool]:
    """Positions of a connected component, and whether it is a row."""
    degrees = [len(near[node]) for node in nodes]
    if max(degrees) <= 2 and sum(degrees) == 2 * (len(nodes) - 1):
        end = next(n for n in nodes if len(near[n]) < 2)
        return _row(_walk(end, near), low), True
    if set(degrees) == {2}:
        return _circle(_walk(nodes[0], near), 0.85), False
    return _star(nodes, near) or _two_hubs(nodes, near) or _stress(nodes, near), False


def _walk(start: Node, near: dict[Node, list[Node]]) -> list[Node]:
    """Nodes along a chain or a cycle."""
    order = [start]
    while ahead := [n for n in near[order[-1]] if n not in order]:
        order.append(ahead[0])
    return order


def _row(order: list[Node], low: Node | None) -> dict[Node, Point]:
    """A row; a zigzag in which `low` and every second node from it stand lower, if `low` is one of the nodes."""
    if low is None or low not in order or len(order) < 3:
        return {node: (float(k), 0.0) for k, node in enumerate(order)}
    parity = order.index(low) % 2
    return {node: (0.66 * k, 0.72 * (k % 2 == parity)) for k, node in enumerate(order)}


def _circle(order: list[Node], least: float) -> dict[Node, Point]:
    """A circle of at least this radius, clockwise from the upper left, so that rows are above and columns below."""
    radius = max(least, 0.5 / sin(pi / len(order)))
    turns = [pi / 2 + pi / len(order) - 2 * pi * k / len(order) for k in range(len(order))]
    return {node: (radius * cos(turn), -radius * sin(turn)) for node, turn in zip(order, turns, strict=True)}


def _star(nodes: list[Node], near: dict[Node, list[Node]]) -> dict[Node, Point] | None:
    """Leaves on a circle around the hub they all have. None if there is no such hub."""
    for hub in nodes:
        leaves = [n for n in nodes if n != hub]
        if all(near[leaf] == [hub] for leaf in leaves):
            return _circle(leaves, 1.05) | {hub: (0.0, 0.0)}
    return None


def _two_hubs(nodes: list[Node], near: dict[Node, list[Node]]) -> dict[Node, Point] | None:
    """Leaves in a row between the two hubs they all have. None if there are no such hubs."""
    for hubs in combinations(nodes, 2):
        leaves = [n for n in nodes if n not in hubs]
        if all(set(near[leaf]) == set(hubs) for leaf in leaves):
            return _sandwich(leaves, *hubs)
    return None


def _sandwich(leaves: list[Node], below: Node, above: Node) -> dict[Node, Point]:
    """Leaves in a row between two hubs. The hubs stand where a line between them passes between two leaves."""
    middle = 1.4 * (len(leaves) - 1) / 2 + 0.7 * (len(leaves) % 2)
    places: dict[Node, Point] = {leaf: (1.4 * k, 0.0) for k, leaf in enumerate(leaves)}
    return places | {below: (middle, 1.0), above: (middle, -1.0)}


def _stress(nodes: list[Node], near: dict[Node, list[Node]], rounds: int = 300) -> dict[Node, Point]:
    """Distances on the page as near as possible to those in the graph (stress majorization)."""
    apart = {node: _distances(node, near) for node in nodes}
    order = sorted(nodes, key=lambda n: (apart[nodes[0]][n], nodes.index(n)))
    # Start from a spiral: a circle has symmetries that the iteration could never leave.
    places = {n: ((1 + 0.1 * k) * cos(2.4 * k), (1 + 0.1 * k) * sin(2.4 * k)) for k, n in enumerate(order)}
    for _ in range(rounds):
        for node in order:
            places[node] = _moved(node, places, apart[node])
    return _upright(places, nodes[0], near[nodes[0]][0])


def _moved(node: Node, places: dict[Node, Point], apart: dict[Node, int]) -> Point:
    """Weighted mean of the positions that each other node would give to `node` at its distance in the graph."""
    here_x, here_y = places[node]
    x = y = total = 0.0
    for other, (other_x, other_y) in places.items():
        if other == node:
            continue
        dx, dy = here_x - other_x, here_y - other_y
        scale = apart[other] / max(hypot(dx, dy), 1e-9)
        weight = apart[other] ** -2
        x += weight * (other_x + scale * dx)
        y += weight * (other_y + scale * dy)
        total += weight
    return x / total, y / total


def _upright(places: dict[Node, Point], first: Node, second: Node) -> dict[Node, Point]:
    """Turned so that the second node is to the right of the first, and most of the others below."""
    (first_x, first_y), (second_x, second_y) = places[first], places[second]
    length = hypot(second_x - first_x, second_y - first_y)
    c, s = (second_x - first_x) / length, (second_y - first_y) / length
    turned: dict[Node, Point] = {}
    for node, (x, y) in places.items():
        dx, dy = x - first_x, y - first_y
        turned[node] = (c * dx + s * dy, c * dy - s * dx)
    flip = -1 if sum(y for _, y in turned.values()) < 0 else 1
    return {node: (x, flip * y) for node, (x, y) in turned.items()}
