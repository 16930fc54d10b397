"""Fits derived from the topology: hierarchical SVD for trees, two-site sweeps, alternating least squares.

A tree of bonds closes the fit: leaves are split off one by one by a truncated SVD. On a chain that is TT-SVD, on a
star the sequentially truncated HOSVD, and a sweep of two-site updates is DMRG on the chain and HOOI on the
star. Cycles and hyperedges go through alternating least squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt

import numpy as np
from array_api_compat import array_namespace

from tnc.contract import contract, pad
from tnc.errors import RankError
from tnc.linalg import left_svd, like, norm
from tnc.network import Network
from tnc.typing import Array

__all__ = ["als", "balance", "random_cores", "refine", "tensorize", "tree_svd", "unfold"]


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
    x = xp.permute_dims(x, tuple(held.index(i) for i in [*rows, *rest]))
    return xp.reshape(x, (prod(x.shape[: len(rows)]), -1)), rest


def _split(
    x: Array, held: Sequence[str], rows: Sequence[str], size: dict[str, int], bond: str, seed: int
) -> tuple[Array, Array, list[str]]:
    """Truncated SVD at `bond`: the orthonormal side (rows..., bond) and the remainder with its indices."""
    xp = array_namespace(x)
    matrix, rest = unfold(x, held, rows)
    basis = left_svd(matrix, size[bond], seed=seed)
    basis = pad(basis, (basis.shape[0], size[bond]), xp)  # a bond may be larger than it can use
    remainder = xp.matmul(xp.matrix_transpose(basis), matrix)
    sizes = {i: size[i] for i in held} | {bond: size[bond]}
    core = xp.reshape(basis, tuple(sizes[i] for i in [*rows, bond]))
    return core, xp.reshape(remainder, tuple(sizes[i] for i in [bond, *rest])), [bond, *rest]


def _order(x: Array, held: Sequence[str], target: Sequence[str]) -> Array:
    return array_namespace(x).permute_dims(x, tuple(list(held).index(i) for i in target))


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
    x: Array, network: Network, cores: list[Array], root: int, *, sweeps: int = 25, tolerance: float = 1e-5
) -> list[Array]:
    """Sweeps of two-site updates over a tree, each optimal with the others fixed: DMRG, or HOOI on a star.

    Parameters
    ----------
    cores, root
        As `tree_svd` returns them; the error never grows.
    sweeps : int
        At most this many; stops when the error falls by less than `tolerance`, relatively.
    """
    tensor, size, cores = tensorize(x, network), dict(network.sizes), list(cores)
    energy, names = norm(x) ** 2, network.operands

    def update(a: int, b: int) -> None:
        """Optimize cores a and b together; b ends up as the centre."""
        bond = next(i for i in names[a] if i in names[b])
        rows = [i for i in names[a] if i != bond]
        pair = rows + [i for i in names[b] if i != bond]
        others = [k for k in range(len(cores)) if k not in (a, b)]
        theta = contract([network.outer, *(names[k] for k in others)], pair, [tensor, *(cores[k] for k in others)])
        core, rest, held = _split(theta, pair, rows, size, bond, 0)
        cores[a], cores[b] = _order(core, [*rows, bond], names[a]), _order(rest, held, names[b])

    def visit(here: int, parent: int | None) -> None:
        for child in range(len(names)):
            if child in (here, parent) or not set(names[child]) & set(names[here]):
                continue
            if sum(bond in names[child] for bond in network.bonds) > 1:
                update(here, child)
                visit(child, here)
            update(child, here)

    missed = max(energy - norm(cores[root]) ** 2, 0.0)
    for _ in range(sweeps if len(cores) > 2 else 0):  # two cores: the SVD is already optimal
        visit(root, None)
        before, missed = missed, max(energy - norm(cores[root]) ** 2, 0.0)
        if before - missed <= 2 * tolerance * before:
            break
    return cores


def random_cores(x: Array, network: Network, seed: int) -> list[Array]:
    """Normal cores on `x`'s library and device; the rebuilt entries have about unit variance."""
    rng = np.random.default_rng(seed)
    deviation = prod(network.ranks) ** (-0.5 / len(network.core_shapes))
    return [like(deviation * rng.standard_normal(shape), x) for shape in network.core_shapes]


