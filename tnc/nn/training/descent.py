"""Gradient steps on the trained parameters of a model, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tnc.errors import WeightError
from tnc.nn.surgery.parameters import factorizations
from tnc.nn.training.parameter_groups import parameter_groups

__all__ = ["Descent", "Snapshot", "gradients_restored", "trained_parameters"]

_LOSS_SCALE = 1024.0
"""Factor of the loss where parameters are float16, whose smallest gradients would become 0."""


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that need a gradient, each once.

    Raises
    ------
    WeightError
        The model is frozen, or no parameter needs a gradient.
    """
    if frozen := [weight.name for weight in factorizations(model) if weight.cores.frozen is not None]:
        raise WeightError(f"{frozen[0]} is frozen, so that its cores cannot be trained: call tnc.nn.unfreeze first")
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not found:
        raise WeightError("no parameter of the model requires a gradient: nothing to train")
    return found


class Snapshot:
    """The values of the trained parameters and of all buffers of a model."""

    def __init__(self, model: nn.Module) -> None:
        held = [*(parameter for parameter in model.parameters() if parameter.requires_grad), *model.buffers()]
        self._pairs = [(x, x.detach().clone()) for x in held]

    @torch.no_grad()
    def restore(self) -> None:
        """Write the values back where they have changed."""
        for x, value in self._pairs:
            if not torch.equal(x, value):
                x.copy_(value)


class Descent:
    """Adam with learning rates that do not depend on the gauge of the cores: see `parameter_groups`.

    Parameters in half precision get copies in float32 that are updated, because steps of usual size are below their
    rounding.
    """

    def __init__(self, model: nn.Module, rate: float) -> None:
        self._copies: list[tuple[nn.Parameter, Tensor]] = []
        groups = [
            group | {"params": [self._updated(parameter) for parameter in group["params"]], "base": group["lr"]}
            for group in parameter_groups(model, rate)
        ]
        self._optimizer = torch.optim.AdamW(groups)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._scale = _LOSS_SCALE if any(x.dtype is torch.float16 for x in self._parameters) else 1.0

    def _updated(self, parameter: nn.Parameter) -> Tensor:
        """The parameter, or its copy in float32."""
        if parameter.dtype.itemsize >= 4:
            return parameter
        copy = parameter.detach().float()
        self._copies.append((parameter, copy))
        return copy

    def step(self, loss: Tensor, factor: float) -> None:
        """Lower a loss by one step, with the learning rates times `factor`."""
        for parameter in self._parameters:
            parameter.grad = None
        torch.autograd.backward(loss * self._scale)
        for parameter, copy in self._copies:
            copy.grad = None if parameter.grad is None else parameter.grad.float() / self._scale
        for group in self._optimizer.param_groups:
            group["lr"] = group["base"] * factor
        self._optimizer.step()
        with torch.no_grad():
            for parameter, copy in self._copies:
                parameter.copy_(copy)


@contextmanager
def gradients_restored(model: nn.Module) -> Iterator[None]:
    """Parameters have the gradients afterwards that they had before."""
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient
