"""A network as a diagram shows it: a stack of layers, each with nodes, links between nodes, and legs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, TypeAlias

from tnc.draw.layout import Point, place

__all__ = ["Diagrammed", "Layer", "Node", "layers"]

Node: TypeAlias = int | str
"""A core, by its number in the layer, or a dot, by its index."""

_STEP = 118.0
"""Distance between the centres of two cores."""


class _Fed(Protocol):
    @property
    def network(self) -> Diagrammed: ...
    @property
    def activation(self) -> str: ...


class Diagrammed(Protocol):
    """What a diagram needs to know of a `tnc.network.Network`."""

    @property
    def pattern(self) -> str: ...
    @property
    def operands(self) -> tuple[tuple[str, ...], ...]: ...
    @property
    def axes(self) -> tuple[tuple[str, ...], ...]: ...
    @property
    def outer(self) -> tuple[str, ...]: ...
    @property
    def sizes(self) -> Mapping[str, int]: ...
    @property
    def feed(self) -> _Fed | None: ...


class Layer(NamedTuple):
    """One network of a stack.

    Attributes
    ----------
    network : Network
    cores : tuple of index tuples
        What is drawn as cores.
    fed : tuple of str
        Indices that come from the bar below: those of the operand that is the tensor of a feed.
    caps : tuple of str
        Indices that end at a constant vector.
    activation : str
        Name in the bar below, if there is one.
    """

    network: Diagrammed
    cores: tuple[tuple[str, ...], ...]
    fed: tuple[str, ...] = ()
    caps: tuple[str, ...] = ()
    activation: str = ""

    def homes(self) -> dict[str, list[int]]:
        """Cores of every index."""
        names = dict.fromkeys(i for core in self.cores for i in core)
        return {i: [k for k, core in enumerate(self.cores) if i in core] for i in names}

    def dots(self) -> list[str]:
        """Indices that join more than two places: cores, the weight, or the bar below."""
        ends = {*self.network.outer, *self.fed}
        return [i for i, cores in self.homes().items() if len(cores) + (i in ends) > 2]

    def links(self) -> dict[tuple[Node, Node], list[str]]:
        """Indices between two nodes."""
        links: dict[tuple[Node, Node], list[str]] = {}
        dots = self.dots()
        for index, cores in self.homes().items():
            pairs: list[tuple[Node, Node]] = []
            if index in dots:
                pairs = [(k, index) for k in cores]
            elif len(cores) == 2:
                pairs = [(cores[0], cores[1])]
            for pair in pairs:
                links.setdefault(pair, []).append(index)
        return links

    def legs(self, node: Node) -> list[str]:
        """Open indices of a core or of a dot."""
        ends, dots = {*self.network.outer, *self.fed, *self.caps}, self.dots()
        own = [node] if isinstance(node, str) else [i for i in self.cores[node] if i not in dots]
        return [i for i in own if i in ends]

    def place(self, stacked: bool) -> tuple[dict[Node, Point], bool]:
        """Positions of cores and dots around x = 0, and whether the cores stand in a row.

        The row is a zigzag where some cores have no leg, or where the layer is one of a stack.
        """
        links = self.links()
        nodes: list[Node] = [*range(len(self.cores)), *self.dots()]
        places, row = place(nodes, links, self._lower(links, stacked))
        xs = [x for x, _ in places.values()] or [0.0]
        middle = (min(xs) + max(xs)) / 2
        return {node: (_STEP * (x - middle), _STEP * y) for node, (x, y) in places.items()}, row

    def _lower(self, links: dict[tuple[Node, Node], list[str]], stacked: bool) -> int | None:
        """A core that stands low in a zigzag: a fed one, else one without legs, else the end of a row in a stack."""
        fed, numbers = {*self.fed}, range(len(self.cores))
        candidates = [k for k in numbers if not fed.isdisjoint(self.cores[k])]
        candidates = candidates or [k for k in numbers if not self.legs(k)]
        if stacked:
            candidates += [k for k in numbers if sum(k in pair for pair in links) < 2]
        return candidates[0] if candidates else None

    def upwards(self, index: str) -> bool:
        """Whether the leg of an index in a row points up.

        Rows (``m``), kernel (``k``) and stack (``s``) point up, columns (``n``) down. A pass-through index (``t``) goes
        with the others of its axis. Any other index points up if it belongs to the first axis.
        """
        if index in self.caps or index in self.fed:
            return False
        number, axis = next((k, axis) for k, axis in enumerate(self.network.axes) if index in axis)
        letters = [i[0] for i in (index, *axis) if i[0] != "t"]
        letter = letters[0] if letters else ""
        if letter in ("m", "k", "s", "n"):
            return letter != "n"
        return number == 0


def layers(network: Diagrammed) -> list[Layer]:
    """The networks that feed one another, as layers, innermost first.

    A feed may be a single core, passed on by the identity, with constant vectors beside it. It is then drawn as a core
    of its network, and indices that meet constants end in caps.
    """
    if network.feed is None:
        return [Layer(network, network.operands)]
    (lead, *rest), inner = network.operands, network.feed.network
    own = inner.operands[0]
    unchanged = network.feed.activation == "identity" and inner.feed is None
    if unchanged and inner.operands == (own,) and {*own} <= {*lead}:
        return [Layer(network, (own, *rest), caps=tuple(i for i in lead if i not in own))]
    return [*layers(inner), Layer(network, tuple(rest), fed=lead, activation=network.feed.activation)]
