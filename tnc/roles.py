"""The roles of the axes of a weight: rows, columns, kernel, stack or group.

Roles are written with one word per axis. ``"rows columns"`` is a matrix (out, in), and ``"columns rows"`` one that is
stored as (in, out). ``"rows columns kernel kernel"`` is a convolution. ``"stack columns rows"`` are experts stored as
(stack, in, out). An axis that holds several matrices one after another has two roles. ``"(stack=3 rows) columns"`` are
three matrices that are factorized together. ``"(group=4 rows) columns kernel"`` are four groups that are factorized
separately.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from math import prod
from reprlib import repr as shortly
from typing import NamedTuple

from array_api_compat import array_namespace

from tnc.errors import WeightError
from tnc.network import Network
from tnc.typing import Array, Shape

__all__ = ["Axis", "AxisRoles", "Roles", "WeightShape", "guessed", "roles"]

# A three-way weight whose last axis is longer than this is guessed to be a stack of matrices (experts), not a kernel.
_LONGEST_KERNEL = 32

_ORDER = ("group", "stack", "rows", "columns", "kernel")
"""The roles, in the order in which a plugin gets the axes. A plugin gets the weight of one group."""

_GROUP = "g"
"""First letter of the name of the index of groups. Every core of a network with groups has this index."""

_MOST_CHARACTERS = 1 << 11
"""Most characters of a text. It is enough for 64 axes of two roles."""

_WORD = re.compile(r"\((?P<role>group|stack)=(?P<size>[1-9]\d{0,17}) (?P<within>rows|columns)\)|(?P<plain>[a-z]+)")


class Roles(NamedTuple):
    """Which axes of a weight have which role, in the order that a plugin gets."""

    stack: tuple[int, ...]
    rows: int
    columns: int
    kernel: tuple[int, ...]


class WeightShape(tuple[int, ...]):
    """A shape that knows the roles of its axes. A plugin can use it as a plain tuple.

    The axes are in the order stack, rows, columns, kernel, independent of how the module stores them.
    """

    roles: Roles

    def __new__(cls, shape: Shape, roles: Roles) -> WeightShape:
        """Make a shape with roles."""
        new = super().__new__(cls, shape)
        new.roles = roles
        return new

    def __getnewargs__(self) -> tuple[Shape, Roles]:
        return tuple(self), self.roles


class Axis(NamedTuple):
    """One axis of a weight: its role; or two roles, the slower index first, and the size of the first."""

    names: tuple[str, ...]
    size: int = 1

    def __str__(self) -> str:
        return self.names[0] if len(self.names) == 1 else f"({self.names[0]}={self.size} {self.names[1]})"


@dataclass(frozen=True)
class AxisRoles:
    """The roles of a weight's axes as its module stores them.

    Parameters
    ----------
    text : str
        One word per axis: `rows`, `columns`, `kernel`, `stack` or `group`; or ``(stack=3 rows)`` for an axis that holds
        three matrices one after another.
    assumed : bool
        Whether the roles were guessed. The report then says so.

    Attributes
    ----------
    axes : tuple of Axis
        The roles of each axis.

    Raises
    ------
    WeightError
        The text is not understood, or does not name exactly one axis of rows and one of columns.
    """

    text: str
    assumed: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", _parse(self.text))
        object.__setattr__(self, "text", " ".join(map(str, self.axes)))
        names = [name for axis in self.axes for name in axis.names]
        if names.count("rows") != 1 or names.count("columns") != 1 or names.count("group") > 1:
            raise WeightError(f"roles {self.text!r}: name one axis of rows, one of columns and at most one of groups")

    axes: tuple[Axis, ...] = field(init=False, repr=False, compare=False)

    def __str__(self) -> str:
        return self.text

    @property
    def grouped(self) -> bool:
        """Whether there are groups, which are factorized separately."""
        return any("group" in axis.names for axis in self.axes)

    def split(self, shape: Shape) -> tuple[tuple[str, ...], Shape]:
        """The role and the size of every axis, where axes with two roles are split.

        Raises
        ------
        WeightError
            The roles do not fit a weight of this shape.
        """
        if len(shape) != len(self.axes):
            raise WeightError(
                f"roles {self.text!r} name {len(self.axes)} axes, but the weight has shape {tuple(shape)}"
            )
        names: list[str] = []
        sizes: list[int] = []
        for axis, length in zip(self.axes, shape, strict=True):
            if length % axis.size:
                raise WeightError(
                    f"roles {self.text!r} do not fit a weight of shape {tuple(shape)}: "
                    f"{length} is not a multiple of {axis.size}"
                )
            names += axis.names
            sizes += [length] if len(axis.names) == 1 else [axis.size, length // axis.size]
        return tuple(names), tuple(sizes)

    @property
    def order(self) -> tuple[int, ...]:
        """The axes of `split`, sorted in the order group, stack, rows, columns, kernel."""
        names = [name for axis in self.axes for name in axis.names]
        return tuple(sorted(range(len(names)), key=lambda k: (_ORDER.index(names[k]), k)))

    @property
    def words(self) -> tuple[str, ...]:
        """The role of each axis of `permuted`."""
        names = [name for axis in self.axes for name in axis.names]
        return tuple(names[k] for k in self.order)

    def places(self, other: AxisRoles) -> dict[int, int]:
        """Where the axes of `permuted` are in that of `other`: all but those of two roles, which are one axis there."""
        found, position = {}, 0
        for k, axis in enumerate(self.axes):
            if len(axis.names) == 1:
                found[self.order.index(position)] = other.order.index(k)
            position += len(axis.names)
        return found

    def permuted(self, x: Array) -> Array:
        """The weight with its axes in the order group, stack, rows, columns, kernel; axes of two roles are split."""
        xp = array_namespace(x)
        return xp.permute_dims(xp.reshape(x, self.split(tuple(x.shape))[1]), self.order)

    def unpermuted(self, x: Array, shape: Shape) -> Array:
        """The inverse of `permuted`, for a stored weight of this shape."""
        xp, order = array_namespace(x), self.order
        return xp.reshape(xp.permute_dims(x, tuple(order.index(k) for k in range(len(order)))), tuple(shape))

    def seen(self, shape: Shape) -> WeightShape:
        """The shape that a plugin gets: stack, rows, columns, kernel. With groups it is the shape of one group."""
        names, sizes = self.split(shape)
        order = [k for k in self.order if names[k] != "group"]
        words = [names[k] for k in order]
        stack = tuple(k for k, word in enumerate(words) if word == "stack")
        kernel = tuple(k for k, word in enumerate(words) if word == "kernel")
        return WeightShape(
            tuple(sizes[k] for k in order), Roles(stack, words.index("rows"), words.index("columns"), kernel)
        )

    def together(self) -> AxisRoles:
        """The roles for one factorization of the whole weight: no axis has two roles, and groups are a stack."""
        words = [axis.names[-1] for axis in self.axes]
        return AxisRoles(" ".join("stack" if word == "group" else word for word in words), self.assumed)

    # -------------------------------------------------------------- networks

    def stored(self, network: Network, shape: Shape) -> Network | None:
        """A plugin's network with the axes of the stored weight, and one more index where there are groups.

        Parameters
        ----------
        network : Network
            The network for the shape that `seen` returns.
        shape : tuple of int
            Shape of the stored weight.

        Returns
        -------
        Network or None
            None where this is not possible: padding would be inside an axis of two roles or inside a group, or a
            network with a feed would have groups.
        """
        names, sizes = self.split(shape)
        order = [k for k in self.order if names[k] != "group"]
        axes: dict[int, tuple[str, ...]] = dict(zip(order, network.axes, strict=True))
        if self.grouped and network.feed is not None:
            return None
        for k in self._unpadded(names):
            if prod(network.sizes[i] for i in axes[k]) != sizes[k]:
                return None
        if not self.grouped:
            return Network(_pattern(network.operands, self._joined(axes)), network.sizes, network.feed)
        k = names.index("group")
        index = next(name for name in (f"{_GROUP}{n}" for n in count()) if name not in network.sizes)
        axes[k] = (index,)
        cores = tuple((index, *core) for core in network.operands)
        return Network(_pattern(cores, self._joined(axes)), {index: sizes[k], **network.sizes})

    def _unpadded(self, names: Sequence[str]) -> list[int]:
        """Axes of `split` that must not be padded: the second part of an axis of two roles, and channels of groups."""
        second = [k + 1 for k in range(len(names)) if self._is_first_of_two(k)]
        channels = [k for k, name in enumerate(names) if name in ("rows", "columns")]
        return sorted({*second, *(channels if self.grouped else [])})

    def _is_first_of_two(self, k: int) -> bool:
        """Whether axis `k` of `split` is the first part of an axis with two roles."""
        starts, position = [], 0
        for axis in self.axes:
            starts += [position] if len(axis.names) == 2 else []
            position += len(axis.names)
        return k in starts

    def _joined(self, axes: dict[int, tuple[str, ...]]) -> list[tuple[str, ...]]:
        """The indices of each axis of the weight, from those of each axis of `split`."""
        joined, position = [], 0
        for axis in self.axes:
            joined.append(tuple(i for k in range(position, position + len(axis.names)) for i in axes[k]))
            position += len(axis.names)
        return joined

    def unstored(self, network: Network, shape: Shape) -> Network | None:
        """The inverse of `stored`: the plugin's network, of one group. None if `stored` cannot have made `network`."""
        names, parts = self.split(shape)
        axes: dict[int, tuple[str, ...]] = {}
        position = 0
        for axis, indices in zip(self.axes, network.axes, strict=True):
            if len(axis.names) == 1:
                axes[position] = indices
            else:
                cut = _first_part(indices, network, axis.size, parts[position + 1])
                if cut is None:
                    return None
                axes[position], axes[position + 1] = indices[:cut], indices[cut:]
            position += len(axis.names)
        cores, lengths = network.operands, dict(network.sizes)
        if self.grouped:
            group = axes[names.index("group")]
            if not group[0].startswith(_GROUP) or not all(core[:1] == group for core in cores):
                return None
            cores = tuple(core[1:] for core in cores)
            del lengths[group[0]]
        order = [k for k in self.order if names[k] != "group"]
        return Network(_pattern(cores, [axes[k] for k in order]), lengths, network.feed)


