"""The reference methods, written from the formulas: each keeps the stated share of every weight.

A weight of m rows and n columns (of a convolution: outputs, and inputs × kernel) gets the rank ``floor(s m n / (m +
n))``, at least 1. Tucker-2 gets ranks ``floor(f O)`` and ``floor(f I)`` with the largest f that keeps within the
share, and what is left goes to the ranks one by one, outputs first. Each weight is then replaced by what its factors
multiply to; counted are the factors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy.moments import Root, collected, groups, root, second_moments
from benchmarks.accuracy.subject import Forward, Made, Row
from benchmarks.papers.changes import matched

__all__ = ["CONTROLS", "aa_svd", "svd", "svd_llm", "tucker", "tucker2_calibrated"]

SWEEPS, STEPS = 8, 20
Moments = dict[str, Tensor]


def svd_rank(m: int, n: int, share: float) -> int:
    return max(1, int(share * m * n / (m + n) + 1e-9))


def svd_size(shape: torch.Size, share: float) -> int:
    m, n = shape[0], shape[1:].numel()
    return svd_rank(m, n, share) * (m + n)


def low_rank(weight: Tensor, share: float, metric: Root | None = None) -> Tensor:
    """The closest matrix of the rank, in the metric: singular vectors of ``W L`` to its left."""
    matrix = weight.detach().flatten(1).double()
    rank = svd_rank(*matrix.shape, share)
    if metric is None:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return (left[:, :rank] * values[:rank] @ right[:rank]).view(weight.shape)
    seen = matrix @ metric.half
    basis = torch.linalg.svd(seen, full_matrices=False)[0][:, :rank]
    return (basis @ (basis.T @ seen) @ metric.inverse).view(weight.shape)


def _each(
    model: nn.Module, weights: str, size: Callable[[torch.Size], int], make: Callable[[str, Tensor], Tensor]
) -> Made:
    """Replace every matched weight by what `make` gives for it."""
    total = 0
    with torch.no_grad():
        for name, weight in matched(model, weights).items():
            total += size(weight.shape)
            weight.copy_(make(name, weight.detach()))
    return Made(model, total)


def svd(
    model: nn.Module, weights: str, share: float, calibration: list[Any] | None = None, forward: Forward | None = None
) -> Made:
    """Truncated singular value decomposition of the weight itself."""
    return _each(model, weights, lambda shape: svd_size(shape, share), lambda _, weight: low_rank(weight, share))


def svd_llm(
    model: nn.Module, weights: str, share: float, calibration: list[Any], forward: Forward | None = None
) -> Made:
    """The least error of the layer's outputs: truncation of ``W S``, where ``S Sᵀ`` is the inputs' second moment.

    References
    ----------
    Wang et al., "SVD-LLM", arXiv 2403.07378.
    """
    moments = second_moments(model, list(matched(model, weights)), calibration, forward)
    return _each(
        model,
        weights,
        lambda shape: svd_size(shape, share),
        lambda name, weight: low_rank(weight, share, root(moments[name])),
    )


def aa_svd(
    model: nn.Module, weights: str, share: float, calibration: list[Any], forward: Forward | None = None
) -> Made:
    """Layer after layer the least ``‖W X - Ŵ X̂‖``: X are its inputs in the dense network, X̂ those in the new one.

    References
    ----------
    "AA-SVD", arXiv 2604.02119: the target; without its steps by gradient.
    """
    dense, held, total = copy.deepcopy(model), matched(model, weights), 0
    for names in groups(model, list(held), calibration[0], forward):
        ours, across = _paired(dense, model, names, calibration, forward)
        metric = root(ours)
        for name in names:
            weight = held[name]
            total += svd_size(weight.shape, share)
            seen = weight.detach().flatten(1).double() @ across @ metric.inverse.T
            rank = svd_rank(weight.shape[0], weight[0].numel(), share)
            basis = torch.linalg.svd(seen, full_matrices=False)[0][:, :rank]
            with torch.no_grad():
                weight.copy_((basis @ (basis.T @ seen) @ metric.inverse).view(weight.shape))
    return Made(model, total)


def _paired(
    dense: nn.Module, model: nn.Module, names: list[str], calibration: list[Any], forward: Forward | None
) -> tuple[Tensor, Tensor]:
    """``X̂ X̂ᵀ`` and ``X X̂ᵀ`` of weights that take the same inputs."""
    ours = across = torch.zeros(())
    for batch in calibration:
        x = collected(dense, names[:1], batch, forward)[names[0]]
        y = collected(model, names[:1], batch, forward)[names[0]]
        ours, across = ours + y.T @ y, across + x.T @ y
    return ours, across


# ------------------------------------------------------------------ Tucker-2


def spatial(shape: torch.Size) -> bool:
    """Whether a weight is a convolution of more than one pixel; all others are matrices."""
    return len(shape) > 2 and shape[2:].numel() > 1


def tucker_ranks(shape: torch.Size, share: float) -> tuple[int, int]:
    """``floor(f O), floor(f I)``, at least 1, with the largest f within the share; then one by one what still fits."""
    outputs, inputs = shape[:2]
    budget = share * shape.numel()
    fractions = sorted({k / n for n in (outputs, inputs) for k in range(1, n + 1)})
    pairs = [tuple(max(1, int(f * n + 1e-9)) for n in (outputs, inputs)) for f in fractions]
    ranks = max((pair for pair in pairs if tucker_parameters(shape, pair) <= budget), default=(1, 1))
    for more in (1, 0), (0, 1):
        while True:
            raised = (ranks[0] + more[0], ranks[1] + more[1])
            if raised[0] > outputs or raised[1] > inputs or tucker_parameters(shape, raised) > budget:
                break
            ranks = raised
    return ranks


def tucker_parameters(shape: torch.Size, ranks: tuple[int, int]) -> int:
    a, b = ranks
    return a * shape[0] + b * shape[1] + a * b * shape[2:].numel()


def tucker_size(shape: torch.Size, share: float) -> int:
    return tucker_parameters(shape, tucker_ranks(shape, share)) if spatial(shape) else svd_size(shape, share)


def tucker(
    model: nn.Module, weights: str, share: float, calibration: list[Any] | None = None, forward: Forward | None = None
) -> Made:
    """TensorLy's ``partial_tucker`` of the two channel axes; matrices as `svd`."""

    def make(_: str, weight: Tensor) -> Tensor:
        return _partial_tucker(weight, share) if spatial(weight.shape) else low_rank(weight, share)

    return _each(model, weights, lambda shape: tucker_size(shape, share), make)


