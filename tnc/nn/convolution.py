"""Convolutions through their cores: some act on the input, some make a small kernel, the rest act on the result."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor, nn

from tnc.cost import Device
from tnc.nn import execution
from tnc.nn.cores import PLAIN, arranged, layout
from tnc.nn.factorized import Factorized
from tnc.nn.recompute import tracked
from tnc.nn.through import Route, Window, convolve
from tnc.splits import Conv
from tnc.typing import Shape

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]


class _Convolution(Factorized):
    """What all share: the schedule, and how a plan runs."""

    transposed: bool
    groups: int
    in_channels: int
    kernel_size: Shape
    stride: Shape
    dilation: Shape
    padding: Any
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]

    def plans(self, rates: Device) -> execution.Schedule:
        cores = self.cores
        if self.groups > 1:  # the decomposition mixes channels across groups: only the whole kernel respects them
            return execution.Schedule()
        return execution.convolution(
            cores.network, cores.shape, self.execution, rates, self.transposed, prod(self.stride)
        )

    def planned(self, input: Tensor, positions: int) -> Conv | None:
        """The plan for an input over so many places of the kernel, or None where the kernel is rebuilt."""
        if input.dim() != len(self.cores.shape) or input.shape[1] != self.in_channels:
            return None  # no batch, or an input that torch refuses: in its own words
        return self.schedule.plan(input.shape[0] * positions, tracked(input, *self.cores))

    def through(self, input: Tensor, made: Conv, padding: Shape, extent: Shape) -> Tensor:
        """Run a plan, keep the memory format."""
        window = Window(self.stride, padding, self.dilation, self.transposed, extent, self.cores.layout)
        route = Route(made, self.cores.network, self.cores.shape, window)
        output = convolve(route, input, self._parameters["bias"], tuple(self.cores))
        form = layout(input)  # torch's answer is channels last where input or kernel is
        return arranged(output, self.cores.layout if form == PLAIN else form)

    def _apply(self, fn: Any, recurse: bool = True) -> Factorized:
        """As torch's; ``to(memory_format=...)`` is meant for the weight."""
        sample = next(iter(self.cores)).new_empty((2,) * len(self.cores.shape))
        self.cores.layout = layout(fn(arranged(sample, self.cores.layout)))
        return super()._apply(fn, recurse)


class _Conv(_Convolution):
    def forward(self, input: Tensor) -> Tensor:
        """As torch's layer, for inputs of shape (batch, in_channels, positions...) or without the batch."""
        ends = self._reversed_padding_repeated_twice  # numbers, also where `padding` is a word
        sides = tuple(zip(ends[::2], ends[1::2], strict=True))[::-1]
        axes = zip(input.shape[2:], sides, self.dilation, self.kernel_size, self.stride, strict=False)
        made = self.planned(input, prod([(n + sum(side) - d * (k - 1) - 1) // s + 1 for n, side, d, k, s in axes]))
        if made is None:
            return super().forward(input)
        if self.padding_mode == "zeros" and all(near == far for near, far in sides):
            padding = tuple(near for near, _ in sides)
        else:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input, padding = nn.functional.pad(input, ends, mode=mode), (0,) * len(sides)
        return self.through(input, made, padding, (0,) * len(sides))


class _ConvTranspose(_Convolution):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As torch's layer, for inputs of shape (batch, in_channels, positions...) or without the batch."""
        made = self.planned(input, prod(input.shape[2:]))
        if made is None:
            return super().forward(input, output_size)
        extent = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, len(self.kernel_size), self.dilation
        )
        return self.through(input, made, self.padding, tuple(extent))


def _fast(base: type[nn.Module]) -> Any:
    """The class that stands for torch's `base`."""
    kind = _ConvTranspose if base.__name__.startswith("ConvTranspose") else _Conv
    described = {"__module__": __name__, "__doc__": f"`torch.nn.{base.__name__}` with a factorized kernel."}
    return type(base.__name__, (kind, base), {"base": base, **described})


Conv1d, Conv2d, Conv3d = map(_fast, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
ConvTranspose1d, ConvTranspose2d, ConvTranspose3d = map(
    _fast, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
)
