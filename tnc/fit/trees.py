"""Fits of networks whose bonds form a tree: truncated SVDs from the leaves, and sweeps of two-site updates.

On a chain, truncated SVDs are TT-SVD and sweeps are DMRG. On a star they are the sequentially truncated HOSVD and HOOI.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import frexp, ldexp, prod
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace

from tnc.contract.executor import contract
from tnc.contract.padding import pad
from tnc.fit.linalg import balance, divided, left_svd, like, norm
from tnc.fit.unfolding import Sizes, ordered, tensorize, unfold
from tnc.network import Network
from tnc.typing import Array

__all__ = ["refine", "tree", "tree_svd"]

_TREES, _SMALL = 16, 1 << 16
"""Starts of a tree beyond the first: largest number of them, and largest number of entries of all together."""

_FEWEST = 4
"""Fewer starts are not tried: they seldom find anything better, and take as long as the sweeps of the first one."""

_LARGE = 1 << 20
"""A weight of more entries is refined less closely: one sweep takes as long as all its truncated SVDs."""

_EXACT = 1e-10
"""Share of the norm that the first start may miss before others are tried."""


class _Cut(NamedTuple):
    """A tensor, cut in two at a bond."""

    core: Array  # orthonormal side: (row axes, bond)
    rest: Array  # (bond, other axes)
    held: list[str]  # indices of `rest`


def _cut(
    x: Array, held: Sequence[str], rows: Sequence[str], size: Sizes, bond: str, seed: int, old: Array | None = None
) -> _Cut:
    """Truncated SVD of a tensor with the indices `held`: the indices `rows` against the others."""
    xp = array_namespace(x)
    matrix, rest = unfold(x, held, rows)
    basis = left_svd(matrix, size[bond], seed=seed, start=old)
    basis = pad(basis, (basis.shape[0], size[bond]), xp)  # a bond may be larger than the rank of the matrix
    remainder = xp.matmul(xp.matrix_transpose(basis), matrix)
    sizes = {i: size[i] for i in held} | {bond: size[bond]}
    core = xp.reshape(basis, tuple(sizes[i] for i in [*rows, bond]))
    kept = [bond, *rest]
    return _Cut(core, xp.reshape(remainder, tuple(sizes[i] for i in kept)), kept)


def tree_svd(x: Array, network: Network, *, seed: int = 0) -> tuple[list[Array], int]:
    """Cores of a tree by truncated SVDs, from the leaves to a root.

    All cores but the root are orthonormal towards it. So the squared error is ``||x||^2 - ||root||^2``. This is at most
    the sum of the bonds' discarded energies, and at most ``n_bonds`` times the smallest possible squared error.

    Parameters
    ----------
    x : array
        The weight, of a shape that `network` holds.
    network : Network
        A tree (`Network.is_tree`).
    seed : int
        Seed of randomized SVDs.

    Returns
    -------
    cores : list of array
        Of `network.core_shapes`.
    root : int
        Which of them is the root.

    Raises
    ------
    RankError
        The network cannot hold a weight of this shape.

    References
    ----------
    Oseledets (2011) for chains, Vannieuwenhoven et al. (2012) for stars, Grasedyck (2010) for trees.
    """
    size, names = dict(network.sizes), network.operands
    held, rest = list(network.outer), tensorize(x, network)
    cores: list[Array] = [None] * len(names)
    left = set(range(len(cores)))
    while len(left) > 1:
        # A leaf has one bond to a core that is not split off yet: its other bonds are indices of `rest` already.
        bonds = {k: [b for b in network.bonds if b in names[k] and b not in held] for k in left}
        leaves = [k for k in sorted(left) if len(bonds[k]) == 1]
        rows = {k: [i for i in names[k] if i not in bonds[k]] for k in leaves}
        k = min(leaves, key=lambda k: prod(size[i] for i in rows[k]))  # the cheapest SVD first
        (bond,) = bonds[k]
        core, rest, held = _cut(rest, held, rows[k], size, bond, seed)
        cores[k] = ordered(core, [*rows[k], bond], names[k])
        left.remove(k)
    root = left.pop()
    cores[root] = ordered(rest, held, names[root])
    return cores, root


def refine(
    x: Array, network: Network, cores: list[Array], root: int, *, sweeps: int = 25, tolerance: float | None = None
) -> list[Array]:
    """Sweeps of two-site updates over a tree: DMRG, or HOOI on a star.

    An update replaces two cores that share a bond by the best pair, with all others fixed. So the error never grows.

    Parameters
    ----------
    x : array
        The weight, of a shape that `network` holds.
    network : Network
        A tree (`Network.is_tree`).
    cores : list of array
        As `tree_svd` returns them: all but the root orthonormal towards it.
    root : int
        Number of the root.
    sweeps : int
        Largest number of sweeps.
    tolerance : float, optional
        Stop when further sweeps would lower the error by less than this fraction. The estimate assumes that the gains
        keep falling as they fell from the first half of the last sweep to the second. By default 3e-4 for more than a
        million entries, where a sweep takes as long as the truncated SVDs, and 1e-6 for fewer.

    Returns
    -------
    list of array
        Cores with the same root.

    Raises
    ------
    RankError
        The network cannot hold a weight of this shape.
    """
    if tolerance is None:
        tolerance = 3e-4 if prod(network.shape) > _LARGE else 1e-6
    sweep = _TwoSiteSweep(x, network, cores)
    for _ in range(sweeps if len(cores) > 2 else 0):  # of two cores, the truncated SVD is optimal already
        missed = sweep.run(root)
        start, half, end = missed[0], missed[len(missed) // 2], missed[-1]
        before, gain = start - half, half - end  # energy gained in the first half of the sweep, and in the second
        if before + gain <= 2e-5 * start or 0.0 < gain**2 <= 2 * tolerance * end * (before - gain):
            break
    return sweep.cores


class _TwoSiteSweep:
    """Two-site updates of the cores of a tree, along a walk from the root to every leaf and back."""

    def __init__(self, x: Array, network: Network, cores: list[Array]) -> None:
        self.cores, self._network = list(cores), network
        self._size = dict(network.sizes)
        self._tensor, self._held = _sites(x, network)
        self._energy = norm(x) ** 2
        self._missed: list[float] = []

    def run(self, root: int) -> list[float]:
        """One sweep. Returns the squared errors before it and after every update."""
        self._missed = [max(self._energy - norm(self.cores[root]) ** 2, 0.0)]
        self._visit(root, None)
        return self._missed

    def _visit(self, here: int, parent: int | None) -> None:
        """Update all bonds beyond core `here`, which is the centre before and after."""
        names, bonds = self._network.operands, self._network.bonds
        for child in range(len(names)):
            if child in (here, parent) or not set(names[child]) & set(names[here]):
                continue
            if sum(bond in names[child] for bond in bonds) > 1:  # not a leaf
                self._update(here, child)
                self._visit(child, here)
            self._update(child, here)

    def _update(self, a: int, b: int) -> None:
        """Optimize cores `a` and `b` together. Then `b` is the centre: all others are orthonormal towards it."""
        names, cores = self._network.operands, self.cores
        bond = next(i for i in names[a] if i in names[b])
        rows = [i for i in names[a] if i != bond]
        pair = rows + [i for i in names[b] if i != bond]
        others = [k for k in range(len(cores)) if k not in (a, b)]
        operands = [tuple(self._held), *(names[k] for k in others)]
        merged = contract(operands, tuple(pair), [self._tensor, *(cores[k] for k in others)])
        old = unfold(cores[a], names[a], rows)[0]
        core, rest, held = _cut(merged, pair, rows, self._size, bond, 0, old)
        cores[a], cores[b] = ordered(core, [*rows, bond], names[a]), ordered(rest, held, names[b])
        self._missed.append(max(self._energy - norm(rest) ** 2, 0.0))


def _sites(x: Array, network: Network) -> tuple[Array, list[str]]:
    """The weight with its axes in the order of the cores, and their indices.

    The axes of one leaf come last: then updates at both ends of a chain can unfold the weight without a copy.
    """
    names = network.operands
    bond_counts = [sum(bond in core for bond in network.bonds) for core in names]
    leaf = max((k for k, count in enumerate(bond_counts) if count < 2), default=0)
    cores = sorted(names, key=lambda core: core == names[leaf])
    held = [i for core in cores for i in core if i in network.outer]
    tensor, xp = ordered(tensorize(x, network), network.outer, held), array_namespace(x)
    return xp.reshape(xp.reshape(tensor, (-1,)), tensor.shape), held  # contiguous


def tree(x: Array, network: Network, *, seed: int = 0, sweeps: int = 2) -> list[Array]:
    """Cores of a tree by truncated SVDs and sweeps of two-site updates.

    Weights of up to 65,536 entries are swept until they converge. Those of up to 16,384 are also fitted from several
    starts, and the best result is taken. The first start is the truncated SVDs of the weight. Each other one is the
    truncated SVDs of the weight plus noise of the same norm.

    Parameters
    ----------
    x : array
        The weight, of a shape that `network` holds.
    network : Network
        A tree (`Network.is_tree`).
    seed : int
        Seed of the noise and of randomized SVDs.
    sweeps : int
        Largest number of sweeps for a large weight.

    Returns
    -------
    list of array
        Cores of `network.core_shapes`, of equal norms.

    Raises
    ------
    RankError
        The network cannot hold a weight of this shape.
    """
    size = norm(x)
    scale = ldexp(1.0, frexp(size)[1])  # products of large entries would exceed the range of single precision
    x, size = divided(x, scale), size / scale
    cores, root = tree_svd(x, network, seed=seed)
    affordable = _SMALL // prod(network.shape) if len(cores) > 2 else 0  # of two cores, the first start is the best
    best = refine(x, network, cores, root, sweeps=25 if affordable else sweeps)
    if affordable < _FEWEST or norm(best[root]) >= (1 - _EXACT) * size:
        return balance(best, scale)
    rng = np.random.default_rng(seed)
    trials = []
    for _ in range(min(_TREES, affordable)):
        noise = rng.standard_normal(tuple(x.shape))
        noise *= size / np.linalg.norm(noise)
        start, start_root = tree_svd(x + like(noise, x), network, seed=seed)
        trials.append(refine(x, network, _with_best_root(x, network, start, start_root), start_root, sweeps=3))
    finalists = sorted(trials, key=lambda cores: norm(cores[root]), reverse=True)[:3]
    ends = [best, *(refine(x, network, trial, root) for trial in finalists)]
    return balance(max(ends, key=lambda cores: norm(cores[root])), scale)


def _with_best_root(x: Array, network: Network, cores: list[Array], root: int) -> list[Array]:
    """The cores, with the root that fits `x` best. The others are orthonormal towards it and stay."""
    others = [k for k in range(len(cores)) if k != root]
    operands = [network.outer, *(network.operands[k] for k in others)]
    best = contract(operands, network.operands[root], [tensorize(x, network), *(cores[k] for k in others)])
    return [best if k == root else core for k, core in enumerate(cores)]
