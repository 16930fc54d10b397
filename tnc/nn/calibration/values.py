"""Values of a model's parameters with factorized weights, and how far they take its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from math import fsum
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tnc.decomposition import Factorization
from tnc.nn.calibration.judge import Judge
from tnc.nn.calibration.metrics import Site, correction
from tnc.nn.calibration.swap import swapped

__all__ = ["Means", "distance", "distances", "rebuilt"]

Means: TypeAlias = dict[str, tuple[Tensor | None, Tensor | None]]
"""By the name of a weight: the means of its inputs in the dense model and in the present one."""


def rebuilt(
    model: nn.Module,
    factorizations: Mapping[str, Factorization],
    sites: Mapping[str, Site],
    means: Means,
) -> dict[str, Tensor]:
    """The values of all factorized weights, and of the biases that correct the means of their outputs.

    Parameters
    ----------
    model : torch.nn.Module
    factorizations : mapping of str to Factorization
    sites : mapping of str to Site
    means : mapping of str to (Tensor, Tensor)
        Of the inputs in the dense model and in the present one.
    """
    values: dict[str, Tensor] = {}
    corrections: dict[str, Tensor] = {}
    for name, factorization in factorizations.items():
        values[name] = factorization.dense()
        site, (mean, shifted) = sites.get(name), means.get(name, (None, None))
        if site is None or site.bias is None or mean is None or shifted is None:
            continue
        change = correction(site, values[name], mean, shifted)
        if change is not None:
            corrections[site.bias] = corrections.get(site.bias, torch.zeros_like(change)) + change
    biases = dict(model.named_parameters(remove_duplicate=False))
    for name, change in corrections.items():
        bias = biases[name].detach()
        values[name] = (bias.double() + change.reshape(bias.shape)).to(bias.dtype)
    return values


def distance(model: nn.Module, judge: Judge, values: Mapping[str, Tensor]) -> float:
    """The distance of the outputs of a model with other values of its parameters.

    Parameters
    ----------
    model, judge, values
        As for `distances`.
    """
    return fsum(distances(model, judge, values))


def distances(model: nn.Module, judge: Judge, values: Mapping[str, Tensor]) -> list[float]:
    """What each batch of a judge adds to the distance of the outputs of a model with other values of its parameters.

    Parameters
    ----------
    model : torch.nn.Module
        It is not changed.
    judge : Judge
    values : mapping of str to Tensor
        By the names of parameters.
    """
    with torch.no_grad(), swapped(dict(model.named_parameters(remove_duplicate=False)), values):
        return judge.parts(model)
