"""Where our fits end beside TensorLy's at the same ranks: twelve targets, five formats, two ranks.

TensorLy may start from its default, truncated singular vectors, and at random; the better of both counts. Only errors
are compared, no times (`benchmarks/fits_against_tensorly.py` has them). Ours is what a user gets: one call, float32.
Theirs gets the same weight in float64, and up to 500 sweeps.

``python -m benchmarks.optima`` writes ``benchmarks/results/optima.{md,json}``; it exits with 1 where a fit of ours is
more than 0.1 % behind.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tensorly
from tensorly.decomposition import parafac, tensor_ring, tensor_ring_als, tensor_train, tucker

import tnc
from tnc import Decomposition, Factorization, Network
from tnc.contract import contract
from tnc.fit import tensorize

RESULTS = Path(__file__).parent / "results" / "optima"
BEHIND = 1e-3
"""How far a fit may end behind theirs, as a share of the error."""


# ------------------------------------------------------------------- targets


def noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Nothing to find: many local optima."""
    return rng.standard_normal(shape)


def planted(rng: np.random.Generator, *shape: int, rank: int = 8, level: float = 0.3) -> np.ndarray:
    """A sum of `rank` products, and noise."""
    exact = np.zeros(shape)
    for _ in range(rank):
        term = np.ones(())
        for n in shape:
            term = np.multiply.outer(term, rng.standard_normal(n))
        exact += term
    return exact + level * exact.std() * rng.standard_normal(shape)


