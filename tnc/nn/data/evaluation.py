"""Call models in evaluation mode, and put them back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluating"]


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Models are in evaluation mode: dropout is off, and batch normalization uses and keeps its statistics.

    Afterwards, and after an error or Ctrl-C, every module has the mode that it had. The flags are set directly, because
    ``model.eval()`` may do more: some adapters merge their weights in it.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training
