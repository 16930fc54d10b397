"""`Linear`: a linear layer that uses its cores or its rebuilt weight, whichever is cheaper for the batch."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from tnc import contract
from tnc.contract.cost import Device
from tnc.contract.plans import Plan
from tnc.nn.layers.base import Factorized, leaf
from tnc.nn.layers.cores import Cores, Tensors
from tnc.nn.runtime import schedule
from tnc.nn.runtime.autograd import PLAIN, RECORDED, in_float32, recomputed, tracked

__all__ = ["Linear"]


class Linear(Factorized, nn.Linear):
    """`torch.nn.Linear` with a factorized weight. Small batches do not need the dense weight."""

    _tnc_base = nn.Linear

    def _tnc_plans(self, rates: Device) -> schedule.Schedule:
        cores = self._tnc_cores
        return schedule.linear(cores.network, cores.shape, self._tnc.execution, rates)

    @leaf
    def forward(self, input: Tensor) -> Tensor:
        """``input @ weight.T + bias`` for input of shape (..., in_features)."""
        weight: Cores = self._modules["tnc_weight"]  # type: ignore[assignment]  # ten times as fast as reading the attribute
        cores, bias = weight.held(), self.bias
        size = math.prod(input.shape[:-1])  # torch.export would make numel() a constant
        training = tracked(input, *cores)
        lasting = None if training else weight.lasting(cores)
        plan = self._tnc.schedule.plan(size, training, training or bool(lasting))
        if plan is None or input.shape[-1] != self.in_features:  # torch raises the error for a wrong input
            return nn.functional.linear(input, weight.weight(cores, self._tnc.keeps, lasting), bias)
        if weight.recipe.deep:
            output = in_float32(partial(_product, weight, plan), input, cores)
        else:
            output = _product(weight, plan, input, cores)
        output = output.contiguous()  # as the output of torch's layer, so that `view` works
        if (pinned := weight.row_values) is not None:
            output = _pinned(weight.row, pinned, input, output)
        if bias is None:
            return output
        return output + bias.to(output.dtype)  # under autocast the product has another dtype


def _product(weight: Cores, plan: Plan, input: Tensor, cores: Tensors) -> Tensor:
    """The product of the input (..., columns) with the transposed weight, computed from the cores: (..., rows)."""
    if weight.whole and weight.network.feed is None:
        operand = input.reshape(-1, *weight.column_sizes)  # (inputs, column indices...)
        return RECORDED.run(plan, [operand, *cores]).reshape(*input.shape[:-1], weight.shape[0])
    if weight.whole:
        return contract.apply(weight.network, cores, input, weight.shape, plan=plan, executor=RECORDED)

    def padded(x: Tensor, *cores: Tensor) -> Tensor:
        return contract.apply(weight.network, cores, x, weight.shape, plan=plan, executor=PLAIN)

    return recomputed(padded, input, *cores)  # so that autograd does not keep the padded input, too


def _pinned(row: int, pinned: Tensor, input: Tensor, output: Tensor) -> Tensor:
    """The output, with the entry of the pinned row put in. The weight is tied to an embedding with a padding row."""
    is_pinned = torch.arange(output.shape[-1], device=output.device) == row
    return torch.where(is_pinned, (input @ pinned.to(input.dtype))[..., None].to(output.dtype), output)
