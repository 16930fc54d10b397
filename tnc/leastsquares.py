"""Alternating least squares over any network: a sweep solves every core's own linear problem, the others fixed.

A sweep halves the network again and again: what the weight and one half contract to serves all cores of the other
half. Nesterov's momentum carries over from sweep to sweep; one that it led astray is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import inf, prod, sqrt
from typing import Any, NamedTuple

from array_api_compat import array_namespace, device

from tnc.linalg import balance, norm
from tnc.network import Network
from tnc.plans import Indices, Plan, contract, plan, run
from tnc.typing import Array, Namespace, Shape

__all__ = ["Descent", "descend"]

FORMED = 4096
"""Normal matrices up to this side are formed and solved, unless conjugate gradients are far cheaper."""

STEPS = 10
"""Conjugate gradients per core and sweep."""

_RIDGE = 1e-11

_BLIND = 1e-6
"""Below such an error the difference of two energies is rounding."""


class Descent(NamedTuple):
    """Where a descent ended: cores, their relative error, and the multiplications and additions spent."""

    cores: list[Array]
    error: float
    work: float


def descend(
    x: Array, network: Network, cores: Sequence[Array], sweeps: int, tolerance: float, work: float = inf
) -> Descent:
    """Sweeps of least squares over float64 cores; the error never grows, but by what the weight's precision blurs.

    Parameters
    ----------
    x : array
        The weight with one axis per outer index. Products with the whole weight are in its dtype, all else in float64.
    sweeps, work : int, float
        At most this many sweeps, and none begun when this much work is spent.
    tolerance : float
        Stop when a sweep lowers the relative error by less than this fraction.

    References
    ----------
    Kolda and Bader (2009), sec. 3.4; Mitchell, Ye and De Sterck (2020) for momentum with restarts.
    """
    xp, energy, error, spent, pace = array_namespace(x), norm(x) ** 2, inf, 0.0, 0
    now = before = [xp.astype(core, xp.float64) for core in cores]
    for _ in range(sweeps):
        if spent > work:
            break
        ahead = [new + pace / (pace + 3) * (new - old) for new, old in zip(now, before, strict=True)]
        trial, gain, cost = _sweep(x, network, ahead)
        reached, spent = sqrt(max(energy - gain, 0.0) / energy) if energy else 0.0, spent + cost
        if energy and reached < _BLIND:
            short = [xp.astype(core, x.dtype, copy=False) for core in trial]
            reached = norm(contract(network.operands, network.outer, short) - x) / sqrt(energy)
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


class Problem(NamedTuple):
    """What solving one core takes, made from the network once."""

    axes: Shape  # of the core, in the order batch, inner, open
    back: Shape
    shape: Shape
    batch: int
    side: int
    twin: Plan | None
    form: Plan
    multiply: Plan
    iterate: bool


class Branch(NamedTuple):
    """Half of a group of cores: contract the others away, then go on with its halves or its only core."""

    others: tuple[int, ...]
    plan: Plan
    inside: Any
    """Two branches, or a core and the axes that bring what is held into the order of its `Problem`."""


def _shared(network: Network, k: int) -> set[str]:
    """Indices of the other cores."""
    return {i for j, other in enumerate(network.operands) if j != k for i in other}


def _twin(network: Network, k: int) -> tuple[Indices, ...]:
    """Indices of a core times itself, summed over what it alone holds: its part of the others' normal matrices.

    Where that would be larger than a normal matrix may be, both factors are kept.
    """
    names, outer, shared = network.operands[k], network.outer, _shared(network, k)
    prime = tuple(i if i in outer else f"{i}'" for i in names)
    if prod(network.sizes[i] for i in names if i in shared and i not in outer) > FORMED:
        return names, prime
    return (tuple(dict.fromkeys(i for pair in zip(names, prime, strict=True) for i in pair if pair[0] in shared)),)


@lru_cache(maxsize=1024)
def _problem(network: Network, k: int) -> Problem:
    names, size, shared = network.operands[k], network.sizes, _shared(network, k)
    batch = tuple(i for i in names if i in shared and i in network.outer)
    inner = tuple(i for i in names if i in shared and i not in network.outer)
    held = (*batch, *inner, *(i for i in names if i not in shared))
    sizes = tuple((i + prime, n) for i, n in size.items() for prime in ("", "'"))
    b, n, mine = prod(size[i] for i in batch), prod(size[i] for i in inner), _twin(network, k)
    prime = {i: i if i in network.outer else f"{i}'" for i in names}
    twin = plan((names, tuple(prime.values())), mine[0], sizes) if len(mine) == 1 else None
    others = tuple(part for j in range(len(network.operands)) if j != k for part in _twin(network, j))
    form = plan(others, (*batch, *inner, *(prime[i] for i in inner)), sizes)
    multiply = plan((*others, tuple(prime[i] if i in inner else i for i in held)), held, sizes)
    iterate = n > FORMED or (n > FORMED // 16 and form.flops + b * n**3 > 4 * STEPS * multiply.flops)
    shape, axes = tuple(size[i] for i in held), tuple(names.index(i) for i in held)
    return Problem(axes, tuple(held.index(i) for i in names), shape, b, n, twin, form, multiply, iterate)


@lru_cache(maxsize=1024)
def _branches(network: Network, group: tuple[int, ...], held: Indices) -> tuple[Branch, Branch]:
    names, half, found = network.operands, len(group) // 2, []
    for mine, others in ((group[:half], group[half:]), (group[half:], group[:half])):
        needed, parts = {i for k in mine for i in names[k]}, (held, *(names[k] for k in others))
        keep = tuple(i for i in dict.fromkeys(i for part in parts for i in part) if i in needed)
        keep = tuple(sorted(keep, key=lambda i: sum(i in core for core in names) < 3))  # a batch stands in front
        step = plan(parts, keep, tuple(network.sizes.items()))
        problem = [names[mine[0]][axis] for axis in _problem(network, mine[0]).axes]
        leaf = (mine[0], tuple(keep.index(i) for i in problem)) if len(mine) == 1 else None
        found.append(Branch(others, step, leaf or _branches(network, mine, keep)))
    return found[0], found[1]


def _sweep(x: Array, network: Network, cores: Sequence[Array]) -> tuple[list[Array], float, float]:
    """Every core solved once; the energy the cores explain and the work."""
    xp, cores, gain, spent, last = array_namespace(x), list(cores), 0.0, 0.0, len(cores) - 1
    problems = [_problem(network, k) for k in range(len(cores))]

    def twin(k: int) -> list[Array]:
        step = problems[k].twin
        return [cores[k], cores[k]] if step is None else [run(step, [cores[k], cores[k]], xp)]

    def visit(inside: Any, right: Array) -> None:
        nonlocal gain, spent
        if not isinstance(inside[0], Branch):
            k, axes = inside
            others = [part for j, parts in enumerate(twins) if j != k for part in parts]
            cores[k], gain, cost = _solve(problems[k], cores[k], others, xp.permute_dims(right, axes), xp, k == last)
            twins[k], spent = twin(k) if k < last else [], spent + cost
            return
        for branch in inside:
            parts = [right, *(xp.astype(cores[k], right.dtype, copy=False) for k in branch.others)]
            spent += branch.plan.flops
            visit(branch.inside, xp.astype(run(branch.plan, parts, xp), xp.float64, copy=False))

    twins: list[list[Array]] = [[], *(twin(k) for k in range(1, len(cores)))]  # cores are visited in order
    visit(_branches(network, tuple(range(len(cores))), network.outer), x)
    return cores, gain, spent


def _solve(
    problem: Problem, old: Array, others: list[Array], right: Array, xp: Namespace, last: bool
) -> tuple[Array, float, float]:
    """The core that minimizes the error with the others fixed, the energy explained (by the last), and the work."""
    old, b, n = xp.permute_dims(old, problem.axes), problem.batch, problem.side
    if problem.iterate:
        new, rest, count = _conjugate(lambda v: run(problem.multiply, [*others, v], xp), right, old, xp)
        gain = float(xp.sum(new * (right + rest))) if last else 0.0
        return xp.permute_dims(new, problem.back), gain, count * problem.multiply.flops
    gram, right = xp.reshape(run(problem.form, others, xp), (b, n, n)), xp.reshape(right, (b, n, -1))
    level = _RIDGE * float(xp.sum(xp.linalg.trace(gram))) / (b * n) or 1e-30
    shift = level * xp.eye(n, dtype=gram.dtype, device=device(gram))
    # The ridge pulls towards the old core, not to zero: no step raises the error, however singular the matrix.
    new = xp.linalg.solve(gram + shift, right + level * xp.reshape(old, (b, n, -1)))
    gain = float(xp.sum(new * (2 * right - xp.matmul(gram, new)))) if last else 0.0
    return xp.permute_dims(xp.reshape(new, problem.shape), problem.back), gain, problem.form.flops + b * n**3


def _conjugate(normal: Callable[[Array], Array], right: Array, new: Array, xp: Namespace) -> tuple[Array, Array, int]:
    """Conjugate gradients from the old values: the error falls with every step. Also residual and count."""
    rest, count = right - normal(new), 1
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
    return new, rest, count
