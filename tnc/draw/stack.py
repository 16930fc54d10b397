"""A network as its diagram sees it: a stack of layers, each with nodes, links between them and legs."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from tnc.draw.layout import Point, place

__all__ = ["Layer", "Node", "layers"]

Node: TypeAlias = int | str
"""A core, by its number in the layer, or a dot, by its index."""

_STEP = 118.0
"""Between the centres of two cores."""


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

    def dots(self) -> list[str]:
        """Indices that meet in more than two places."""
        ends = {*self.network.outer, *self.fed}
        return [i for i, at in self.homes().items() if len(at) + (i in ends) > 2]

    def links(self) -> dict[tuple[Node, Node], list[str]]:
        """Indices between two nodes."""
        found: dict[tuple[Node, Node], list[str]] = {}
        dots = self.dots()
        for i, at in self.homes().items():
            pairs: list[tuple[Node, Node]] = [(k, i) for k in at] if i in dots else [(at[0], at[-1])] * (len(at) == 2)
            for pair in pairs:
                found.setdefault(pair, []).append(i)
        return found

    def legs(self, node: Node) -> list[str]:
        """Open indices of a core or of a dot."""
        ends, dots = {*self.network.outer, *self.fed, *self.caps}, self.dots()
        own = [node] if isinstance(node, str) else [i for i in self.cores[node] if i not in dots]
        return [i for i in own if i in ends]

    def place(self, stacked: bool) -> tuple[dict[Node, Point], bool]:
        """Centres of cores and dots around x = 0, and whether they stand in a row.

        A row is a zigzag, a wall of two courses, where some cores have no open leg or the layer is one of a stack.
        """
        count, links, fed = range(len(self.cores)), self.links(), {*self.fed}
        low = [k for k in count if fed & {*self.cores[k]}] or [k for k in count if not self.legs(k)]
        low += [k for k in count if stacked and sum(k in pair for pair in links) < 2]
        found, row = place([*count, *self.dots()], links, next(iter(low), None))
        xs = [x for x, _ in found.values()] or [0.0]
        middle = (min(xs) + max(xs)) / 2
        return {node: (_STEP * (x - middle), _STEP * y) for node, (x, y) in found.items()}, row

    def upwards(self, index: str) -> bool:
        """Whether a leg of a row points up: rows, kernel and stack do, columns do not, and `t` goes with its axis."""
        if index in self.caps or index in self.fed:
            return False
        number, axis = next((k, axis) for k, axis in enumerate(self.network.axes) if index in axis)
        letter = next((i[0] for i in (index, *axis) if i[0] != "t"), "")
        return letter in ("m", "k", "s") if letter in ("m", "k", "s", "n") else number == 0


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
