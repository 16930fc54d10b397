"""Truncated SVDs: every road gives the best basis, and norms and spectra are those of NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from tnc.fit import linalg
from tnc.fit.linalg import divided, leading, left_svd, like, norm, qr, relative_error, spectrum, working

SHAPES = [(5, 5), (4, 30), (30, 4), (1, 6), (6, 1), (60, 61)]


def decaying(shape, rng, power=1.0):
    u, _, v = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    return (u * (1.0 + np.arange(u.shape[1])) ** -power) @ v


def missed(x, u):
    """Relative energy outside of a basis."""
    return 1.0 - np.linalg.norm(u.T @ x) ** 2 / np.linalg.norm(x) ** 2


def least(x, rank):
    values = np.linalg.svd(x, compute_uv=False) ** 2
    return values[rank:].sum() / values.sum()


@pytest.mark.pairwise("shape and rank choose the road, dtype and library only the rounding")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rank", [1, 3, 1000])
def test_left_svd_is_the_best_basis(shape, dtype, rank, place, rng):
    x = decaying(shape, rng).astype(dtype)
    u = left_svd(place.from_numpy(x), rank)
    assert u.dtype == getattr(place.xp, dtype)
    u = place.to_numpy(u).astype(np.float64)
    kept = min(rank, *shape)
    assert u.shape == (shape[0], kept)
    tiny = 1e-13 if dtype == "float64" else 3e-6
    np.testing.assert_allclose(u.T @ u, np.eye(kept), atol=tiny)
    assert missed(x.astype(np.float64), u) <= least(x.astype(np.float64), kept) + tiny


@pytest.mark.pairwise("shape chooses the road, dtype and library only the rounding")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", [(20, 50), (50, 20)], ids=str)
def test_leading_vectors_come_first(shape, dtype, place, rng):
    x = decaying(shape, rng).astype(dtype)
    u = place.to_numpy(left_svd(place.from_numpy(x), 4))
    theirs = np.linalg.svd(x)[0][:, :4]
    np.testing.assert_allclose(np.abs(np.sum(u * theirs, axis=0)), np.ones(4), rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_rank_deficient_matrices_keep_an_orthonormal_basis(dtype, place, rng):
    x = np.outer(rng.standard_normal(9), rng.standard_normal(5)).astype(dtype)
    for y in (x, x.T.copy(), np.zeros((9, 5), dtype)):
        u = place.to_numpy(left_svd(place.from_numpy(y), 3)).astype(np.float64)
        np.testing.assert_allclose(u.T @ u, np.eye(3), atol=1e-6)


def test_the_randomized_road(monkeypatch, place, rng):
    monkeypatch.setattr(linalg, "_GRAM_SIDE", 100)
    x = decaying((160, 150), rng, 0.7)
    mine = place.from_numpy(x)
    u = left_svd(mine, 5, seed=3)
    assert missed(x, place.to_numpy(u)) <= least(x, 5) * (1 + 2e-4)
    again, other = left_svd(mine, 5, seed=3), left_svd(mine, 5, seed=4)
    assert np.array_equal(place.to_numpy(u), place.to_numpy(again))
    assert not np.array_equal(place.to_numpy(u), place.to_numpy(other))


def test_the_randomized_road_finds_exact_ranks(monkeypatch, place, rng):
    monkeypatch.setattr(linalg, "_GRAM_SIDE", 100)
    x = rng.standard_normal((160, 4)) @ rng.standard_normal((4, 150))
    u = place.to_numpy(left_svd(place.from_numpy(x), 4))
    assert np.linalg.norm(x - u @ (u.T @ x)) <= 1e-13 * np.linalg.norm(x)


def test_a_real_size_takes_the_randomized_road(monkeypatch, rng):
    taken = []
    road = linalg._randomized
    monkeypatch.setattr(linalg, "_randomized", lambda *a, **k: taken.append(1) or road(*a, **k))
    x = (rng.standard_normal((1030, 20)) * 2.0 ** -np.arange(20)) @ rng.standard_normal((20, 1030))
    u = left_svd(x.astype(np.float32), 8).astype(np.float64)
    assert taken and missed(x, u) <= 2.0**-14


@pytest.mark.parametrize("power", [-140, -127, 3, 120, 127])
def test_division_by_a_power_of_two_loses_nothing(power, place, rng):
    """Also where the power itself is outside of single precision."""
    x = rng.standard_normal(50).astype(np.float32) * np.float32(2.0 ** (power / 2))
    found = place.to_numpy(divided(place.from_numpy(x), 2.0**power))
    assert found.dtype == np.float32
    assert np.array_equal(found, (x.astype(np.float64) / 2.0**power).astype(np.float32))


def test_qr(place, rng):
    x = rng.standard_normal((7, 3))
    q, r = map(place.to_numpy, qr(place.from_numpy(x)))
    np.testing.assert_allclose(q @ r, x, atol=1e-13)
    np.testing.assert_allclose(q.T @ q, np.eye(3), atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_spectrum(shape, place, rng):
    x = decaying(shape, rng)
    theirs = np.linalg.svd(x, compute_uv=False)
    ours = spectrum(place.from_numpy(x))
    assert isinstance(ours, np.ndarray) and ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    np.testing.assert_allclose(spectrum(place.from_numpy(x.astype(np.float32))), theirs, rtol=1e-4, atol=1e-6)


def test_norms_are_accumulated_in_float64(place):
    x = np.full((3, 100_000), 1e-4, np.float32)
    x[0, 0] = 1e3
    expected = np.linalg.norm(x.astype(np.float64))
    assert norm(place.from_numpy(x)) == pytest.approx(expected, rel=1e-12)


def test_relative_error(place):
    x, y = np.array([3.0, 4.0]), np.array([3.0, 4.5])
    assert relative_error(place.from_numpy(x), place.from_numpy(y)) == pytest.approx(0.1)
    zero = place.from_numpy(np.zeros(2))
    assert relative_error(zero, zero) == 0.0
    assert relative_error(zero, place.from_numpy(x)) == float("inf")


def test_working_precision(place, rng):
    x = place.from_numpy(rng.standard_normal(3))
    short = place.xp.astype(x, place.xp.float32)
    assert working(x) is x and working(short) is short
    for name in ("float16", "bfloat16"):
        if hasattr(place.xp, name):
            assert working(place.xp.astype(x, getattr(place.xp, name))).dtype == place.xp.float32


def test_like(place):
    x = place.from_numpy(np.zeros(1, np.float32))
    made = like(np.arange(3.0), x)
    assert made.dtype == x.dtype and made.device == x.device
    assert place.to_numpy(made).tolist() == [0.0, 1.0, 2.0]


@pytest.mark.pairwise("the scale is taken off before anything else sees the matrix")
@pytest.mark.parametrize("scale", [2.0**83, 2.0**-100, 2.0**-70], ids=["1e25", "1e-30", "1e-21"])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40)], ids=str)
@pytest.mark.parametrize("started", [False, True])
def test_a_scale_that_squares_cannot_hold(scale, shape, started, place, rng):
    """In single precision they overflow or vanish; vectors stay what they are, values keep the scale."""
    x = decaying(shape, rng).astype("float32")
    start = place.from_numpy(np.linalg.svd(x)[0][:, :3].copy()) if started else None
    u = place.to_numpy(left_svd(place.from_numpy(x * np.float32(scale)), 3, start=start)).astype(np.float64)
    np.testing.assert_allclose(u.T @ u, np.eye(3), atol=3e-6)
    assert missed(x.astype(np.float64), u) <= least(x.astype(np.float64), 3) + 3e-6
    values = spectrum(place.from_numpy(x * np.float32(scale)))
    np.testing.assert_allclose(values / scale, spectrum(place.from_numpy(x)), rtol=1e-12, atol=1e-12)


def test_leading_eigenvectors_of_a_large_matrix(rng):
    """Subspace iteration finds as much energy as all eigenvectors do, to the precision of fits."""
    n, rank = 1100, 24
    root = rng.standard_normal((n, n)) * np.arange(1, n + 1) ** -0.4
    gram = root @ root.T
    found = leading(gram, rank)
    assert found.shape == (n, rank)
    np.testing.assert_allclose(found.T @ found, np.eye(rank), atol=1e-8)
    missed = np.trace(gram) - np.linalg.eigvalsh(gram)[-rank:].sum()
    assert np.trace(gram) - np.sum(found * (gram @ found)) <= 1.001 * missed
