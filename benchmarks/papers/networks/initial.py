"""The initialization that all networks with ReLUs share."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

__all__ = ["he_normal"]

Module = TypeVar("Module", bound=nn.Module)


def he_normal(model: Module) -> Module:
    """Draw the weight of every convolution and linear layer with variance 2 / fan-in, in place; biases become 0.

    Factorized layers have been given theirs when they were made; a weight on the meta device has nothing to fill.
    """
    for module in model.modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
