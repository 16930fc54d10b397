"""Learning rates and weight decay for products of cores, the same in every gauge."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tnc.nn.factorized import mean_square
from tnc.nn.sites import factorizations

__all__ = ["parameter_groups"]


@torch.no_grad()
def parameter_groups(
    model: nn.Module, lr: float, *, weight_decay: float = 0.0, eps: float = 1e-8
) -> list[dict[str, Any]]:
    """Parameter groups for `torch.optim.AdamW` in which `lr` means to a factorized weight what it means to a dense one.

    One weight has many sets of cores: ``c G₁`` and ``G₂ / c`` rebuild what ``G₁`` and ``G₂`` do. Adam moves every
    entry by about its rate, so one rate for all cores would let that arbitrary ``c``, the gauge, decide what moves.
    Here each core is measured in its own unit ``u``, the root mean square of its entries. Of n cores of a weight
    whose entries have the root mean square ``s``, each gets

    * the rate ``lr · u / (n · s)``: together they move the entries of the weight by about `lr` a step;
    * the decay ``weight_decay · s / u``, so that a step multiplies each core by ``1 - lr · weight_decay / n`` and the
      weight by ``1 - lr · weight_decay``, as it does a dense one;
    * the eps ``eps · s / u``, as its gradients are that much larger than the weight's.

    Rescaling cores rescales rates and gradients with them: the weights on the way are the same to rounding.

    Parameters
    ----------
    model : torch.nn.Module
    lr : float
        Rate of the dense parameters.
    weight_decay : float
        Of weights; parameters of fewer than two axes (biases, norms) have none.
    eps : float

    Returns
    -------
    list of dict
        Two groups of dense parameters and one for every core; what needs no gradient is left out.
    """
    groups: list[dict[str, Any]] = []
    seen: set[int] = set()
    for _, _, _, cores, rebuild in factorizations(model):
        if id(cores[0]) in seen:  # tied
            continue
        seen |= {id(core) for core in cores}
        wide = [core.to(torch.promote_types(core.dtype, torch.float32)) for core in cores]
        size = math.sqrt(mean_square(rebuild.network, wide, rebuild.shape))
        for core, values in zip(cores, wide, strict=True):
            own = float(values.square().mean().sqrt())
            unit = own / size if own and size else 1.0  # a core of zeros, which some start from, has no unit
            rate = {"lr": lr * unit / len(cores), "weight_decay": weight_decay / unit, "eps": eps / unit}
            groups.append({"params": [core], **rate})
    rest = [parameter for parameter in model.parameters() if id(parameter) not in seen]
    for params, decay in (
        ([p for p in rest if p.ndim > 1], weight_decay),
        ([p for p in rest if p.ndim < 2], 0.0),
    ):
        groups.append({"params": params, "lr": lr, "weight_decay": decay, "eps": eps})
    trained = [group | {"params": [p for p in group["params"] if p.requires_grad]} for group in groups]
    return [group for group in trained if group["params"]]
