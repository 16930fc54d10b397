"""Replace the large layers of a network by tensor networks, by truncated SVDs, or by layers with fewer units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from math import prod
from typing import NamedTuple

import torch
from torch import nn

import tnc
from tnc.nn.layers.cores import Cores

__all__ = [
    "Budgeted",
    "Format",
    "Layers",
    "aligned",
    "budgeted",
    "calibrated",
    "chained",
    "compressed",
    "count",
    "find",
    "matched",
    "narrowed",
    "rules",
    "saving",
    "svd",
    "tensorized",
    "weights_of",
]


class Format(NamedTuple):
    """The format of one weight: a decomposition with its fields, and its rank.

    The papers count every bond at its nominal size, even if a core at the end cannot use all of it. `clip` reduces
    bonds to what can be used; it is off where a published count is reproduced.
    """

    decomposition: str
    rank: int
    clip: bool = False

    def network(self, shape: Iterable[int]) -> tnc.Network:
        """The network of a weight of this shape."""
        made = tnc.decompositions.parse(self.decomposition).network(tuple(shape), self.rank)
        return made.clipped() if self.clip else made


Layers = Mapping[str, Format]
"""Formats by the names of parameters."""


class Budgeted(NamedTuple):
    """A number of parameters for all weights that a glob matches together. A budget chooses their ranks."""

    weights: str
    decomposition: str
    size: int


def matched(model: nn.Module, weights: str) -> dict[str, nn.Parameter]:
    """The parameters of at least two axes that one of the globs matches, in the order of the model."""
    globs = weights.split()
    named = ((name, weight) for name, weight in model.named_parameters() if weight.ndim > 1)
    return {name: weight for name, weight in named if any(fnmatchcase(name, glob) for glob in globs)}


def find(model: nn.Module, shape: tuple[int, ...], last: int | None = None) -> list[str]:
    """Names of the weights of one shape, in the order of the model.

    Parameters
    ----------
    model : torch.nn.Module
    shape : tuple of int
    last : int, optional
        Return only so many names, from the end.

    Raises
    ------
    LookupError
        There is no such weight, or there are fewer than `last`.
    """
    names = [name for name, weight in model.named_parameters() if tuple(weight.shape) == shape]
    if len(names) < (last or 1):
        known = sorted({tuple(weight.shape) for weight in model.parameters() if weight.ndim > 1})
        raise LookupError(f"{last or 1} weights of shape {shape} are needed, the model has {len(names)}: {known}")
    return names[-last:] if last else names


def rules(layers: Layers) -> list[tnc.Rule]:
    """The formats as rules for `tnc.compress` and `tnc.nn.tensorize`."""
    return [tnc.Rule(name, made.decomposition, made.rank) for name, made in layers.items()]


def tensorized(model: nn.Module, layers: Layers) -> nn.Module:
    """Replace the weights by random cores; the mean square of a weight stays that of its initialization."""
    clip = {made.clip for made in layers.values()}
    if len(clip) != 1:
        raise ValueError("all layers are clipped, or none is")
    return tnc.nn.tensorize(model, rules(layers), clip=clip.pop())


def compressed(model: nn.Module, layers: Layers) -> nn.Module:
    """Replace the weights by cores that are fitted to them; bonds are clipped."""
    return tnc.compress(model, rules(layers))


def calibrated(model: nn.Module, layers: Layers, inputs: Sequence[torch.Tensor]) -> nn.Module:
    """Replace the weights by cores that are fitted to the outputs of the layers for these inputs; bonds are clipped."""
    return tnc.compress(model, rules(layers), data=inputs)


def budgeted(model: nn.Module, wanted: Budgeted, inputs: Sequence[torch.Tensor]) -> nn.Module:
    """Replace the weights by cores that are fitted in the same way, with at most so many parameters in all."""
    dense = sum(weight.numel() for weight in matched(model, wanted.weights).values())
    rule = tnc.Rule(wanted.weights, wanted.decomposition, tnc.Budget(wanted.size / dense))
    return tnc.compress(model, [rule], data=inputs)


def aligned(model: nn.Module, layers: Layers, steps: int = 40, rate: float = 0.3) -> nn.Module:
    """Replace the weights by random cores whose direction is then aligned with the weights.

    Gradient steps maximize the cosine between the rebuilt and the original weight. Then the cores are scaled, so that
    both have the same root mean square.

    This is for formats that can explain only about a ten-thousandth of a weight's square. Their best fit is close to
    zero or has a few large entries (as the closed form finds), and a layer with such a weight passes almost nothing on.
    The cosine does not depend on the scale, and the cores stay dense.

    Parameters
    ----------
    model : torch.nn.Module
    layers : mapping of str to Format
    steps : int
        Gradient steps for each weight.
    rate : float
        Learning rate, in units of the root mean square of the weight.
    """
    targets = {name: model.get_parameter(name).detach().clone() for name in layers}
    tensorized(model, layers)
    for name, target in targets.items():
        layer, size = model.get_submodule(name.removesuffix(".weight")), _size(target)
        optimizer = torch.optim.Adam(tnc.nn.parameter_groups(layer.tnc_weight, rate * size))
        for _ in range(steps):
            optimizer.zero_grad()
            weight = layer.weight
            (-(weight * target).sum() / weight.norm()).backward()
            optimizer.step()
        _scale(layer.tnc_weight, size)
    return model


@torch.no_grad()
def _scale(cores: Cores, size: float) -> None:
    """Scale the cores of a wall's last layer by one factor, to a weight with the root mean square `size`."""
    network, own = cores.network, list(cores)
    own = own[len(own) - len(network.operands) + (network.feed is not None) :]
    factor = (size / _size(cores.rebuilt(*cores))) ** (1 / len(own))
    for core in own:
        core.mul_(factor)


