"""Learning rates and weight decay for cores that do not depend on the gauge."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tnc.nn.layers.cores import Cores
from tnc.nn.layers.init import mean_square
from tnc.nn.surgery.parameters import factorizations

__all__ = ["parameter_groups"]


Group = dict[str, Any]
"""``params``, a list of parameters, with their ``lr``, ``weight_decay`` and ``eps``."""


@torch.no_grad()
def parameter_groups(
    model: nn.Module, lr: float, *, core_lr: float | None = None, weight_decay: float = 0.0, eps: float = 1e-8
) -> list[Group]:
    """Parameter groups for `torch.optim.AdamW` in which `lr` means to a factorized weight what it means to a dense one.

    One weight has many sets of cores: ``c G₁`` and ``G₂ / c`` rebuild the same weight as ``G₁`` and ``G₂``. The
    choice of ``c`` is called the gauge. Adam moves every entry by about its rate. With one rate for all cores, the
    arbitrary gauge would decide which core moves more.

    Therefore each core is measured in its own unit ``u``, the root mean square of its entries. Let a weight have n
    cores, and let ``s`` be the root mean square of the weight's entries. Then each core gets

    * the rate ``lr · u / (n · s)``: together the cores move the entries of the weight by about `lr` a step;
    * the decay ``weight_decay · s / u``: a step multiplies each core by ``1 - lr · weight_decay / n``, and the weight
      by ``1 - lr · weight_decay``, to first order, as it does a dense weight;
    * the eps ``eps · s / u``, because the gradients of the core are larger by ``s / u`` than those of the weight.

    With `core_lr` the rate of a core is ``core_lr · u`` instead: a step moves its entries by about this share of their
    size. Weights of many cores, such as ADTN's walls of gates, learn too slowly otherwise when they are trained from
    random cores, because the rate above assumes that all cores move the weight in the same direction.

    If cores are rescaled, rates and gradients scale with them, and the weights during training are the same to
    rounding.

    Parameters
    ----------
    model : torch.nn.Module
    lr : float
        Learning rate of the dense parameters.
    core_lr : float, optional
        Relative learning rate of cores. 0.02 to 0.06 suits gates that are trained from random ones, with a warm-up.
    weight_decay : float
        Decay of weights. Parameters with fewer than two axes (biases, norms) have none.
    eps : float
        Adam's eps for the dense parameters: it is added to the root of the mean squared gradient.

    Returns
    -------
    list of dict
        One group for every core, then two for the dense parameters. What needs no gradient is left out.
    """
    groups: list[Group] = []
    grouped: set[int] = set()
    for weight in _distinct_weights(model):
        of_weight = _core_groups(weight, lr, core_lr, weight_decay, eps)
        grouped |= {id(core) for group in of_weight for core in group["params"]}
        groups += of_weight
    dense = [parameter for parameter in model.parameters() if id(parameter) not in grouped]
    groups += _dense_groups(dense, lr, weight_decay, eps)
    return _trained(groups)


def _distinct_weights(model: nn.Module) -> Iterator[Cores]:
    """The factorized weights of a model, tied ones once."""
    seen: set[int] = set()
    for _, _, _, weight in factorizations(model):
        if id(weight) not in seen:
            seen.add(id(weight))
            yield weight


def _core_groups(weight: Cores, lr: float, core_lr: float | None, weight_decay: float, eps: float) -> list[Group]:
    """One group for each core of a weight."""
    cores = weight.held()
    # Squares of half precision would overflow or lose small values.
    wide = [core.to(torch.promote_types(core.dtype, torch.float32)) for core in cores]
    weight_rms = math.sqrt(mean_square(weight.network, wide, weight.shape))
    groups = []
    for core, values in zip(cores, wide, strict=True):
        core_rms = float(values.square().mean().sqrt())
        # A core of zeros, from which some methods start, has no unit of its own.
        unit = core_rms / weight_rms if core_rms and weight_rms else 1.0
        usual = lr * unit / len(cores)
        rate = usual if core_lr is None else core_lr * (core_rms or weight_rms or 1.0)
        decay = weight_decay / unit * usual / rate
        groups.append({"params": [core], "lr": rate, "weight_decay": decay, "eps": eps / unit})
    return groups


def _dense_groups(parameters: list[nn.Parameter], lr: float, weight_decay: float, eps: float) -> list[Group]:
    """One group for weights, and one without decay for biases and norms."""
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    return [
        {"params": weights, "lr": lr, "weight_decay": weight_decay, "eps": eps},
        {"params": vectors, "lr": lr, "weight_decay": 0.0, "eps": eps},
    ]


def _trained(groups: list[Group]) -> list[Group]:
    """The groups without parameters that need no gradient, and without groups that are empty then."""
    trained = []
    for group in groups:
        params = [parameter for parameter in group["params"] if parameter.requires_grad]
        if params:
            trained.append(group | {"params": params})
    return trained
