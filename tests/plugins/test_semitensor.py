"""Semi-tensor formats: Kronecker products, exact counts, the classical formats at t=1, closed forms, conformance."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

import tnc
from tests.conformance import everywhere, shapes_for
from tnc import Factorization
from tnc.contract import dense
from tnc.errors import RankError, WeightError
from tnc.fit import random_cores
from tnc.testing import assert_conforms

STTu, STT, STR = (tnc.decompositions[name] for name in ("sttu", "stt", "str"))
CLASSICAL = {STTu: tnc.decompositions["tucker"], STT: tnc.decompositions["tt"], STR: tnc.decompositions["ring"]}
FACTORS = {"rows": (8, 16), "columns": (4, 12)}
SHAPE = (128, 48)

each = pytest.mark.parametrize("kind", [STTu, STT, STR], ids=["sttu", "stt", "str"])


@everywhere("stt", "stt(t=4)", "stt(t=(2, 1, 4))")
def test_trains_conform(decomposition, xp):
    shapes = [(13, 29)] if "(2" in decomposition else shapes_for(xp)
    assert_conforms(decomposition, xp, recovers=1e-10, shapes=shapes)


@everywhere("sttu", "sttu(t=4)")
def test_tuckers_conform(decomposition, xp):
    assert_conforms(decomposition, xp, recovers=1e-10, shapes=shapes_for(xp))


@pytest.mark.slow
@everywhere("str", "str(order=1)")
def test_rings_conform(decomposition, xp):
    assert_conforms(decomposition, xp, recovers=1e-6, shapes=shapes_for(xp, cycles=True))


# ---------------------------------------------------------------- definition


def semi_tensor_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``A ⋉ B = A (B ⊗ I_t)`` for ``A`` of t times as many columns as ``B`` has rows."""
    return a @ np.kron(b, np.eye(a.shape[1] // b.shape[0]))


def through(held: np.ndarray, core: np.ndarray) -> np.ndarray:
    """(rows, R) ⋉ (R/t, I/t, R') as (rows I, R'): the product, its mode I made whole, the bond put last."""
    t, (_, mode, bond) = held.shape[1] // core.shape[0], core.shape
    product = semi_tensor_product(held, core.reshape(core.shape[0], -1)).reshape(-1, mode, bond, t)
    return product.transpose(0, 1, 3, 2).reshape(-1, bond)


def cores_of(network, seed=0):
    return random_cores(np.zeros(1), network, seed)


@pytest.mark.parametrize("t", [1, 2, 4])
def test_two_cores_of_a_train_are_one_product(t):
    network = STT(order=1, t=t).network((6, 20), 8)
    a, b = cores_of(network)
    assert a.size == 6 * 8 and b.shape == (8 // t, 20 // t)
    np.testing.assert_allclose(dense(network, [a, b]), semi_tensor_product(a.reshape(6, 8), b), atol=1e-12)


@pytest.mark.parametrize("t", [1, 2, 4])
def test_trains_are_products_from_left_to_right(t):
    network = STT(t=t, **FACTORS).network(SHAPE, 8)
    first, *others = cores_of(network)
    held = first.reshape(8, 8)
    for core in others:
        held = through(held, core.reshape(*core.shape[:2], -1))
    np.testing.assert_allclose(dense(network, [first, *others]), held.reshape(SHAPE), atol=1e-12)


@pytest.mark.parametrize("t", [1, 2, 4])
def test_rings_are_traces_of_products(t):
    network = STR(t=t, **FACTORS).network(SHAPE, 8)
    cores = cores_of(network)
    held = np.eye(8)
    for core in cores:
        held = through(held, core.reshape(*core.shape[:2], -1))
    expected = np.einsum("aia->i", held.reshape(8, -1, 8)).reshape(SHAPE)
    np.testing.assert_allclose(dense(network, cores), expected, atol=1e-12)


@pytest.mark.parametrize("t", [1, 2, 4])
def test_tuckers_are_mode_products(t):
    network = STTu(t=t, order=1).network((16, 12, 3, 3), 8)
    rows, columns, core = cores_of(network)
    assert rows.shape == (16 // t, 8 // t)
    whole = core.reshape(8, 8, 3, 3)
    expected = np.einsum("or,is,rskl->oikl", np.kron(rows, np.eye(t)), np.kron(columns, np.eye(t)), whole)
    np.testing.assert_allclose(dense(network, [rows, columns, core]), expected, atol=1e-12)


# -------------------------------------------------------------------- counts


@pytest.mark.parametrize("t", [1, 2, 4])
@pytest.mark.parametrize("rank", [4, 8, 16])
def test_counts_of_matrices(t, rank):
    modes = (*FACTORS["rows"], *FACTORS["columns"])
    ends = (1, rank, rank, rank, 1)
    inner = sum(ends[k] * modes[k] * ends[k + 1] for k in range(1, 4))
    assert STT(t=t, **FACTORS).network(SHAPE, rank).n_params == modes[0] * rank + inner // t**2
    assert STR(t=t, **FACTORS).network(SHAPE, rank).n_params == rank**2 * sum(modes) // t**2
    assert STTu(t=t, **FACTORS).network(SHAPE, rank).n_params == rank**4 + rank * sum(modes) // t**2


@pytest.mark.parametrize("t", [1, 2, 4])
def test_kernels_and_stacks_are_not_divided(t):
    rank = 8
    kernel, factors = (128, 48, 3, 5), rank**2 * (16 + 4) // t**2 + rank * 12 // t**2
    assert STT(t=t, **FACTORS).network(kernel, rank).n_params == 8 * rank + rank**2 * 15 + factors
    assert STR(t=t, **FACTORS).network(kernel, rank).n_params == rank**2 * (15 + (8 + 16 + 4 + 12) / t**2)
    assert STTu(t=t).network(kernel, rank).n_params == rank**2 * 15 + rank * (128 + 48) // t**2
    stack = (5, 128, 48)
    assert STTu(t=t).network(stack, rank).n_params == rank**3 + rank * 5 + rank * (128 + 48) // t**2
    trains = 5 * rank + rank**2 * (8 + 16 + 4) // t**2 + rank * 12 // t**2
    assert STT(t=t, **FACTORS).network(stack, rank).n_params == trains
    assert STR(t=t, **FACTORS).network(stack, rank).n_params == rank**2 * (5 + (8 + 16 + 4 + 12) / t**2)


def test_a_ratio_per_bond():
    network = STT(t=(2, 1, 4), **FACTORS).network(SHAPE, (8, 4, 12))
    assert network.n_params == 8 * 8 + 8 * 16 * 4 // 2**2 + 4 * 4 * 12 + 12 * 12 // 4**2
    network = STTu(t=(4, 2), order=1).network((16, 12, 3, 3), (8, 6))
    assert network.n_params == 16 * 8 // 4**2 + 12 * 6 // 2**2 + 8 * 6 * 9


# ------------------------------------------------------------------- t = 1


@each
@pytest.mark.parametrize("shape", [(16, 36), (13, 29), (16, 12, 3, 3), (5, 16, 36)], ids=str)
def test_at_ratio_one_it_is_the_classical_format(kind, shape, rng):
    classical, weight = CLASSICAL[kind](), rng.standard_normal(shape)
    network = kind(t=1).network(shape, 2)
    assert network == classical.network(shape, 2)
    for a, b in zip(kind(t=1).fit(weight, network), classical.fit(weight, network), strict=True):
        assert np.array_equal(a, b)


# -------------------------------------------------------------- closed forms


def tail(matrix: np.ndarray, rank: int) -> float:
    return float((np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2).sum())


def error_of(decomposition, weight, rank, place):
    mine = place.from_numpy(weight)
    network = decomposition.network(weight.shape, rank)
    return Factorization(network, decomposition.fit(mine, network), weight.shape).error(mine)


@pytest.mark.parametrize("t", [2, 4])
def test_two_cores_have_the_svd_of_the_regrouped_matrix(t, place, rng):
    # X[i, (j s)] = sum_r A[(i s), r] B[r, j]: never the mean of blocks.
    weight, rank = rng.standard_normal((6, 20)), 8
    regrouped = weight.reshape(6, 20 // t, t).transpose(0, 2, 1).reshape(6 * t, 20 // t)
    best = np.sqrt(tail(regrouped, rank // t)) / np.linalg.norm(weight)
    assert error_of(STT(order=1, t=t), weight, rank, place) == pytest.approx(best, rel=1e-9)


def train_error(x: np.ndarray, rank: int) -> float:
    """TT-SVD from left to right at equal ranks."""
    rest, held = x.reshape(x.shape[0], -1), 1
    for mode in x.shape[1:]:
        _, values, right = np.linalg.svd(rest, full_matrices=False)
        held = min(rank, len(values))
        rest = (values[:held, None] * right[:held]).reshape(held * mode, -1)
    return np.sqrt(max(1 - np.linalg.norm(rest) ** 2 / np.linalg.norm(x) ** 2, 0.0))


@pytest.mark.parametrize("t", [2, 4])
def test_trains_are_fitted_on_the_regrouped_tensor(t, place, rng):
    weight, rank = rng.standard_normal(SHAPE), 8
    split = weight.reshape(8, 16 // t, t, 4 // t, t, 12 // t, t)
    modes = (8 * t, 16, 4, 12 // t)
    regrouped = split.transpose(0, 2, 1, 4, 3, 6, 5).reshape(modes)
    tails = [tail(regrouped.reshape(prod(modes[:k]), -1), rank // t) for k in (1, 2, 3)]
    error = error_of(STT(t=t, **FACTORS), weight, rank, place)
    assert np.sqrt(max(tails)) / np.linalg.norm(weight) <= error * (1 + 1e-12)
    assert error <= 1.001 * train_error(regrouped, rank // t)


def partial_hooi(x: np.ndarray, ranks: tuple[int, ...], sweeps: int = 50) -> float:
    """Error of HOOI over the first modes of a tensor, the others left whole."""

    def unfold(y, n):
        return np.moveaxis(y, n, 0).reshape(y.shape[n], -1)

    bases = [np.linalg.svd(unfold(x, n), full_matrices=False)[0][:, :r] for n, r in enumerate(ranks)]
    for _ in range(sweeps):
        for n, rank in enumerate(ranks):
            y = x
            for m, basis in enumerate(bases):
                y = y if m == n else np.moveaxis(np.tensordot(basis.T, y, (1, m)), 0, m)
            bases[n] = np.linalg.svd(unfold(y, n), full_matrices=False)[0][:, :rank]
    core = np.tensordot(bases[-1].T, y, (1, len(ranks) - 1))
    return np.sqrt(1 - np.linalg.norm(core) ** 2 / np.linalg.norm(x) ** 2)


@pytest.mark.parametrize("t", [1, 2, 4])
def test_tuckers_are_fitted_with_the_ratio_left_whole(t, place, rng):
    weight, rank = rng.standard_normal((16, 12, 3, 3)), 4
    split = weight.reshape(16 // t, t, 12 // t, t, 3, 3).transpose(0, 2, 1, 3, 4, 5)
    ours = error_of(STTu(t=t), weight, rank, place)
    assert ours == pytest.approx(partial_hooi(split, (rank // t,) * 2), rel=2e-3)


# ------------------------------------------------------------------ policies


@each
@pytest.mark.parametrize("shape", [(96, 64), (53, 97), (24, 16, 3, 3), (5, 16, 40)], ids=str)
def test_policies_respect_the_ratio(kind, shape, rng):
    weight, decomposition = rng.standard_normal(shape), kind(t=2)
    for policy in (tnc.Ratio(0.3), tnc.Fixed(4)):
        network = policy.choose(weight, decomposition)
        assert network.n_params <= (0.3 if isinstance(policy, tnc.Ratio) else 1) * weight.size
        assert {n for i, n in network.sizes.items() if i.startswith("t")} == {2}


@each
def test_lengths_that_no_ratio_divides_are_padded(kind):
    network = kind(t=2).network((53, 97), 4)
    assert network.holds((53, 97)) and prod(network.shape) <= 1.1 * 53 * 97
    assert all(n % 2 == 0 for n in network.shape)


def test_factors_that_the_ratio_divides_are_kept():
    assert STT(t=2).network((64, 36), 4).core_shapes == ((8, 2, 2), (2, 4, 2, 2), (2, 3, 2, 2), (2, 3))


@each
def test_the_step_is_what_every_ratio_divides(kind):
    assert (kind().step, kind(t=1).step, kind(t=(2, 3, 4)).step) == (2, 1, 12)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: STT(t=0).network(SHAPE, 8), RankError, "t=0"),
        (lambda: STT(t=2.0).network(SHAPE, 8), RankError, "t=2.0"),
        (lambda: STT(t=()).network(SHAPE, 8), RankError, r"t=\(\)"),
        (lambda: STT(t=2).network(SHAPE, 7), RankError, "rank 7 of bond 'r1' is not a multiple of t=2"),
        (lambda: STR(t=4).network(SHAPE, 6), RankError, "rank 6 of bond 'r0' is not a multiple of t=4"),
        (lambda: STTu(t=3).network(SHAPE, 8), RankError, "rank 8 of bond 'r0' is not a multiple of t=3"),
        (lambda: STT(t=(2, 2)).network(SHAPE, 8), RankError, "one ratio for each of the bonds"),
        (lambda: STT(t=(1, 2, 2, 2)).network((128, 48, 3, 3), 8), RankError, r"1 except at \['r1', 'r3', 'r4'\]"),
        (
            lambda: STT(t=4, rows=(8, 6)).network((48, 48), 8),
            WeightError,
            r"t=4 does not divide the factors \{'m1': 6\}",
        ),
        (lambda: STT(t=2).network(SHAPE, 0), RankError, "rank 0"),
    ],
)
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()
