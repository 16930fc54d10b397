"""Running a layer through its cores: linear maps, convolutions and lookups, from plans made beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from tnc.contract import pad
from tnc.network import Network
from tnc.nn.recompute import own_precision
from tnc.planner import Conv, Rows
from tnc.plans import run
from tnc.typing import Shape

__all__ = ["convolve", "look_up"]


def convolve(
    input: Tensor,
    cores: Sequence[Tensor],
    network: Network,
    made: Conv,
    shape: Shape,
    function: Callable[..., Tensor],
    transposed: bool,
) -> Tensor:
    """A convolution without bias through the cores.

    Parameters
    ----------
    input : Tensor (batch, channels, positions...)
    made : Conv
    shape : tuple of int
        Shape of the weight.
    function : callable
        ``function(input, kernel, groups)``: torch's convolution with stride, padding and dilation bound.
    transposed : bool
        Whether the weight's first axis is the input's.
    """
    source, target = (0, 1) if transposed else (1, 0)
    size, batch = network.sizes, input.shape[0]
    x = pad(input, (batch, network.shape[source], *input.shape[2:]), xp)
    x = x.reshape(batch, *(size[i] for i in network.axes[source]), prod(input.shape[2:]))
    x = run(made.before, [x, *(cores[k] for k in made.early)], xp)
    out, into = made.channels
    x = x.reshape(batch * made.folded, made.groups * into, *input.shape[2:])
    kernel = run(made.middle, [cores[k] for k in made.inner], xp)
    first, second = (made.groups * into, out) if transposed else (made.groups * out, into)
    y = function(x, kernel.reshape(first, second, *network.shape[2:]), made.groups)
    positions = y.shape[2:]
    y = y.reshape(batch, *made.unfolded, prod(positions))
    y = run(made.after, [y, *(cores[k] for k in made.late)], xp)
    y = y.reshape(batch, network.shape[target], *positions)
    return y if shape[target] == network.shape[target] else y[:, : shape[target]]


def look_up(indices: Tensor, *cores: Tensor, made: Rows, columns: int) -> Tensor:
    """Rows of the weight: `indices` of shape (n,) to (n, columns); the weight itself is never made."""
    gathered: list[Any] = []
    with own_precision(cores[0]):
        for (group, merge), digits in zip(made.groups, made.digits, strict=True):
            core = run(merge, [cores[k] for k in group], xp)
            if digits:
                row = torch.zeros_like(indices)
                for stride, size in digits:
                    row = row * size + indices // stride % size
                core = core.flatten(0, len(digits) - 1).index_select(0, row)
            gathered.append(core)
        return run(made.last, gathered, xp).flatten(1)[:, :columns]
