"""Truncated singular value decompositions and norms, on any array library.

There are three algorithms for the leading left singular vectors:

* eigenvectors of the Gram matrix in float64, for single precision,
* QR, then SVD, for double precision,
* a randomized range finder for large matrices and small ranks, which stops when its measured error no longer falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import frexp, inf, ldexp, sqrt
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from tnc.typing import Array

__all__ = ["balance", "leading", "left_svd", "norm", "qr", "relative_error", "rounded", "spectrum", "wide", "working"]

_GRAM_SIDE = 1024
"""Up to this short side the Gram matrix is faster than the range finder for every rank (measured on 2 CPU cores)."""

_OVERSAMPLE = 16
"""Columns of the randomized range finder beyond the rank."""

_SIDE, _ROUNDS, _DEGREE = 192, 5, 4
"""With a start, eigenvectors of larger matrices are improved by iteration: largest number of rounds, and degree of the
polynomial."""

_BLOCK = 1 << 18
"""Entries that are widened to float64 at a time."""

_BLUR = 1e-4
"""A Gram matrix in single precision is good enough if a larger share of the energy is cut off (a relative error of
1 %)."""

_FAINT = 1e-30
"""Smaller energies have too few digits in single precision."""


def divided(x: Array, size: float) -> Array:
    """``x / size`` for a power of two, in two steps: `size` may be out of the range of the dtype of `x`."""
    half = ldexp(1.0, frexp(size)[1] // 2)
    return x / half / (size / half)


def working(x: Array) -> Array:
    """`x` in the precision of fits: float64 stays, every shorter dtype becomes float32."""
    xp = array_namespace(x)
    return x if x.dtype in (xp.float64, xp.float32) else xp.astype(x, xp.float32)


def wide(x: Array) -> Array:
    """`x` in float64; `x` itself if it is float64 already."""
    xp = array_namespace(x)
    return xp.astype(x, xp.float64, copy=False)


def norm(x: Array, less: Array | None = None) -> float:
    """Frobenius norm of `x`, or of ``x - less`` for an array `less` of the same shape, accumulated in float64."""
    xp = array_namespace(x)
    flat, total = xp.reshape(x, (-1,)), xp.zeros((), dtype=xp.float64, device=device(x))
    other = None if less is None else xp.reshape(less, (-1,))
    size = flat.shape[0]
    for start in range(0, size, _BLOCK):  # block by block: a copy of all in float64 would take longer than the sum
        block = slice(start, min(start + _BLOCK, size))
        part = wide(flat[block]) if other is None else wide(flat[block]) - wide(other[block])
        total = total + xp.matmul(part, part)
    return sqrt(float(to_numpy(total) if getattr(total, "requires_grad", False) else total))


def balance(cores: Sequence[Array], scale: float = 1.0) -> list[Array]:
    """The cores, rescaled to equal norms. The rebuilt weight is multiplied by `scale`."""
    norms = [norm(core) for core in cores]
    if not all(norms):
        return list(cores)
    mean = float(np.exp(np.mean(np.log(norms)))) * scale ** (1 / len(norms))
    return [core * (mean / size) for core, size in zip(cores, norms, strict=True)]


def rounded(x: Array, digits: int) -> Array:
    """`x` rounded to this number of significant binary digits, in its own dtype.

    References
    ----------
    Dekker (1971) for the splitting.
    """
    more = 1.0 + 2.0 ** (1 - digits) / float(array_namespace(x).finfo(x.dtype).eps)
    return more * x - (more * x - x)


def relative_error(x: Array, y: Array) -> float:
    """Relative Frobenius error ``||x - y|| / ||x||`` of `y` against `x`; 0 for two zeros."""
    scale, gap = norm(x), norm(x, y)
    return gap / scale if scale else (0.0 if gap == 0.0 else float("inf"))


def qr(x: Array) -> tuple[Array, Array]:
    """Reduced QR decomposition."""
    q, r = array_namespace(x).linalg.qr(x)
    return q, r


def left_svd(x: Array, rank: int, *, seed: int = 0, start: Array | None = None) -> Array:
    """Orthonormal basis of the leading left singular vectors.

    ``U @ U.T @ x`` is the best approximation of rank `rank`. With the randomized range finder, its error agrees with
    that of the best to about four digits.

    Parameters
    ----------
    x : array (rows, columns), float32 or float64
    rank : int
    seed : int
        Seed of the randomized range finder.
    start : array (rows, rank), optional
        A basis that is nearly as good. In single precision it is improved, which is faster than a new one.

    Returns
    -------
    array (rows, min(rank, rows, columns))
    """
    rows, columns = x.shape
    short, rank = min(rows, columns), min(rank, rows, columns)
    xp = array_namespace(x)
    if start is None and short > _GRAM_SIDE and 4 * (rank + _OVERSAMPLE) < short:
        return _randomized(x, rank, seed)
    if x.dtype == xp.float32 and (rows <= columns or rank < short):
        usable = start if start is not None and start.shape[1] <= rank else None
        return xp.astype(_by_gram(x, rank, usable), x.dtype)
    return _thin(x)[:, :rank]


def _by_gram(x: Array, rank: int, start: Array | None) -> Array:
    """Leading left singular vectors in float64, from the Gram matrix of the shorter side."""
    if x.shape[0] <= x.shape[1]:
        return _gram_vectors(x, rank, start)
    xp = array_namespace(x)
    transposed = xp.matrix_transpose(x)
    right_start = None if start is None else xp.matmul(transposed, start)
    right = _gram_vectors(transposed, rank, right_start)  # right singular vectors of x: (columns, rank)
    return qr(xp.matmul(xp.astype(x, xp.float64), right))[0]


def _gram_vectors(x: Array, rank: int, start: Array | None) -> Array:
    """Leading left singular vectors in float64.

    Products are in single precision if two conditions hold: their range is sufficient, and the energy that is cut off
    is far above their rounding.
    """
    xp = array_namespace(x)
    with np.errstate(over="ignore"):
        gram = xp.astype(xp.matmul(x, xp.matrix_transpose(x)), xp.float64)
    total = float(xp.linalg.trace(gram))
    if _FAINT < total < inf:
        vectors = _leading(gram, rank) if start is None else _nearer(gram, xp.astype(start, xp.float64))
        if total - float(xp.sum(vectors * xp.matmul(gram, vectors))) > _BLUR * total:
            return vectors
    return _leading(_gram(x), rank)


def leading(gram: Array, rank: int, *, seed: int = 0) -> Array:
    """Eigenvectors of the largest eigenvalues of a positive semidefinite matrix, largest first.

    For few vectors of a large matrix they come from subspace iteration, which stops when its energy no longer grows.

    Parameters
    ----------
    gram : array (n, n)
    rank : int
    seed : int
        Seed of the first subspace.

    Returns
    -------
    array (n, min(rank, n))
    """
    n, xp = gram.shape[0], array_namespace(gram)
    width = rank + _OVERSAMPLE
    if n <= _GRAM_SIDE or 4 * width >= n:
        return xp.astype(_leading(wide(gram), min(rank, n)), gram.dtype)
    basis = qr(xp.matmul(gram, like(np.random.default_rng(seed).standard_normal((n, width)), gram)))[0]
    missed, total = inf, float(xp.linalg.trace(wide(gram)))
    for _ in range(3 * _ROUNDS):
        image = xp.matmul(gram, basis)
        values, turn = xp.linalg.eigh(wide(xp.matmul(xp.matrix_transpose(basis), image)))
        before, missed = missed, total - float(xp.sum(values[-rank:]))
        if before - missed <= 1e-4 * abs(missed):
            break
        basis = qr(image)[0]
    return xp.matmul(basis, xp.astype(xp.flip(turn, axis=1)[:, :rank], gram.dtype))


def _leading(gram: Array, rank: int) -> Array:
    """Eigenvectors of the `rank` largest eigenvalues, largest first."""
    xp = array_namespace(gram)
    _, vectors = xp.linalg.eigh(gram)
    return xp.flip(vectors, axis=1)[:, :rank]


def _nearer(gram: Array, start: Array) -> Array:
    """A basis that is nearer to the leading eigenvectors than `start`.

    Each round is a power step and a Chebyshev polynomial, which is small on the energy that the basis misses. The
    rounds end when the polynomial gains less than a hundredth of that energy. If they do not end, all eigenvectors are
    computed.

    References
    ----------
    Zhou and Saad (2007).
    """
    xp, rank = array_namespace(gram), start.shape[1]
    if gram.shape[0] <= max(_SIDE, 3 * rank):
        return _leading(gram, rank)
    total = float(xp.linalg.trace(gram))
    image = xp.matmul(gram, start)
    for _ in range(_ROUNDS):
        captured = []  # energies: before and after the polynomial
        for degree in (_DEGREE, 0):
            values, turn = xp.linalg.eigh(xp.matmul(xp.matrix_transpose(image), image))
            if not float(values[0]) > 1e-12 * float(values[-1]):  # the matrix or the start has a smaller rank
                return _leading(gram, rank)
            basis = xp.matmul(image, xp.flip(turn / xp.sqrt(values), axis=1))  # orthonormal
            image = xp.matmul(gram, basis)
            captured.append(float(xp.sum(basis * image)))
            if degree:
                image = _chebyshev(gram, basis, image, 0.5 * sqrt(float(values[0])), degree)
        if captured[1] - captured[0] <= 0.01 * (total - captured[1]):
            return basis
    return _leading(gram, rank)


def _chebyshev(gram: Array, basis: Array, image: Array, half: float, degree: int) -> Array:
    """A Chebyshev polynomial of the Gram matrix times the basis; the polynomial is small on ``[0, 2 half]``."""
    xp = array_namespace(gram)
    old, new = basis, image / half - basis
    for _ in range(degree - 1):
        old, new = new, 2 * (xp.matmul(gram, new) / half - new) - old
    return new


def _thin(x: Array) -> Array:
    """All left singular vectors. QR removes the long side first."""
    xp = array_namespace(x)
    rows, columns = x.shape
    if rows > columns:
        q, r = qr(x)
        return xp.matmul(q, xp.linalg.svd(r, full_matrices=False)[0])
    if columns > rows:  # x.T = Q R, so x = R.T Q.T has the left vectors of R.T
        x = xp.matrix_transpose(qr(xp.matrix_transpose(x))[1])
    return xp.linalg.svd(x, full_matrices=False)[0]


def _randomized(x: Array, rank: int, seed: int, tolerance: float = 1e-5, most: int = 12) -> Array:
    """Leading left singular vectors by subspace iteration, until the captured energy no longer grows."""
    xp = array_namespace(x)
    columns, width = x.shape[1], rank + _OVERSAMPLE
    noise = np.random.default_rng(seed).standard_normal((columns, width))
    basis = qr(xp.matmul(x, like(noise, x)))[0]
    missed, energy = inf, norm(x) ** 2
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
    """The Gram matrix of the rows, in float64."""
    xp = array_namespace(x)
    x = wide(x)
    return xp.matmul(x, xp.matrix_transpose(x))


def like(values: Any, x: Array) -> Array:
    """NumPy values as an array of the library, dtype and device of `x`."""
    xp = array_namespace(x)
    return xp.asarray(np.asarray(values), dtype=x.dtype, device=device(x))


def spectrum(x: Array) -> np.ndarray:
    """Singular values of a matrix as a NumPy float64 array, largest first.

    For single precision they come from the Gram matrix in float64: values below 1e-8 of the largest are noise, as they
    are in the data. For double precision they come from a full SVD.
    """
    xp = array_namespace(x)
    if x.shape[0] > x.shape[1]:
        x = xp.matrix_transpose(x)
    if x.dtype == xp.float32:
        values = to_numpy(xp.linalg.eigvalsh(_gram(x)))[::-1]
        singular: np.ndarray = np.sqrt(np.clip(values, 0.0, None))
        return singular
    if x.shape[1] > 2 * x.shape[0]:
        x = qr(xp.matrix_transpose(x))[1]
    return to_numpy(xp.linalg.svdvals(x))


def to_numpy(x: Array) -> np.ndarray:
    """A (small) array on the host."""
    from tnc.backends import of

    host: np.ndarray = of(x).to_numpy(x)
    return host