@lru_cache(maxsize=4096)
def _parse(text: str) -> tuple[Axis, ...]:
    """The axes that a text names."""
    if len(text) > _MOST_CHARACTERS:
        raise WeightError(f"roles {shortly(text)} have {len(text):,} characters, more than {_MOST_CHARACTERS:,}")
    axes, end = [], 0
    words = " ".join(text.split())
    for match in _WORD.finditer(words):
        role, plain = match["role"], match["plain"]
        if words[end : match.start()].strip() or (plain and plain not in _ORDER):
            break
        end = match.end()
        axes.append(Axis((role, match["within"]), int(match["size"])) if role else Axis((plain,)))
    if words[end:].strip() or not axes:
        raise WeightError(
            f"roles {text!r} are not understood at {words[end:].strip()!r}: write one word per axis, such as "
            "'rows columns kernel kernel', 'stack rows columns' or '(stack=3 rows) columns'"
        )
    return tuple(axes)


def _first_part(indices: tuple[str, ...], network: Network, size: int, within: int) -> int | None:
    """How many indices of an axis belong to its first part.

    The first part has a size of at least `size`. The second part must have exactly the size `within`, else None.
    """
    for n in range(1, len(indices)):
        if prod(network.sizes[i] for i in indices[:n]) >= size:
            return n if prod(network.sizes[i] for i in indices[n:]) == within else None
    return None


