"""Running a layer through its cores: convolutions and lookups, from plans made beforehand.

A convolution runs in three plans: some cores act on the input, some make the kernel that slides over the result, the
rest act on what comes out. Its gradient goes the same way back by hand, and keeps next to nothing but the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tnc.adjoint import pull, push
from tnc.contract import crop, pad
from tnc.network import Network
from tnc.nn.cores import PLAIN, arranged
from tnc.nn.native import xp
from tnc.nn.recompute import KEPT, autocast, casting, derived, own_precision, owned, tracked, transformed
from tnc.nn.scratch import room
from tnc.planner import Rows
from tnc.plans import Plan, run
from tnc.splits import Conv
from tnc.typing import Namespace, Shape

__all__ = ["Route", "Window", "convolve", "look_up"]


class Window(NamedTuple):
    """How a kernel slides over a map: arguments of torch's convolution, one number for each axis of the map."""

    stride: Shape
    padding: Shape
    dilation: Shape
    transposed: bool
    extent: Shape
    """Positions added at the far end of a transposed convolution's result."""
    layout: str = PLAIN
    """The memory format of the weight."""

    def slide(self, x: Tensor, kernel: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """The convolution."""
        _, cast, dtype = autocast(x.device.type)
        if cast and x.dtype != torch.float64:  # this entry of torch is none of autocast's
            x, kernel, bias = x.to(dtype), kernel.to(dtype), bias if bias is None else bias.to(dtype)
        return torch.convolution(
            x, kernel, bias, self.stride, self.padding, self.dilation, self.transposed, self.extent, groups
        )

    def back(self, gradient: Tensor, x: Tensor, kernel: Tensor, groups: int, wanted: Sequence[bool]) -> Sequence[Any]:
        """Gradients of `x` and `kernel`, None where not `wanted`."""
        x, kernel = x.to(gradient.dtype), kernel.to(gradient.dtype)
        geometry = self.stride, self.padding, self.dilation, self.transposed, self.extent, groups
        return torch.ops.aten.convolution_backward(gradient, x, kernel, None, *geometry, (*wanted, False))[:2]


class Route(NamedTuple):
    """A convolution's way through the cores; the methods bring tensors from one plan to the next.

    Attributes
    ----------
    made : Conv
    network : Network
    shape : tuple of int
        Shape of the weight.
    window : Window
    """

    made: Conv
    network: Network
    shape: Shape
    window: Window

    def operands(self, values: Sequence[Any]) -> list[list[Any]]:
        """What belongs to the cores that act first, make the kernel, act last."""
        return [[values[k] for k in part] for part in (self.made.early, self.made.inner, self.made.late)]

    def enter(self, input: Tensor) -> Tensor:
        """The input as the first plan takes it."""
        side, batch, positions = 0 if self.window.transposed else 1, input.shape[0], input.shape[2:]
        x = pad(input, (batch, self.network.shape[side], *positions), xp)
        return x.reshape(batch, *(self.network.sizes[i] for i in self.network.axes[side]), prod(positions))

    def across(self, u: Tensor, input: Tensor) -> Tensor:
        """The first plan's result as a map to slide over."""
        channels = self.made.groups * self.made.channels[1]
        return u.reshape(input.shape[0] * self.made.folded, channels, *input.shape[2:])

    def kernel(self, cores: Sequence[Tensor], kept: dict[int, Tensor] | None = None) -> Tensor:
        """The kernel of the middle convolution, in its cores' own precision; what leads to it goes to `kept`."""
        with own_precision(cores[0]):
            kernel = run(self.made.middle, cores, xp) if kept is None else _all(self.made.middle, cores, kept)
        out, into = self.made.channels
        first, second = (into, out) if self.window.transposed else (out, into)
        kernel = kernel.reshape(self.made.groups * first, second, *self.network.shape[2:])
        kernel = crop(kernel, (*kernel.shape[:2], *self.shape[2:]))
        whole = not self.made.early and not self.made.late  # torch takes the map's memory format from the kernel's, too
        return arranged(kernel, self.window.layout if whole else PLAIN)

    def onward(self, y: Tensor, input: Tensor) -> Tensor:
        """The convolved map as the last plan takes it."""
        return y.reshape(input.shape[0], *self.made.unfolded, prod(y.shape[2:]))

    def leave(self, z: Tensor, positions: Shape) -> Tensor:
        """The last plan's result as the layer's output."""
        side = 1 if self.window.transposed else 0
        z = z.reshape(z.shape[0], self.network.shape[side], *positions)
        return crop(z, (z.shape[0], self.shape[side], *positions))

    @property
    def direct(self) -> bool:
        """Whether the middle convolution gives the output itself."""
        side = 1 if self.window.transposed else 0
        return self.made.direct and self.network.shape[side] == self.shape[side]


def convolve(route: Route, input: Tensor, bias: Tensor | None, cores: Sequence[Tensor]) -> Tensor:
    """A convolution through the cores, of input (batch, channels, positions...)."""
    if not transformed() and tracked(input, *cores, *(() if bias is None else (bias,))):
        return _Convolved.apply(route, input, bias, *cores)
    return _composed(route, bias, input, *cores)


def _composed(route: Route, bias: Tensor | None, input: Tensor, *cores: Tensor) -> Tensor:
    """The convolution in torch's own operations."""
    early, inner, late = route.operands(cores)
    x = route.across(run(route.made.before, [route.enter(input), *early], xp), input)
    y = route.window.slide(x, route.kernel(inner), bias if route.direct else None, route.made.groups)
    z = route.leave(run(route.made.after, [route.onward(y, input), *late], xp), y.shape[2:])
    return z if bias is None or route.direct else _shifted(z, bias, transformed())


def _all(plan: Plan, arrays: Sequence[Tensor], kept: dict[int, Tensor], space: Namespace = xp) -> Tensor:
    """Run a plan, and add its intermediates to `kept`, made in `space` as the result is."""
    result, values = push(plan, arrays, space, inf)
    kept.update(values)
    return result


def _shifted(z: Tensor, bias: Tensor, functional: bool = False) -> Tensor:
    """Add a bias, in the memory of `z` unless torch's transforms forbid it."""
    bias = bias.to(z.dtype).reshape(-1, *(1 for _ in z.shape[2:]))
    return z + bias if functional else z.add_(bias)


class _Convolved(torch.autograd.Function):
    """`convolve`; keeps its arguments, and what lies between as long as it is small beside the input."""

    @staticmethod
    def forward(ctx: Any, route: Route, input: Tensor, bias: Tensor | None, *cores: Tensor) -> Tensor:
        made, (early, inner, late) = route.made, route.operands(cores)
        ctx.route, ctx.cast = route, autocast(input.device.type)
        with room() as scratch:
            x = route.across(run(made.before, [route.enter(input), *early], xp), input)
            kernel = route.kernel(inner)
            y = route.window.slide(x, kernel, bias if route.direct else None, made.groups)
            z, small = push(made.after, [route.onward(y, input), *late], xp, KEPT * input.numel() / 4, scratch)
        z, kept, left = route.leave(z, y.shape[2:]), dict(small), KEPT * input.numel()
        left -= sum(t.numel() for t in small.values())
        worth = {"y": y} if late else {}  # what takes longest to make again comes first
        worth |= {"kernel": kernel} if made.middle.steps else {}
        worth |= {"x": x} if made.before.steps else {}
        for name, value in worth.items():
            if value.numel() <= left:
                kept[name], left = value, left - value.numel()
        ctx.kept, ctx.type = tuple(kept), None if bias is None else bias.dtype
        ctx.save_for_backward(input, *cores, *kept.values())
        return owned(z if bias is None or route.direct else _shifted(z, bias))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _, first, shift, *needed = ctx.needs_input_grad
        input, *saved = ctx.saved_tensors  # torch's checkpoints allow one look only
        cores, kept = saved[: len(needed)], dict(zip(ctx.kept, saved[len(needed) :], strict=True))
        with casting(ctx.cast), room() as scratch:
            if torch.is_grad_enabled() and any((first, *needed)):  # the gradient shall have one
                plain = partial(_composed, ctx.route, None)
                found = derived(plain, (input, *cores), (first, *needed), gradient)
            else:
                found = _back(ctx.route, input, cores, kept, gradient, (first, *needed), scratch)
        total = gradient.sum((0, *range(2, gradient.dim()))).to(ctx.type) if shift else None
        into, *grads = [g if g is None else g.to(t.dtype) for g, t in zip(found, (input, *cores), strict=True)]
        return None, into, total, *grads


def _back(
    route: Route,
    input: Tensor,
    cores: Sequence[Tensor],
    kept: dict[Any, Tensor],
    gradient: Tensor,
    needed: Sequence[bool],
    scratch: Namespace,
) -> list[Tensor | None]:
    """Gradients of the input and of the cores."""
    made, window, first = route.made, route.window, needed[0]
    early, inner, late = route.operands(cores)
    before, middle, after = route.operands(needed[1:])
    entered = route.enter(input)
    up: dict[int, Tensor] = {}
    core: dict[int, Tensor] = {}
    x, kernel = kept.get("x"), kept.get("kernel")
    if x is None:
        x = route.across(_all(made.before, [entered, *early], up, scratch), input)
    kernel = route.kernel(inner, core) if kernel is None else kernel
    y = kept["y"] if "y" in kept else _slid(route, x, kernel, gradient, any(after))
    small = {k: value for k, value in kept.items() if isinstance(k, int)}
    side = 1 if window.transposed else 0
    wide = pad(gradient, (gradient.shape[0], route.network.shape[side], *gradient.shape[2:]), xp)
    back, *last = pull(made.after, [route.onward(y, input), *late], small, wide, [True, *after], xp, scratch)
    assert back is not None
    wanted = first or any(before), any(middle)
    down, slid = window.back(back.reshape(y.shape), x, kernel, made.groups, wanted)
    into, *lead = [None] * (1 + len(early))
    if wanted[0]:
        into, *lead = pull(made.before, [entered, *early], up, down, [first, *before], xp, scratch)
    if into is not None:
        into = into.reshape(input.shape[0], route.network.shape[1 - side], *input.shape[2:])
        into = crop(into, tuple(input.shape))
    body: list[Any] = [None] * len(inner)
    if wanted[1]:
        whole = pad(slid.to(inner[0].dtype), (*slid.shape[:2], *route.network.shape[2:]), xp)
        with own_precision(inner[0]):
            body = pull(made.middle, inner, core, whole, middle, xp, scratch)
    grads = dict(zip((*made.early, *made.inner, *made.late), (*lead, *body, *last), strict=True))
    return [into, *(grads[k] for k in range(len(cores)))]


def _slid(route: Route, x: Tensor, kernel: Tensor, gradient: Tensor, wanted: bool) -> Tensor:
    """The convolved map, or where it is not `wanted` a tensor of its shape that takes no memory."""
    if wanted:
        return route.window.slide(x, kernel, None, route.made.groups)
    channels = route.made.groups * route.made.channels[0]
    return gradient.new_empty(()).expand(x.shape[0], channels, *gradient.shape[2:])


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
