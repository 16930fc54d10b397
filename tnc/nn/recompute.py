"""Autograd that keeps a layer's inputs and cores only: everything between is recomputed on the way back.

Intermediates of a factorized layer are larger than its input and cheap to make again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tnc.adjoint import pull, push
from tnc.nn.alone import sized
from tnc.nn.native import xp
from tnc.nn.scratch import LARGE, room
from tnc.plans import Plan, run

__all__ = [
    "autocast",
    "casting",
    "contracted",
    "derived",
    "own_precision",
    "owned",
    "recomputed",
    "tracked",
    "transformed",
]

KEPT = 0.15
"""Entries of intermediates kept for the backward pass, as a share of the input's."""


class _Recomputed(torch.autograd.Function):
    """``function(*tensors)``, differentiated by running it again."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        ctx.function, ctx.cast = function, autocast(tensors[0].device.type)
        ctx.save_for_backward(*tensors)
        return owned(function(*tensors))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with casting(ctx.cast):
            return None, *derived(ctx.function, ctx.saved_tensors, ctx.needs_input_grad[1:], gradient)


class _Contracted(torch.autograd.Function):
    """A plan; keeps its operands, and intermediates as long as they are few beside `entries`."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, entries: int, *tensors: Tensor) -> Tensor:
        ctx.plan, ctx.cast = sized(plan, tensors), autocast(tensors[0].device.type)
        with _space(ctx.plan) as scratch:
            output, kept = push(ctx.plan, tensors, xp, KEPT * entries, scratch)
        ctx.kept = tuple(kept)
        ctx.save_for_backward(*tensors, *kept.values())
        return owned(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        saved = ctx.saved_tensors  # torch's checkpoints allow one look only
        tensors, kept = saved[: len(needed)], saved[len(needed) :]
        with casting(ctx.cast):
            if torch.is_grad_enabled():
                return None, None, *derived(partial(_run, ctx.plan), tensors, needed, gradient)
            with _space(ctx.plan) as scratch:
                values = dict(zip(ctx.kept, kept, strict=True))
                found = pull(ctx.plan, tensors, values, gradient, needed, xp, scratch)
        return None, None, *(g if g is None else g.to(t.dtype) for g, t in zip(found, tensors, strict=True))


def _space(plan: Plan) -> AbstractContextManager[Any]:
    """Room for intermediates, unless all are known to be small."""
    return room() if plan.where or plan.peak >= LARGE // 8 else nullcontext()


def _run(plan: Plan, *tensors: Tensor) -> Tensor:
    return run(plan, tensors, xp)


def derived(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], needed: Sequence[bool], gradient: Tensor
) -> list[Tensor | None]:
    """Gradients of ``function(*tensors)``, run again; where autograd records the backward pass, they have gradients."""
    twice = torch.is_grad_enabled()
    with torch.enable_grad():
        arguments = [
            t.view_as(t) if twice else t.detach().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)
        ]
        output = function(*arguments)
    wanted = [t for t, need in zip(arguments, needed, strict=True) if need]
    found = iter(torch.autograd.grad(output, wanted, gradient, create_graph=twice))
    return [next(found) if need else None for need in needed]


def owned(output: Tensor) -> Tensor:
    """The same memory as a tensor that is no view: autograd forbids edits in place of a function's view."""
    return output.new_empty(0).set_(output) if output._is_view() else output  # type: ignore[call-overload]


def autocast(kind: str) -> tuple[str, bool, torch.dtype]:
    """What autocast does on such a device."""
    if not torch.amp.is_autocast_available(kind):
        return kind, False, torch.float32
    return kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def casting(cast: tuple[str, bool, torch.dtype]) -> AbstractContextManager[Any]:
    """A context in which autocast does so; entering one takes as long as three small products."""
    kind, enabled, dtype = cast
    return nullcontext() if cast == autocast(kind) else torch.autocast(kind, enabled=enabled, dtype=dtype)


def tracked(*tensors: Tensor) -> bool:
    """Whether autograd records what is computed from these tensors."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Call `function` and keep only its arguments for the backward pass.

    Plainly called where nothing is differentiated, inside torch.compile, which decides on its own, and under the
    transforms of `torch.func`.
    """
    if transformed() or not tracked(*tensors):
        return function(*tensors)
    return _Recomputed.apply(function, *tensors)


def contracted(plan: Plan, tensors: Sequence[Tensor], xp: Any = xp, *, entries: int | None = None) -> Tensor:
    """`tnc.plans.run`, keeping next to nothing but the operands for the backward pass: few beside `entries`.

    Those are the first operand's when omitted.
    """
    if transformed():
        return run(plan, tensors, xp)
    if not plan.steps:
        return run(plan, tensors, xp)
    if not tracked(*tensors):
        plan = sized(plan, tensors)
        with _space(plan) as scratch:
            return push(plan, tensors, xp, scratch=scratch)[0]
    return _Contracted.apply(plan, tensors[0].numel() if entries is None else entries, *tensors)


def transformed() -> bool:
    """Whether torch.compile, a trace or a transform of `torch.func` takes what runs apart on its own."""
    return torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._are_functorch_transforms_active()


def own_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which autocast leaves operations on `tensor`'s device alone, as it does a dense weight."""
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
