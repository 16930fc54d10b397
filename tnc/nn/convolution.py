"""Convolutions through their cores: some act on the input, some make a small kernel, the rest act on the result."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tnc.cost import Device
from tnc.nn import execution
from tnc.nn.factorized import Factorized
from tnc.nn.recompute import recomputed, tracked
from tnc.nn.through import convolve
from tnc.planner import Conv

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]

_FORWARD: dict[int, Any] = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}
_TRANSPOSED: dict[int, Any] = {
    1: nn.functional.conv_transpose1d,
    2: nn.functional.conv_transpose2d,
    3: nn.functional.conv_transpose3d,
}


class _Convolution(Factorized):
    """What all share: the schedule, and how a plan runs."""

    transposed: bool
    groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Any
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]

    def plans(self, rates: Device) -> execution.Schedule:
        cores = self.cores
        if self.groups > 1:  # the decomposition mixes channels across groups: only the whole kernel respects them
            return execution.Schedule()
        return execution.convolution(cores.network, cores.shape, self.execution, rates, self.transposed)

    def planned(self, input: Tensor) -> Conv | None:
        """The plan for an input, or None where the kernel is rebuilt."""
        if input.dim() < len(self.cores.shape):  # no batch
            return None
        return self.schedule.plan(prod(input.shape[2:]) * input.shape[0], tracked(input, *self.cores))

    def through(self, input: Tensor, made: Conv, function: Callable[..., Tensor]) -> Tensor:
        """Run a plan, keep the memory format, add the bias."""

        def run(input: Tensor, *cores: Tensor) -> Tensor:
            return convolve(input, cores, self.cores.network, made, self.cores.shape, function, self.transposed)

        output = recomputed(run, input, *self.cores)
        if input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous():
            output = output.contiguous(memory_format=torch.channels_last)
        if self._parameters["bias"] is None:
            return output
        return output + self.bias.to(output.dtype).reshape(-1, *(1 for _ in self.kernel_size))


class _Conv(_Convolution):
    def forward(self, input: Tensor) -> Tensor:
        """As torch's layer, for inputs of shape (batch, in_channels, positions...) or without the batch."""
        made = self.planned(input)
        if made is None:
            return super().forward(input)
        padding = self.padding
        if self.padding_mode != "zeros":
            input = nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0

        def function(x: Tensor, kernel: Tensor, groups: int) -> Tensor:
            return _FORWARD[kernel.dim() - 2](x, kernel, None, self.stride, padding, self.dilation, groups)

        return self.through(input, made, function)


class _ConvTranspose(_Convolution):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As torch's layer, for inputs of shape (batch, in_channels, positions...) or without the batch."""
        made = self.planned(input)
        if made is None:
            return super().forward(input, output_size)
        extent = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, len(self.kernel_size), self.dilation
        )

        def function(x: Tensor, kernel: Tensor, groups: int) -> Tensor:
            transposed = _TRANSPOSED[kernel.dim() - 2]
            return transposed(x, kernel, None, self.stride, self.padding, extent, groups, self.dilation)

        return self.through(input, made, function)


class Conv1d(_Conv, nn.Conv1d):
    """`torch.nn.Conv1d` with a factorized kernel."""

    base = nn.Conv1d


class Conv2d(_Conv, nn.Conv2d):
    """`torch.nn.Conv2d` with a factorized kernel."""

    base = nn.Conv2d


class Conv3d(_Conv, nn.Conv3d):
    """`torch.nn.Conv3d` with a factorized kernel."""

    base = nn.Conv3d


class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with a factorized kernel."""

    base = nn.ConvTranspose1d


class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with a factorized kernel."""

    base = nn.ConvTranspose2d


class ConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with a factorized kernel."""

    base = nn.ConvTranspose3d
