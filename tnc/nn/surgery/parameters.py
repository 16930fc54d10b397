"""The parameters of a model by name: dense, computed by a parametrization, or factorized."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.utils import parametrize

from tnc.nn.layers.cores import Cores
from tnc.nn.layers.holder import factorized

__all__ = ["FactorizedWeight", "computed", "factorizations", "parameters"]


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every dense parameter by its name. A tied parameter is there under each of its names. Cores are left out."""
    inside = {id(m) for m in model.modules() if isinstance(m, Cores | parametrize.ParametrizationList)}
    return {
        f"{path}.{name}" if path else name: parameter
        for path, module in model.named_modules(remove_duplicate=False)
        if id(module) not in inside
        for name, parameter in module._parameters.items()
        if parameter is not None
    }


def computed(model: nn.Module) -> dict[str, str]:
    """Names of weights of two or more axes that a parametrization computes, such as `weight_norm`, and its name."""
    inside = {id(m) for m in model.modules() if isinstance(m, Cores)}
    return {
        f"{path}.{name}" if path else name: type(steps[0]).__name__.strip("_")
        for path, module in model.named_modules(remove_duplicate=False)
        if parametrize.is_parametrized(module) and id(module) not in inside
        for name, steps in module.parametrizations.items()
        if any(parameter.ndim > 1 for parameter in steps.parameters())
    }


class FactorizedWeight(NamedTuple):
    """A factorized weight of a model.

    Attributes
    ----------
    name : str
        Full name of the parameter in the model.
    module : Module
        The module that has the parameter.
    leaf : str
        Name of the parameter in that module.
    cores : Cores
        The cores. Tied weights share them.
    """

    name: str
    module: nn.Module
    leaf: str
    cores: Cores


def factorizations(model: nn.Module) -> Iterator[FactorizedWeight]:
    """Every factorized weight of a model. A tied weight is there under each of its names."""
    for path, module in model.named_modules(remove_duplicate=False):
        for leaf, cores in factorized(module):
            yield FactorizedWeight(f"{path}.{leaf}" if path else leaf, module, leaf, cores)
