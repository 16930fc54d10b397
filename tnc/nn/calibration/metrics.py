"""From the statistics of a weight to the norm in which its errors count, and to the bias that corrects their mean."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tnc.fit.metric import Factor, Metric
from tnc.jobs import Weighing
from tnc.nn.calibration.pairs import Shift
from tnc.nn.calibration.statistics import Moments
from tnc.roles import AxisRoles

__all__ = ["Site", "correction", "site_of", "target", "weighing"]

_UNSEEN = 0.1
"""The share of the lookups of an embedding that counts as spread evenly over all rows. Calibration inputs do not have
all words."""

_SHRINK = 1e-3
"""The target for changed inputs is a ridge regression. This share of the mean variance is added to the variance of each
input, and more if there are few input vectors."""


class Site(NamedTuple):
    """A weight in its model.

    Attributes
    ----------
    name : str
    value : Tensor
        The dense weight.
    roles : AxisRoles
    bias : str, optional
        The name of the bias that its module adds to its outputs, if it can correct their mean.
    """

    name: str
    value: Tensor
    roles: AxisRoles
    bias: str | None = None

    @property
    def words(self) -> list[str]:
        """The role of each axis, in the order group, stack, rows, columns, kernel."""
        names, _ = self.roles.split(tuple(self.value.shape))
        return [names[k] for k in self.roles.order]

    @property
    def lead(self) -> int:
        """Axes of groups and stacks, which come first."""
        return self.words.index("rows")


def site_of(model: nn.Module, name: str, value: Tensor, roles: AxisRoles, moments: Moments) -> Site:
    """A weight with the bias that can correct the mean of its outputs.

    Parameters
    ----------
    model : torch.nn.Module
    name : str
        Of the weight.
    value : Tensor
    roles : AxisRoles
    moments : Moments
        Of the weight.
    """
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    other = leaf.replace("weight", "bias")
    bias = module._parameters.get(other)
    site = Site(name, value, roles)
    if bias is None or other == leaf or moments.transposed or moments.mean is None or moments.mean.ndim > 1:
        return site
    seen = roles.permuted(value)
    inside = prod(seen.shape[site.lead + 1 :]) == moments.mean.shape[-1]  # not so for a transposed convolution
    fits = bias.numel() == prod(seen.shape[: site.lead + 1]) and bias.is_floating_point()
    return site._replace(bias=f"{path}.{other}".lstrip(".")) if inside and fits else site


def weighing(site: Site, moments: Moments, *, gradients: bool) -> Weighing | None:
    """How errors of a weight count: by the outputs they change, or by the rise of the loss that they predict.

    Parameters
    ----------
    site : Site
    moments : Moments
    gradients : bool
        Whether gradients at the outputs count. The importance is then half the squared norm of the weight in this
        metric, so that importance times squared relative error is the predicted rise of the loss of a sample. Without
        gradients the importance is 1.

    Returns
    -------
    Weighing or None
        None if there are no statistics to weigh with.
    """
    rows, columns = site.lead, site.lead + 1
    inputs, outputs = moments.columns, moments.rows
    inside, outside = columns, rows
    if moments.transposed:
        inputs, outputs = outputs, inputs
        if moments.frequency is not None:
            share = 1 / len(moments.frequency)
            inputs = (1 - _UNSEEN) * moments.frequency + _UNSEEN * share
        inside, outside = rows, columns
    elif site.bias is not None and inputs is not None and moments.mean is not None and moments.kernel is None:
        inputs = _centred(inputs, moments.mean, moments.mean)
    factors = _factors(site, inputs, moments.kernel, inside)
    if gradients:
        if outputs is None:
            return None
        factors += _factors(site, outputs, None, outside)
    if not factors:
        return None
    metric = Metric(tuple(factors))
    only_lookups = moments.transposed and 0 < moments.uses <= moments.lookups
    uses = 0.0 if only_lookups else max(moments.uses, 1.0)  # a lookup multiplies nothing
    if not gradients:
        return Weighing(metric, 1.0, uses)
    seen = site.roles.permuted(site.value.detach().double())
    return Weighing(metric, 0.5 * metric.like(seen).energy(seen), uses)


def _factors(site: Site, matrix: Tensor | None, kernel: Tensor | None, axis: int) -> list[Factor]:
    """Factors of a metric from a moment over the rows, or over the columns with or without the kernel."""
    if matrix is None:
        return []
    seen = site.roles.permuted(site.value)
    axes: tuple[int, ...] = (axis,)
    square = matrix.ndim > 1 and matrix.shape[-1] == matrix.shape[-2]
    if square and matrix.ndim - 2 > site.lead:
        return _grouped(site, matrix, kernel, axis)
    size = matrix.shape[-1]
    if size != seen.shape[axis]:
        axes = tuple(range(site.lead + 1, seen.ndim))  # the columns and the kernel
    leading = matrix.ndim - (2 if square else 1)
    along = tuple(range(site.lead - leading, site.lead)) if leading else ()
    factors = [Factor(axes, matrix, along)]
    if kernel is not None:
        factors.append(Factor(tuple(range(site.lead + 2, seen.ndim)), kernel))
    return factors


def _grouped(site: Site, matrix: Tensor, kernel: Tensor | None, axis: int) -> list[Factor]:
    """Factors from moments of groups that are no axis of the weight, as those of a depthwise convolution."""
    rows, seen = site.lead, site.roles.permuted(site.value)
    if axis == rows:
        return [Factor((axis,), matrix.reshape(-1) if matrix.shape[-1] == 1 else torch.block_diag(*matrix))]
    if kernel is None and seen.shape[rows] % len(matrix) == 0:
        each = matrix.repeat_interleave(seen.shape[rows] // len(matrix), 0)
        return [Factor(tuple(range(rows + 1, seen.ndim)), each, (rows,))]
    return _factors(site, matrix.mean(0), None if kernel is None else kernel.mean(0), axis)


def _centred(second: Tensor, first: Tensor, other: Tensor) -> Tensor:
    """A second moment without the means, which a bias corrects."""
    if second.ndim == first.ndim:  # a diagonal
        return (second - first * other).clamp(min=0)
    return second - first.unsqueeze(-1) * other.unsqueeze(-2)


def target(site: Site, shift: Shift, moments: Moments, samples: int) -> tuple[Moments, Tensor]:
    """What to fit for inputs that changed: their moments, and the weight whose outputs are nearest to the dense ones.

    Parameters
    ----------
    site : Site
    shift : Shift
    moments : Moments
        Of the dense inputs. The gradients are taken from them.
    samples : int
        From which the shift is.

    Returns
    -------
    moments : Moments
    target : Tensor
        Of the shape of the weight.

    References
    ----------
    Arxiv 2604.02119 for the objective.
    """
    columns, rows = (moments.columns, shift.columns) if shift.transposed else (shift.columns, moments.rows)
    changed = replace(
        moments, columns=columns, kernel=shift.kernel, mean=shift.mean_shifted, rows=rows, uses=shift.uses
    )
    if shift.cross is None:
        return changed, site.value
    second, cross = shift.columns.double(), shift.cross.double()
    if site.bias is not None:
        second = _centred(second, shift.mean_shifted.double(), shift.mean_shifted.double())
        cross = _centred(cross, shift.mean.double(), shift.mean_shifted.double())
    size, flat = second.shape[-1], site.lead + 1
    seen = site.roles.permuted(site.value.detach().double())
    if shift.transposed:
        seen = seen.transpose(site.lead, flat)
    if size != prod(seen.shape[flat:]) or second.ndim > 2 + min(site.lead, 1):
        return changed, site.value
    matrix = seen.reshape(*seen.shape[:flat], size)
    diagonal = second.diagonal(dim1=-2, dim2=-1)
    share = _SHRINK + size / (4 * max(shift.uses * samples, 1.0))
    ridge = share * diagonal.mean(-1)[..., None, None] + 1e-300  # above zero where no input is seen
    eye = torch.eye(size, dtype=second.dtype, device=second.device)
    change = torch.linalg.solve(second + ridge * eye, (cross - second).mT).mT
    moved = (matrix + matrix @ change).reshape(seen.shape)
    if shift.transposed:
        moved = moved.transpose(site.lead, flat)
    value: Tensor = site.roles.unpermuted(moved, tuple(site.value.shape))
    return changed, value.to(site.value.dtype)


def correction(site: Site, fitted: Tensor, mean: Tensor, shifted: Tensor) -> Tensor | None:
    """What to add to the bias, so that the mean of the outputs is that of the dense layer: ``W E[x] - Ŵ E[x̂]``.

    Parameters
    ----------
    site : Site
    fitted : Tensor
        The rebuilt weight.
    mean, shifted : Tensor
        Means of the inputs in the dense model and in the present one.
    """
    if site.bias is None:
        return None
    flat = site.lead + 1
    values = (site.roles.permuted(w.detach().double()).flatten(flat) for w in (site.value, fitted))
    before, after = (w @ m.double().to(w.device) for w, m in zip(values, (mean, shifted), strict=True))
    return (before - after).reshape(-1)
