"""The brick wall of ADTN: two columns of two-site gates per network, network feeding network."""

from __future__ import annotations

from collections.abc import Sequence

from tnc import Network
from tnc.network import Feed

__all__ = ["first", "train", "wall"]


def wall(axes: Sequence[Sequence[str]], dimension: int, depth: int, activation: str) -> Network:
    """`depth` layers of gates on the sites of all axes in row-major order, the first on ``[1, 0, ...]`` at each site.

    A layer on Q sites has gates on (0, 1), (2, 3), ... and then on (1, 2), (3, 4), ...: Q - 1 gates of indices
    ``out out in in``. In the first layer the first column meets the constant vectors: its gates keep ``out out``.
    Where Q is odd, the layer's last gate meets one, too, by its index ``v`` (see `tnc.network.Feed`), and the
    neighbour it hangs on comes first among the layer's cores.
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
    """Operands of one layer; the fed tensor, or what stands for it, comes first."""
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
    """The layer at the bottom, which acts on constant vectors."""
    while network.feed is not None and "v" not in network.sizes:
        network = network.feed.network
    return network


def train(network: Network) -> Network:
    """The tensor train that a first layer is: its own network, without the constant vector where it meets one."""
    cores = [" ".join(name for name in core if name != "v") for core in network.operands]
    sizes = {name: size for name, size in network.sizes.items() if name != "v"}
    return Network(f"{', '.join(cores)} ->{network.pattern.partition('->')[2]}", sizes)
