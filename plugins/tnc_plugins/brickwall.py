"""The brick wall of ADTN: each layer is a network of two columns of two-site gates, and feeds the next layer."""

from __future__ import annotations

from collections.abc import Sequence

from tnc import Network
from tnc.network import Feed

__all__ = ["first", "train", "wall"]


def wall(axes: Sequence[Sequence[str]], dimension: int, depth: int, activation: str) -> Network:
    """`depth` layers of gates on the sites of all axes in row-major order.

    The first layer acts on the vector ``[1, 0, ...]`` at each site. A layer on Q sites has gates on (0, 1), (2, 3), ...
    and then on (1, 2), (3, 4), ...: Q - 1 gates with the indices ``out out in in``. In the first layer the gates of the
    first column act on constant vectors, and have only ``out out``. If Q is odd, the last gate of the layer acts on a
    constant vector, too, by its index ``v`` (see `tnc.network.Feed`). Its neighbour is then the layer's first core.

    Parameters
    ----------
    axes : sequence of sequence of str
        The names of the sites of each axis.
    dimension : int
        The size of a site.
    depth : int
        The number of layers.
    activation : str
        The function between layers.
    """
    right = " ".join(f"({' '.join(axis)})" for axis in axes)
    outer, network = [site for axis in axes for site in axis], None
    for _ in range(depth):
        cores = _layer(outer, fed=network is not None)
        feed = Feed(network, activation) if network else None
        if cores[0].startswith("v"):
            gate = cores[0].removeprefix("v ")
            feed = Feed(_network(f"{gate} -> {gate}", dimension), "identity")
        network = _network(f"{', '.join(cores)} -> {right}", dimension, feed)
    assert network is not None
    return network


def _network(pattern: str, dimension: int, feed: Feed | None = None) -> Network:
    names = pattern.replace("->", " ").translate(str.maketrans("(),", "   ")).split()
    return Network(pattern, dict.fromkeys(names, dimension), feed)


def _layer(outer: Sequence[str], fed: bool) -> list[str]:
    """The operands of one layer. The tensor from the layer below is the first one."""
    size = len(outer)
    middle = [outer[0], *(f"r{k}" for k in range(1, size - 1)), outer[-1]]  # between the columns
    inside = [f"f{k}" for k in range(size)]
    if size % 2:
        middle[-1] = inside[-1] if fed else "v"
    first = [f"{middle[k]} {middle[k + 1]}" + f" {inside[k]} {inside[k + 1]}" * fed for k in range(0, size - 1, 2)]
    second = [f"{outer[k]} {outer[k + 1]} {middle[k]} {middle[k + 1]}" for k in range(1, size - 1, 2)]
    if size % 2:
        first = first[-1:] + first[:-1]
        first[0] = first[0] if fed else f"v {first[0]}"
    return [" ".join(inside)] * fed + first + second


def first(network: Network) -> Network:
    """The first layer, which acts on constant vectors."""
    while network.feed is not None and "v" not in network.sizes:
        network = network.feed.network
    return network


def train(network: Network) -> Network:
    """The tensor train that a first layer is: its network without the constant vector."""
    cores = [" ".join(name for name in core if name != "v") for core in network.operands]
    sizes = {name: size for name, size in network.sizes.items() if name != "v"}
    return Network(f"{', '.join(cores)} ->{network.pattern.partition('->')[2]}", sizes)
