"""Autograd that keeps a layer's inputs and cores only: everything between is recomputed on the way back.

Intermediates of a factorized layer are larger than its input and cheap to make again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from tnc.adjoint import pull, push
from tnc.nn.native import xp
from tnc.nn.scratch import room
from tnc.plans import Plan, run

__all__ = ["contracted", "own_precision", "recomputed", "tracked", "transformed"]

KEPT = 0.15
"""Entries of intermediates kept for the backward pass, as a share of the input's."""


class _Recomputed(torch.autograd.Function):
    """``function(*tensors)``, differentiated by running it again."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        kind = tensors[0].device.type
        ctx.function, ctx.kind = function, kind
        ctx.cast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        ctx.save_for_backward(*tensors)
        with torch.no_grad():
            return function(*tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        tensors = [t.detach().requires_grad_(need) for t, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad(), torch.autocast(ctx.kind, enabled=ctx.cast[0], dtype=ctx.cast[1]):
            output = ctx.function(*tensors)
        wanted = [t for t in tensors if t.requires_grad]
        found = iter(torch.autograd.grad(output, wanted, gradient))
        return None, *(next(found) if need else None for need in needed)


class _Contracted(torch.autograd.Function):
    """A plan; keeps its operands, and intermediates as long as they are small beside the first one."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Tensor) -> Tensor:
        kind = tensors[0].device.type
        ctx.plan, ctx.kind = plan, kind
        ctx.cast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        with torch.no_grad(), room() as scratch:
            output, kept = push(plan, tensors, xp, KEPT * tensors[0].numel(), scratch)
        ctx.kept = tuple(kept)
        ctx.save_for_backward(*tensors, *kept.values())
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        saved = ctx.saved_tensors  # torch's checkpoints allow one look only
        tensors, kept = saved[: len(needed)], saved[len(needed) :]
        with torch.autocast(ctx.kind, enabled=ctx.cast[0], dtype=ctx.cast[1]), room() as scratch:
            values = dict(zip(ctx.kept, kept, strict=True))
            found = pull(ctx.plan, tensors, values, gradient, needed, xp, scratch)
        return None, *(g if g is None else g.to(t.dtype) for g, t in zip(found, tensors, strict=True))


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


def contracted(plan: Plan, tensors: Sequence[Tensor], xp: Any = xp) -> Tensor:
    """`tnc.plans.run`, keeping next to nothing but the operands for the backward pass."""
    if transformed() or not tracked(*tensors):
        return run(plan, tensors, xp)
    return _Contracted.apply(plan, *tensors)


def transformed() -> bool:
    """Whether torch.compile or a transform of `torch.func` takes what runs apart on its own."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def own_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which autocast leaves operations on `tensor`'s device alone, as it does a dense weight."""
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
