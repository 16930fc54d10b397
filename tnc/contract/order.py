"""Contraction paths: those of opt_einsum, and sweeps of many small operands over one large tensor.

If one operand holds nearly all entries, the number of passes over its memory decides the time, not the number of
multiplications. A sweep merges neighbouring small operands into blocks of about `BLOCK` rows: the arithmetic of such a
block costs about as much as a pass. Each block then replaces some indices of the large tensor by others. The large
tensor is never permuted and never grows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf, prod

import opt_einsum

__all__ = ["BLOCK", "LARGE", "Indices", "Pair", "find", "find_with_layouts", "is_chain", "ranking", "sweep"]

Indices = tuple[str, ...]
"""The index names of an array."""

Pair = tuple[int, int]
"""Positions of two operands to take off the list. Their product is appended."""

BLOCK = 32
"""Most rows of a merged block. With more, its arithmetic costs more than a pass (2 CPU cores, float32)."""

LARGE = 1 << 10
"""Fewest entries of a tensor for a sweep. A smaller one stays in the cache."""


def find(operands: Sequence[Indices], output: Indices, size: Mapping[str, int], optimize: str = "auto") -> list[Pair]:
    """Find an order of contractions.

    Parameters
    ----------
    operands : sequence of tuple of str
        Index names of every array.
    output : tuple of str
        Index names of the result.
    size : mapping of str to int
        Size of every index.
    optimize : str
        A path optimizer of opt_einsum. ``auto`` takes a sweep if one operand is much larger than all others. It takes
        exact dynamic programming on chains and rings, where this is cheap at any length, and the choice of opt_einsum
        elsewhere.

    Returns
    -------
    list of (int, int)
        Pairs to contract one after another. Each takes two operands off the list and appends their product.
    """
    return find_with_layouts(operands, output, size, optimize)[0]


def find_with_layouts(
    operands: Sequence[Indices], output: Indices, size: Mapping[str, int], optimize: str = "auto"
) -> tuple[list[Pair], list[Indices | None]]:
    """Find an order of contractions as `find` does, and for a sweep the index order of each result.

    Parameters
    ----------
    operands : sequence of tuple of str
        Index names of every array.
    output : tuple of str
        Index names of the result.
    size : mapping of str to int
        Size of every index.
    optimize : str
        A path optimizer of opt_einsum, or ``auto``.

    Returns
    -------
    list of (int, int), list of tuple of str
        The pairs, and for each the index order of its result, None where any will do. The second list is empty if
        there is no sweep.
    """
    if len(operands) <= 2:
        return [(0, 1)][: len(operands) - 1], []
    if optimize == "auto":
        swept = sweep(operands, output, size)
        if swept is not None:
            return [pair for pair, _ in swept], [order for _, order in swept]
        if is_chain(operands, output):
            optimize = "dp"
    return _opt_einsum(operands, output, size, optimize), []


def _opt_einsum(operands: Sequence[Indices], output: Indices, size: Mapping[str, int], optimize: str) -> list[Pair]:
    """The path that an optimizer of opt_einsum finds."""
    symbol = {name: opt_einsum.get_symbol(k) for k, name in enumerate(size)}
    terms = ["".join(symbol[name] for name in core) for core in (*operands, output)]
    equation = ",".join(terms[:-1]) + "->" + terms[-1]
    shapes = [tuple(size[name] for name in core) for core in operands]
    path, _ = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize=optimize)
    return [(int(pair[0]), int(pair[1])) for pair in path if len(pair) == 2]


def is_chain(operands: Sequence[Indices], output: Indices) -> bool:
    """Whether no operand has more than two neighbours and no index is a batch or a hyperedge."""
    owners = _owners(operands)
    if not _links_pairs(owners, output):
        return False
    neighbours = [{k for name in core for k in owners[name]} - {own} for own, core in enumerate(operands)]
    return all(len(others) <= 2 for others in neighbours)


def _owners(operands: Sequence[Indices]) -> dict[str, list[int]]:
    """The operands that have each index."""
    owners: dict[str, list[int]] = {}
    for k, core in enumerate(operands):
        for name in core:
            owners.setdefault(name, []).append(k)
    return owners


def _links_pairs(owners: Mapping[str, Sequence[int]], output: Indices) -> bool:
    """Whether every index links two operands at most, or one operand and the output."""
    return all(len(operands) + (name in output) <= 2 for name, operands in owners.items())


def ranking(operands: Sequence[Indices], output: Indices) -> dict[str, float]:
    """Where each index belongs in a result.

    An index of the output has its position there. A bond has the mean position of the output's indices in the last
    operand with this bond, or infinity if there are none.
    """
    position = {name: float(k) for k, name in enumerate(output)}
    for core in reversed(operands):
        beside = [position[name] for name in core if name in output]
        for name in core:
            position.setdefault(name, sum(beside) / len(beside) if beside else inf)
    return position


def sweep(
    operands: Sequence[Indices], output: Indices, size: Mapping[str, int]
) -> list[tuple[Pair, Indices | None]] | None:
    """Apply blocks of small operands to the largest one, one block after another.

    Parameters
    ----------
    operands : sequence of tuple of str
        Index names of every array. There are two at least.
    output : tuple of str
        Index names of the result.
    size : mapping of str to int
        Size of every index.

    Returns
    -------
    list of (pair, tuple of str or None), or None
        The pairs to contract. With a pair that changes the large tensor comes the index order of its result: new
        indices replace neighbouring ones in place. None if there is no such order of contractions.
    """
    entries = [_entries(core, size) for core in operands]
    large = max(range(len(operands)), key=entries.__getitem__)
    if entries[large] < LARGE or max(entries[:large] + entries[large + 1 :]) > BLOCK**2:
        return None
    if not _links_pairs(_owners(operands), output):
        return None
    small = {k: core for k, core in enumerate(operands) if k != large}
    position = ranking(operands, output)
    layout = operands[large]
    held = list(range(len(operands)))  # numbers of the arrays that are left; results are numbered after the operands
    path: list[tuple[Pair, Indices | None]] = []
    result = len(operands)
    while small:
        block = _block(layout, small, size)
        if block is None:
            return None
        layout = _replaced(layout, [small.pop(k) for k in block], position)
        # Multiply the operands of the block with one another, then their product with the large tensor.
        merged, *others = block
        for k in [*others, large]:
            pair = (held.index(merged), held.index(k))
            path.append((pair, layout if k == large else None))
            held = [number for number in held if number not in (merged, k)]
            held.append(result)
            merged = result
            result += 1
        large = merged
    return path


def _entries(names: Iterable[str], size: Mapping[str, int]) -> int:
    return prod(size[name] for name in names)


def _replaced(layout: Indices, block: Sequence[Indices], position: Mapping[str, float]) -> Indices:
    """The indices of the large tensor after a block: the indices contracted give way to the new ones."""
    names = [name for core in block for name in core]
    free = [name for name in dict.fromkeys(names) if names.count(name) == 1]
    contracted = [name for name in layout if name in free]
    new = sorted((name for name in free if name not in contracted), key=position.__getitem__)
    start = layout.index(contracted[0])
    return (*layout[:start], *new, *layout[start + len(contracted) :])


def _block(layout: Sequence[str], small: Mapping[int, Indices], size: Mapping[str, int]) -> list[int] | None:
    """The largest set of small operands to apply in one pass, starting at the front of the layout.

    The indices that it contracts are neighbours in the layout. It has at most `BLOCK` rows, unless every set that can
    be applied has more. The large tensor does not grow. None if there is no such set.
    """
    position = {name: k for k, name in enumerate(layout)}
    members: list[int] = []
    best: list[int] | None = None
    free: set[str] = set()  # indices that one member has
    while len(members) < len(small):
        member = _next_member(small, members, free, position)
        members.append(member)
        free ^= set(small[member])
        contracted = [name for name in free if name in position]
        rows = _entries(contracted, size)
        columns = _entries(free.difference(contracted), size)
        if rows > BLOCK and best is not None:
            break
        if columns <= rows and _adjacent([position[name] for name in contracted]):
            best = list(members)
        if rows > BLOCK**2 or columns > BLOCK**2:
            break
    return best


def _next_member(
    small: Mapping[int, Indices], members: Sequence[int], free: set[str], position: Mapping[str, int]
) -> int:
    """The operand nearest to the front of the layout, of those that share an index with the block if there are any."""
    candidates = [k for k in small if k not in members]
    linked = [k for k in candidates if free & set(small[k])]

    def first(k: int) -> float:
        return min((position.get(name, inf) for name in small[k]), default=inf)

    return min(linked or candidates, key=first)


def _adjacent(positions: Sequence[int]) -> bool:
    """Whether the positions are neighbours without a gap, and at least one."""
    return bool(positions) and max(positions) - min(positions) == len(positions) - 1
