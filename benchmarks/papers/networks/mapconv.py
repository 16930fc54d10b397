"""A convolution as a dense map of the flattened feature map, the layer that the MPO paper replaces.

A convolution is linear; on maps of a fixed size it is one matrix with h·w·c columns and h'·w'·c' rows, block-Toeplitz
because the kernel is shared between places. Written out as a matrix, the sharing is given up: the factorized layer is
a small fully-connected one.

References
----------
Gao et al., "Compressing deep neural networks by matrix product operators", arXiv 1904.06194; rows and columns stand
in the order of its code: height, width, channel.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn

__all__ = ["ChannelsLastFlatten", "MapConv", "Shape"]

Shape = tuple[int, int, int]
"""Height, width, channels."""


class ChannelsLastFlatten(nn.Module):
    """``float[n, c, h, w]`` to ``float[n, h·w·c]``: the channel varies fastest, as in the papers' code."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


class MapConv(nn.Module):
    """``W vec(x)`` for the channels-last flattened feature map x; W is ``linear.weight``, for rules to factorize.

    Parameters
    ----------
    inputs, outputs : (height, width, channels)
        W has h·w·c columns and h'·w'·c' rows.
    linear : callable, optional
        ``linear(columns, rows, bias=False)`` makes the layer that holds W. For a W too large to exist:
        `torch.nn.Linear` on the meta device until `tnc.nn.tensorize` gives it cores, or `tnc.nn.Linear`.
    """

    def __init__(self, inputs: Shape, outputs: Shape, linear: Callable[..., nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.flat = ChannelsLastFlatten()
        self.linear = linear(prod(inputs), prod(outputs), bias=False)

    @classmethod
    @torch.no_grad()
    def of(cls, conv: nn.Conv2d, height: int, width: int) -> MapConv:
        """The dense map that equals `conv`, which has no bias, on feature maps of that size."""
        if conv.bias is not None:
            raise ValueError(f"{conv} has a bias, the same at every place; a map has none.")
        inputs = (height, width, conv.in_channels)
        unit = torch.eye(prod(inputs)).reshape(-1, *inputs).permute(0, 3, 1, 2)
        columns = conv(unit.to(conv.weight)).permute(0, 2, 3, 1)
        made = cls(inputs, tuple(columns.shape[1:]))
        made.linear.weight.copy_(columns.flatten(1).T)
        return made.to(conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``float[n, c, h, w]`` to ``float[n, c', h', w']``."""
        h, w, c = self.inputs
        if x.shape[1:] != (c, h, w):
            raise ValueError(f"MapConv is made for maps of shape {(c, h, w)}, not {tuple(x.shape[1:])}.")
        return self.linear(self.flat(x)).unflatten(1, self.outputs).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"{self.inputs} -> {self.outputs}"