def subspaces(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """A kernel of multilinear rank 3/8 of its channels, and noise."""
    exact = rng.standard_normal((3 * shape[0] // 8, 3 * shape[1] // 8, *shape[2:]))
    for axis in (0, 1):
        exact = np.moveaxis(
            np.tensordot(rng.standard_normal((shape[axis], exact.shape[axis])), exact, (1, axis)), 0, axis
        )
    return exact + 0.3 * exact.std() * rng.standard_normal(shape)


def decaying(rng: np.random.Generator, *shape: int, power: float = 1.0) -> np.ndarray:
    """Singular values at every axis that fall about like ``k^-power``."""
    x = rng.standard_normal(shape)
    for axis, n in enumerate(shape):
        basis = np.linalg.qr(rng.standard_normal((n, n)))[0] * np.arange(1.0, n + 1) ** -power
        x = np.moveaxis(np.tensordot(basis, x, (1, axis)), 0, axis)
    return x


def smooth(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """``1 / (x + y + ...)``: singular values fall exponentially."""
    grids = np.meshgrid(*(np.linspace(0.1, 1.0, n) for n in shape), indexing="ij")
    return 1.0 / np.sum(grids, axis=0)


def filters(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Oriented waves of random mixtures, as first layers learn them."""
    y, x = np.meshgrid(*(np.linspace(-1.0, 1.0, n) for n in shape[2:]), indexing="ij")
    angle, phase, wide = (
        rng.uniform(0, np.pi, shape[0]),
        rng.uniform(0, 2 * np.pi, shape[0]),
        rng.uniform(2, 5, shape[0]),
    )
    along = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    waves = np.cos(wide[:, None, None] * along + phase[:, None, None]) * np.exp(-(x**2 + y**2))
    mixed = np.einsum("oi,okl->oikl", rng.standard_normal(shape[:2]), waves)
    return mixed + 0.2 * mixed.std() * rng.standard_normal(shape)


def heavy(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Entries with a few outliers, as of weights trained with dropout."""
    return rng.standard_t(3, shape)


@dataclass(frozen=True)
class Target:
    """A weight by its shape and how it is made."""

    name: str
    make: Callable[..., np.ndarray]
    shape: tuple[int, ...]

    def weight(self, seed: int = 0) -> np.ndarray:
        made = self.make(np.random.default_rng((seed, *self.shape)), *self.shape)
        return (made / np.linalg.norm(made)).astype(np.float32)


TARGETS = [
    Target("noisy rank-8 kernel", planted, (16, 12, 3, 3)),
    Target("kernel of noise", noise, (24, 16, 3, 3)),
    Target("kernel of few channels", subspaces, (32, 16, 3, 3)),
    Target("oriented filters", filters, (20, 8, 5, 5)),
    Target("decaying matrix", decaying, (36, 48)),
    Target("matrix of noise", noise, (36, 36)),
    Target("heavy-tailed matrix", heavy, (40, 60)),
    Target("noisy rank-8 matrix", planted, (48, 64)),
    Target("four axes of noise", noise, (8, 7, 6, 9)),
    Target("four decaying axes", decaying, (9, 8, 10, 7)),
    Target("four axes of rank 8", planted, (8, 9, 7, 6)),
    Target("four smooth axes", smooth, (6, 7, 8, 9)),
]


# ------------------------------------------------------------------- formats


@dataclass(frozen=True)
class Plain(Decomposition):
    """A format over the axes of a weight as they are, whatever their roles."""

    format: str

    @property
    def sweeps(self) -> int:  # type: ignore[override]
        return 25 if self.format == "tucker" else 2

    def network(self, shape: Any, rank: Any) -> Network:
        modes, last = [f"a{k}" for k in range(len(shape))], len(shape) - 1
        cores = {
            "cp": [f"{mode} r" for mode in modes],
            "tucker": [*(f"{mode} r{k}" for k, mode in enumerate(modes)), " ".join(f"r{k}" for k in range(last + 1))],
            "ring": [f"r{k} {mode} r{(k + 1) % (last + 1)}" for k, mode in enumerate(modes)],
            "tt": [f"r{k} " * (k > 0) + mode + f" r{k + 1}" * (k < last) for k, mode in enumerate(modes)],
        }[self.format]
        return Network.of_rank(f"{', '.join(cores)} -> {' '.join(modes)}", dict(zip(modes, shape, strict=True)), rank)


FORMATS: dict[str, tuple[int, int]] = {"cp": (4, 9), "tt": (3, 6), "tucker": (3, 5), "ring": (2, 3), "mpo": (2, 4)}
"""Two ranks of each."""


def decomposition(name: str, target: Target) -> Decomposition | None:
    """The plugin, or the format over the plain axes where a target has four; None where it has no such format."""
    if target.name.startswith("four"):
        return Plain(name) if name != "mpo" else None
    if name == "ring":
        return tnc.decompositions["ring"](order=1 if len(target.shape) > 2 else 2)
    return tnc.decompositions[name]()


def as_tensor(x: np.ndarray, network: Network) -> tuple[np.ndarray, list[int]]:
    """The weight with one axis per core that has indices of its own, in their order; ranks of the bonds."""
    tensor = tensorize(x, network)
    sites = [tuple(i for i in core if i in network.outer) for core in network.operands]
    sites = [site for site in sites if site]
    tensor = contract([network.outer], sum(sites, ()), [tensor])
    return tensor.reshape([prod(network.sizes[i] for i in site) for site in sites]), list(network.ranks)


def theirs(name: str, x: np.ndarray, ranks: list[int], seed: int) -> Iterator[np.ndarray]:
    """What TensorLy rebuilds, from its default start and at random."""
    if name in ("tt", "mpo"):
        yield tensorly.tt_to_tensor(tensor_train(x, [1, *ranks, 1]))
    elif name == "tucker":
        clipped = [min(pair) for pair in zip(ranks, x.shape, strict=False)]
        clipped += list(x.shape[len(clipped) :])
        for init in ("svd", "random"):
            yield tensorly.tucker_to_tensor(tucker(x, clipped, init=init, n_iter_max=500, tol=1e-8, random_state=seed))
    elif name == "cp":
        for init in ("svd", "random"):
            found = parafac(x, ranks[0], init=init, n_iter_max=500, tol=1e-9, random_state=seed)
            yield tensorly.cp_to_tensor(found)
    else:
        ranks = [*ranks, ranks[0]]
        yield tensorly.tr_to_tensor(tensor_ring_als(x, ranks, n_iter_max=500, tol=1e-9, random_state=seed))
        if ranks[0] * ranks[1] <= x.shape[0]:
            yield tensorly.tr_to_tensor(tensor_ring(x, ranks))


@dataclass
class Cell:
    """One target, format and rank: relative errors."""

    target: str
    format: str
    rank: int
    ours: float
    theirs: float

    @property
    def behind(self) -> float:
        """How far ours is behind, as a share of theirs; below zero where it is ahead."""
        return self.ours / self.theirs - 1 if self.theirs > 1e-5 else 0.0


def cell(target: Target, name: str, rank: int, seed: int = 0) -> Cell | None:
    """Both errors on one target; None where the format has no such network, or nothing is left to cut."""
    made = decomposition(name, target)
    if made is None:
        return None
    x = target.weight(seed)
    network = made.network(x.shape, rank).clipped()
    if network.n_params >= x.size:
        return None
    ours = Factorization(network, made.fit(x, network), x.shape).error(x)
    tensor, ranks = as_tensor(x.astype(np.float64), network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        errors = [float(np.linalg.norm(y - tensor) / np.linalg.norm(tensor)) for y in theirs(name, tensor, ranks, seed)]
    return Cell(target.name, name, rank, ours, min(errors))


def cells() -> Iterator[Cell]:
    """All of the grid."""
    for target in TARGETS:
        for name, ranks in FORMATS.items():
            for rank in ranks:
                if found := cell(target, name, rank):
                    yield found


def table(found: list[Cell]) -> str:
    """The grid as Markdown, the worst last line."""
    worst = max(found, key=lambda one: one.behind)
    lines = [
        "# Optima of our fits and of TensorLy's",
        "",
        "Relative errors at the same ranks, made by `python -m benchmarks.optima`: ours from one call in float32,",
        "TensorLy's the better of its default start and a random one, in float64. Ahead is below zero.",
        "",
        ", ".join(f"{name} {version(name)}" for name in ("tncompress", "tensorly", "numpy")),
        "",
        "| target | format | rank | TensorLy | ours | behind |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for one in found:
        row = f"| {one.target} | {one.format} | {one.rank} | {one.theirs:.5f} | {one.ours:.5f} "
        lines.append(f"{row}| {one.behind:+.2%} |")
    lines += [
        "",
        f"Furthest behind of {len(found)}: {worst.behind:+.3%} ({worst.target}, {worst.format}, {worst.rank}).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    found = []
    for one in cells():
        found.append(one)
        print(
            f"{one.target:24} {one.format:7} {one.rank:2} {one.theirs:.5f} {one.ours:.5f} {one.behind:+.3%}", flush=True
        )
    data = {"rows": [asdict(one) for one in found]}
    if "--dry" not in sys.argv:
        RESULTS.with_suffix(".json").write_text(json.dumps(data, indent=1) + os.linesep)
        RESULTS.with_suffix(".md").write_text(table(found))
    sys.exit(any(one.behind > BEHIND for one in found))


if __name__ == "__main__":
    main()
