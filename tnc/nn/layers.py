"""Layers whose weight is a tensor network: torch's own classes with the weight replaced by its cores.

Each is a subclass of torch's layer, so hooks, attributes, padding modes and parents that read ``weight`` keep working.
"""

from __future__ import annotations

import math
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tnc import contract
from tnc.decomposition import Decomposition, Factorization
from tnc.errors import RankError, WeightError
from tnc.fit import random_cores
from tnc.network import Network
from tnc.nn.cores import Cores
from tnc.nn.execution import schedule
from tnc.ranks import Budget, Fixed, Ratio, policy
from tnc.typing import Shape
from tnc.weights import Rule

__all__ = [
    "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d",
    "Embedding", "EmbeddingBag", "Linear", "factorized_class",
]  # fmt: skip


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
        deviation, weight = _deviation(dense), dense.get_parameter("weight")
        del self._parameters["weight"]
        factorization = _from_scratch(weight, decomposition, rank, deviation, device)
        if (bias := self._parameters.get("bias")) is not None:
            bound = math.sqrt(3) * deviation
            self.bias = nn.Parameter(torch.empty_like(bias, device=device).uniform_(-bound, bound))
        zeros = torch.zeros(weight.shape[1:], dtype=weight.dtype, device=device)
        pinned = None if self.kept_row is None else (self.kept_row, zeros)
        self.adopt(Cores(factorization, pinned=pinned), execution)

    def adopt(self, cores: Cores, execution: str) -> None:
        """Take cores in place of the weight, which is gone already; parameters of a tied layer are shared."""
        self.cores, self.execution = cores, execution

    def release(self) -> None:
        """Give up all that `adopt` added."""
        del self.cores, self.execution

    @property
    def kept_row(self) -> int | None:
        """A row of the weight that stays as it is and gets no gradient."""
        return None

    @property
    def weight(self) -> Tensor:
        """The weight, rebuilt from the cores."""
        return self.cores()

    def reset_parameters(self) -> None:
        """Nothing: the cores are initialized when the layer is made."""


def _from_scratch(
    weight: Tensor, decomposition: Any, rank: Any, deviation: float, device: torch.device
) -> Factorization:
    """Random cores whose rebuilt entries are as large, in the mean square, as a dense layer would start with."""
    if decomposition is None:
        raise WeightError("decomposition=None: name one, such as 'mpo', or make the layer of torch.nn")
    made, wanted = Rule("*", decomposition, rank).decomposition, policy(rank)
    shape = tuple(weight.shape)
    if isinstance(wanted, Fixed):
        network = made.network(shape, wanted.rank).clipped()
    elif isinstance(wanted, Ratio | Budget):
        network = Ratio(wanted.ratio).even(shape, made)
    else:
        raise RankError(f"{wanted} needs a weight to approximate; a new layer takes a rank or a ratio")
    seed = int(torch.randint(2**31, (), device="cpu").item())  # follows torch.manual_seed
    cores = random_cores(torch.empty(0, device=device), network, seed)
    if device.type != "meta":  # few cores deviate from their expectation: measure
        own = len(network.operands) - (network.feed is not None)
        scale = (deviation / math.sqrt(_mean_square(network, cores, shape))) ** (1 / own)
        cores = [*cores[:-own], *(scale * core for core in cores[-own:])]
    return Factorization(network, [core.to(weight.dtype) for core in cores], shape)


def _mean_square(network: Network, cores: list[Tensor], shape: Shape) -> float:
    """Mean square of the rebuilt entries: the network contracted with itself, so that only a feed is rebuilt."""
    if network.feed is not None:
        return float(contract.dense(network, cores, shape).square().mean())
    twins = [tuple(i if i in network.outer else f"{i}'" for i in core) for core in network.operands]
    return float(contract.contract([*network.operands, *twins], (), [*cores, *cores])) / math.prod(network.shape)


def _deviation(layer: nn.Module) -> float:
    """Standard deviation of torch's own initialization."""
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return 1.0
    return 1 / math.sqrt(3 * math.prod(layer.weight.shape[1:]))


class Linear(Factorized, nn.Linear):
    """`torch.nn.Linear` with a factorized weight; small batches never see the dense weight."""

    base = nn.Linear

    def adopt(self, cores: Cores, execution: str) -> None:
        super().adopt(cores, execution)
        self.schedule = schedule(self.cores.network, self.cores.shape, execution)

    def release(self) -> None:
        super().release()
        del self.schedule

    def forward(self, input: Tensor) -> Tensor:
        """``input @ weight.T + bias`` for input of shape (..., in_features)."""
        plan = self.schedule.plan(math.prod(input.shape[:-1]))  # numel() would be a constant to torch.export
        if plan is None:
            return nn.functional.linear(input, self.weight, self.bias)
        cores = self.cores
        output = contract.apply(cores.network, tuple(cores), input, cores.shape, xp=xp, made=plan)
        return output if self.bias is None else output + self.bias.to(output.dtype)  # autocast: the product's


class Embedding(Factorized, nn.Embedding):
    """`torch.nn.Embedding` with a factorized table; the padding row stays as it was.

    With ``max_norm`` rows are renormed as they are read; ``sparse`` is as if it were not set.
    """

    base = nn.Embedding
    sparse = property(lambda self: False)  # a lookup's gradient reaches every core

    @property
    def kept_row(self) -> int | None:
        return self.padding_idx


class EmbeddingBag(Factorized, nn.EmbeddingBag):
    """`torch.nn.EmbeddingBag` with a factorized table."""

    base = nn.EmbeddingBag
    sparse = property(lambda self: False)  # a lookup's gradient reaches every core


class Conv1d(Factorized, nn.Conv1d):
    """`torch.nn.Conv1d` with a factorized kernel."""

    base = nn.Conv1d


class Conv2d(Factorized, nn.Conv2d):
    """`torch.nn.Conv2d` with a factorized kernel."""

    base = nn.Conv2d


class Conv3d(Factorized, nn.Conv3d):
    """`torch.nn.Conv3d` with a factorized kernel."""

    base = nn.Conv3d


class ConvTranspose1d(Factorized, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with a factorized kernel."""

    base = nn.ConvTranspose1d


class ConvTranspose2d(Factorized, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with a factorized kernel."""

    base = nn.ConvTranspose2d


class ConvTranspose3d(Factorized, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with a factorized kernel."""

    base = nn.ConvTranspose3d


_CLASSES = (Linear, Embedding, EmbeddingBag, Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)


def factorized_class(module: nn.Module) -> type[Factorized] | None:
    """The class here that can stand in for `module`: one whose torch layer runs the same forward."""
    kind = type(module)
    if parametrize.is_parametrized(module):  # its class computes parameters, and would be replaced
        return None
    for made in _CLASSES:
        verbs = [verb for verb in ("forward", "_conv_forward") if hasattr(made.base, verb)]
        if issubclass(kind, made.base) and all(getattr(kind, v) is getattr(made.base, v) for v in verbs):
            return made
    return None
