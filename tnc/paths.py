"""Contraction paths: opt_einsum's, and sweeps of many small operands over one large tensor.

Where one operand holds nearly all the entries, passes over its memory decide, not multiplications. A sweep
merges neighbouring small operands into blocks of about `BLOCK` rows, as much arithmetic as one pass costs,
and multiplies each block in place, so that the large tensor is never permuted and never grows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, prod

import opt_einsum

__all__ = ["BLOCK", "LARGE", "Indices", "Pair", "find", "ranking", "sweep"]

Indices = tuple[str, ...]
Pair = tuple[int, int]
"""Two operands to take off the list; their product is appended."""

BLOCK = 32
"""Most rows of a merged block: where arithmetic begins to cost more than a pass (2 CPU cores, float32)."""

LARGE = 1 << 10
"""Fewest entries of a tensor worth a sweep: below, it stays in the cache."""


def find(operands: Sequence[Indices], output: Indices, size: Mapping[str, int], optimize: str = "auto") -> list[Pair]:
    """Pairs to contract one after another; each takes two operands off the list and appends the result.

    Parameters
    ----------
    operands : sequence of tuple of str
    output : tuple of str
    size : mapping of str to int
    optimize : str
        A path optimizer of opt_einsum. ``auto`` takes a sweep where one operand outweighs all others, exact
        dynamic programming on chains and rings (cheap there, however long), and opt_einsum's choice elsewhere.
    """
    if len(operands) <= 2:
        return [(0, 1)][: len(operands) - 1]
    if optimize == "auto":
        if (swept := sweep(operands, output, size)) is not None:
            return [pair for pair, _ in swept]
        optimize = "dp" if _is_chain(operands, output) else optimize
    symbol = {name: opt_einsum.get_symbol(k) for k, name in enumerate(size)}
    spell = ["".join(symbol[i] for i in core) for core in (*operands, output)]
    equation = ",".join(spell[:-1]) + "->" + spell[-1]
    shapes = [tuple(size[i] for i in core) for core in operands]
    path, _ = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize=optimize)
    return [(int(pair[0]), int(pair[1])) for pair in path if len(pair) == 2]


def _is_chain(operands: Sequence[Indices], output: Indices) -> bool:
    """Whether no operand has more than two neighbours and no index is a batch or a hyperedge."""
    homes = _homes(operands)
    if any(len(ends) + (name in output) > 2 for name, ends in homes.items()):
        return False
    near = [{k for name in core for k in homes[name]} - {here} for here, core in enumerate(operands)]
    return all(len(others) <= 2 for others in near)


def _homes(operands: Sequence[Indices]) -> dict[str, list[int]]:
    homes: dict[str, list[int]] = {}
    for k, core in enumerate(operands):
        for name in core:
            homes.setdefault(name, []).append(k)
    return homes


def ranking(operands: Sequence[Indices], output: Indices) -> dict[str, float]:
    """Where an index belongs in a result: its place in the output; for a bond, the middle of those beside it."""
    place = {name: float(k) for k, name in enumerate(output)}
    for core in reversed(operands):
        near = [place[name] for name in core if name in output]
        for name in core:
            place.setdefault(name, sum(near) / len(near) if near else inf)
    return place


def sweep(
    operands: Sequence[Indices], output: Indices, size: Mapping[str, int]
) -> list[tuple[Pair, Indices | None]] | None:
    """Blocks of small operands, one after another along the largest; None where that does not work out.

    With each pair comes the order of its result if it replaces neighbouring indices of the large tensor in place.
    """

    def weight(names: Sequence[str]) -> int:
        return prod(size[name] for name in names)

    big = max(range(len(operands)), key=lambda k: weight(operands[k]))
    small = {k: core for k, core in enumerate(operands) if k != big}
    if weight(operands[big]) < LARGE or max(map(weight, small.values())) > BLOCK**2:
        return None
    if any(len(ends) + (name in output) > 2 for name, ends in _homes(operands).items()):
        return None
    place = ranking(operands, output)
    layout, held, path, fresh = list(operands[big]), list(range(len(operands))), [], len(operands)
    while small:
        block = _block(layout, small, size)
        if block is None:
            return None
        members = [small.pop(k) for k in block]
        free = [n for n in dict.fromkeys(sum(members, ())) if sum(n in core for core in members) == 1]
        inner = [n for n in layout if n in free]
        new = sorted((n for n in free if n not in inner), key=place.__getitem__)
        at = layout.index(inner[0])
        layout[at : at + len(inner)] = new
        for k in [*block[1:], big]:
            path.append(((held.index(block[0]), held.index(k)), tuple(layout) if k == big else None))
            held = [other for other in held if other not in (block[0], k)] + [fresh]
            block[0], fresh = fresh, fresh + 1
        big = fresh - 1
    return path


def _block(layout: Sequence[str], small: Mapping[int, Indices], size: Mapping[str, int]) -> list[int] | None:
    """The largest set of small operands, from the front of the layout on, to apply in one pass.

    It meets the layout in neighbouring indices only, has at most `BLOCK` rows (one operand may have more) and gives
    back no more entries than it takes.
    """
    place = {name: k for k, name in enumerate(layout)}
    grown: list[int] = []
    best: list[int] | None = None
    free: set[str] = set()
    while len(grown) < len(small):
        left = [k for k in small if k not in grown]
        near = [k for k in left if free & set(small[k])] or left
        grown.append(min(near, key=lambda k: min((place.get(name, inf) for name in small[k]), default=inf)))
        free ^= set(small[grown[-1]])
        inner = sorted(place[name] for name in free if name in place)
        rows, columns = (prod(size[n] for n in free if (n in place) is met) for met in (True, False))
        if len(grown) > 1 and rows > BLOCK and best is not None:
            break
        if inner and inner[-1] - inner[0] == len(inner) - 1 and columns <= rows:
            best = list(grown)
        if rows > BLOCK**2 or columns > BLOCK**2:
            break
    return best
