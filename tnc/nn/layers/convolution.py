"""Convolutions through their cores.

Some cores act on the input, some make a small kernel that slides over the result, the rest act on what comes out.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor, nn

from tnc.contract.convolution import Conv
from tnc.contract.cost import Device
from tnc.network import Network
from tnc.nn.layers.base import Factorized, leaf
from tnc.nn.layers.cores import Cores, Tensors
from tnc.nn.runtime import schedule
from tnc.nn.runtime.autograd import in_float32, tracked
from tnc.nn.runtime.convolve import Route, Window, convolve
from tnc.nn.runtime.formats import CONTIGUOUS, in_format, memory_format
from tnc.typing import Shape

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]


class _Convolution(Factorized):
    """The base of all convolutions: their schedule, and how a plan runs."""

    transposed: bool
    groups: int
    in_channels: int
    kernel_size: Shape
    stride: Shape
    dilation: Shape
    padding: Any
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]

    def _tnc_plans(self, rates: Device) -> schedule.Schedule:
        cores = self._tnc_cores
        if self.groups > 1 and not _per_group(cores.network, self.groups):
            return schedule.Schedule()  # the cores mix the groups, so only the rebuilt kernel can be used
        network, how = cores.network, self._tnc.execution
        return schedule.convolution(network, cores.shape, how, rates, self.transposed, prod(self.stride), self.groups)

    def _tnc_plan(self, input: Tensor, cores: Tensors, positions: int) -> Conv | None:
        """The plan for an input and this number of positions of the kernel; None where the dense kernel is used."""
        weight: Cores = self._modules["tnc_weight"]  # type: ignore[assignment]
        if input.dim() != len(weight.shape) or input.shape[1] != self.in_channels:
            return None  # no batch, or a wrong input, for which torch raises its error
        training = tracked(input, *cores)
        return self._tnc.schedule.plan(input.shape[0] * positions, training, training or weight.lasting(cores))

    def _tnc_convolved(self, input: Tensor, cores: Tensors, plan: Conv, padding: Shape, extent: Shape) -> Tensor:
        """Run a plan on an input (batch, in_channels, positions...). The output keeps the memory format."""
        weight: Cores = self._modules["tnc_weight"]  # type: ignore[assignment]
        window = Window(self.stride, padding, self.dilation, self.transposed, extent, weight.layout)
        route, bias = Route(plan, weight.network, weight.shape, window), self.bias

        def run(input: Tensor, cores: Tensors) -> Tensor:
            return convolve(route, input, bias if bias is None else bias.to(input.dtype), cores)

        output = in_float32(run, input, cores) if weight.recipe.deep else run(input, cores)
        format = memory_format(input)  # as in torch: channels last where the input or the kernel is
        return in_format(output, weight.layout if format == CONTIGUOUS else format)

    def _apply(self, fn: Any, recurse: bool = True) -> Factorized:
        """As in torch. ``to(memory_format=...)`` sets the memory format of the weight."""
        weight = self._tnc_cores
        sample = weight.held()[0].new_empty((2,) * len(weight.shape))
        weight.layout = memory_format(fn(in_format(sample, weight.layout)))
        return super()._apply(fn, recurse)


def _per_group(network: Network, groups: int) -> bool:
    """Whether each of so many groups has cores of its own: the first index of the channels stands in every core.

    The network decides, not the roles: a rule or a file may state groups that are not those of the layer.
    """
    index = network.axes[0][0]
    return network.sizes[index] == groups and all(index in core for core in network.operands) and network.feed is None


class _Conv(_Convolution):
    _conv_forward: Any

    @leaf
    def forward(self, input: Tensor) -> Tensor:
        """As in torch's layer, for inputs of shape (batch, in_channels, positions...) or without the batch."""
        cores = self._modules["tnc_weight"].held()
        ends = self._reversed_padding_repeated_twice  # these are numbers even where `padding` is a word such as "same"
        sides = tuple(zip(ends[::2], ends[1::2], strict=True))[::-1]
        axes = zip(input.shape[2:], sides, self.dilation, self.kernel_size, self.stride, strict=False)
        positions = [(n + sum(side) - d * (k - 1) - 1) // s + 1 for n, side, d, k, s in axes]
        plan = self._tnc_plan(input, cores, prod(positions))
        if plan is None:
            return self._conv_forward(input, self._tnc_weight(cores), self.bias)
        if self.padding_mode == "zeros" and all(near == far for near, far in sides):
            padding = tuple(near for near, _ in sides)
        else:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input, padding = nn.functional.pad(input, ends, mode=mode), (0,) * len(sides)
        return self._tnc_convolved(input, cores, plan, padding, (0,) * len(sides))


class _ConvTranspose(_Convolution):
    _output_padding: Any

    @leaf
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As in torch's layer, for inputs of shape (batch, in_channels, positions...) or without the batch."""
        if self.padding_mode != "zeros":
            raise ValueError(f"Only `zeros` padding mode is supported for {type(self).__name__}")  # as torch says
        cores, axes = self._modules["tnc_weight"].held(), len(self.kernel_size)
        plan = self._tnc_plan(input, cores, prod(input.shape[2:]))
        extent = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, axes, self.dilation
        )
        if plan is None:
            slide = getattr(nn.functional, f"conv_transpose{axes}d")
            weight = self._tnc_weight(cores)
            return slide(input, weight, self.bias, self.stride, self.padding, extent, self.groups, self.dilation)
        return self._tnc_convolved(input, cores, plan, self.padding, tuple(extent))


def _fast(base: type[nn.Module]) -> Any:
    """The class that replaces the torch layer `base`."""
    kind = _ConvTranspose if base.__name__.startswith("ConvTranspose") else _Conv
    described = {"__module__": __name__, "__doc__": f"`torch.nn.{base.__name__}` with a factorized kernel."}
    return type(base.__name__, (kind, base), {"_tnc_base": base, **described})


Conv1d, Conv2d, Conv3d = map(_fast, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
ConvTranspose1d, ConvTranspose2d, ConvTranspose3d = map(
    _fast, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
)
