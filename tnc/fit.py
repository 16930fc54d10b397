"""Fits derived from the topology: hierarchical SVD for trees, two-site sweeps, alternating least squares.

A tree of bonds closes the fit: leaves are split off one by one by a truncated SVD. On a chain that is TT-SVD, on a
star the sequentially truncated HOSVD, and a sweep of two-site updates is DMRG on the chain and HOOI on the
star. Cycles and hyperedges go through alternating least squares.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from math import frexp, ldexp, prod

import numpy as np
from array_api_compat import array_namespace

from tnc.contract import contract, pad
from tnc.errors import RankError
from tnc.leastsquares import Descent, descend
from tnc.linalg import balance, left_svd, like, norm
from tnc.network import Network
from tnc.typing import Array

__all__ = ["als", "balance", "random_cores", "refine", "tensorize", "tree_svd", "unfold"]

Sizes = dict[str, int]


_WORK = 4e11
"""Multiplications and additions of one fit by alternating least squares."""


def tensorize(x: Array, network: Network) -> Array:
    """The weight with one axis per outer index of the network, zero-padded where the sizes overshoot.

    Raises
    ------
    RankError
        The network rebuilds fewer axes or shorter ones than the weight has.
    """
    if not network.holds(shape := tuple(x.shape)):
        raise RankError(f"a network of shape {network.shape} ({network.pattern}) cannot hold a weight of shape {shape}")
    xp = array_namespace(x)
    return xp.reshape(pad(x, network.shape, xp), tuple(network.sizes[i] for i in network.outer))


def unfold(x: Array, held: Sequence[str], rows: Sequence[str]) -> tuple[Array, list[str]]:
    """Matrix of the indices `rows` against all others, and the others in order."""
    xp, rest = array_namespace(x), [i for i in held if i not in rows]
    if rest and tuple(held) == (*rest, *rows):  # no copy
        return xp.matrix_transpose(xp.reshape(x, (-1, prod(x.shape[len(rest) :])))), rest
    x = xp.permute_dims(x, tuple(held.index(i) for i in [*rows, *rest]))
    return xp.reshape(x, (prod(x.shape[: len(rows)]), -1)), rest


def _split(
    x: Array, held: Sequence[str], rows: Sequence[str], size: Sizes, bond: str, seed: int, old: Array | None = None
) -> tuple[Array, Array, list[str]]:
    """Truncated SVD at `bond`: the orthonormal side (rows..., bond) and the remainder with its indices."""
    xp = array_namespace(x)
    matrix, rest = unfold(x, held, rows)
    basis = left_svd(matrix, size[bond], seed=seed, start=old)
    basis = pad(basis, (basis.shape[0], size[bond]), xp)  # a bond may be larger than it can use
    remainder = xp.matmul(xp.matrix_transpose(basis), matrix)
    sizes = {i: size[i] for i in held} | {bond: size[bond]}
    core = xp.reshape(basis, tuple(sizes[i] for i in [*rows, bond]))
    return core, xp.reshape(remainder, tuple(sizes[i] for i in [bond, *rest])), [bond, *rest]


def _order(x: Array, held: Sequence[str], target: Sequence[str]) -> Array:
    return array_namespace(x).permute_dims(x, tuple(list(held).index(i) for i in target))


def _sites(x: Array, network: Network) -> tuple[Array, list[str]]:
    """The weight with its axes core by core, and one leaf's last: sweeps then start from both ends without a copy."""
    leaf = max((k for k, core in enumerate(network.operands) if sum(b in core for b in network.bonds) < 2), default=0)
    cores = sorted(network.operands, key=lambda core: core == network.operands[leaf])
    held = [i for core in cores for i in core if i in network.outer]
    tensor, xp = _order(tensorize(x, network), network.outer, held), array_namespace(x)
    return xp.reshape(xp.reshape(tensor, (-1,)), tensor.shape), held


def tree_svd(x: Array, network: Network, *, seed: int = 0) -> tuple[list[Array], int]:
    """Cores of a tree network by truncated SVDs from the leaves to a root, and which core is the root.

    All cores but the root are orthonormal towards it, so the squared error is ``||x||^2 - ||root||^2``, at
    most the sum of the bonds' discarded energies and ``n_bonds`` times the best possible.

    References
    ----------
    Oseledets (2011) for chains, Vannieuwenhoven et al. (2012) for stars, Grasedyck (2010) for trees.
    """
    size, held, rest = dict(network.sizes), list(network.outer), tensorize(x, network)
    cores: list[Array] = [None] * len(network.operands)
    left = set(range(len(cores)))
    while len(left) > 1:
        bonds = {k: [b for b in network.bonds if b in network.operands[k] and b not in held] for k in left}
        leaves = [k for k in sorted(left) if len(bonds[k]) == 1]
        rows = {k: [i for i in network.operands[k] if i not in bonds[k]] for k in leaves}
        k = min(leaves, key=lambda k: prod(size[i] for i in rows[k]))  # the cheapest first
        core, rest, held = _split(rest, held, rows[k], size, bonds[k][0], seed)
        cores[k] = _order(core, [*rows[k], *bonds[k]], network.operands[k])
        left.remove(k)
    root = left.pop()
    cores[root] = _order(rest, held, network.operands[root])
    return cores, root


