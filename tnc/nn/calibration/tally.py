"""Sums over input vectors, from which moments are made. They are kept in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tnc.fit.linalg import working

__all__ = ["Mean", "Sums"]

_ROWS = 1 << 15
"""Vectors that are converted to another dtype at a time."""


class Mean(NamedTuple):
    """Sums divided by the number of vectors.

    Attributes
    ----------
    second, first : Tensor
        Second moment and mean; with a leading axis of matrices if these have inputs of their own.
    number : float
        Vectors of one matrix, on average.
    """

    second: Tensor
    first: Tensor
    number: float


class _Sum:
    """Sums over the vectors of some matrices and some of their inputs."""

    def __init__(self, matrices: int, size: int, diagonal: bool, device: torch.device) -> None:
        shape = (matrices, size) if diagonal else (matrices, size, size)
        self.second = torch.zeros(shape, dtype=torch.float64, device=device)
        self.first = torch.zeros((matrices, size), dtype=torch.float64, device=device)
        self.count = 0.0


class Sums:
    """Sums over the input vectors of a weight.

    Parameters
    ----------
    matrices : int
        Number of matrices of the weight.
    size : int
        Number of inputs.
    diagonal : bool
        Whether to keep the diagonal of the second moment only.
    """

    def __init__(self, matrices: int, size: int, diagonal: bool = False) -> None:
        self.matrices, self.size, self.diagonal = matrices, size, diagonal
        self._parts: dict[tuple[tuple[int, ...], bool, int, int], _Sum] = {}

    def add(
        self,
        x: Tensor,
        members: tuple[int, ...],
        *,
        shared: bool = False,
        start: int = 0,
        scale: float = 1.0,
        other: Tensor | None = None,
    ) -> bool:
        """Add vectors. Returns whether all of them are finite.

        Parameters
        ----------
        x : Tensor
            (matrix, vector, input). There is one matrix if `shared` is set.
        members : tuple of int
            The matrices that have these inputs.
        shared : bool
            Whether all members have the same inputs.
        start : int
            The first input.
        scale : float
            Each vector counts this often.
        other : Tensor, optional
            Vectors of the same shape. The second moment is then ``E[x other^T]``.
        """
        key = (members, shared, start, x.shape[-1])
        if key not in self._parts:
            self._parts[key] = _Sum(len(x), x.shape[-1], self.diagonal, x.device)
        part = self._parts[key]
        for piece, beside in zip(
            x.split(_ROWS, dim=1), (x if other is None else other).split(_ROWS, dim=1), strict=True
        ):
            wide = working(piece)
            by = wide if other is None else working(beside)
            second = (wide * by).sum(1) if self.diagonal else wide.mT @ by
            part.second += second.double() * scale
            part.first += wide.sum(1).double() * scale
        part.count += x.shape[1] * scale
        trace = part.second if self.diagonal else part.second.diagonal(dim1=-2, dim2=-1)
        return bool(torch.isfinite(trace.sum() + part.first.sum()))

    def __bool__(self) -> bool:
        return bool(self._parts)

    @property
    def alike(self) -> bool:
        """Whether all matrices have the same inputs."""
        whole = tuple(range(self.matrices))
        return self.matrices == 1 or all(shared and members == whole for members, shared, *_ in self._parts)

    def _counts(self) -> Tensor:
        """For each matrix and each input the number of vectors."""
        counts = torch.zeros(self.matrices, self.size, dtype=torch.float64)
        for (members, _, start, size), part in self._parts.items():
            counts[list(members), start : start + size] += part.count
        return counts

    def mean(self, count: float | None = None) -> Mean:
        """Divide by `count`; by default by the number of vectors.

        Matrices with inputs of their own are divided by the same number, so that one which sees more weighs more.
        """
        alike = self.alike
        lead = 1 if alike else self.matrices
        device = next(iter(self._parts.values())).second.device
        shape = (lead, self.size) if self.diagonal else (lead, self.size, self.size)
        second = torch.zeros(shape, dtype=torch.float64, device=device)
        first = torch.zeros((lead, self.size), dtype=torch.float64, device=device)
        for (members, _, start, size), part in self._parts.items():
            place = slice(start, start + size)
            which = [0] if alike else list(members)
            first[which, place] += part.first
            if self.diagonal:
                second[which, place] += part.second
            else:
                second[which, place, place] += part.second
        counts = self._counts()
        total = float(counts.amax(1).mean())
        second /= total if count is None else count
        first /= counts[:lead].clamp(min=1e-300).to(device)
        return Mean(second[0], first[0], total) if alike else Mean(second, first, total)
