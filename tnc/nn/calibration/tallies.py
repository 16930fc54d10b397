"""Sums of one weight while a model runs, and the moments that they give."""

from __future__ import annotations

from math import prod
from zlib import crc32

import torch
from torch import Tensor

from tnc.fit.linalg import working
from tnc.nn.calibration.operations import Use
from tnc.nn.calibration.patches import patches, wanted
from tnc.nn.calibration.statistics import LARGEST, WIDEST, Moments
from tnc.nn.calibration.tally import Sums
from tnc.nn.calibration.weights import Weight

__all__ = ["Inputs", "Tally", "narrow", "vectors"]


def vectors(use: Use, batches: int, seed: int) -> tuple[Tensor, float]:
    """The input vectors of a use, and how often each of them counts.

    Parameters
    ----------
    use : Use
        Not a lookup.
    batches : int
        How many batches there are in all. With many, fewer patches are taken of each.
    seed : int
        Chooses the patches of a convolution.

    Returns
    -------
    Tensor
        (matrix, vector, input); with a kernel (matrix, vector, channel, position of the kernel).
    float
    """
    if use.geometry is None:
        return use.x, use.share
    size = use.x.shape[1] // use.geometry.groups * prod(use.geometry.kernel)
    number = crc32(f"{use.weight.name} {seed}".encode())
    picked = patches(use.x, use.geometry, wanted(size, batches), number)
    total = len(use.x) * prod(use.geometry.positions(use.x))
    return picked, total / max(1, picked.shape[1])


class Inputs:
    """Sums over the inputs of one weight: whole, or apart for channels and kernel.

    Parameters
    ----------
    matrices : int
    x : Tensor
        Some of the vectors, of which the shape is read.
    size : int
        Number of inputs of a weight that is no convolution.
    """

    def __init__(self, matrices: int, x: Tensor, size: int) -> None:
        self.factored = x.ndim == 4 and x.shape[3] > 1 and x.shape[2] * x.shape[3] > LARGEST
        size = size if x.ndim == 3 else x.shape[2] * x.shape[3]
        if self.factored:
            self.channels, self.kernel = Sums(matrices, x.shape[2]), Sums(matrices, x.shape[3])
        self.whole = Sums(matrices, size, diagonal=self.factored or size > WIDEST)

    def add(self, x: Tensor, use: Use, scale: float) -> bool:
        """Add vectors. Returns whether all are finite.

        Parameters
        ----------
        x : Tensor
        use : Use
            What they are from.
        scale : float
            Each vector counts this often.
        """
        if self.factored:
            wide = working(x)
            for sums, each in ((self.channels, wide.mT), (self.kernel, wide)):
                sums.add(each.flatten(1, 2), use.members, shared=use.shared, scale=scale)
        flat = x.flatten(2)
        return self.whole.add(flat, use.members, shared=use.shared, start=use.start, scale=scale)

    def moments(self) -> tuple[Tensor, Tensor | None, Tensor, float]:
        """Second moment (of channels), that of the kernel, mean, and number of vectors."""
        whole = self.whole.mean()
        if not self.factored:
            return whole.second, None, whole.first, whole.number
        channels, kernel = (part.mean(whole.number).second for part in (self.channels, self.kernel))
        trace = kernel.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        return channels, kernel / trace.clamp(min=torch.finfo(trace.dtype).tiny), whole.first, whole.number


class Tally:
    """All sums of one weight: of its inputs and of the gradients at its outputs.

    Parameters
    ----------
    weight : Weight
    """

    def __init__(self, weight: Weight) -> None:
        self.weight = weight
        self._inputs: dict[bool, Inputs] = {}
        self._outputs: dict[bool, Sums] = {}
        self._looked: Tensor | None = None

    @property
    def reached(self) -> bool:
        """Whether the model has used the weight."""
        return bool(self._inputs) or self._looked is not None

    def see(self, use: Use, batches: int, seed: int) -> bool:
        """Add the inputs of a use. Returns whether all are finite.

        Parameters
        ----------
        use : Use
        batches : int
            How many batches there are in all.
        seed : int
        """
        if use.lookup:
            counts = torch.bincount(use.x.long(), minlength=self.weight.sizes[self.weight.axis(False)]).double()
            self._looked = counts if self._looked is None else self._looked + counts
            return True
        x, scale = vectors(use, batches, seed)
        if not x.shape[1]:
            return True
        if use.straight not in self._inputs:
            self._inputs[use.straight] = Inputs(use.matrices, x, self.weight.sizes[self.weight.axis(use.straight)])
        return self._inputs[use.straight].add(x, use, scale)

    def receive(self, use: Use, gradient: Tensor) -> bool:
        """Add the gradient at the output of a use. Returns whether all of it is finite."""
        assert use.arrange is not None
        g = use.arrange(gradient)
        if use.straight not in self._outputs:
            grouped = use.matrices != self.weight.matrices
            size = g.shape[-1] if grouped else self.weight.sizes[self.weight.axis(not use.straight)]
            self._outputs[use.straight] = Sums(use.matrices, size, diagonal=size > WIDEST)
        sums = self._outputs[use.straight]
        return sums.add(g, use.members, start=use.outputs)

    def moments(self, samples: int) -> Moments:
        """The moments.

        The inputs at the columns count if there are any, else those at the rows. A weight that is used in both ways
        keeps the first.
        """
        straight = True in self._inputs
        inputs = self._inputs.get(straight)
        outputs = self._outputs.get(straight)
        second, kernel, mean, count = inputs.moments() if inputs is not None else (None, None, None, 0.0)
        gradient = outputs.mean(samples).second if outputs else None
        columns, rows = (second, gradient) if straight else (gradient, second)
        looked = 0.0 if self._looked is None else float(self._looked.sum())
        seen = count if inputs is not None else looked
        return Moments(
            columns=self._narrow(columns),
            kernel=self._narrow(kernel),
            mean=self._narrow(mean),
            rows=self._narrow(rows),
            frequency=None if self._looked is None else self._narrow(self._looked / max(looked, 1.0)),
            count=round(seen),
            uses=seen / samples,
            lookups=looked / samples,
            transposed=not straight,
        )

    def _narrow(self, x: Tensor | None) -> Tensor | None:
        return None if x is None else narrow(x, self.weight.parameter.dtype)


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in the precision of a model, float32 at least."""
    return x.to(torch.promote_types(dtype, torch.float32))