def _size(weight: torch.Tensor) -> float:
    """The root mean square of a weight."""
    return float(weight.detach().square().mean().sqrt())


def saving(model: nn.Module, layers: Layers) -> dict[str, Format]:
    """The layers whose format has fewer parameters than the weight; the others stay dense."""
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    return {name: made for name, made in layers.items() if made.network(shapes[name]).n_params < prod(shapes[name])}


def count(model: nn.Module, layers: Layers = {}) -> tuple[int, int]:  # noqa: B006 - never written to
    """Count the parameters after these layers got their formats: those of the layers, and of the whole network.

    Only shapes are used, so that the model may be on the meta device.
    """
    weights = dict(model.named_parameters())
    replaced = sum(made.network(weights[name].shape).n_params for name, made in layers.items())
    dense = sum(weights[name].numel() for name in layers)
    return replaced, sum(weight.numel() for weight in weights.values()) - dense + replaced


# ------------------------------------------------------------------------------------------------- controls


def svd(model: nn.Module, sizes: Mapping[str, int]) -> dict[str, Format]:
    """Truncated SVDs with at most as many parameters as all `sizes` together; the rank is 1 at least.

    Ranks grow by one in turn, the largest layer first, as long as the next rank fits and has fewer parameters than the
    weight.
    """
    shapes = {name: tuple(model.get_parameter(name).shape) for name in sorted(sizes, key=sizes.__getitem__)[::-1]}
    cost = {name: shape[0] + prod(shape[1:]) for name, shape in shapes.items()}
    ranks, left = dict.fromkeys(shapes, 1), sum(sizes.values()) - sum(cost.values())
    grown = True
    while grown:
        grown = False
        for name, shape in shapes.items():
            if cost[name] <= left and (ranks[name] + 1) * cost[name] < prod(shape):
                ranks[name], left, grown = ranks[name] + 1, left - cost[name], True
    return {name: Format("svd", ranks[name], clip=True) for name in sizes}


