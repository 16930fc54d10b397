"""`Linear`: a linear map through its cores, or through the rebuilt weight, whichever is cheaper for the batch."""

from __future__ import annotations

import math

from torch import Tensor, nn

from tnc import contract
from tnc.cost import Device
from tnc.nn import execution
from tnc.nn.factorized import Factorized
from tnc.nn.native import xp
from tnc.nn.recompute import contracted, tracked

__all__ = ["Linear"]


class Linear(Factorized, nn.Linear):
    """`torch.nn.Linear` with a factorized weight; small batches never see the dense weight."""

    base = nn.Linear

    def plans(self, rates: Device) -> execution.Schedule:
        return execution.linear(self.cores.network, self.cores.shape, self.execution, rates)

    def forward(self, input: Tensor) -> Tensor:
        """``input @ weight.T + bias`` for input of shape (..., in_features)."""
        held = self.cores  # looked up once: with a kept weight, small calls are as fast as their lookups
        cores = tuple(held)
        size = math.prod(input.shape[:-1])  # numel() would be a constant to torch.export
        made = self.schedule.plan(size, tracked(input, *cores))
        if made is None:
            return nn.functional.linear(input, held.forward(*cores), self.bias)
        output = contract.apply(held.network, cores, input, held.shape, xp=xp, made=made, run=contracted)
        return output if self.bias is None else output + self.bias.to(output.dtype)  # autocast: the product's
