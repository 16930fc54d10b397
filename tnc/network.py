"""A decomposition is a topology, and a topology is data: the `Network`.

A pattern lists cores by their indices, then the axes of the weight, ``(a b)`` meaning merged in
row-major order: ``"m0 n0 r1, r1 m1 n1 -> (m0 m1) (n0 n1)"`` is a matrix product operator of two cores.
Only the standard library is used here: numbers live elsewhere.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod
from numbers import Integral
from types import MappingProxyType
from typing import Any, NoReturn, TypeAlias

from tnc.errors import PatternError, RankError

__all__ = ["Feed", "Network"]

_INDEX = re.compile(r"[A-Za-z]\w*|\*")

Indices: TypeAlias = tuple[str, ...]


def _fail(index: str, pattern: str, why: str) -> NoReturn:
    raise PatternError(f"index {index!r} of pattern {pattern!r} {why}")


@lru_cache(maxsize=4096)
def _parse(pattern: str) -> tuple[str, tuple[Indices, ...], tuple[Indices, ...]]:
    """The pattern as it is printed, its cores and its axes."""
    left, arrow, right = pattern.partition("->")
    if not arrow:
        raise PatternError(f"pattern {pattern!r} has no '->': write 'cores -> axes'")
    if re.search(r"[()]", re.sub(r"\([^()]*\)", "", right)):
        raise PatternError(f"pattern {pattern!r} has unbalanced or nested parentheses")
    operands = tuple(tuple(core.split()) for core in left.split(","))
    if not all(operands):
        raise PatternError(f"pattern {pattern!r} has an empty core: write its indices between the commas")
    axes = tuple(tuple(g.strip("()").split()) for g in re.findall(r"\([^()]*\)|[^\s()]+", right))
    written = ", ".join(map(" ".join, operands)) + " -> "
    written += " ".join(a[0] if len(a) == 1 else f"({' '.join(a)})" for a in axes)
    outer = [name for axis in axes for name in axis]
    for name in dict.fromkeys([*sum(operands, ()), *outer]):
        if not _INDEX.fullmatch(name):
            _fail(name, written, "is not a name: letters, digits and '_', or '*'")
        if outer.count(name) > 1:
            _fail(name, written, "stands twice on the right")
        if any(core.count(name) > 1 for core in operands):
            _fail(name, written, "stands twice in one core: traces inside a core are not supported")
        homes = sum(name in core for core in operands)
        if homes == 0:
            _fail(name, written, "stands on the right but in no core")
        if homes == 1 and name not in outer:
            _fail(name, written, "stands in one core only and not on the right: nothing to contract it with")
    return written, operands, axes


@dataclass(frozen=True)
class Feed:
    """An activated network whose rebuilt tensor is the first operand of another one (ADTN).

    A smaller tensor is zero-padded in row-major order, as by a constant vector ``[1, 0, ...]`` on a leading index.

    Parameters
    ----------
    network : Network
        The inner network.
    activation : str
        Elementwise function between the two: a key of `tnc.contract.ACTIVATIONS`.
    """

    network: Network
    activation: str = "relu"


@dataclass(frozen=True, eq=True)
class Network:
    """A tensor network: which index of which core meets which, and how large each is.

    Parameters
    ----------
    pattern : str
        Cores as space-separated index names, separated by commas; after ``->`` the weight's axes.
        By convention ``m*`` are rows (out), ``n*`` columns (in), ``k*`` kernel, ``r*`` bonds, ``t*``
        pass-through, ``*`` a batch. An index of one core that also stands on the right passes through;
        one in three or more cores is a hyperedge.
    sizes : mapping of str to int
        Size of every index, at least 1. The product over an axis may overshoot the weight's axis.
    feed : Feed, optional
        The first operand is not a core but the activated tensor of `feed`.

    Raises
    ------
    PatternError
        The pattern does not parse, an index has no size, stands twice in a core, stands in a single core
        and not on the right, or stands on the right and in no core.
    """

    pattern: str
    sizes: Mapping[str, int] = field(hash=False)
    feed: Feed | None = None

    def __post_init__(self) -> None:
        pattern, operands, axes = _parse(self.pattern)
        names = dict.fromkeys(name for core in operands for name in core)
        for name in [*names, *self.sizes]:
            if name not in self.sizes:
                _fail(name, pattern, f"has no size; sizes given: {dict(self.sizes)}")
            if name not in names:
                _fail(name, pattern, "has a size but does not stand in the pattern")
            if not isinstance(size := self.sizes[name], Integral) or size < 1:
                _fail(name, pattern, f"has size {size!r}: a whole number of at least 1 is needed")
        first = [int(self.sizes[name]) for name in operands[0]]
        if self.feed is not None and prod(fed := self.feed.network.shape) > prod(first):
            raise PatternError(f"the feed rebuilds {fed}, but the first operand of {pattern!r} has sizes {first}")
        sizes = MappingProxyType({name: int(self.sizes[name]) for name in names})
        for attribute, value in (("pattern", pattern), ("operands", operands), ("axes", axes), ("sizes", sizes)):
            object.__setattr__(self, attribute, value)

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
        """Whether a weight of this shape fits into `shape`, padded where it is shorter."""
        return len(shape) == len(self.shape) and all(n <= room for n, room in zip(shape, self.shape, strict=True))

    @cached_property
    def n_params(self) -> int:
        """Number of parameters: the sum of the cores' sizes."""
        return sum(prod(shape) for shape in self.core_shapes)

    @cached_property
    def flops(self) -> int:
        """FLOPs to apply the network to one input, absorbing cores in the given or in the reverse order.

        A multiplication and an addition count as two. Where the network has a feed, the weight is rebuilt
        first. The planner (`tnc.contract`) often finds better orders.
        """
        columns = self.outer[len(self.axes[0]) if self.axes else 0 :]
        if self.feed is not None:
            return self._rebuild + 2 * prod(self.shape)
        return min(self._absorb(columns, self.operands), self._absorb(columns, self.operands[::-1]))

    @property
    def _rebuild(self) -> int:
        return self._absorb((), self.operands) + (self.feed.network._rebuild if self.feed else 0)

    def _absorb(self, start: Sequence[str], cores: Sequence[Sequence[str]]) -> int:
        held, total = list(start), 0
        kept = set(self.outer) - set(start)
        for position, core in enumerate(cores):
            union = dict.fromkeys([*held, *core])
            total += 2 * prod(self.sizes[name] for name in union)
            later = kept.union(*cores[position + 1 :])
            held = [name for name in union if name in later]
        return total

    @cached_property
    def is_tree(self) -> bool:
        """Whether every bond joins exactly two cores, without cycles: the networks that close a fit."""
        if self.feed is not None or len(self.outer) != sum(len(set(c) & set(self.outer)) for c in self.operands):
            return False
        edges = [[k for k, core in enumerate(self.operands) if bond in core] for bond in self.bonds]
        if any(len(edge) != 2 for edge in edges) or len(edges) != len(self.operands) - 1:
            return False
        return len(self._reach(0)) == len(self.operands)

    def _reach(self, start: int, without: str | None = None) -> set[int]:
        """Cores reached from core `start` when the bond `without` is cut."""
        seen, front = {start}, [start]
        while front:
            names = set(self.operands[front.pop()]) - {without} - set(self.outer)
            new = {k for k, core in enumerate(self.operands) if names & set(core)} - seen
            seen |= new
            front += sorted(new)
        return seen

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
        """No bond larger than it can use: at most the product of the other indices of either core.

        Hyperedges are left alone (a CP rank may exceed every mode).
        """
        sizes, cores = dict(self.sizes), self.operands[1:] if self.feed else self.operands
        homes = {bond: [set(core) for core in cores if bond in core] for bond in self.bonds}
        for _ in cores:  # a bound travels one core per sweep
            for bond, ends in homes.items():
                if len(ends) == 2:
                    shared = ends[0] & ends[1]
                    sizes[bond] = min(sizes[bond], *(prod(sizes[i] for i in end - shared) for end in ends))
        return Network(self.pattern, sizes, self.feed)

    @classmethod
    def of_rank(cls, pattern: str, sizes: Mapping[str, int], rank: int | Sequence[int]) -> Network:
        """A network whose bonds not in `sizes` have the given rank: one for all, or one per such bond.

        Raises
        ------
        RankError
            A rank is not a whole number of at least 1, or their number is not that of the bonds.
        """
        left, _, right = pattern.partition("->")
        outer = set(re.sub(r"[()]", " ", right).split())
        bonds = [b for b in dict.fromkeys(left.replace(",", " ").split()) if b not in outer and b not in sizes]
        ranks = list(rank) if isinstance(rank, Sequence) else [rank] * (len(bonds) or 1)
        if any(not isinstance(r, Integral) or r < 1 for r in ranks):
            raise RankError(f"rank {rank!r}: whole numbers of at least 1 are needed, one or one per bond {bonds}")
        if len(ranks) != len(bonds) and isinstance(rank, Sequence):
            raise RankError(f"rank {rank!r} has {len(ranks)} entries, but {pattern!r} has {len(bonds)} bonds {bonds}")
        return cls(pattern, {**sizes, **dict(zip(bonds, ranks, strict=False))})

    def draw(self, path: str | os.PathLike[str] | None = None) -> str:
        """The diagram as SVG text; written to `path` as SVG, or as PNG and others (extra ``plot``), by its suffix."""
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
        """Inverse of `to_dict`."""
        feed = data.get("feed")
        inner = Feed(cls.from_dict(feed["network"]), feed["activation"]) if feed else None
        return cls(data["pattern"], data["sizes"], inner)

    def to_json(self) -> str:
        """JSON text; `from_json` is its inverse."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Network:
        """Inverse of `to_json`."""
        return cls.from_dict(json.loads(text))
