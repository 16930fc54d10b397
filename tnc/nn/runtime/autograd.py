"""Autograd functions that keep the inputs and cores of a layer, and compute intermediates again in the backward pass.

The intermediates of a factorized layer can be larger than its input, and are cheap to compute again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from tnc.contract.executor import Executor
from tnc.contract.plans import Plan
from tnc.contract.specialize import sized
from tnc.errors import WeightError
from tnc.nn.runtime.namespace import LARGE, workspace, xp

__all__ = [
    "KEPT_SHARE",
    "PLAIN",
    "RECORDED",
    "Recorded",
    "autocast",
    "casting",
    "gradients",
    "in_float32",
    "not_a_view",
    "own_precision",
    "recomputed",
    "tracked",
    "transformed",
]

KEPT_SHARE = 0.15
"""The intermediates kept for the backward pass may have this share of the entries of the input."""


class _Recomputed(torch.autograd.Function):
    """``function(*tensors)``, differentiated by running it again."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        ctx.function, ctx.cast = function, autocast(tensors[0].device.type)
        ctx.save_for_backward(*tensors)
        return not_a_view(function(*tensors))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *gradients(ctx.function, ctx.saved_tensors, ctx.needs_input_grad[1:], gradient, ctx.cast)


class _Contracted(torch.autograd.Function):
    """Runs a plan. Keeps its operands, and intermediates of at most ``KEPT_SHARE * beside`` entries together."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, beside: int, *tensors: Tensor) -> Tensor:
        ctx.plan, ctx.cast = sized(plan, tensors), autocast(tensors[0].device.type)
        with _executor(ctx.plan) as executor:
            output, kept = executor.forward(ctx.plan, tensors, KEPT_SHARE * beside)
        ctx.kept = tuple(kept)
        ctx.save_for_backward(*tensors, *kept.values())
        return not_a_view(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        saved = ctx.saved_tensors  # read once: torch's checkpoints do not allow a second time
        tensors, kept = saved[: len(needed)], saved[len(needed) :]
        if torch.is_grad_enabled():
            return None, None, *gradients(partial(_run, ctx.plan), tensors, needed, gradient, ctx.cast)
        with casting(ctx.cast), _executor(ctx.plan) as executor:
            values = dict(zip(ctx.kept, kept, strict=True))
            grads = executor.backward(ctx.plan, tensors, values, gradient, needed)
        return None, None, *(g if g is None else g.to(t.dtype) for g, t in zip(grads, tensors, strict=True))


PLAIN = Executor(xp)
"""Runs plans in torch operations. Autograd records each of them."""


def _executor(plan: Plan) -> AbstractContextManager[Executor]:
    """An executor that reuses memory for intermediates, or a plain one where all of them are known to be small."""
    return workspace() if plan.where or plan.peak >= LARGE // 8 else nullcontext(PLAIN)


def _run(plan: Plan, *tensors: Tensor) -> Tensor:
    return PLAIN.run(plan, tensors)


class Recorded(Executor):
    """Runs plans so that autograd keeps little more than the operands.

    Intermediates are computed again in the backward pass. Under `torch.compile`, a trace or a transform of
    `torch.func`, plans run in torch operations, which those tools can see.
    """

    def run(self, plan: Plan, arrays: Sequence[Tensor], beside: int | None = None) -> Tensor:
        """Run a plan.

        Parameters
        ----------
        plan : Plan
        arrays : sequence of Tensor
            The operands of the plan.
        beside : int, optional
            Entries of an array that is in memory anyway. Intermediates that are small compared with it are kept for
            the backward pass. By default those of the first operand.
        """
        if not plan.steps or transformed():
            return super().run(plan, arrays)
        if not tracked(*arrays):
            plan = sized(plan, arrays)
            with _executor(plan) as executor:
                return executor.forward(plan, arrays)[0]
        return _Contracted.apply(plan, arrays[0].numel() if beside is None else beside, *arrays)

    def call(self, function: Callable[..., Tensor], *arrays: Tensor) -> Tensor:
        """Call `function`; its intermediates are computed again in the backward pass."""
        if not torch.is_grad_enabled():
            return function(*arrays)
        return checkpoint(function, *arrays, use_reentrant=False)


RECORDED = Recorded(xp)
"""The executor of layers."""


Cast = tuple[str, bool, torch.dtype]
"""The state of autocast: the type of device, whether autocast is on, and its dtype."""


def gradients(
    function: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    needed: Sequence[bool],
    gradient: Tensor,
    cast: Cast,
) -> list[Tensor | None]:
    """Gradients of ``function(*tensors)``, which is run again.

    Where autograd records the backward pass, the gradients can be differentiated. The function runs under the autocast
    state of the forward pass. The backward pass runs without autocast, as everywhere in torch: it takes the dtypes of
    the intermediates, and autocast would reduce the precision of those that are not in its dtype.

    Parameters
    ----------
    function : callable
    tensors : sequence of Tensor
        Its arguments.
    needed : sequence of bool
        For each argument, whether its gradient is needed.
    gradient : Tensor
        The gradient of the output.
    cast : tuple
        The state of autocast in the forward pass.

    Returns
    -------
    list of Tensor or None
        None where a gradient is not needed.
    """
    twice = torch.is_grad_enabled()
    with torch.enable_grad(), casting(cast):
        arguments = [
            t.view_as(t) if twice else t.detach().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)
        ]
        output = function(*arguments)
    wanted = [t for t, need in zip(arguments, needed, strict=True) if need]
    with casting((cast[0], False, cast[2])):
        grads = iter(torch.autograd.grad(output, wanted, gradient, create_graph=twice))
    return [next(grads) if need else None for need in needed]


def not_a_view(output: Tensor) -> Tensor:
    """A tensor with the same memory that is not a view. Autograd forbids in-place edits of a view from a function."""
    return output.new_empty(0).set_(output) if output._is_view() else output  # type: ignore[call-overload]


def autocast(kind: str) -> Cast:
    """The state of autocast for a type of device, such as "cpu"."""
    if not torch.amp.is_autocast_available(kind):
        return kind, False, torch.float32
    return kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def casting(cast: Cast) -> AbstractContextManager[Any]:
    """A context with this state of autocast. Entering torch's own context takes as long as three small products."""
    kind, enabled, dtype = cast
    return nullcontext() if cast == autocast(kind) else torch.autocast(kind, enabled=enabled, dtype=dtype)


