"""Call a model on a batch, and find the outputs and the loss in what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tnc.errors import TncError, listed
from tnc.nn.data.batches import Batch

__all__ = ["Answer", "answer", "ask", "call", "takes"]


class Answer(NamedTuple):
    """The outputs of a model, and the loss if it computed one.

    Attributes
    ----------
    outputs : object
        A tensor if the model returned one or ``logits``; else the object that it returned.
    loss : Tensor, optional
        The loss that the model computed from labels in its inputs; a scalar.
    axis : int
        The axis of the classes. It is 1 for a tensor, and the last one for logits of three axes (batch, tokens,
        classes) that the model returned under a name or in a tuple.
    """

    outputs: Any
    loss: Tensor | None = None
    axis: int = 1

    @property
    def classes(self) -> Tensor | None:
        """The outputs with the classes on axis 1; None if they are no tensor of two axes or more."""
        if not isinstance(self.outputs, Tensor) or self.outputs.ndim < 2:
            return None
        return self.outputs.movedim(self.axis, 1)


def ask(model: nn.Module, batch: Batch) -> Answer:
    """Call the model on a batch: see `call`. Outputs and loss are converted to float32 if they are narrower."""
    return answer(call(model, batch))


def call(model: nn.Module, batch: Batch) -> Any:
    """Call the model on a batch, and return what it returns.

    A mapping is passed as named arguments, together with the labels if the model takes them. A tuple or a list is
    passed as positional arguments. Anything else is the only argument.

    Raises
    ------
    TncError
        The batch has a named input that the model does not take.
    """
    match batch.inputs:
        case Mapping() as named:
            return model(**_arguments(model, batch, named))
        case tuple() | list() as positional:
            return model(*positional)
        case single:
            return model(single)


def _arguments(model: nn.Module, batch: Batch, named: Mapping[str, Any]) -> dict[str, Any]:
    """The named arguments for the model: the inputs, and the labels if the model takes them."""
    if unknown := [name for name in named if not takes(model, name)]:
        raise TncError(
            f"{type(_unwrapped(model)).__name__}.forward takes no {listed(unknown)}: "
            "leave out of the batch what the model does not take"
        )
    arguments = dict(named)
    if batch.name and takes(model, batch.name):
        arguments[batch.name] = batch.labels
    return arguments


def takes(model: nn.Module, name: str) -> bool:
    """Whether the ``forward`` of the model takes an argument of that name."""
    parameters = inspect.signature(_unwrapped(model).forward).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    return name in parameters or inspect.Parameter.VAR_KEYWORD in kinds


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model without torch's wrappers for several devices and for ``torch.compile``."""
    if isinstance(model, DataParallel | DistributedDataParallel):
        return _unwrapped(model.module)
    original: nn.Module | None = vars(model).get("_modules", {}).get("_orig_mod")
    return model if original is None else _unwrapped(original)


def answer(returned: Any) -> Answer:
    """The outputs and the loss in what a model returned."""
    if isinstance(returned, Tensor):
        return Answer(_widened(returned))
    outputs, loss = _outputs_and_loss(returned)
    loss = _widened(loss).mean() if isinstance(loss, Tensor) else None  # `DataParallel` returns one loss per device
    if not isinstance(outputs, Tensor):
        return Answer(returned, loss)
    return Answer(_widened(outputs), loss, -1 if outputs.ndim == 3 else 1)


def _outputs_and_loss(returned: Any) -> tuple[Any, Any]:
    """The logits and the loss in a mapping, a tuple or a ModelOutput; None for what is not there."""
    if isinstance(returned, Mapping):
        return returned.get("logits"), returned.get("loss")
    is_plain_sequence = isinstance(returned, tuple | list) and not hasattr(returned, "logits")
    if not is_plain_sequence:
        return getattr(returned, "logits", None), getattr(returned, "loss", None)
    first, second = (*returned, None, None)[:2]
    begins_with_loss = isinstance(first, Tensor) and first.ndim == 0
    return (second, first) if begins_with_loss else (first, None)


def _widened(x: Tensor) -> Tensor:
    """The tensor in float32 at least, because losses in half precision are too coarse."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
