"""Truncated singular value decompositions on any array library: the workhorse of every fit.

Three roads lead to the leading left singular vectors, chosen by shape, precision and rank:
eigenvectors of the Gram matrix accumulated in float64 (single precision, one short side), QR then SVD
(double precision), and a randomized range finder that stops when its measured error stands still
(large matrices, small rank).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from tnc.typing import Array

__all__ = ["balance", "left_svd", "norm", "qr", "relative_error", "spectrum", "working"]

# Measured on 2 CPU cores: below this short side the Gram road wins for every rank.
_GRAM_SIDE = 1024
_OVERSAMPLE = 16

# Eigenvectors of larger matrices are iterated for where a start is given: rounds at most, and degree of the filter.
_SIDE, _ROUNDS, _DEGREE = 192, 5, 4

_BLOCK = 1 << 18

# Energy cut off, above which a Gram matrix in single precision is good enough: a relative error of 1 %.
_BLUR = 1e-4

# Energy below which squares in single precision lose their digits; above its range they are infinite.
_FAINT = 1e-30


def working(x: Array) -> Array:
    """`x` in the precision fits run in: float64 as it is, everything shorter as float32."""
    xp = array_namespace(x)
    return x if x.dtype in (xp.float64, xp.float32) else xp.astype(x, xp.float32)


def norm(x: Array) -> float:
    """Frobenius norm, accumulated in float64."""
    xp = array_namespace(x)
    flat, total = xp.reshape(x, (-1,)), xp.zeros((), dtype=xp.float64, device=device(x))
    for start in range(0, size := flat.shape[0], _BLOCK):  # a wide copy of the whole takes longer than the sum
        wide = xp.astype(flat[start : min(start + _BLOCK, size)], xp.float64, copy=False)
        total = total + xp.matmul(wide, wide)
    return sqrt(float(to_numpy(total) if getattr(total, "requires_grad", False) else total))


def balance(cores: Sequence[Array], scale: float = 1.0) -> list[Array]:
    """Rescale the cores to equal norms; the rebuilt weight is multiplied by `scale`."""
    norms = [norm(core) for core in cores]
    if not all(norms):
        return list(cores)
    mean = float(np.exp(np.mean(np.log(norms)))) * scale ** (1 / len(norms))
    return [core * (mean / size) for core, size in zip(cores, norms, strict=True)]


def relative_error(x: Array, y: Array) -> float:
    """Relative Frobenius error ``||x - y|| / ||x||`` of `y` against `x`; 0 for two zeros."""
    xp = array_namespace(x, y)
    scale = norm(x)
    gap = norm(xp.astype(x, xp.float64) - xp.astype(y, xp.float64))
    return gap / scale if scale else (0.0 if gap == 0.0 else float("inf"))


def qr(x: Array) -> tuple[Array, Array]:
    """Reduced QR decomposition."""
    q, r = array_namespace(x).linalg.qr(x)
    return q, r


def left_svd(x: Array, rank: int, *, seed: int = 0, start: Array | None = None) -> Array:
    """Orthonormal basis ``U`` (rows, r) of the leading left singular vectors, ``r = min(rank, rows, columns)``.

    ``U @ U.T @ x`` is the best approximation of that rank; on the randomized road its error agrees with
    the best to about four digits.

    Parameters
    ----------
    x : array (rows, columns), float32 or float64
    rank : int
    seed : int
        Seed of the randomized road.
    start : array (rows, rank), optional
        A basis nearly as good as the best: in single precision it is only improved, for a caller who comes back.
    """
    rows, columns = x.shape
    short, rank = min(rows, columns), min(rank, rows, columns)
    xp = array_namespace(x)
    if start is None and short > _GRAM_SIDE and 4 * (rank + _OVERSAMPLE) < short:
        return _randomized(x, rank, seed)
    if x.dtype == xp.float32 and (rows <= columns or rank < short):
        start = None if start is None or start.shape[1] > rank else start
        if rows <= columns:
            return xp.astype(_gram_vectors(x, rank, start), x.dtype)
        start = None if start is None else xp.matmul(xp.matrix_transpose(x), start)
        right = _gram_vectors(xp.matrix_transpose(x), rank, start)
        return xp.astype(qr(xp.matmul(xp.astype(x, xp.float64), right))[0], x.dtype)
    return _thin(x)[:, :rank]


def _gram_vectors(x: Array, rank: int, start: Array | None) -> Array:
    """Leading left singular vectors in float64.

    Products are taken in single precision where it can hold them, and what is cut off is far above its rounding.
    """
    xp = array_namespace(x)
    with np.errstate(over="ignore"):
        gram = xp.astype(xp.matmul(x, xp.matrix_transpose(x)), xp.float64)
    if _FAINT < (total := float(xp.linalg.trace(gram))) < inf:
        vectors = _leading(gram, rank) if start is None else _nearer(gram, xp.astype(start, xp.float64))
        if total - float(xp.sum(vectors * xp.matmul(gram, vectors))) > _BLUR * total:
            return vectors
    return _leading(_gram(x), rank)


def _leading(gram: Array, rank: int) -> Array:
    """Eigenvectors of the `rank` largest eigenvalues, largest first."""
    xp = array_namespace(gram)
    _, vectors = xp.linalg.eigh(gram)
    return xp.flip(vectors, axis=1)[:, :rank]


def _nearer(gram: Array, start: Array) -> Array:
    """A basis nearer to the leading eigenvectors than one that is near.

    Rounds of a power step and a Chebyshev polynomial that is small on what the basis misses, until the polynomial gains
    less than a hundredth of that; all eigenvectors where it does not come to it.

    References
    ----------
    Zhou and Saad (2007).
    """
    xp, rank = array_namespace(gram), start.shape[1]
    image, total = xp.matmul(gram, start), float(xp.linalg.trace(gram))
    for _ in range(_ROUNDS if gram.shape[0] > max(_SIDE, 3 * rank) else 0):
        captured = []
        for degree in (_DEGREE, 0):
            values, turn = xp.linalg.eigh(xp.matmul(xp.matrix_transpose(image), image))
            if not float(values[0]) > 1e-12 * float(values[-1]):  # the matrix, or the start, has no such rank
                return _leading(gram, rank)
            basis = xp.matmul(image, xp.flip(turn / xp.sqrt(values), axis=1))
            image, half = xp.matmul(gram, basis), 0.5 * sqrt(float(values[0]))
            captured.append(float(xp.sum(basis * image)))
            old, image = basis, image / half - basis if degree else image
            for _ in range(degree - 1):
                old, image = image, 2 * (xp.matmul(gram, image) / half - image) - old
        if captured[1] - captured[0] <= 0.01 * (total - captured[1]):
            return basis
    return _leading(gram, rank)


def _thin(x: Array) -> Array:
    """All left singular vectors; the long side is removed by QR first."""
    xp = array_namespace(x)
    rows, columns = x.shape
    if rows > columns:
        q, r = qr(x)
        return xp.matmul(q, xp.linalg.svd(r, full_matrices=False)[0])
    if columns > rows:  # x.T = Q R, so x = R.T Q.T has the left vectors of R.T
        x = xp.matrix_transpose(qr(xp.matrix_transpose(x))[1])
    return xp.linalg.svd(x, full_matrices=False)[0]


def _randomized(x: Array, rank: int, seed: int, tolerance: float = 1e-5, most: int = 12) -> Array:
    """Subspace iteration until the captured energy stands still, then rotation to singular vectors."""
    xp = array_namespace(x)
    columns, width = x.shape[1], rank + _OVERSAMPLE
    noise = np.random.default_rng(seed).standard_normal((columns, width))
    basis = qr(xp.matmul(x, like(noise, x)))[0]
    missed, energy = float("inf"), norm(x) ** 2
    for _ in range(most):
        inner = xp.matmul(xp.matrix_transpose(basis), x)
        core = _leading(_gram(inner), rank)
        captured = norm(xp.matmul(xp.matrix_transpose(xp.astype(core, x.dtype)), inner)) ** 2
        before, missed = missed, max(energy - captured, 0.0)
        if before - missed <= 2 * tolerance * missed or missed <= 1e-14 * energy:
            break
        back = qr(xp.matmul(xp.matrix_transpose(x), basis))[0]
        basis = qr(xp.matmul(x, back))[0]
    return xp.matmul(basis, xp.astype(core, x.dtype))


def _gram(x: Array) -> Array:
    xp = array_namespace(x)
    wide = xp.astype(x, xp.float64)
    return xp.matmul(wide, xp.matrix_transpose(wide))


def like(values: Any, x: Array) -> Array:
    """NumPy values as an array of `x`'s library, dtype and device."""
    xp = array_namespace(x)
    return xp.asarray(np.asarray(values), dtype=x.dtype, device=device(x))


def spectrum(x: Array) -> np.ndarray:
    """Singular values of a matrix as a NumPy float64 array, largest first.

    Single precision goes through the Gram matrix in float64 (values below 1e-8 of the largest are noise, as
    they are in the data), double precision through a full SVD.
    """
    xp = array_namespace(x)
    if x.shape[0] > x.shape[1]:
        x = xp.matrix_transpose(x)
    if x.dtype == xp.float32:
        values = to_numpy(xp.linalg.eigvalsh(_gram(x)))[::-1]
        return np.sqrt(np.clip(values, 0.0, None))
    if x.shape[1] > 2 * x.shape[0]:
        x = qr(xp.matrix_transpose(x))[1]
    return to_numpy(xp.linalg.svdvals(x))


def to_numpy(x: Array) -> np.ndarray:
    """A (small) array on the host."""
    from tnc.backends import of

    return of(x).to_numpy(x)
