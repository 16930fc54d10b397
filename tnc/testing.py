"""Tests for decompositions: `assert_conforms` checks what the library requires of one, on any array library."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import is_dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from array_api_compat import array_namespace, device

from tnc.backends import Backend, get, of
from tnc.checkpoint import Checkpoint, load
from tnc.contract.recipes import dense
from tnc.decomposition import Decomposition, Factorization
from tnc.errors import RankError, TncError, WeightError
from tnc.fit.starts import random_cores
from tnc.network import Network
from tnc.ranks.allocation import free_bonds
from tnc.registry import decompositions
from tnc.typing import Array, Namespace, Shape

__all__ = ["SHAPES", "assert_conforms"]

SHAPES: tuple[Shape, ...] = ((12, 18), (13, 29), (8, 6, 3, 3), (3, 8, 40))
"""A matrix, a matrix of prime sizes, the kernel of a convolution, a stack of matrices."""


def assert_conforms(
    decomposition: Decomposition | type[Decomposition] | str,
    xp: Namespace | Backend | str = "numpy",
    recovers: float | None = 1e-6,
    shapes: Sequence[Shape] = SHAPES,
) -> None:
    """Check everything that the rest of the library requires of a decomposition.

    Parameters
    ----------
    decomposition : Decomposition, its class, or a plugin's name
    xp : array API namespace, Backend, or a backend's name
        Where the arrays are: ``numpy``, ``torch``, ``"torch:cuda"``, ...
    recovers : float or None
        Largest relative error, in float64, of a tensor that the decomposition can represent exactly. Trees must
        reach it with the first seed, other networks with one of five seeds. None skips this check.
    shapes : sequence of tuple of int
        Shapes of weights to try. The decomposition may refuse some of them with a `WeightError`, but not all.

    Raises
    ------
    AssertionError
        A requirement is not met. The message says which, and at which shape and rank.
    """
    d = _instance(decomposition)
    backend = get(xp) if isinstance(xp, str | Backend) else of(xp.asarray([0.0]))
    _check_class(d)
    tried = [_check_shape(d, backend, tuple(shape), recovers) for shape in shapes]
    _claim(any(tried), f"{d} refuses every shape of {tuple(shapes)}")


def _instance(decomposition: Decomposition | type[Decomposition] | str) -> Decomposition:
    """A decomposition from its name, its class or itself. The checks find out whether it is one."""
    given: Any = decompositions.parse(decomposition) if isinstance(decomposition, str) else decomposition
    instance: Decomposition = given() if isinstance(given, type) else given
    return instance


def _check_class(d: Decomposition) -> None:
    """A frozen dataclass that can be copied, hashed and parsed."""
    kind = type(d)
    _claim(isinstance(d, Decomposition), f"{d!r} is no tnc.Decomposition")
    params: Any = getattr(kind, "__dataclass_params__", None)
    frozen = is_dataclass(kind) and params.frozen
    _claim(frozen, f"{kind.__name__} is not a frozen dataclass: decorate it with @dataclass(frozen=True)")
    try:
        copy: Any = replace(cast("Any", d))
        _claim(copy == d and hash(copy) == hash(d), f"{d} does not equal, or hash like, its own copy")
    except TypeError as error:
        raise AssertionError(f"{d} is not hashable: {error}") from error
    for plugin in decompositions.plugins():
        if plugin.target == f"{kind.__module__}:{kind.__qualname__}":
            _claim(str(d).partition("(")[0] == plugin.name, f"{d} is registered as {plugin.name!r}: name both alike")
            _claim(decompositions.parse(str(d)) == d, f"parsing {str(d)!r} does not give {d!r} back")


def _claim(holds: Any, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _check_shape(d: Decomposition, backend: Backend, shape: Shape, recovers: float | None) -> bool:
    """All checks at one shape. Returns whether the decomposition accepts it."""
    ranks = [k * d.step for k in (1, 2, 4)]
    try:
        networks = [d.network(shape, rank) for rank in ranks]
    except WeightError:
        return False
    for network, rank in zip(networks, ranks, strict=True):
        _check_network(d, shape, rank, network)
    with suppress(RankError):
        _claim(d.network(shape, 0) is None, f"{d}.network({shape}, 0) raises no RankError")
    weight = np.random.default_rng(prod(shape)).standard_normal(shape)
    x = backend.from_numpy(weight)
    fits = [_fit(d, x, network, seed=7) for network in networks]
    errors = [_check_fit(d, backend, weight, found) for found in fits]
    _claim(np.all(np.diff(errors) <= 1e-6), f"{d} at {shape}: errors {errors} rise with the ranks {ranks}")
    _check_variants(d, backend, weight, fits[1], errors[1])
    if recovers is not None:
        _check_recovery(d, x, networks[1], recovers)
    return True


def _check_variants(d: Decomposition, backend: Backend, weight: np.ndarray, first: Factorization, error: float) -> None:
    """Fits with the seed of the first one, in float32, and of zeros. `error` is that of the first one, in float64."""
    network = first.network
    case = f"{d} with {network!r}"
    second = _fit(d, backend.from_numpy(weight), network, seed=7)
    _claim(_same(first, second), f"{case}: the same seed gives other cores")
    short = backend.from_numpy(weight.astype(np.float32))
    short_error = _fit(d, short, network, seed=7).error(short)
    _claim(short_error <= 1.01 * error + 1e-3, f"{case}: error {short_error:.3g} in float32, {error:.3g} in float64")
    zeros = _fit(d, backend.from_numpy(np.zeros_like(weight)), network).dense()
    _claim(np.abs(backend.to_numpy(zeros)).max() <= 1e-9, f"{case}: a weight of zeros is not rebuilt as zeros")


def _check_recovery(d: Decomposition, x: Array, network: Network, recovers: float) -> None:
    """A tensor that the network can represent exactly is recovered, from one of several seeds."""
    planted = dense(network, random_cores(x, network, seed=3))  # with its padding: without, it may not be exact
    least, seeds = float("inf"), iter(range(1 if network.is_tree else 5))
    while least > recovers and (seed := next(seeds, None)) is not None:
        least = min(least, _fit(d, planted, network, seed).error(planted))
    _claim(
        least <= recovers,
        f"{d} with {network!r}: a planted tensor is recovered to {least:.1e}, not {recovers:.1e}",
    )


def _check_network(d: Decomposition, shape: Shape, rank: int, network: Network) -> None:
    case = f"{d}.network({shape}, {rank})"
    _claim(isinstance(network, Network), f"{case} is {network!r}, no tnc.Network")
    again = d.network(shape, rank)
    _claim(again == network and hash(again) == hash(network), f"{case} is not pure: a second call differs")
    _claim(network.holds(shape), f"{case} rebuilds {network.shape}, which cannot hold {shape}")
    count = sum(map(prod, network.core_shapes))
    _claim(network.n_params == count, f"{case}.n_params is {network.n_params}, its cores have {count}")
    _claim(Network.from_json(network.to_json()) == network, f"{case} does not survive JSON")
    if bonds := free_bonds(d, shape):
        _claim(d.network(shape, [rank] * len(bonds)) == network, f"{case} is not that of a rank for each of {bonds}")


def _fit(d: Decomposition, x: Array, network: Network, seed: int = 0) -> Factorization:
    """A fit, checked: finite cores of the right number, shape, dtype, library and device, and an unchanged weight."""
    case = f"{d}.fit of {tuple(x.shape)} {x.dtype} with {network!r}"
    before = np.array(of(x).to_numpy(x))
    try:
        cores = d.fit(x, network, seed=seed)
    except (TncError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise AssertionError(f"{case} raises {type(error).__name__}: {error}") from error
    _claim(np.array_equal(before, of(x).to_numpy(x)), f"{case} changes its input")
    shapes = tuple(tuple(core.shape) for core in cores)
    _claim(shapes == network.core_shapes, f"{case} gives cores of shapes {shapes}, not {network.core_shapes}")
    for core in cores:
        have, want = [(array_namespace(a).__name__, a.dtype, device(a)) for a in (core, x)]
        _claim(have == want, f"{case} gives a core of {have}, not {want}")
        _claim(np.isfinite(of(core).to_numpy(core)).all(), f"{case} gives cores that are not finite")
    return Factorization(network, cores, tuple(x.shape))


def _check_fit(d: Decomposition, backend: Backend, weight: np.ndarray, factorization: Factorization) -> float:
    """Rebuild, apply, save and load a fit in float64. Returns the error."""
    case = f"{d} with {factorization.network!r}"
    rebuilt = backend.to_numpy(factorization.dense())
    _claim(rebuilt.shape == weight.shape, f"{case} rebuilds {rebuilt.shape}, not {weight.shape}")
    inputs = np.random.default_rng(1).standard_normal((2, 3, prod(weight.shape[1:])))
    expected = inputs @ rebuilt.reshape(weight.shape[0], -1).T
    gap = np.abs(backend.to_numpy(factorization.apply(backend.from_numpy(inputs))) - expected).max()
    _claim(gap <= 1e-10 * np.abs(expected).max() + 1e-12, f"{case}: apply(x) is {gap:.1e} off x @ dense().T")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w.safetensors")
        Checkpoint({"w": factorization}, methods={"w": str(d)}).save(path)
        loaded = load(path)["w"]
    kept = (
        loaded.network == factorization.network and loaded.shape == factorization.shape and _same(loaded, factorization)
    )
    _claim(kept, f"{case} does not survive saving and loading")
    return factorization.error(backend.from_numpy(weight))


def _same(a: Factorization, b: Factorization) -> bool:
    return all(np.array_equal(of(x).to_numpy(x), of(y).to_numpy(y)) for x, y in zip(a.cores, b.cores, strict=True))
