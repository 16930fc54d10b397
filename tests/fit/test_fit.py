"""Fits are no worse than the classical algorithms, recover what was planted and never get worse."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorly
from tensorly.decomposition import tensor_train, tucker

from tnc.contract import dense
from tnc.errors import RankError
from tnc.fit import als, balance, random_cores, refine, tensorize, tree_svd, unfold
from tnc.fit.linalg import norm, relative_error, rounded
from tnc.network import Network

SIZES = (6, 7, 5, 8)


def chain(ranks, sizes=SIZES):
    bonds = [f"r{k}" for k in range(len(ranks))]
    cores = [f"{['', *bonds][k]} i{k} {[*bonds, ''][k]}" for k in range(len(sizes))]
    outer = {f"i{k}": n for k, n in enumerate(sizes)}
    return Network.of_rank(f"{', '.join(cores)} -> {' '.join(outer)}", outer, ranks)


def star(ranks, sizes=SIZES):
    outer = {f"i{k}": n for k, n in enumerate(sizes)}
    factors = [f"i{k} r{k}" for k in range(len(sizes))]
    centre = " ".join(f"r{k}" for k in range(len(sizes)))
    return Network.of_rank(f"{', '.join(factors)}, {centre} -> {' '.join(outer)}", outer, ranks)


TREE = Network(  # a hierarchical Tucker tree of five leaves, one of them inside
    "a ra, b rb, ra rb c rc, rc d rd, rd e re, re f -> a b c d e f",
    {"a": 4, "b": 3, "c": 2, "d": 3, "e": 2, "f": 4, "ra": 2, "rb": 2, "rc": 3, "rd": 3, "re": 2},
)
RING = Network.of_rank(
    "r3 i0 r0, r0 i1 r1, r1 i2 r2, r2 i3 r3 -> i0 i1 i2 i3", {f"i{k}": n for k, n in enumerate(SIZES)}, 2
)
CP = Network.of_rank("i0 r, i1 r, i2 r, i3 r -> i0 i1 i2 i3", {f"i{k}": n for k, n in enumerate(SIZES)}, 3)


def gaussian(rng):
    return rng.standard_normal(SIZES)


def decaying(rng):
    x = rng.standard_normal(SIZES)
    for axis, n in enumerate(SIZES):
        q = np.linalg.qr(rng.standard_normal((n, n)))[0] * (1.0 + np.arange(n)) ** -1.0
        x = np.moveaxis(np.tensordot(q, x, (1, axis)), 0, axis)
    return x


def smooth(rng):
    grids = np.meshgrid(*(np.linspace(0.1, 1.0, n) for n in SIZES), indexing="ij")
    return 1.0 / sum(grids)


def noisy(rng):
    cores = random_cores(np.zeros(1), chain((3, 4, 3)), 5)
    x = dense(chain((3, 4, 3)), cores)
    return x + 0.2 * np.linalg.norm(x) / x.size**0.5 * rng.standard_normal(SIZES)


tensors = pytest.mark.parametrize("make", [gaussian, decaying, smooth, noisy])
ranks = pytest.mark.parametrize("rank", [1, 2, 4])


def theirs(x, rebuilt):
    return np.linalg.norm(x - rebuilt) / np.linalg.norm(x)


def fitted(x, network, sweeps):
    cores, root = tree_svd(x, network)
    return balance(refine(x, network, cores, root, sweeps=sweeps))


def ours(x, network, sweeps):
    return relative_error(x, dense(network, fitted(x, network, sweeps)))


# --------------------------------------------------------- against TensorLy


@pytest.mark.pairwise("the algorithm sees neither dtype nor library")
@tensors
@ranks
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_chains_are_no_worse_than_tensorly(make, rank, dtype, place, rng):
    x = make(rng).astype(dtype)
    theirs_error = theirs(x, tensorly.tt_to_tensor(tensor_train(x, [1, rank, rank, rank, 1])))
    network = chain((rank,) * 3)
    assert ours(place.from_numpy(x), network, sweeps=2) <= 1.001 * theirs_error


@pytest.mark.pairwise("the algorithm sees neither dtype nor library")
@tensors
@ranks
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_stars_are_no_worse_than_tensorly(make, rank, dtype, place, rng):
    x = make(rng).astype(dtype)
    core, factors = tucker(x, [rank] * 4, init="svd", n_iter_max=200, tol=1e-8)
    theirs_error = theirs(x, tensorly.tucker_to_tensor((core, factors)))
    network = star((rank,) * 4)
    assert ours(place.from_numpy(x), network, sweeps=25) <= 1.001 * theirs_error


@pytest.mark.pairwise("the algorithm sees neither dtype nor library")
@tensors
@ranks
def test_without_sweeps_stars_are_no_worse_than_hosvd(make, rank, place, rng):
    x = make(rng)
    projected = x
    for axis in range(4):
        u = np.linalg.svd(np.moveaxis(x, axis, 0).reshape(SIZES[axis], -1), full_matrices=False)[0][:, :rank]
        projected = np.moveaxis(np.tensordot(u @ u.T, projected, (1, axis)), 0, axis)
    network = star((rank,) * 4)
    mine = place.from_numpy(x)
    error = relative_error(mine, dense(network, tree_svd(mine, network)[0]))
    assert error <= 1.001 * theirs(x, projected)


# ------------------------------------------------------------------- promises


@pytest.mark.parametrize(
    "network",
    [chain((3, 4, 3)), star((2, 3, 2, 3)), TREE, chain((60, 60, 60)), chain((1, 1, 1))],
    ids=["chain", "star", "tree", "wide", "thin"],
)
def test_planted_trees_are_recovered(network, place):
    planted = dense(network, random_cores(place.from_numpy(np.zeros(1)), network, 1))
    for cores in (tree_svd(planted, network)[0], fitted(planted, network, 3)):
        assert tuple(tuple(core.shape) for core in cores) == network.core_shapes
        assert relative_error(planted, dense(network, cores)) <= 1e-13


@pytest.mark.parametrize("network", [RING, CP], ids=["ring", "cp"])
def test_planted_cycles_and_hyperedges_are_recovered(network, place):
    planted = dense(network, random_cores(place.from_numpy(np.zeros(1)), network, 1))
    found = (als(planted, network, seed=seed, tolerance=1e-12) for seed in range(3))  # one of three will do
    assert any(relative_error(planted, dense(network, cores)) <= 1e-10 for cores in found)


@tensors
def test_the_error_of_a_tree_is_what_its_root_misses(make, place, rng):
    x = make(rng)
    network = chain((2, 3, 2))
    cores, root = tree_svd(place.from_numpy(x), network)
    error = relative_error(place.from_numpy(x), dense(network, cores))
    assert error**2 == pytest.approx(1 - norm(cores[root]) ** 2 / np.linalg.norm(x) ** 2, abs=1e-10)
    tails = 0.0
    for bond in network.bonds:
        values = np.linalg.svd(unfold(x, list(network.outer), network.side(bond))[0], compute_uv=False)
        tails += (values[network.sizes[bond] :] ** 2).sum()
    assert error**2 <= tails / np.linalg.norm(x) ** 2 + 1e-12


@pytest.mark.pairwise("the algorithm sees neither dtype nor library")
@tensors
@pytest.mark.parametrize("network", [chain((2, 2, 2)), star((2, 2, 2, 2))], ids=["chain", "star"])
def test_sweeps_never_raise_the_error(make, network, place, rng):
    x = place.from_numpy(make(rng))
    cores, root = tree_svd(x, network)
    errors = [relative_error(x, dense(network, cores))]
    for _ in range(4):
        cores = refine(x, network, cores, root, sweeps=1, tolerance=0.0)
        errors.append(relative_error(x, dense(network, cores)))
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(errors)), errors


def test_sweeps_improve_what_can_be_improved(rng):
    x, network = noisy(rng), star((2, 2, 2, 2))
    cores, root = tree_svd(x, network)
    before = relative_error(x, dense(network, cores))
    assert relative_error(x, dense(network, refine(x, network, cores, root))) < before - 1e-6


def test_refine_leaves_the_cores_given_alone(rng):
    x, network = gaussian(rng), chain((2, 2, 2))
    cores, root = tree_svd(x, network)
    kept = [core.copy() for core in cores]
    refine(x, network, cores, root)
    assert all(np.array_equal(a, b) for a, b in zip(kept, cores, strict=True))


@pytest.mark.pairwise("the algorithm sees neither dtype nor library")
@tensors
@pytest.mark.parametrize("network", [RING, CP], ids=["ring", "cp"])
def test_als_goes_down_from_where_it_is(make, network, place, rng):
    x = place.from_numpy(make(rng))
    cores = random_cores(x, network, 2)

    def both(cores):
        return [relative_error(x, dense(network, kept)) for kept in (cores, [rounded(core, 8) for core in cores])]

    errors = [both(cores)]
    for _ in range(8):
        cores = als(x, network, cores=cores, sweeps=1)
        errors.append(both(cores))
    # What is bounded is the error after rounding to bfloat16; below what that costs at least, the error itself falls.
    for (before, half_before), (after, half_after) in itertools.pairwise(errors):
        assert half_after <= max(1.1 * half_before, 0.0055), errors  # cores rescaled at the end round otherwise
        assert after <= before + 1e-9 or half_after < half_before, errors
    assert errors[-1][0] < 0.9 * errors[0][0]


def test_als_reaches_the_optimum_of_a_matrix(place, rng):
    network = Network("m r, r n -> m n", {"m": 12, "r": 3, "n": 9})
    x = decaying(rng).reshape(42, 40)[:12, :9]
    best = np.sqrt((np.linalg.svd(x, compute_uv=False)[3:] ** 2).sum()) / np.linalg.norm(x)
    mine = place.from_numpy(np.ascontiguousarray(x))
    assert relative_error(mine, dense(network, als(mine, network))) <= 1.001 * best


def test_als_with_bonds_it_cannot_use(place, rng):
    # Singular normal matrices: the ridge keeps them solvable and the fit exact.
    network = Network("m r, r n -> m n", {"m": 3, "r": 20, "n": 4})
    x = place.from_numpy(rng.standard_normal((3, 4)))
    assert relative_error(x, dense(network, als(x, network))) <= 1e-9


@pytest.mark.parametrize(
    "network", [RING, CP, chain((2, 2, 2)), star((2, 2, 2, 2))], ids=["ring", "cp", "chain", "star"]
)
def test_a_tensor_of_zeros_is_harmless(network, place):
    x = place.from_numpy(np.zeros(SIZES))
    cores = fitted(x, network, 2) if network.is_tree else als(x, network)
    assert norm(dense(network, cores)) <= 1e-30


@pytest.mark.parametrize("network", [RING, CP], ids=["ring", "cp"])
def test_the_seed_decides(network, place, rng):
    x = gaussian(rng)
    mine = [place.to_numpy(c) for c in als(place.from_numpy(x), network, seed=5, sweeps=5)]
    same = [place.to_numpy(c) for c in als(place.from_numpy(x), network, seed=5, sweeps=5)]
    host = als(x, network, seed=5, sweeps=5)
    other = [place.to_numpy(c) for c in als(place.from_numpy(x), network, seed=50, sweeps=5)]
    for a, b, c, d in zip(mine, same, host, other, strict=True):
        assert np.array_equal(a, b) and not np.allclose(a, d, rtol=1e-3)
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-7)


def test_dtype_of_the_cores(place, rng):
    x = place.from_numpy(gaussian(rng).astype(np.float32))
    for cores in (tree_svd(x, chain((2, 2, 2)))[0], fitted(x, star((2,) * 4), 2), als(x, CP), random_cores(x, CP, 0)):
        assert all(core.dtype == x.dtype for core in cores)


# -------------------------------------------------------------------- pieces


def test_tensorize_pads_what_overshoots(place, rng):
    x = rng.standard_normal((5, 7))
    network = Network("m0 n0 r0, r0 m1 n1 -> (m0 m1) (n0 n1)", {"m0": 2, "m1": 3, "n0": 4, "n1": 2, "r0": 2})
    expected = np.pad(x, ((0, 1), (0, 1))).reshape(2, 3, 4, 2)
    assert np.array_equal(place.to_numpy(tensorize(place.from_numpy(x), network)), expected)


@pytest.mark.parametrize("shape", [(7, 7), (5, 9), (5, 7, 1), (35,)], ids=str)
def test_tensorize_refuses_what_does_not_fit(shape):
    network = Network("m r, r n -> m n", {"m": 6, "n": 8, "r": 2})
    with pytest.raises(RankError, match=r"shape \(6, 8\) \(m r, r n -> m n\) cannot hold"):
        tensorize(np.zeros(shape), network)


def test_random_cores_start_the_same_everywhere(place):
    x = np.zeros(1)
    here = random_cores(place.from_numpy(x), CP, 3)
    for ours, host in zip(here, random_cores(x, CP, 3), strict=True):
        assert np.array_equal(place.to_numpy(ours), host)


@pytest.mark.parametrize(
    "network", [chain((4, 5, 4)), star((3, 3, 3, 3)), RING, CP], ids=["chain", "star", "ring", "cp"]
)
def test_random_cores_rebuild_about_unit_variance(network):
    entries = [dense(network, random_cores(np.zeros(1), network, seed)).var() for seed in range(20)]
    assert 0.5 < np.mean(entries) < 2.0


def test_balanced_cores_rebuild_the_same(place, rng):
    cores = [place.from_numpy(10.0**k * rng.standard_normal(s)) for k, s in enumerate(CP.core_shapes)]
    even = balance(cores)
    norms = [norm(core) for core in even]
    assert max(norms) <= min(norms) * (1 + 1e-12)
    np.testing.assert_allclose(place.to_numpy(dense(CP, even)), place.to_numpy(dense(CP, cores)), rtol=1e-9)


def test_a_zero_core_cannot_be_balanced(rng):
    cores = [rng.standard_normal(s) for s in CP.core_shapes[:-1]] + [np.zeros(CP.core_shapes[-1])]
    assert all(np.array_equal(a, b) for a, b in zip(balance(cores), cores, strict=True))
