"""Alternating least squares over any network: a sweep solves every core's own linear problem, the others fixed.

A sweep halves the network again and again: what the weight and one half contract to serves all cores of the other
half. Nesterov's momentum carries over from sweep to sweep; one that it led astray is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, prod, sqrt
from typing import NamedTuple

from array_api_compat import array_namespace, device

from tnc.linalg import balance, norm
from tnc.network import Network
from tnc.plans import contract, plan, run
from tnc.typing import Array

__all__ = ["Descent", "descend"]

FORMED = 2048
"""Normal matrices up to this side are formed and solved, unless conjugate gradients are far cheaper."""

STEPS = 10
"""Conjugate gradients per core and sweep."""

Part = tuple[tuple[str, ...], Array]
"""An array and its indices."""


class Descent(NamedTuple):
    """Where a descent ended: cores, their relative error, and the multiplications and additions spent."""

    cores: list[Array]
    error: float
    work: float


def descend(
    x: Array, network: Network, cores: Sequence[Array], sweeps: int, tolerance: float, work: float = inf
) -> Descent:
    """Sweeps of least squares over float64 cores; the error never grows.

    Parameters
    ----------
    x : array
        The weight with one axis per outer index, float64.
    sweeps, work : int, float
        At most this many sweeps, and none begun when this much work is spent.
    tolerance : float
        Stop when a sweep lowers the relative error by less than this fraction.

    References
    ----------
    Kolda and Bader (2009), sec. 3.4; Mitchell, Ye and De Sterck (2020) for momentum with restarts.
    """
    energy, error, spent, pace = norm(x) ** 2, inf, 0.0, 0
    now = before = list(cores)
    for _ in range(sweeps):
        if spent > work:
            break
        ahead = [new + pace / (pace + 3) * (new - old) for new, old in zip(now, before, strict=True)]
        trial, gain, cost = _sweep(x, network, ahead)
        reached, spent = sqrt(max(energy - gain, 0.0) / energy) if energy else 0.0, spent + cost
        if reached > error:
            if pace == 0:  # rounding
                break
            pace = 0
            continue
        drop, error, pace = error - reached, reached, pace + 1
        before, now = now, balance(trial)
        if drop <= tolerance * error or error <= 1e-13:
            break
    return Descent(now, error, spent)


def _sweep(x: Array, network: Network, cores: Sequence[Array]) -> tuple[list[Array], float, float]:
    """Every core solved once; the energy the cores explain and the work."""
    names, cores, gain, spent = network.operands, list(cores), 0.0, 0.0
    twins = [_twin(network, k, core) for k, core in enumerate(cores)]

    def visit(group: Sequence[int], right: Part) -> None:
        nonlocal gain, spent
        if len(group) == 1:
            k = group[0]
            cores[k], gain, cost = _solve(network, k, cores[k], [*twins[:k], *twins[k + 1 :]], right)
            twins[k], spent = _twin(network, k, cores[k]), spent + cost
            return
        half = len(group) // 2
        for mine, others in ((group[:half], group[half:]), (group[half:], group[:half])):
            needed, parts = {i for k in mine for i in names[k]}, [right, *((names[k], cores[k]) for k in others)]
            keep = tuple(i for i in dict.fromkeys(i for held, _ in parts for i in held) if i in needed)
            keep = tuple(sorted(keep, key=lambda i: sum(i in core for core in names) < 3))  # a batch stands in front
            step = plan(tuple(held for held, _ in parts), keep, tuple(network.sizes.items()))
            spent += step.flops
            visit(mine, (keep, run(step, [array for _, array in parts])))

    visit(range(len(cores)), (network.outer, x))
    return cores, gain, spent


def _shared(network: Network, k: int) -> set[str]:
    """Indices of the other cores."""
    return {i for j, other in enumerate(network.operands) if j != k for i in other}


def _twin(network: Network, k: int, core: Array) -> list[Part]:
    """A core times itself, summed over what it alone holds: its part of the others' normal matrices.

    Where that would be larger than a normal matrix may be, both factors are kept.
    """
    names, outer, shared = network.operands[k], network.outer, _shared(network, k)
    prime = tuple(i if i in outer else f"{i}'" for i in names)
    both = tuple(dict.fromkeys([i for pair in zip(names, prime, strict=True) for i in pair if pair[0] in shared]))
    if prod(network.sizes[i] for i in names if i in shared and i not in outer) > FORMED:
        return [(names, core), (prime, core)]
    return [(both, contract([names, prime], both, [core, core]))]


def _solve(network: Network, k: int, old: Array, twins: list[list[Part]], right: Part) -> tuple[Array, float, float]:
    """Core `k` that minimizes the error with the others fixed, the energy explained, and the work."""
    others = [part for twin in twins for part in twin]
    xp, names, size, shared = array_namespace(old), network.operands[k], network.sizes, _shared(network, k)
    batch = tuple(i for i in names if i in shared and i in network.outer)
    inner = tuple(i for i in names if i in shared and i not in network.outer)
    held = (*batch, *inner, *(i for i in names if i not in shared))
    sizes = tuple((i + prime, n) for i, n in size.items() for prime in ("", "'"))
    n, b, spell = prod(size[i] for i in inner), prod(size[i] for i in batch), tuple(part[0] for part in others)
    old, target = contract([names], held, [old]), contract([right[0]], held, [right[1]])
    prime = {i: f"{i}'" for i in inner}
    form = plan(spell, (*batch, *inner, *prime.values()), sizes)
    multiply = plan((*spell, tuple(prime.get(i, i) for i in held)), held, sizes)
    if n > FORMED or (n > FORMED // 8 and form.flops + b * n**3 > 4 * STEPS * multiply.flops):
        new, gain, count = _conjugate(lambda v: run(multiply, [*(part[1] for part in others), v]), target, old)
        return contract([held], names, [new]), gain, count * multiply.flops
    gram = xp.reshape(run(form, [part[1] for part in others]), (b, n, n))
    new, gain = _ridge(gram, xp.reshape(target, (b, n, -1)), xp.reshape(old, (b, n, -1)))
    new = xp.reshape(new, tuple(size[i] for i in held))
    return contract([held], names, [new]), gain, form.flops + b * n**3


def _ridge(gram: Array, right: Array, old: Array, ridge: float = 1e-11) -> tuple[Array, float]:
    """Solve with a small ridge towards the old values: no step raises the error, however singular the matrix."""
    xp, (b, n, _) = array_namespace(gram), gram.shape
    eye = xp.eye(n, dtype=gram.dtype, device=device(gram))
    level = ridge * float(xp.sum(gram * eye)) / (b * n) or 1e-30
    new = xp.linalg.solve(gram + level * eye, right + level * old)
    return new, float(2 * xp.sum(new * right) - xp.sum(new * xp.matmul(gram, new)))


def _conjugate(normal: Callable[[Array], Array], right: Array, new: Array) -> tuple[Array, float, int]:
    """Conjugate gradients from the old values: the error falls with every step. Also the number of products."""
    xp, count = array_namespace(right), 1
    rest = right - normal(new)
    way, size = rest, float(xp.sum(rest * rest))
    for _ in range(STEPS):
        image, count = normal(way), count + 1
        bend = float(xp.sum(way * image))
        if bend <= 0.0:  # solved, or nothing left but rounding
            break
        new, rest = new + size / bend * way, rest - size / bend * image
        last, size = size, float(xp.sum(rest * rest))
        if size <= 1e-28 * last:
            break
        way = rest + size / last * way
    return new, float(xp.sum(new * (right + rest))), count