def narrowed(model: nn.Module, sizes: Mapping[str, int]) -> nn.Module:
    """Replace layers, in place, by freshly initialized layers with fewer units.

    In a chain of linear layers all hidden widths are reduced to one common fraction. It is the largest fraction at
    which the weights have at most as many parameters as all `sizes` of the chain together, but at least one unit
    remains. A single layer becomes two layers with few units between them.
    """
    for chain in _chains(model, list(sizes)):
        allowed = sum(sizes[name] for name in chain)
        layers = [model.get_submodule(name.removesuffix(".weight")) for name in chain]
        if len(chain) == 1:
            _put(model, chain[0], _bottleneck(layers[0], allowed))
            continue
        widths = [layers[0].in_features, *(layer.out_features for layer in layers)]
        widths = _fitting(widths, allowed)
        for name, layer, fan_in, fan_out in zip(chain, layers, widths, widths[1:], strict=False):
            _put(model, name, nn.Linear(fan_in, fan_out, layer.bias is not None, device=layer.weight.device))
    return model


def _fitting(widths: list[int], allowed: int) -> list[int]:
    """The widths, with all but the first and the last scaled by the largest factor that `allowed` weights permit."""

    def scaled(largest: int) -> list[int]:
        share = largest / max(widths[1:-1])
        return [widths[0], *(max(1, round(share * width)) for width in widths[1:-1]), widths[-1]]

    def size(largest: int) -> int:
        made = scaled(largest)
        return sum(a * b for a, b in pairwise(made))

    return scaled(max([n for n in range(1, max(widths[1:-1]) + 1) if size(n) <= allowed], default=1))


def _bottleneck(layer: nn.Module, allowed: int) -> nn.Sequential:
    """Two layers in place of one: the first has its kernel and stride, the second its bias."""
    weight, bias = layer.weight, layer.bias is not None
    units = max(1, allowed // (weight.shape[0] + weight[0].numel()))
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, units, bias=False, device=weight.device)
        return nn.Sequential(first, nn.Linear(units, layer.out_features, bias, device=weight.device))
    where = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    first = nn.Conv2d(layer.in_channels, units, layer.kernel_size, bias=False, device=weight.device, **where)
    return nn.Sequential(first, nn.Conv2d(units, layer.out_channels, 1, bias=bias, device=weight.device))


def _chains(model: nn.Module, names: list[str]) -> list[list[str]]:
    """The names, grouped into chains of linear layers that feed each other directly."""
    chains: list[list[str]] = []
    order = list(dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters()))
    place = {path: k for k, path in enumerate(order)}
    paths = sorted((name.rpartition(".")[0] for name in names), key=place.__getitem__)
    for path in paths:
        layer = model.get_submodule(path)
        before = chains[-1][-1] if chains else None
        joined = before is not None and place[before] + 1 == place[path] and isinstance(layer, nn.Linear)
        if joined and getattr(model.get_submodule(before), "out_features", None) == layer.in_features:
            chains[-1].append(path)
        else:
            chains.append([path])
    return [[f"{path}.weight" for path in chain] for chain in chains]


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    path, _, leaf = name.removesuffix(".weight").rpartition(".")
    reference = model.get_parameter(name)
    setattr(model.get_submodule(path), leaf, layer.to(device=reference.device, dtype=reference.dtype))


def chained(model: nn.Module, names: Iterable[str]) -> bool:
    """Whether some of these layers feed each other, so that hidden units between them can be removed."""
    return any(len(chain) > 1 for chain in _chains(model, list(names)))


def weights_of(model: nn.Module, names: Iterable[str]) -> int:
    """Count the parameters, without biases, of the modules that now stand in place of these weights."""
    with torch.no_grad():
        modules = [model.get_submodule(name.removesuffix(".weight")) for name in names]
    held = (pair for module in modules for pair in module.named_parameters())
    return sum(weight.numel() for name, weight in held if name.rpartition(".")[2] != "bias")