def refine(
    x: Array, network: Network, cores: list[Array], root: int, *, sweeps: int = 25, tolerance: float | None = None
) -> list[Array]:
    """Sweeps of two-site updates over a tree, each optimal with the others fixed: DMRG, or HOOI on a star.

    Parameters
    ----------
    cores, root
        As `tree_svd` returns them; the error never grows.
    sweeps : int
        At most this many.
    tolerance : float, optional
        Stop when the error would fall by less than this fraction if gains went on to fall as they did from one half
        of a sweep to the other. By default 3e-4 for more than a million entries, where a sweep takes as long as the
        truncated SVDs, and 1e-6 for less.
    """
    (tensor, held), size, cores = _sites(x, network), dict(network.sizes), list(cores)
    energy, names = norm(x) ** 2, network.operands
    if tolerance is None:
        tolerance = 3e-4 if prod(tensor.shape) > 1 << 20 else 1e-6

    def update(a: int, b: int) -> None:
        """Optimize cores a and b together; b ends up as the centre."""
        bond = next(i for i in names[a] if i in names[b])
        rows = [i for i in names[a] if i != bond]
        pair = rows + [i for i in names[b] if i != bond]
        others = [k for k in range(len(cores)) if k not in (a, b)]
        arrays = [tensor, *(cores[k] for k in others)]
        theta = contract([tuple(held), *(names[k] for k in others)], tuple(pair), arrays)
        old = unfold(cores[a], names[a], rows)[0]
        core, rest, kept = _split(theta, pair, rows, size, bond, 0, old)
        cores[a], cores[b] = _order(core, [*rows, bond], names[a]), _order(rest, kept, names[b])
        missed.append(max(energy - norm(rest) ** 2, 0.0))

    def visit(here: int, parent: int | None) -> None:
        for child in range(len(names)):
            if child in (here, parent) or not set(names[child]) & set(names[here]):
                continue
            if sum(bond in names[child] for bond in network.bonds) > 1:
                update(here, child)
                visit(child, here)
            update(child, here)

    for _ in range(sweeps if len(cores) > 2 else 0):  # two cores: the SVD is already optimal
        missed = [max(energy - norm(cores[root]) ** 2, 0.0)]
        visit(root, None)
        half = missed[len(missed) // 2]
        before, gain = missed[0] - half, half - missed[-1]
        if before + gain <= 2e-5 * missed[0] or 0.0 < gain**2 <= 2 * tolerance * missed[-1] * (before - gain):
            break
    return cores


def random_cores(x: Array, network: Network, seed: int) -> list[Array]:
    """Normal cores on `x`'s library and device; the rebuilt entries have about unit variance."""
    rng = np.random.default_rng(seed)
    deviation = prod(network.ranks) ** (-0.5 / len(network.core_shapes))
    return [like(deviation * rng.standard_normal(shape), x) for shape in network.core_shapes]


def als(
    x: Array,
    network: Network,
    *,
    cores: Sequence[Array] | None = None,
    guesses: Iterable[Sequence[Array]] = (),
    seed: int = 0,
    starts: int = 3,
    sweeps: int = 200,
    tolerance: float = 3e-5,
) -> list[Array]:
    """Alternating least squares for any network without a feed: each core solves its own linear problem.

    Cores and normal matrices are float64, with a small proximal ridge, so the error never grows; only products with
    the whole weight are in its own dtype. Unless `cores` gives the start, several run five sweeps each, the two that
    are ahead five more, and the better goes on. What a fit may cost is counted in operations: a seed gives the same
    cores everywhere.

    Parameters
    ----------
    cores : sequence of array, optional
        The only start.
    guesses : iterable of sequence of array
        Starts to try before the random ones.
    starts : int
        Random starts.
    tolerance : float
        Stop when a sweep lowers the relative error by less than this fraction.
    """
    xp, spent, short = array_namespace(x), 0.0, min(5, sweeps)
    more = min(5, sweeps - short)
    size = ldexp(1.0, frexp(norm(x))[1])  # starts, ridge and stops are made for norms near 1; this division is exact
    tensor = tensorize(x, network) / size
    if cores is not None:
        cores = balance(cores, 1 / size)
    else:
        randoms = (random_cores(tensor, network, seed + k) for k in range(starts))
        begun: Iterable[Sequence[Array]] = chain((balance(guess, 1 / size) for guess in guesses), randoms)
        for some in (short, more):
            trials: list[Descent] = []
            for trial in begun:
                trials.append(descend(tensor, network, trial, some, tolerance, _WORK / 12))
                spent += trials[-1].work
                if spent > _WORK / 4:
                    break
            ahead = sorted(trials, key=lambda trial: trial.error)[:2]
            begun = [trial.cores for trial in ahead]
        cores, sweeps = ahead[0].cores, sweeps - short - more
    found = descend(tensor, network, cores, sweeps, tolerance, _WORK - spent)
    if found.error < 0.03 and tensor.dtype != xp.float64:  # single precision blurs squared errors by 1e-7
        wide, left = xp.astype(tensor, xp.float64), _WORK - spent - found.work
        found = descend(wide, network, found.cores, sweeps, tolerance, left)
    return [xp.astype(core, x.dtype) for core in balance(found.cores, size)]