def tracked(*tensors: Tensor) -> bool:
    """Whether autograd records what is computed from these tensors."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Call `function` and keep only its arguments for the backward pass.

    It is a plain call where no gradient is recorded, under the transforms of `torch.func`, and under `torch.compile`,
    which decides itself what to keep.
    """
    if transformed() or not tracked(*tensors):
        return function(*tensors)
    return _Recomputed.apply(function, *tensors)


def transformed() -> bool:
    """Whether `torch.compile`, a trace, forward-mode differentiation or `torch.func` must see each operation."""
    if torch.compiler.is_compiling():
        return True
    if torch._C._is_tracing():
        _refuse_onnx()
        return True
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _refuse_onnx() -> None:
    if torch.onnx.is_in_onnx_export():
        raise WeightError(
            "the older ONNX exporter cannot export factorized weights: call torch.onnx.export(..., dynamo=True), "
            "or make the model dense first with tnc.nn.uninstall(model)"
        )


def in_float32(run: Callable[..., Tensor], input: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """``run(input, cores)`` in float32, or in the dtype of the input if that has more digits.

    It is for products of many cores (`tnc.contract.recipes.Recipe`): half precision would lose digits at every
    step. The result is rounded once to the dtype that a product with `input` has.

    Parameters
    ----------
    run : callable
        Computes the output of a layer from its input and its cores.
    input : Tensor
        The input of the layer.
    cores : sequence of Tensor

    Returns
    -------
    Tensor
    """
    _, cast, cast_dtype = autocast(input.device.type)
    dtype = cast_dtype if cast and input.dtype != torch.float64 else input.dtype
    if dtype.itemsize >= torch.float32.itemsize:
        return run(input, cores)
    with own_precision(input):
        return run(input.float(), tuple(core.float() for core in cores)).to(dtype)


def own_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast on the device of `tensor`: a dense weight keeps its precision, too."""
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