def _partial_tucker(weight: Tensor, share: float) -> Tensor:
    from tensorly.decomposition import partial_tucker

    array = weight.flatten(2).double().numpy()
    (core, (u, v)), _ = partial_tucker(array, list(tucker_ranks(weight.shape, share)), modes=[0, 1], init="svd")
    return torch.einsum("abk,oa,ib->oik", *map(torch.from_numpy, (core, u, v))).reshape(weight.shape)


def tucker2_calibrated(
    model: nn.Module, weights: str, share: float, calibration: list[Any], forward: Forward | None = None
) -> Made:
    """Tucker-2 in the norm ``‖(W - Ŵ) Σ^½‖`` by alternating least squares; matrices as `svd_llm`.

    References
    ----------
    arXiv 2511.04494: the norm, and least squares in turn.
    """
    moments = second_moments(model, list(matched(model, weights)), calibration, forward)

    def make(name: str, weight: Tensor) -> Tensor:
        if not spatial(weight.shape):
            return low_rank(weight, share, root(moments[name]))
        return tucker2(weight, moments[name], tucker_ranks(weight.shape, share))

    return _each(model, weights, lambda shape: tucker_size(shape, share), make)


def tucker2(weight: Tensor, moment: Tensor, ranks: tuple[int, int]) -> Tensor:
    """Sweeps over outputs and core together (a closed form) and inputs (conjugate gradients). The error never grows."""
    inputs, kernel = weight.shape[1], weight.shape[2:].numel()
    w = weight.detach().double().reshape(weight.shape[0], inputs, kernel)
    sigma = moment / moment.diagonal().mean().clamp(min=1e-300)
    best = min((_left(w, sigma, v, ranks[0]) for v in _starts(w, sigma, ranks[1])), key=lambda one: one[2])
    for _ in range(SWEEPS):
        m, v, _ = best
        v = torch.linalg.qr(_right(w, sigma, m, v))[0]
        best = _left(w, sigma, v, ranks[0])
    m, v, _ = best
    return torch.einsum("obk,ib->oik", m, v).reshape(weight.shape)


def _starts(w: Tensor, sigma: Tensor, rank: int) -> list[Tensor]:
    """Bases of the inputs: of the weight alone, and of the weight times the root of Σ."""
    metric = root(sigma)
    seen = (w.flatten(1) @ metric.half) @ metric.half.T  # W Σ, in the coordinates of the weight
    found = (x.reshape(w.shape).transpose(0, 1).flatten(1) for x in (w, seen))
    return [torch.linalg.svd(x, full_matrices=False)[0][:, :rank] for x in found]


def _left(w: Tensor, sigma: Tensor, v: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best m ``[o, b, k]`` of the rank for a basis v of the inputs; v; and the squared error less ‖W Σ^½‖²."""
    outputs, inputs, kernel = w.shape
    squared = sigma.view(inputs, kernel, inputs, kernel)
    small = torch.einsum("ib,ikjl,jc->bkcl", v, squared, v).reshape(v.shape[1] * kernel, -1)
    target = torch.einsum("oik,ib->obk", (w.flatten(1) @ sigma).view(w.shape), v).flatten(1)
    metric = root(small)
    seen = target @ metric.inverse.T
    basis = torch.linalg.svd(seen, full_matrices=False)[0][:, :rank]
    kept = basis.T @ seen
    m = (basis @ kept @ metric.inverse).view(outputs, v.shape[1], kernel)
    return m, v, -float(kept.square().sum())


def _right(w: Tensor, sigma: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """A better v for m: conjugate gradients on the normal equations, from v on."""

    def back(x: Tensor) -> Tensor:
        return torch.einsum("oik,obk->ib", (x.flatten(1) @ sigma).view(w.shape), m)

    def product(u: Tensor) -> Tensor:
        return back(torch.einsum("obk,ib->oik", m, u))

    residual = back(w) - product(v)
    direction, before = residual, residual.square().sum()
    least = 1e-20 * before
    for _ in range(STEPS):
        if before <= least:
            break
        turned = product(direction)
        step = before / (direction * turned).sum()
        v, residual = v + step * direction, residual - step * turned
        now = residual.square().sum()
        direction, before = residual + (now / before) * direction, now
    return v


CONTROLS: dict[str, Row] = {
    "svd": svd,
    "tucker": tucker,
    "svd_llm": svd_llm,
    "aa_svd": aa_svd,
    "tucker2_calibrated": tucker2_calibrated,
}