def _pattern(cores: tuple[tuple[str, ...], ...], axes: list[tuple[str, ...]]) -> str:
    right = " ".join(f"({' '.join(axis)})" for axis in axes)
    return f"{', '.join(map(' '.join, cores))} -> {right}"


def roles(shape: Shape) -> Roles:
    """The roles of the axes of a weight: from its shape if that knows them, else guessed from the number of axes.

    Raises
    ------
    WeightError
        The weight has fewer than two axes.
    """
    if isinstance(shape, WeightShape):
        return shape.roles
    if len(shape) < 2:
        raise WeightError(f"a weight of shape {tuple(shape)} has fewer than two axes: nothing to factorize")
    if len(shape) == 3 and shape[2] > _LONGEST_KERNEL:
        return Roles((0,), 1, 2, ())
    return Roles((), 0, 1, tuple(range(2, len(shape))))


def guessed(shape: Shape) -> AxisRoles:
    """The roles that are assumed for an array: those of ``(out, in, *kernel)`` or ``(stack, out, in)``.

    Raises
    ------
    WeightError
        The weight has fewer than two axes.
    """
    role = roles(shape)
    words = ["stack rows columns"] if role.stack else ["rows columns", *["kernel"] * len(role.kernel)]
    return AxisRoles(" ".join(words), assumed=len(shape) > 2)