def balance(cores: list[Array]) -> list[Array]:
    """Rescale the cores to equal norms; the rebuilt weight stays the same."""
    norms = [norm(core) for core in cores]
    if not all(norms):
        return cores
    mean = float(np.exp(np.mean(np.log(norms))))
    return [core * (mean / size) for core, size in zip(cores, norms, strict=True)]


# ------------------------------------------------------------------ alternating least squares


def als(
    x: Array,
    network: Network,
    *,
    cores: list[Array] | None = None,
    seed: int = 0,
    starts: int = 3,
    sweeps: int = 200,
    tolerance: float = 1e-6,
) -> list[Array]:
    """Alternating least squares for any network without a feed: each core solves its own linear problem.

    Normal matrices are float64 with a small proximal ridge, so the error never grows. Several random starts
    run a few sweeps each and the best goes on, unless `cores` gives the start.

    Parameters
    ----------
    tolerance : float
        Stop when a sweep lowers the relative error by less than this fraction.
    """
    xp = array_namespace(x)
    wide = tensorize(xp.astype(x, xp.float64), network)
    if cores is not None:
        trials = [[xp.astype(core, xp.float64) for core in cores]]
    else:
        trials = [random_cores(wide, network, seed + k) for k in range(starts)]
    short = min(10, sweeps)
    best = min((_descend(wide, network, trial, short, tolerance) for trial in trials), key=lambda pair: pair[1])
    cores, _ = _descend(wide, network, best[0], sweeps - short, tolerance)
    return [xp.astype(core, x.dtype) for core in balance(cores)]


def _descend(
    x: Array, network: Network, cores: list[Array], sweeps: int, tolerance: float
) -> tuple[list[Array], float]:
    """Sweeps of least squares from the given cores; the cores and their relative error."""
    energy, error = norm(x) ** 2, 1e30
    for _ in range(sweeps):
        for k in range(len(cores)):
            cores[k], gain = _least_squares(x, network, cores, k)
        before, error = error, sqrt(max(energy - gain, 0.0) / energy) if energy else 0.0
        cores = balance(cores)
        if before - error <= tolerance * before or error <= 1e-13:
            break
    return cores, error


def _least_squares(x: Array, network: Network, cores: list[Array], k: int, ridge: float = 1e-11) -> tuple[Array, float]:
    """Core `k` that minimizes the error with the others fixed, and the energy it explains."""
    xp, names = array_namespace(x), network.operands
    others = [j for j in range(len(cores)) if j != k]
    elsewhere = {i for j in others for i in names[j]}
    batch = [i for i in names[k] if i in elsewhere and i in network.outer]
    inner = [i for i in names[k] if i in elsewhere and i not in network.outer]
    open_ = [i for i in names[k] if i not in elsewhere]
    prime = {i: i if i in network.outer else i + "'" for i in network.sizes}
    twin = [[prime[i] for i in names[j]] for j in others]
    arrays = [cores[j] for j in others]
    gram = contract([*(names[j] for j in others), *twin], [*batch, *inner, *(prime[i] for i in inner)], arrays * 2)
    right = contract([network.outer, *(names[j] for j in others)], [*batch, *inner, *open_], [x, *arrays])
    n, b = prod(network.sizes[i] for i in inner), prod(network.sizes[i] for i in batch)
    gram, right = xp.reshape(gram, (b, n, n)), xp.reshape(right, (b, n, -1))
    old = xp.reshape(_order(cores[k], names[k], [*batch, *inner, *open_]), (b, n, -1))
    level = ridge * float(xp.sum(gram * xp.eye(n, dtype=gram.dtype, device=gram.device))) / (b * n) or 1e-30
    eye = level * xp.eye(n, dtype=gram.dtype, device=gram.device)
    new = xp.linalg.solve(gram + eye, right + level * old)  # proximal: monotone, however singular
    gain = float(2 * xp.sum(new * right) - xp.sum(new * xp.matmul(gram, new)))
    held = [*batch, *inner, *open_]
    return _order(xp.reshape(new, tuple(network.sizes[i] for i in held)), held, names[k]), gain
