"""Run a model with other values or in another mode, and put everything back whatever happens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tnc.errors import DataError, listed
from tnc.nn.data.evaluation import evaluating

__all__ = ["quiet", "recording", "swapped"]

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
"""Functions of torch that may compute a whole recurrent layer by one kernel, in which no weight can be observed."""


@contextmanager
def swapped(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Give parameters other values for a while. A tied parameter is one object, so all its uses change.

    Parameters
    ----------
    parameters : mapping of str to Parameter
        The parameters of a model by name. Those without a value stay as they are.
    values : mapping of str to Tensor
        New values by name, of the same shapes. They are converted to the dtype and the device of the parameter.

    Raises
    ------
    DataError
        A value has no parameter, or another shape.
    """
    if unknown := [name for name in values if name not in parameters]:
        raise DataError(f"values of {listed(unknown)} were given, but the parameters are {listed(parameters)}")
    for name, value in values.items():
        if value.shape != parameters[name].shape:
            raise DataError(
                f"the value of {name} has shape {tuple(value.shape)}, the parameter {tuple(parameters[name].shape)}: "
                "give values of the same model"
            )
    before = {id(parameters[name]): (parameters[name], parameters[name].data) for name in values}
    try:
        for name, value in values.items():
            parameter = parameters[name]
            parameter.data = value.detach().to(parameter.device, parameter.dtype)
        yield
    finally:
        for parameter, data in before.values():
            parameter.data = data


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Run a model as in evaluation: no dropout, no autocast, and BatchNorm keeps its running statistics.

    The random numbers of torch afterwards are as if nothing had run. Fused kernels that would hide a weight from the
    observer are off: those of MKL-DNN and cuDNN for recurrent layers, and the fast path of attention.
    """
    device = next((x.device for x in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(_eager(model))
        stack.enter_context(evaluating(model))
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            with _Plain():
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Run modules of ``torch.compile`` as they were written."""
    if any("_orig_mod" in module._modules for module in model.modules()):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


class _Plain(TorchFunctionMode):
    """Compute recurrent layers by products with their weights, not by one kernel. Other layers are as before."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, a recurrent one without the libraries that have kernels for it."""
        if getattr(func, "__name__", None) not in _RECURRENT:
            return func(*args, **(kwargs or {}))
        # The private switches are those of `torch.backends.mkldnn.flags` and `torch.backends.cudnn.flags`. These set
        # other flags, too, and warn about some.
        mkldnn, cudnn = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
        try:
            torch._C._set_mkldnn_enabled(False)
            torch._C._set_cudnn_enabled(False)
            return func(*args, **(kwargs or {}))
        finally:
            torch._C._set_mkldnn_enabled(mkldnn)
            torch._C._set_cudnn_enabled(cudnn)


@contextmanager
def recording(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Record what these parameters take part in, also if they are frozen. No ``.grad`` is touched."""
    before = [(parameter, parameter.requires_grad) for parameter in parameters]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)
