"""Running a layer through its cores: convolutions and lookups, from plans made beforehand.

A convolution runs in three plans: some cores act on the input, some make the kernel that slides over the result, the
rest act on what comes out. Its gradient goes the same way back by hand, and keeps next to nothing but the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial, reduce
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

Tensors = Sequence[Tensor]
Flags = Sequence[bool]
Values = dict[Any, Tensor]


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

    def pieces(self, *maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The input, and what belongs to its images, by as many images as are best run at a time."""
        places = prod(maps[0].shape[2:]) // (1 if self.window.transposed else prod(self.window.stride))
        images = max(1, self.made.places // max(1, places))
        return zip(*(m.split(images) if images < len(m) else (m,) for m in maps), strict=True)

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
    if transformed():
        return _composed(route, bias, input, *cores)
    if tracked(input, *cores, *(() if bias is None else (bias,))):
        return _Convolved.apply(route, input, bias, *cores)
    kernel = route.kernel(route.operands(cores)[1])
    return _joined([_forth(route, kernel, bias, piece, cores)[0] for (piece,) in route.pieces(input)])


def _composed(route: Route, bias: Tensor | None, input: Tensor, *cores: Tensor) -> Tensor:
    """The convolution in torch's own operations."""
    early, inner, late = route.operands(cores)
    x = route.across(run(route.made.before, [route.enter(input), *early], xp), input)
    y = route.window.slide(x, route.kernel(inner), bias if route.direct else None, route.made.groups)
    z = route.leave(run(route.made.after, [route.onward(y, input), *late], xp), y.shape[2:])
    return z if bias is None or route.direct else _shifted(z, bias, transformed())


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(tuple(pieces))


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
        ctx.route, ctx.cast, ctx.type = route, autocast(input.device.type), None if bias is None else bias.dtype
        kernel = route.kernel(route.operands(cores)[1])
        left = KEPT * input.numel()
        kept: list[Values] = [{}]
        if route.made.middle.steps and kernel.numel() <= left:
            kept[0]["kernel"], left = kernel, left - kernel.numel()
        share = left / max(1, len(input))
        found = [_forth(route, kernel, bias, piece, cores, share * len(piece)) for (piece,) in route.pieces(input)]
        outputs, values = zip(*found, strict=True)
        kept += values
        ctx.kept = [tuple(values) for values in kept]
        ctx.save_for_backward(input, *cores, *(t for values in kept for t in values.values()))
        return owned(_joined(outputs))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _, first, shift, *needed = ctx.needs_input_grad
        input, *saved = ctx.saved_tensors  # torch's checkpoints allow one look only
        cores, values = saved[: len(needed)], iter(saved[len(needed) :])
        kept = [{name: next(values) for name in names} for names in ctx.kept]
        with casting(ctx.cast):
            if torch.is_grad_enabled() and any((first, *needed)):  # the gradient shall have one
                plain = partial(_composed, ctx.route, None)
                found = derived(plain, (input, *cores), (first, *needed), gradient)
            else:
                found = _back(ctx.route, input, cores, kept, gradient, (first, *needed))
        total = gradient.sum((0, *range(2, gradient.dim()))).to(ctx.type) if shift else None
        into, *grads = [g if g is None else g.to(t.dtype) for g, t in zip(found, (input, *cores), strict=True)]
        return None, into, total, *grads


def _forth(
    route: Route, kernel: Tensor, bias: Tensor | None, input: Tensor, cores: Sequence[Tensor], left: float = 0
) -> tuple[Tensor, Values]:
    """The output for a piece of the input, and what lies between that is kept: as many entries as are left."""
    made, (early, _, late) = route.made, route.operands(cores)
    with room() as scratch:
        x = route.across(run(made.before, [route.enter(input), *early], xp), input)
        y = route.window.slide(x, kernel, bias if route.direct else None, made.groups)
        z, small = push(made.after, [route.onward(y, input), *late], xp, left / 4, scratch)
    z, kept = route.leave(z, y.shape[2:]), Values(small)
    left -= sum(t.numel() for t in small.values())
    for name, value, worth in (("y", y, late), ("x", x, made.before.steps)):  # what takes longest to make again first
        if worth and value.numel() <= left:
            kept[name], left = value, left - value.numel()
    return z if bias is None or route.direct else _shifted(z, bias), kept


def _back(
    route: Route, input: Tensor, cores: Tensors, kept: Sequence[Values], gradient: Tensor, needed: Flags
) -> list[Tensor | None]:
    """Gradients of the input and of the cores."""
    made, inner, middle = route.made, route.operands(cores)[1], route.operands(needed[1:])[1]
    core: dict[int, Tensor] = {}
    kernel = kept[0]["kernel"] if kept[0] else route.kernel(inner, core)
    found = []
    for (piece, g), values in zip(route.pieces(input, gradient), kept[1:], strict=True):
        with room() as scratch:
            found.append(_returned(route, piece, cores, kernel, values, g, needed, scratch))
    into, slid, *outer = (None if parts[0] is None else parts for parts in zip(*found, strict=True))
    body: list[Any] = [None] * len(inner)
    if slid:
        total = reduce(torch.add, slid).to(inner[0].dtype)
        whole = pad(total, (*total.shape[:2], *route.network.shape[2:]), xp)
        with own_precision(inner[0]), room() as scratch:
            body = pull(made.middle, inner, core, whole, middle, xp, scratch)
    lead = [parts and reduce(torch.add, parts) for parts in outer]
    grads = dict(zip((*made.early, *made.late, *made.inner), (*lead, *body), strict=True))
    return [into and _joined(into), *(grads[k] for k in range(len(cores)))]


def _returned(
    route: Route, input: Tensor, cores: Tensors, kernel: Tensor, kept: Values, g: Tensor, needed: Flags, scratch: Any
) -> list[Tensor | None]:
    """Gradients of a piece of the input, of the kernel, and of the cores that act before and after it."""
    made, window, first = route.made, route.window, needed[0]
    early, _, late = route.operands(cores)
    before, middle, after = route.operands(needed[1:])
    entered = route.enter(input)
    up: dict[int, Tensor] = {}
    x = kept.get("x")
    if x is None:
        x = route.across(_all(made.before, [entered, *early], up, scratch), input)
    y = kept.get("y")
    if y is None and any(after):
        y = window.slide(x, kernel, None, made.groups)
    if y is None:  # a tensor of its shape that takes no memory
        y = g.new_empty(()).expand(x.shape[0], made.groups * made.channels[0], *g.shape[2:])
    small = {k: value for k, value in kept.items() if isinstance(k, int)}
    side = 1 if window.transposed else 0
    wide = pad(g, (g.shape[0], route.network.shape[side], *g.shape[2:]), xp)
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
    return [into, slid, *lead, *last]


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
