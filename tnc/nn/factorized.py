"""What all factorized layers share: cores in place of a weight, made from a dense layer or from scratch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tnc import contract
from tnc.cost import Device
from tnc.decomposition import Decomposition, Factorization
from tnc.errors import RankError, WeightError
from tnc.fit import random_cores
from tnc.network import Network
from tnc.nn.cores import Cores
from tnc.nn.execution import Schedule, check, constants
from tnc.ranks import Budget, Fixed, Ratio
from tnc.typing import Shape
from tnc.weights import Rule

__all__ = ["Factorized", "deviation", "fresh", "mean_square", "topology"]

_EXACT = 1e9
"""Multiplications and additions that the exact mean square of a new weight may cost."""
_PROBES = 256


class Factorized(nn.Module):
    """What all layers here share: `cores` in place of the parameter ``weight``.

    The first class to build one from scratch is torch's layer, with the same arguments, and then

    Parameters
    ----------
    decomposition : str or Decomposition
    rank : int, sequence of int, float or RankPolicy
        A rank or a ratio; a tolerance needs a weight to approximate.
    execution : {"auto", "dense", "factorized"}
    """

    cores: Cores
    base: type[nn.Module]
    """The torch layer this one stands for."""

    def __init__(
        self, *args: Any, decomposition: str | Decomposition, rank: Any, execution: str = "auto", **kwargs: Any
    ) -> None:
        device = torch.device(kwargs.pop("device", None) or torch.get_default_device())
        dense = self.base(*args, **kwargs, device="meta")
        self.__dict__.update(dense.__dict__, _dense_form=(self.base, tuple(dense._parameters)))
        if decomposition is None:
            raise WeightError("decomposition=None: name one, such as 'mpo', or make the layer of torch.nn")
        scale, weight = deviation(dense), dense.get_parameter("weight")
        del self._parameters["weight"]
        network = topology(tuple(weight.shape), Rule("*", decomposition, rank))
        factorization = fresh(network, tuple(weight.shape), scale, weight.dtype, device)
        if (bias := self._parameters.get("bias")) is not None:
            bound = math.sqrt(3) * scale
            self.bias = nn.Parameter(torch.empty_like(bias, device=device).uniform_(-bound, bound))
        zeros = torch.zeros(weight.shape[1:], dtype=weight.dtype, device=device)
        pinned = None if self.kept_row is None else (self.kept_row, zeros)
        self.adopt(Cores(factorization, pinned=pinned), execution)

    def adopt(self, cores: Cores, execution: str) -> None:
        """Take cores in place of the weight, which is gone already; parameters of a tied layer are shared."""
        self.cores, self.execution = cores, execution
        cores.keeps = execution != "factorized"
        self.reschedule()

    def release(self) -> None:
        """Give up all that `adopt` added."""
        del self.cores, self.execution, self.schedule

    def plans(self, rates: Device) -> Schedule:
        """What runs at which size; where nothing is planned the weight is rebuilt."""
        return Schedule()

    def reschedule(self) -> None:
        """Plan anew for the device the cores are on."""
        check(self.execution)
        self.cores.kept = None  # another execution keeps something else
        self.schedule = self.plans(constants(next(iter(self.cores)).device))

    def _apply(self, fn: Any, recurse: bool = True) -> Factorized:
        before = next(iter(self.cores)).device
        super()._apply(fn, recurse)
        if next(iter(self.cores)).device != before:
            self.reschedule()
        return self

    @property
    def keeping(self) -> int:
        """Entries of the rebuilt weight that evaluation keeps: all of them, if any size of the input is so served."""
        ways = [made for _, made in self.schedule.inference]
        return math.prod(self.cores.shape) if self.cores.keeps and (not ways or None in ways) else 0

    @property
    def kept_row(self) -> int | None:
        """A row of the weight that stays as it is and gets no gradient."""
        return None

    @property
    def weight(self) -> Tensor:
        """The weight, rebuilt from the cores."""
        return self.cores.forward()  # a module's call would cost as much as the check of what is kept

    def reset_parameters(self) -> None:
        """Nothing: the cores are initialized when the layer is made."""


def topology(shape: Shape, rule: Rule, *, clip: bool = True) -> Network:
    """The network of a weight of which only the shape is known.

    Parameters
    ----------
    clip : bool
        Whether a stated rank is cut to what each bond can use.

    Raises
    ------
    RankError
        The rank is a promise about the error, or no rank keeps the ratio.
    """
    if isinstance(rule.rank, Fixed):
        network = rule.decomposition.network(shape, rule.rank.rank)
        return network.clipped() if clip else network
    if isinstance(rule.rank, Ratio | Budget):
        return Ratio(rule.rank.ratio).even(shape, rule.decomposition)
    raise RankError(f"{rule.rank} needs a weight to approximate; a new layer takes a rank or a ratio")


def fresh(network: Network, shape: Shape, deviation: float, dtype: torch.dtype, device: torch.device) -> Factorization:
    """Random cores whose rebuilt entries have `deviation` as the root of their mean square."""
    seed = int(torch.randint(2**31, (), device="cpu").item())  # follows torch.manual_seed
    cores = random_cores(torch.empty(0, device=device), network, seed)
    if device.type != "meta":  # few cores deviate from their expectation: measure
        own = len(network.operands) - (network.feed is not None)
        scale = (deviation / math.sqrt(mean_square(network, cores, shape))) ** (1 / own)
        cores = [*cores[:-own], *(scale * core for core in cores[-own:])]
    return Factorization(network, [core.to(dtype) for core in cores], shape)


def mean_square(network: Network, cores: list[Tensor], shape: Shape) -> float:
    """Mean square of the rebuilt entries: the network contracted with itself, so that nothing is rebuilt.

    With a feed, or where the network overshoots `shape`, the entries are rebuilt. Where that costs more than `_EXACT`,
    as for a ring of high rank, the action on random vectors is measured instead, to a few percent.
    """
    rebuilt = network.feed is not None or network.shape != shape
    exact = contract.recipe(network).plan if rebuilt else _squared(network)
    if network.feed is not None or exact.flops <= _EXACT or contract.rebuilds(network):
        if rebuilt:
            return float(contract.dense(network, cores, shape).square().mean())
        return float(contract.run(exact, [*cores, *cores])) / math.prod(shape)
    generator = torch.Generator(cores[0].device).manual_seed(0)
    columns = math.prod(shape[1:])
    probes = torch.randn(_PROBES, columns, dtype=cores[0].dtype, device=cores[0].device, generator=generator)
    return float(contract.apply(network, cores, probes, shape).square().sum()) / _PROBES / math.prod(shape)


def _squared(network: Network) -> contract.Plan:
    """The network contracted with itself: the sum of its squared entries."""
    twins = [tuple(i if i in network.outer else f"{i}'" for i in core) for core in network.operands]
    sizes = {name: n for i, n in network.sizes.items() for name in (i, i if i in network.outer else f"{i}'")}
    return contract.plan((*network.operands, *twins), (), tuple(sizes.items()))


def deviation(layer: nn.Module) -> float:
    """Standard deviation of torch's own initialization, of a linear map, a convolution or an embedding."""
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return 1.0
    return 1 / math.sqrt(3 * math.prod(layer.weight.shape[1:]))
