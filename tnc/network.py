"""The topology of a decomposition as data: the `Network`.

A pattern lists the indices of every core, then the axes of the weight. ``(a b)`` is one axis, of two indices merged in
row-major order. For example, ``"m0 n0 r1, r1 m1 n1 -> (m0 m1) (n0 n1)"`` is a matrix product operator of two cores.
This module holds no arrays, and uses the standard library only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from math import prod
from numbers import Integral
from reprlib import repr as shortly
from types import MappingProxyType
from typing import Any

from tnc import claims
from tnc.errors import PatternError, RankError
from tnc.patterns import MOST_AXES, MOST_CORES, Indices, checked_sizes, parse

__all__ = ["MOST_AXES", "MOST_CORES", "MOST_FEEDS", "Feed", "Network"]

MOST_FEEDS = 64
"""Largest number of networks that feed one another."""


@dataclass(frozen=True)
class Feed:
    """A network and an activation: the activated tensor is the first operand of another network (ADTN).

    If that operand has more entries, the tensor is padded with zeros in row-major order. This is the same as a constant
    vector ``[1, 0, ...]`` on a leading index.

    Parameters
    ----------
    network : Network
        The inner network.
    activation : str
        Elementwise function between the two: a key of `tnc.contract.recipes.ACTIVATIONS`.

    Raises
    ------
    PatternError
        `network` is not a `Network`, or `activation` not a string.
    """

    network: Network
    activation: str = "relu"

    def __post_init__(self) -> None:
        if not isinstance(self.network, Network) or not isinstance(self.activation, str):
            kinds = type(self.network).__name__, type(self.activation).__name__
            raise PatternError(f"a feed is a Network and the name of an activation, not {kinds[0]} and {kinds[1]}")


@dataclass(frozen=True, eq=True)
class Network:
    """A tensor network: the indices of every core, and the size of every index.

    Parameters
    ----------
    pattern : str
        Cores, separated by commas, each a list of index names separated by spaces. The axes of the weight follow after
        ``->``. By convention ``m*`` are rows (out), ``n*`` columns (in), ``k*`` kernel, ``r*`` bonds, ``t*``
        pass-through, ``*`` a batch. An index of one core that also stands on the right passes through. An index of
        three or more cores is a hyperedge.
    sizes : mapping of str to int
        Size of every index, at least 1. The product over an axis may be larger than the axis of the weight.
    feed : Feed, optional
        The first operand is then not a core, but the activated tensor of `feed`.

    Raises
    ------
    PatternError
        The pattern does not parse. Or an index has no size, stands twice in a core, stands in a single core and not on
        the right, or stands on the right and in no core. Or there are more cores, axes or feeds, or larger sizes, than
        this library or an array can handle.
    """

    pattern: str
    sizes: Mapping[str, int] = field(hash=False)
    feed: Feed | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or not isinstance(self.sizes, Mapping):
            kinds = type(self.pattern).__name__, type(self.sizes).__name__
            raise PatternError(f"a network is a pattern and a mapping of sizes, not {kinds[0]} and {kinds[1]}")
        pattern, operands, axes = parse(self.pattern)
        sizes = checked_sizes(pattern, dict.fromkeys(chain.from_iterable(operands)), self.sizes)
        self._check_feed(pattern, [sizes[name] for name in operands[0]])
        normal = {"pattern": pattern, "operands": operands, "axes": axes, "sizes": MappingProxyType(sizes)}
        for attribute, value in normal.items():
            object.__setattr__(self, attribute, value)
        for derived in ("outer", "bonds", "core_shapes", "shape", "n_params"):
            getattr(self, derived)  # fill the cache now: torch.compile cannot trace the first access

    def _check_feed(self, pattern: str, first: list[int]) -> None:
        if self.feed is None:
            return
        if not isinstance(self.feed, Feed):
            raise PatternError(f"the feed of {pattern!r} is {type(self.feed).__name__}: a Feed or None is needed")
        if prod(fed := self.feed.network.shape) > prod(first):
            raise PatternError(f"the feed rebuilds {fed}, but the first operand of {pattern!r} has sizes {first}")
        if len(self.levels) > MOST_FEEDS:
            raise PatternError(f"more than {MOST_FEEDS} networks feed one another, the last of them {pattern!r}")

    operands: tuple[Indices, ...] = field(init=False, repr=False, compare=False)
    axes: tuple[Indices, ...] = field(init=False, repr=False, compare=False)

    def __hash__(self) -> int:
        return hash((self.pattern, tuple(self.sizes.items()), self.feed))

    def __reduce__(self) -> tuple[Any, ...]:  # a mapping proxy neither copies nor pickles
        return Network, (self.pattern, dict(self.sizes), self.feed)

    def __repr__(self) -> str:
        feed = f", feed={self.feed!r}" if self.feed else ""
        return f"Network({self.pattern!r}, {dict(self.sizes)}{feed})"

    # ---------------------------------------------------------------- derived

    @property
    def levels(self) -> list[Network]:
        """The network itself, the network of its feed, the network of that one's feed, and so on."""
        levels = [self]
        while (feed := levels[-1].feed) is not None:
            levels.append(feed.network)
        return levels

    @cached_property
    def outer(self) -> tuple[str, ...]:
        """Indices on the right, in row-major order of the weight."""
        return tuple(name for axis in self.axes for name in axis)

    @cached_property
    def bonds(self) -> tuple[str, ...]:
        """Contracted indices, in order of appearance."""
        inner = (name for core in self.operands for name in core if name not in self.outer)
        return tuple(dict.fromkeys(inner))

    @property
    def ranks(self) -> tuple[int, ...]:
        """Size of every bond."""
        return tuple(self.sizes[bond] for bond in self.bonds)

    @cached_property
    def core_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of every core; those of a feed come first."""
        own = tuple(tuple(self.sizes[name] for name in core) for core in self.operands)
        return own if self.feed is None else self.feed.network.core_shapes + own[1:]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of the rebuilt tensor: at least the weight's along every axis."""
        return tuple(prod(self.sizes[name] for name in axis) for axis in self.axes)

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether a weight of this shape fits into the shape of the network, with padding if it is smaller."""
        return len(shape) == len(self.shape) and all(n <= room for n, room in zip(shape, self.shape, strict=True))

    @cached_property
    def n_params(self) -> int:
        """Number of parameters: the sum of the cores' sizes."""
        return sum(prod(shape) for shape in self.core_shapes)

    @cached_property
    def flops(self) -> int:
        """FLOPs to apply the network to one input: the cores are contracted with it one by one.

        The cheaper of two orders counts: as written, or reversed. A multiplication and an addition are two FLOPs. A
        network with a feed rebuilds the weight first. The planner (`tnc.contract`) often finds better orders.
        """
        columns = self.outer[len(self.axes[0]) if self.axes else 0 :]
        if self.feed is not None:
            return self._rebuild + 2 * prod(self.shape)
        return min(self._absorb(columns, self.operands), self._absorb(columns, self.operands[::-1]))

    @property
    def _rebuild(self) -> int:
        """FLOPs to rebuild the weight, feeds included."""
        return self._absorb((), self.operands) + (self.feed.network._rebuild if self.feed else 0)

    def _absorb(self, start: Sequence[str], cores: Sequence[Sequence[str]]) -> int:
        """FLOPs to contract a tensor with the indices `start` with the cores, one by one."""
        indices, total = list(start), 0  # of the tensor so far
        results = set(self.outer) - set(start)
        for position, core in enumerate(cores):
            union = dict.fromkeys([*indices, *core])
            total += 2 * prod(self.sizes[name] for name in union)
            later = results.union(*cores[position + 1 :])
            indices = [name for name in union if name in later]
        return total

    @cached_property
    def is_tree(self) -> bool:
        """Whether every bond joins exactly two cores, without cycles: truncated SVDs can then fit the cores."""
        if self.feed is not None or self._repeats_outer:
            return False
        edges = [sum(bond in core for core in self.operands) for bond in self.bonds]
        if any(ends != 2 for ends in edges) or len(edges) != len(self.operands) - 1:
            return False
        return len(self._reach(0)) == len(self.operands)

    @property
    def _repeats_outer(self) -> bool:
        """Whether an outer index stands in several cores."""
        outer = set(self.outer)
        return sum(len(outer & set(core)) for core in self.operands) != len(outer)

    def _reach(self, start: int, without: str | None = None) -> set[int]:
        """Numbers of the cores that bonds connect to core `start`, when the bond `without` is cut."""
        reached, front = {start}, [start]
        while front:
            bonds = set(self.operands[front.pop()]) - {without} - set(self.outer)
            new = {k for k, core in enumerate(self.operands) if bonds & set(core)} - reached
            reached |= new
            front += sorted(new)
        return reached

    def side(self, bond: str) -> tuple[str, ...]:
        """Outer indices on the first core's side of `bond` in a tree, in the weight's order."""
        first = next(k for k, core in enumerate(self.operands) if bond in core)
        cores = [self.operands[k] for k in self._reach(first, without=bond)]
        return tuple(name for name in self.outer if any(name in core for core in cores))

    # ---------------------------------------------------------------- changed copies

    def resize(self, **sizes: int) -> Network:
        """The same topology with other sizes."""
        return Network(self.pattern, {**self.sizes, **sizes}, self.feed)

    def clipped(self) -> Network:
        """A copy without bonds that are larger than useful: at most the product of the other indices of either core.

        Hyperedges stay as they are (a CP rank may exceed every mode), and so do bonds to the tensor of a feed.
        """
        sizes, fed = dict(self.sizes), self.operands[0] if self.feed else ()
        bonds = [bond for bond in self.bonds if bond not in fed]
        ends = {bond: [set(core) for core in self.operands if bond in core] for bond in bonds}
        pairs = {bond: cores for bond, cores in ends.items() if len(cores) == 2}
        for _ in self.operands:  # a bound moves on by one core in each round
            for bond, (first, second) in pairs.items():
                for rest in (first - second, second - first):
                    sizes[bond] = min(sizes[bond], prod(sizes[i] for i in rest))
        return Network(self.pattern, sizes, self.feed)

    @classmethod
    def of_rank(cls, pattern: str, sizes: Mapping[str, int], rank: int | Sequence[int]) -> Network:
        """A network whose remaining bonds have the given rank.

        Parameters
        ----------
        pattern : str
            As in `Network`.
        sizes : mapping of str to int
            Sizes of all outer indices, and of the bonds that `rank` is not for.
        rank : int or sequence of int
            One rank for all bonds that are not in `sizes`, or one rank for each, in order of appearance.

        Raises
        ------
        RankError
            A rank is not a whole number of at least 1, or there are more or fewer ranks than bonds.
        PatternError
            As in `Network`.
        """
        left, _, right = pattern.partition("->")
        outer = set(re.sub(r"[()]", " ", right).split())
        names = dict.fromkeys(left.replace(",", " ").split())
        bonds = [name for name in names if name not in outer and name not in sizes]
        ranks = list(rank) if isinstance(rank, Sequence) else [rank] * (len(bonds) or 1)
        if any(not isinstance(r, Integral) or r < 1 for r in ranks):
            raise RankError(f"rank {rank!r}: whole numbers of at least 1 are needed, one or one per bond {bonds}")
        if len(ranks) != len(bonds) and isinstance(rank, Sequence):
            raise RankError(f"rank {rank!r} has {len(ranks)} entries, but {pattern!r} has {len(bonds)} bonds {bonds}")
        return cls(pattern, {**sizes, **dict(zip(bonds, ranks, strict=False))})

    def draw(self, path: str | os.PathLike[str] | None = None) -> str:
        """The diagram as SVG text. With `path`, it is written there, too.

        The suffix of the path chooses the format: SVG, or PNG and others with the extra ``plot``.
        """
        from tnc.draw import draw

        return draw(self, path)

    # ---------------------------------------------------------------- JSON

    def to_dict(self) -> dict[str, Any]:
        """Plain data: pattern, sizes and, where there is one, the feed."""
        data: dict[str, Any] = {"pattern": self.pattern, "sizes": dict(self.sizes)}
        if self.feed:
            data["feed"] = {"network": self.feed.network.to_dict(), "activation": self.feed.activation}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Network:
        """Inverse of `to_dict`.

        Raises
        ------
        PatternError
            A member is missing, unknown or of the wrong type, or the members do not fit together.
        """
        levels = [_network(data)]
        activations = []
        while (feed := levels[-1].get("feed")) is not None:
            if len(levels) > MOST_FEEDS:
                raise PatternError(f"more than {MOST_FEEDS} networks feed one another")
            feed = claims.members(feed, "a feed", ("network", "activation"), error=PatternError)
            activations.append(feed["activation"])
            levels.append(_network(feed["network"]))
        network = cls(levels[-1]["pattern"], levels[-1]["sizes"])
        for level, activation in zip(levels[-2::-1], reversed(activations), strict=True):
            network = cls(level["pattern"], level["sizes"], Feed(network, activation))
        return network

    def to_json(self) -> str:
        """JSON text; `from_json` is its inverse."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Network:
        """Inverse of `to_json`.

        Raises
        ------
        PatternError
            The text is not JSON, or not that of a network.
        """
        try:
            data = json.loads(text)
        except (RecursionError, ValueError) as error:
            raise PatternError(f"{shortly(text)} is not a network as JSON: {error}") from error
        return cls.from_dict(data)


def _network(data: Any) -> Mapping[str, Any]:
    """The members of one network. The content of its feed is not checked."""
    return claims.members(data, "a network", ("pattern", "sizes"), ("feed",), PatternError)
