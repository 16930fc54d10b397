"""`recalibrate`: estimate the statistics of batch normalization again, after a model was compressed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tnc.errors import DataError
from tnc.nn.calibration.judge import Judge
from tnc.nn.data.calls import Calls, Forward
from tnc.nn.data.division import divided
from tnc.nn.data.evaluation import evaluating

__all__ = ["Recalibration", "recalibrate"]

_BATCH = 64
"""Smaller batches are joined, because every layer is normalized with the statistics of its batch meanwhile."""

_HELD_OUT = 0.2
"""The share of the samples that judges, where the reference is a model."""


@dataclass(frozen=True)
class Recalibration:
    """What `recalibrate` did.

    Attributes
    ----------
    layers : int
        Layers whose statistics were estimated.
    samples : int
        Samples that they were estimated from.
    kept : bool
        Whether the model has the new statistics.
    before, after : float, optional
        Distance of the outputs from the reference's with the old statistics and with the new ones; None without a
        reference.
    """

    layers: int
    samples: int
    kept: bool
    before: float | None = None
    after: float | None = None

    def __str__(self) -> str:
        if not self.layers:
            return "no batch normalization with running statistics was reached: nothing to estimate"
        judged = "" if self.before is None else f", held-out distance {self.before:.4g} -> {self.after:.4g}"
        state = "the new statistics are kept" if self.kept else "the old statistics are kept"
        return f"{self.layers} layers of batch normalization from {self.samples} samples{judged}: {state}"


def recalibrate(
    model: nn.Module,
    loader: Any,
    *,
    forward: Forward | None = None,
    samples: int = 4096,
    reference: Judge | nn.Module | None = None,
) -> Recalibration:
    """Estimate the running statistics of all batch normalization again, in place, without gradients.

    The new mean and variance are those of all samples together: means over batches weighted by their number of
    entries, and the total variance, which includes that of the batch means. While they are estimated, every layer is
    normalized with the statistics of its batch, so that small batches are joined to at least 64 samples if their shapes
    allow it. Everything else is in evaluation mode, and parameters are left alone.

    After a good fit the old statistics may be better than new ones from a few samples. With a `reference` the new
    ones are kept only if they bring the outputs nearer to it.

    Parameters
    ----------
    model : torch.nn.Module
    loader : iterable
        Inputs; labels are left out. See `tnc.nn.refine`.
    forward : callable, optional
        ``forward(model, batch)``, where calling the model takes more than passing the batch.
    samples : int
        No batch is read after this number of samples.
    reference : Judge or torch.nn.Module, optional
        The dense model: a fifth of the samples is then held out, and judges. Or a judge with inputs of its own.

    Returns
    -------
    Recalibration

    Raises
    ------
    DataError
        The data cannot be used, or a layer sees values that are not finite. The model then has its old statistics.
    """
    layers = [each for each in model.modules() if isinstance(each, _BatchNorm) and _has_statistics(each)]
    if not layers:
        return Recalibration(0, 0, False)
    calls = Calls.of(model, loader, forward, samples)
    if isinstance(reference, nn.Module):
        calls, held_out = divided(calls, _HELD_OUT, reference)
        reference = Judge(reference, held_out)
    before = None if reference is None else reference.distance(model)
    with _restored_after_errors(layers) as restore, torch.no_grad():
        reached = _estimate(model, layers, calls.rebatched(_BATCH))
        after = None if reference is None else reference.distance(model)
        kept = bool(reached) and (before is None or after is None or after < before)
        if not kept:
            restore()
    return Recalibration(reached, calls.samples, kept, before, after)


def _has_statistics(layer: nn.Module) -> bool:
    return isinstance(layer.running_mean, Tensor) and isinstance(layer.running_var, Tensor)


@contextmanager
def _restored_after_errors(layers: list[Any]) -> Iterator[Any]:
    """A function that gives the layers their present statistics back. It is called after errors and Ctrl-C, too."""
    buffers = [(layer, name, x.clone()) for layer in layers for name, x in layer._buffers.items() if x is not None]

    @torch.no_grad()
    def restore() -> None:
        for layer, name, x in buffers:
            layer._buffers[name].copy_(x)

    try:
        yield restore
    except BaseException:
        restore()
        raise


class _Moments:
    """Mean and variance of all inputs of a layer, joined in float64 batch by batch."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.batches = self.count = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0  # the sum of squared distances from the mean

    def add(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Add a batch, and return its own mean and (biased) variance."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        axes = [axis for axis in range(x.ndim) if axis != 1]
        variance, mean = (each.double() for each in torch.var_mean(wide, axes, correction=0))
        if not bool(torch.isfinite(variance).all()):
            raise DataError(f"{self.name} sees values that are NaN or infinite: repair the model or the data")
        count = x.numel() // x.shape[1]
        total = self.count + count
        shift = mean - self.mean
        self.squares = self.squares + variance * count + shift.square() * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count, self.batches = total, self.batches + 1
        return mean, variance

    def variance(self) -> Tensor:
        """Without bias, as layers in training keep it."""
        return self.squares / max(self.count - 1, 1)


def _estimate(model: nn.Module, layers: list[Any], calls: Calls) -> int:
    """Estimate the statistics and write them; the number of layers that were reached."""
    names = {id(module): name for name, module in model.named_modules()}
    moments = {id(layer): _Moments(names[id(layer)]) for layer in layers}

    def normalize_by_batch(layer: Any, inputs: tuple[Any, ...]) -> None:
        # Statistics of the batch are written where evaluation mode reads them. Training mode would do the same, but
        # not for single samples, nor for SyncBatchNorm outside of a group of processes.
        mean, variance = moments[id(layer)].add(inputs[0])
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)

    hooks = [layer.register_forward_pre_hook(normalize_by_batch) for layer in layers]
    try:
        with evaluating(model):
            for batch in calls:
                calls.returned(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    reached = [layer for layer in layers if moments[id(layer)].count]
    for layer in reached:
        found = moments[id(layer)]
        layer.running_mean.copy_(found.mean)
        layer.running_var.copy_(found.variance())
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(found.batches)
    return len(reached)
