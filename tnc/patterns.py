"""Patterns of networks: parsing and checks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from numbers import Integral
from reprlib import repr as shortly
from typing import NoReturn, TypeAlias

from tnc.errors import PatternError

__all__ = ["MOST_AXES", "MOST_CORES", "Indices", "checked_sizes", "parse"]

_INDEX = re.compile(r"[A-Za-z]\w*|\*")

Indices: TypeAlias = tuple[str, ...]

MOST_AXES = 64
"""Largest number of indices of a core or of the weight: as many axes as an array of NumPy can have."""

MOST_CORES = 64
"""Largest number of cores of one network, without those of its feed: one for each axis of the largest weight."""

_LONGEST = 1 << 16
"""Largest number of characters of a pattern."""

_LARGEST = 2**63 - 1
"""Largest size of an index: the largest position in an array."""


def _fail(index: str, pattern: str, why: str) -> NoReturn:
    raise PatternError(f"index {index!r} of pattern {pattern!r} {why}")


@lru_cache(maxsize=4096)
def parse(pattern: str) -> tuple[str, tuple[Indices, ...], tuple[Indices, ...]]:
    """The pattern in its normal form, the indices of its cores, and those of its axes.

    Raises
    ------
    PatternError
        As `tnc.network.Network` says.
    """
    if len(pattern) > _LONGEST:
        raise PatternError(f"pattern {shortly(pattern)} has {len(pattern):,} characters, more than {_LONGEST:,}")
    operands, axes = _split(pattern)
    _check_counts(pattern, operands, axes)
    normal = _normal_form(operands, axes)
    _check_indices(normal, operands, axes)
    return normal, operands, axes


def _split(pattern: str) -> tuple[tuple[Indices, ...], tuple[Indices, ...]]:
    """Indices of every core and of every axis."""
    left, arrow, right = pattern.partition("->")
    if not arrow:
        raise PatternError(f"pattern {pattern!r} has no '->': write 'cores -> axes'")
    if re.search(r"[()]", re.sub(r"\([^()]*\)", "", right)):
        raise PatternError(f"pattern {pattern!r} has unbalanced or nested parentheses")
    operands = tuple(tuple(core.split()) for core in left.split(","))
    if not all(operands):
        raise PatternError(f"pattern {pattern!r} has an empty core: write its indices between the commas")
    groups = re.findall(r"\([^()]*\)|[^\s()]+", right)  # "(a b)" or "a"
    return operands, tuple(tuple(group.strip("()").split()) for group in groups)


def _normal_form(operands: Sequence[Indices], axes: Sequence[Indices]) -> str:
    """The pattern of these cores and axes, with single spaces, and parentheses only where they are needed."""
    left = ", ".join(" ".join(core) for core in operands)
    right = " ".join(axis[0] if len(axis) == 1 else f"({' '.join(axis)})" for axis in axes)
    return f"{left} -> {right}"


def _check_counts(pattern: str, operands: Sequence[Indices], axes: Sequence[Indices]) -> None:
    """Refuse more cores than a contraction order can be found for, and more indices than an array can have axes."""
    if len(operands) > MOST_CORES:
        raise PatternError(f"pattern {shortly(pattern)} has {len(operands):,} cores, more than {MOST_CORES}")
    most = max(sum(map(len, axes)), *map(len, operands))
    if most > MOST_AXES:
        raise PatternError(f"pattern {shortly(pattern)} has {most:,} indices in one place, more than {MOST_AXES}")


def _check_indices(pattern: str, operands: Sequence[Indices], axes: Sequence[Indices]) -> None:
    """Refuse words that are not names, and indices in places where they have no meaning."""
    left, right = Counter(chain.from_iterable(map(set, operands))), Counter(chain.from_iterable(axes))
    repeated = {name for core in operands for name, count in Counter(core).items() if count > 1}
    for name in dict.fromkeys([*chain.from_iterable(operands), *right]):
        if not _INDEX.fullmatch(name):
            _fail(name, pattern, "is not a name: letters, digits and '_', or '*'")
        if right[name] > 1:
            _fail(name, pattern, "stands twice on the right")
        if name in repeated:
            _fail(name, pattern, "stands twice in one core: traces inside a core are not supported")
        if left[name] == 0:
            _fail(name, pattern, "stands on the right but in no core")
        if left[name] == 1 and not right[name]:
            _fail(name, pattern, "stands in one core only and not on the right: nothing to contract it with")


def checked_sizes(pattern: str, names: Mapping[str, None], sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes as built-in integers, in the order of the names.

    Parameters
    ----------
    pattern : str
        For messages.
    names : mapping with str as keys
        All indices of the pattern.
    sizes : mapping of str to int

    Raises
    ------
    PatternError
        An index has no size, a size no index, or a size is not an integer from 1 to the largest size of an array.
    """
    for name in [*names, *sizes]:
        if name not in sizes:
            _fail(name, pattern, f"has no size; sizes given: {shortly(dict(sizes))}")
        if name not in names:
            _fail(name, pattern, "has a size but does not stand in the pattern")
        size = sizes[name]
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
            _fail(name, pattern, f"has size {shortly(size)}: a whole number of at least 1 is needed")
        if size > _LARGEST:
            _fail(name, pattern, f"has size {shortly(size)}, more than an array can have")
    return {name: int(sizes[name]) for name in names}
