"""The base of all factorized layers: cores in place of a weight, made from a dense layer or from scratch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from tnc.contract.cost import Device
from tnc.decomposition import Decomposition
from tnc.errors import WeightError
from tnc.nn.layers.cores import Cores, Tensors
from tnc.nn.layers.holder import Holder, State, place
from tnc.nn.layers.init import deviation, fresh
from tnc.nn.layers.roles import roles_of
from tnc.nn.runtime.schedule import Schedule, check, constants
from tnc.rules import Rule

__all__ = ["Factorized", "leaf"]


def leaf(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Make `torch.fx.symbolic_trace` record a ``forward`` as one call of the module, as it does for torch's layers."""

    @wraps(forward)
    def traced(self: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(input, Proxy):
            tracer: Any = input.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (input, *args), kwargs)
        return forward(self, input, *args, **kwargs)

    return traced


class Factorized(Holder):
    """The base of all layers here: cores in place of the parameter ``weight``.

    A new layer takes the arguments of torch's layer, and these.

    Parameters
    ----------
    decomposition : str or Decomposition
        The name of a plugin, with fields if wanted (``"mpo(order=4)"``), or an instance.
    rank : int, sequence of int, float or RankPolicy
        A rank or a ratio. A tolerance is not possible: it needs a weight to approximate.
    execution : {"auto", "dense", "factorized"}
        Rebuild the weight, contract inputs with the cores, or do what is cheaper for the batch.

    Raises
    ------
    WeightError, RankError, PromiseError, TncError
        The decomposition, the rank or the execution is not possible for this layer.
    """

    _tnc_base: type[nn.Module]
    """The torch layer that this one replaces."""

    def __init__(
        self, *args: Any, decomposition: str | Decomposition, rank: Any, execution: str = "auto", **kwargs: Any
    ) -> None:
        check(execution)
        device = torch.device(kwargs.pop("device", None) or torch.get_default_device())
        dense = self._tnc_base(*args, **kwargs, device="meta")
        self.__dict__.update(dense.__dict__)
        self.__dict__["_tnc"] = State(self._tnc_base, tuple(dense._parameters))
        if decomposition is None:
            raise WeightError("decomposition=None: name one, such as 'mpo', or make the layer of torch.nn")
        scale, weight = deviation(dense), dense.get_parameter("weight")
        shape, rule = tuple(weight.shape), Rule("*", decomposition, rank)
        chosen = rule.decomposed(shape, roles_of(dense, "weight", shape))
        network = rule.rank.fresh(shape, chosen).clipped()
        factorization = fresh(network, shape, scale, weight.dtype, device, chosen)
        if (bias := self._parameters.get("bias")) is not None:
            bound = math.sqrt(3) * scale
            self.bias = nn.Parameter(torch.empty_like(bias, device=device).uniform_(-bound, bound))
        zeros = torch.zeros(weight.shape[1:], dtype=weight.dtype, device=device)
        row = self._tnc_kept_row(self)
        cores = Cores(factorization, pinned=None if row is None else (row, zeros))
        place(self, "weight", cores, type(self), execution)

    def _tnc_plans(self, rates: Device) -> Schedule:
        """The plan for each size of the input. An empty schedule means that the weight is always rebuilt."""
        return Schedule()

    def _tnc_reschedule(self) -> None:
        """Choose the plans again, for the device of the cores."""
        state, cores = self._tnc, self._tnc_cores
        check(state.execution)
        state.schedule, state.rows = self._tnc_plans(constants(cores.held()[0].device)), None

    @staticmethod
    def _tnc_entered(module: Any) -> None:
        module._tnc_reschedule()

    def _apply(self, fn: Any, recurse: bool = True) -> Factorized:
        before, self._tnc.rows = self._tnc_cores.held()[0].device, None
        super()._apply(fn, recurse)
        if self._tnc_cores.held()[0].device != before:
            self._tnc_reschedule()
        return self

    @property
    def _tnc_cores(self) -> Cores:
        return self._modules["tnc_weight"]  # type: ignore[return-value]

    @property
    def _tnc_keeps_weight(self) -> bool:
        """Whether evaluation may keep the rebuilt weight: only if some size of the input uses it."""
        plans = [plan for _, plan in self._tnc.schedule.inference]
        return self._tnc.keeps and (not plans or None in plans)

    @property
    def _tnc_keeping(self) -> int:
        """Number of entries of the rebuilt weight that evaluation may keep."""
        return math.prod(self._tnc_cores.shape) if self._tnc_keeps_weight else 0

    @property
    def weight(self) -> Tensor:
        """The weight, computed from the cores. It is for reading only."""
        return self._tnc_cores.handed(self._tnc.keeps)

    def _tnc_weight(self, cores: Tensors) -> Tensor:
        """The weight for this layer's own use."""
        return self._tnc_cores.weight(cores, self._tnc.keeps)

    def reset_parameters(self) -> None:
        """Do nothing: the cores are initialized when the layer is made."""
