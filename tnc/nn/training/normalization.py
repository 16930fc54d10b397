"""Whether batch normalization keeps its statistics while a model is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["BATCH_NORM", "are_better", "freeze", "has_statistics"]

BATCH_NORM = ("auto", "frozen", "training")
"""How batch normalization can be treated while a model is trained."""

_MUCH = 0.75
"""Kept statistics must lower the loss to this share. New networks, and those of poor fits, are far from it."""


def has_statistics(model: nn.Module) -> bool:
    """Whether any batch normalization of a model keeps a mean and a variance."""
    return any(True for _ in _layers(model))


def are_better(model: nn.Module, loss: Callable[[], float]) -> bool:
    """Whether a model does much better with the statistics that it has than with those of its batches.

    A compressed network that was fitted well does. Errors of the fits add to the variance of what a layer sees. With
    the statistics of the batches it would divide by that larger variance, and all that is right would shrink.

    Parameters
    ----------
    model : torch.nn.Module
    loss : callable
        The loss of the model in evaluation mode.
    """
    kept = loss()
    with _without_statistics(list(_layers(model))):
        try:
            return kept <= _MUCH * loss()
        except ValueError:  # torch's, for a batch of one sample, which has no variance: training would fail, too
            return True


def freeze(model: nn.Module) -> None:
    """Put all batch normalization that has statistics into evaluation mode. Its scales and shifts are still trained."""
    for layer in _layers(model):
        layer.training = False


def _layers(model: nn.Module) -> Iterator[Any]:
    """The layers that keep a mean and a variance."""
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) and isinstance(layer.running_mean, Tensor):
            yield layer


@contextmanager
def _without_statistics(layers: list[Any]) -> Iterator[None]:
    """Layers without statistics use those of the batch, in evaluation mode, too."""
    held = [(layer.running_mean, layer.running_var) for layer in layers]
    try:
        for layer in layers:
            layer.running_mean = layer.running_var = None
        yield
    finally:
        for layer, (mean, variance) in zip(layers, held, strict=True):
            layer.running_mean, layer.running_var = mean, variance
