"""`Linear`: a linear map through its cores, or through the rebuilt weight, whichever is cheaper for the batch."""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor, nn

from tnc import contract
from tnc.cost import Device
from tnc.nn import execution
from tnc.nn.cores import Cores
from tnc.nn.factorized import Factorized
from tnc.nn.native import xp
from tnc.nn.recompute import contracted, recomputed, tracked

__all__ = ["Linear"]


class Linear(Factorized, nn.Linear):
    """`torch.nn.Linear` with a factorized weight; small batches never see the dense weight."""

    base = nn.Linear

    def plans(self, rates: Device) -> execution.Schedule:
        return execution.linear(self.cores.network, self.cores.shape, self.execution, rates)

    def forward(self, input: Tensor) -> Tensor:
        """``input @ weight.T + bias`` for input of shape (..., in_features)."""
        held: Cores = self._modules["cores"]  # type: ignore[assignment]  # ten times as fast as looking up `self.cores`
        cores, bias = tuple(held), self.bias
        size = math.prod(input.shape[:-1])  # numel() would be a constant to torch.export
        made = self.schedule.plan(size, tracked(input, *cores))
        if made is None or input.shape[-1] != self.in_features:  # torch says what is wrong
            return nn.functional.linear(input, held.forward(*cores), bias)
        apply = partial(contract.apply, held.network, xp=xp, shape=held.shape, made=made)
        if held.network.shape == held.shape:
            output = apply(cores, input, run=contracted)
        else:  # a padded input would be kept beside the input
            output = recomputed(lambda x, *cores: apply(cores, x), input, *cores)
        output = output.contiguous()  # as torch's, so that it may be viewed
        return output if bias is None else output + bias.to(output.dtype)  # autocast: the product's
