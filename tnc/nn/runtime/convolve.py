"""Run a convolution through its cores, by plans that were chosen before.

There are three plans. In the first, some cores act on the input. In the second, other cores make the kernel that slides
over the result. In the third, the remaining cores act on what comes out. The backward pass goes through the same plans
in reverse order. Little more than the input is kept for it.

Shapes: a feature map is (batch, channels, positions...). Inside a plan its positions are one axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial, reduce
from math import inf, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tnc.contract.convolution import Conv
from tnc.contract.executor import Executor
from tnc.contract.padding import crop, pad
from tnc.network import Network
from tnc.nn.runtime.autograd import (
    KEPT_SHARE,
    PLAIN,
    autocast,
    casting,
    gradients,
    not_a_view,
    own_precision,
    tracked,
    transformed,
)
from tnc.nn.runtime.formats import CONTIGUOUS, in_format
from tnc.nn.runtime.namespace import workspace, xp
from tnc.typing import Shape

__all__ = ["Route", "Window", "convolve"]

Tensors = Sequence[Tensor]
Flags = Sequence[bool]
Kept = dict[Any, Tensor]
"""Tensors kept for the backward pass: intermediates of the last plan by number, the maps ``x`` and ``y`` by name."""


class Window(NamedTuple):
    """The arguments of torch's convolution, with one number for each axis of positions."""

    stride: Shape
    padding: Shape
    dilation: Shape
    transposed: bool
    extent: Shape
    """Positions added at the end of the result of a transposed convolution (``output_padding``)."""
    format: str = CONTIGUOUS
    """The memory format of the weight."""

    def slide(self, x: Tensor, kernel: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """The convolution of a map with a kernel.

        Parameters
        ----------
        x : Tensor (batch, channels, positions...)
        kernel : Tensor
            Of the shape that torch needs.
        bias : Tensor (channels out), optional
        groups : int

        Returns
        -------
        Tensor (batch, channels out, positions...)
        """
        _, cast, dtype = autocast(x.device.type)
        if cast and x.dtype != torch.float64:  # autocast does not act on torch.convolution
            x, kernel = x.to(dtype), kernel.to(dtype)
            bias = bias if bias is None else bias.to(dtype)
        return torch.convolution(
            x, kernel, bias, self.stride, self.padding, self.dilation, self.transposed, self.extent, groups
        )

    def back(self, gradient: Tensor, x: Tensor, kernel: Tensor, groups: int, wanted: Flags) -> Sequence[Any]:
        """Gradients of the map and of the kernel.

        Parameters
        ----------
        gradient : Tensor
            The gradient of the result.
        x : Tensor (batch, channels, positions...)
            The map.
        kernel : Tensor
        groups : int
        wanted : sequence of bool
            Whether the gradients of the map and of the kernel are needed.

        Returns
        -------
        sequence of Tensor or None
            None where a gradient is not needed.
        """
        x, kernel = x.to(gradient.dtype), kernel.to(gradient.dtype)
        geometry = self.stride, self.padding, self.dilation, self.transposed, self.extent, groups
        return torch.ops.aten.convolution_backward(gradient, x, kernel, None, *geometry, (*wanted, False))[:2]


class Route(NamedTuple):
    """A convolution through its cores. The methods reshape the result of one plan for the next one.

    Attributes
    ----------
    plan : Conv
    network : Network
    shape : tuple of int
        Shape of the weight.
    window : Window
    """

    plan: Conv
    network: Network
    shape: Shape
    window: Window

    @property
    def source(self) -> int:
        """The axis of the weight that has the channels of the input."""
        return 0 if self.window.transposed else 1

    def channels(self, axis: int, shape: Shape) -> int:
        """Number of channels of all groups along an axis of a weight. The second axis has the channels of one group."""
        return shape[axis] * (self.plan.copies if axis == 1 else 1)

    def pieces(self, *maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The maps, split along the batch into pieces of a size that is fast to run at once."""
        positions = prod(maps[0].shape[2:]) // (1 if self.window.transposed else prod(self.window.stride))
        images = max(1, self.plan.places // max(1, positions))
        return zip(*(m.split(images) if images < len(m) else (m,) for m in maps), strict=True)

    def parts(self, values: Sequence[Any]) -> list[list[Any]]:
        """Values of the cores that act first, of those that make the kernel, and of those that act last."""
        return [[values[k] for k in part] for part in (self.plan.early, self.plan.inner, self.plan.late)]

    def before_operand(self, input: Tensor) -> Tensor:
        """The input in the shape that the first plan needs: (batch, channel indices..., positions)."""
        batch, positions = input.shape[0], input.shape[2:]
        x = pad(input, (batch, self.channels(self.source, self.network.shape), *positions), xp)
        return x.reshape(batch, *self.plan.entering, prod(positions))

    def middle_map(self, u: Tensor, input: Tensor) -> Tensor:
        """The result of the first plan as the map that is convolved. Folded channels are part of its batch."""
        channels = self.plan.groups * self.plan.channels[1]
        return u.reshape(input.shape[0] * self.plan.folded, channels, *input.shape[2:])

    def kernel(self, cores: Tensors, kept: Kept | None = None) -> Tensor:
        """The kernel of the middle convolution, in the precision of its cores. Intermediates are added to `kept`."""
        with own_precision(cores[0]):
            kernel, values = PLAIN.forward(self.plan.middle, cores, 0 if kept is None else inf)
        if kept is not None:
            kept.update(values)
        out, into = self.plan.channels
        first, second = (into, out) if self.window.transposed else (out, into)
        kernel = kernel.reshape(self.plan.groups * first, second, *self.network.shape[2:])
        kernel = crop(kernel, (*kernel.shape[:2], *self.shape[2:]))
        # in torch the memory format of the kernel, too, decides that of the result
        whole = not self.plan.early and not self.plan.late
        return in_format(kernel, self.window.format if whole else CONTIGUOUS)

    def after_operand(self, y: Tensor, input: Tensor) -> Tensor:
        """The convolved map in the shape that the last plan needs: (batch, channel indices..., positions)."""
        return y.reshape(input.shape[0], *self.plan.unfolded, prod(y.shape[2:]))

    def output(self, z: Tensor, positions: Shape) -> Tensor:
        """The result of the last plan as the output of the layer: (batch, channels out, positions...)."""
        target = 1 - self.source
        z = z.reshape(z.shape[0], self.channels(target, self.network.shape), *positions)
        return crop(z, (z.shape[0], self.channels(target, self.shape), *positions))

    @property
    def direct(self) -> bool:
        """Whether the result of the middle convolution is the output of the layer."""
        target = 1 - self.source
        return self.plan.direct and self.network.shape[target] == self.shape[target]


def convolve(route: Route, input: Tensor, bias: Tensor | None, cores: Tensors) -> Tensor:
    """A convolution through the cores.

    Parameters
    ----------
    route : Route
    input : Tensor (batch, channels, positions...)
    bias : Tensor (channels out), optional
    cores : sequence of Tensor
        Of the shapes that the network states.

    Returns
    -------
    Tensor (batch, channels out, positions...)
    """
    if transformed():
        return _composed(route, bias, input, *cores)
    if tracked(input, *cores, *(() if bias is None else (bias,))):
        return _Convolved.apply(route, input, bias, *cores)
    kernel = route.kernel(route.parts(cores)[1])
    return _joined([_forward(route, kernel, bias, piece, cores)[0] for (piece,) in route.pieces(input)])


def _composed(route: Route, bias: Tensor | None, input: Tensor, *cores: Tensor) -> Tensor:
    """The convolution in torch operations, which autograd and torch's transforms can follow."""
    early, inner, late = route.parts(cores)
    x = route.middle_map(PLAIN.run(route.plan.before, [route.before_operand(input), *early]), input)
    y = route.window.slide(x, route.kernel(inner), bias if route.direct else None, route.plan.groups)
    z = route.output(PLAIN.run(route.plan.after, [route.after_operand(y, input), *late]), y.shape[2:])
    return z if bias is None or route.direct else _with_bias(z, bias, transformed())


def _joined(pieces: Tensors) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(tuple(pieces))


def _with_bias(z: Tensor, bias: Tensor, functional: bool = False) -> Tensor:
    """Add a bias, in place unless torch's transforms forbid it (`functional`)."""
    bias = bias.to(z.dtype).reshape(-1, *(1 for _ in z.shape[2:]))
    return z + bias if functional else z.add_(bias)


class _Convolved(torch.autograd.Function):
    """`convolve` with gradients. Keeps the arguments, and intermediates that are small compared with the input."""

    @staticmethod
    def forward(ctx: Any, route: Route, input: Tensor, bias: Tensor | None, *cores: Tensor) -> Tensor:
        ctx.route, ctx.cast, ctx.type = route, autocast(input.device.type), None if bias is None else bias.dtype
        kernel = route.kernel(route.parts(cores)[1])
        left = KEPT_SHARE * input.numel()
        kept: list[Kept] = [{}]
        if route.plan.middle.steps and kernel.numel() <= left:
            kept[0]["kernel"], left = kernel, left - kernel.numel()
        share = left / max(1, len(input))
        results = [_forward(route, kernel, bias, piece, cores, share * len(piece)) for (piece,) in route.pieces(input)]
        outputs, values = zip(*results, strict=True)
        kept += values
        ctx.kept = [tuple(values) for values in kept]
        ctx.save_for_backward(input, *cores, *(t for values in kept for t in values.values()))
        return not_a_view(_joined(outputs))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _, first, shift, *needed = ctx.needs_input_grad
        input, *saved = ctx.saved_tensors  # read once: torch's checkpoints do not allow a second time
        cores, values = saved[: len(needed)], iter(saved[len(needed) :])
        kept = [{name: next(values) for name in names} for names in ctx.kept]
        if torch.is_grad_enabled() and any((first, *needed)):  # the gradients will be differentiated again
            plain = partial(_composed, ctx.route, None)
            grads = gradients(plain, (input, *cores), (first, *needed), gradient, ctx.cast)
        else:
            with casting(ctx.cast):
                grads = _backward(ctx.route, input, cores, kept, gradient, (first, *needed))
        total = gradient.sum((0, *range(2, gradient.dim()))).to(ctx.type) if shift else None
        into, *outer = [g if g is None else g.to(t.dtype) for g, t in zip(grads, (input, *cores), strict=True)]
        return None, into, total, *outer


def _forward(
    route: Route, kernel: Tensor, bias: Tensor | None, input: Tensor, cores: Tensors, left: float = 0
) -> tuple[Tensor, Kept]:
    """The output for a piece of the input, and the intermediates to keep: at most `left` entries together."""
    plan, (early, _, late) = route.plan, route.parts(cores)
    x = route.middle_map(PLAIN.run(plan.before, [route.before_operand(input), *early]), input)
    y = route.window.slide(x, kernel, bias if route.direct else None, plan.groups)
    with workspace() as executor:
        z, small = executor.forward(plan.after, [route.after_operand(y, input), *late], left / 4)
    z, kept = route.output(z, y.shape[2:]), dict[Any, Tensor](small)
    left -= sum(t.numel() for t in small.values())
    # First the map that takes longer to compute again.
    for name, value, costly in (("y", y, late), ("x", x, plan.before.steps)):
        if costly and value.numel() <= left:
            kept[name], left = value, left - value.numel()
    return z if bias is None or route.direct else _with_bias(z, bias), kept


def _backward(
    route: Route, input: Tensor, cores: Tensors, kept: Sequence[Kept], gradient: Tensor, needed: Flags
) -> list[Tensor | None]:
    """Gradients of the input and of the cores."""
    plan, inner, middle = route.plan, route.parts(cores)[1], route.parts(needed[1:])[1]
    intermediates: Kept = {}  # intermediates of the kernel
    kernel = kept[0]["kernel"] if kept[0] else route.kernel(inner, intermediates)
    pieces = []
    for (piece, g), values in zip(route.pieces(input, gradient), kept[1:], strict=True):
        with workspace() as executor:
            pieces.append(_piece_backward(route, piece, cores, kernel, values, g, needed, executor))
    into, slid, *outer = (None if parts[0] is None else parts for parts in zip(*pieces, strict=True))
    body: list[Tensor | None] = [None] * len(inner)
    if slid:
        total = reduce(torch.add, slid).to(inner[0].dtype)
        whole = pad(total, (*total.shape[:2], *route.network.shape[2:]), xp)
        with own_precision(inner[0]), workspace() as executor:
            body = executor.backward(plan.middle, inner, intermediates, whole, middle)
    around = [None if parts is None else reduce(torch.add, parts) for parts in outer]
    grads = dict(zip((*plan.early, *plan.late, *plan.inner), (*around, *body), strict=True))
    return [None if into is None else _joined(into), *(grads[k] for k in range(len(cores)))]


def _piece_backward(
    route: Route,
    input: Tensor,
    cores: Tensors,
    kernel: Tensor,
    kept: Kept,
    g: Tensor,
    needed: Flags,
    executor: Executor,
) -> list[Tensor | None]:
    """Gradients of a piece of the input, of the kernel, and of the cores that act before and after it."""
    plan, window, first = route.plan, route.window, needed[0]
    early, _, late = route.parts(cores)
    before, middle, after = route.parts(needed[1:])
    entered = route.before_operand(input)
    intermediates: Kept = {}  # intermediates of the map x
    x = kept.get("x")
    if x is None:
        u, intermediates = Executor(executor.workspace or xp).forward(plan.before, [entered, *early], inf)
        x = route.middle_map(u, input)
    y = kept.get("y")
    if y is None and any(after):
        y = window.slide(x, kernel, None, plan.groups)
    if y is None:  # only its shape is needed: a tensor that takes no memory
        y = g.new_empty(()).expand(x.shape[0], plan.groups * plan.channels[0], *g.shape[2:])
    small = {k: value for k, value in kept.items() if isinstance(k, int)}
    wide = pad(g, (g.shape[0], route.channels(1 - route.source, route.network.shape), *g.shape[2:]), xp)
    back, *last = executor.backward(plan.after, [route.after_operand(y, input), *late], small, wide, [True, *after])
    assert back is not None
    wanted = first or any(before), any(middle)
    down, slid = window.back(back.reshape(y.shape), x, kernel, plan.groups, wanted)
    into, *lead = [None] * (1 + len(early))
    if wanted[0]:
        into, *lead = executor.backward(plan.before, [entered, *early], intermediates, down, [first, *before])
    if into is not None:
        into = into.reshape(input.shape[0], route.channels(route.source, route.network.shape), *input.shape[2:])
        into = crop(into, tuple(input.shape))
    return [into, slid, *lead, *last]
