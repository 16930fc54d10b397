"""Initial values of the cores of new layers: random, with the variance of a dense layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tnc import contract
from tnc.decomposition import Factorization, InRoles
from tnc.network import Network
from tnc.typing import Shape

__all__ = ["deviation", "fresh", "mean_square"]

_EXACT_FLOPS = 1e9
"""Most multiplications and additions for the exact mean square of a new weight."""

_PROBES = 256
"""Number of random vectors that estimate the mean square where the exact one costs too much."""


def fresh(
    network: Network,
    shape: Shape,
    deviation: float,
    dtype: torch.dtype,
    device: torch.device,
    decomposition: InRoles,
) -> Factorization:
    """Random cores, scaled so that the entries of the rebuilt weight have the root mean square `deviation`.

    Parameters
    ----------
    network : Network
    shape : tuple of int
        Shape of the weight.
    deviation : float
        Standard deviation of the rebuilt entries.
    dtype : torch.dtype
        Dtype of the cores.
    device : torch.device
        Device of the cores. On ``meta`` they have no values.
    decomposition : InRoles
        Of which the network is. It draws the cores, and knows the role of each axis of the weight.

    Returns
    -------
    Factorization
    """
    seed = int(torch.randint(2**31, (), device="cpu").item())  # follows torch.manual_seed
    drawn = decomposition.random(network, shape, seed=seed)
    cores = [torch.as_tensor(core, dtype=torch.get_default_dtype(), device=device) for core in drawn]
    if (
        device.type != "meta"
    ):  # the variance of a product of few random cores is far from its expectation, so measure it
        own = len(network.operands) - (network.feed is not None)
        scale = (deviation / math.sqrt(mean_square(network, cores, shape))) ** (1 / own)
        cores = [*cores[:-own], *(scale * core for core in cores[-own:])]
    roles = decomposition.known(network, shape)
    return Factorization(network, [core.to(dtype) for core in cores], shape, roles)


def mean_square(network: Network, cores: list[Tensor], shape: Shape) -> float:
    """Mean square of the entries of the rebuilt weight.

    The network is contracted with itself, so that the weight is not rebuilt. It is rebuilt where the network has a feed
    or is larger than `shape`. Where this costs more than `_EXACT_FLOPS`, as for a ring of high rank, the product with
    random vectors gives an estimate with an error of a few percent.

    Parameters
    ----------
    network : Network
    cores : list of Tensor
        Of the shapes that the network states.
    shape : tuple of int
        Shape of the weight.

    Returns
    -------
    float
    """
    rebuilt = network.feed is not None or network.shape != shape
    exact = contract.recipe(network).plan if rebuilt else _squared(network)
    if network.feed is not None or exact.flops <= _EXACT_FLOPS or contract.rebuilds(network):
        if rebuilt:
            return float(contract.dense(network, cores, shape).square().mean())
        return float(contract.run(exact, [*cores, *cores])) / math.prod(shape)
    generator = torch.Generator(cores[0].device).manual_seed(0)
    columns = math.prod(shape[1:])
    probes = torch.randn(_PROBES, columns, dtype=cores[0].dtype, device=cores[0].device, generator=generator)
    return float(contract.apply(network, cores, probes, shape).square().sum()) / _PROBES / math.prod(shape)


def _squared(network: Network) -> contract.Plan:
    """The plan that contracts a network with itself, to the sum of the squared entries of its weight."""
    twins = [tuple(i if i in network.outer else f"{i}'" for i in core) for core in network.operands]
    sizes = {name: n for i, n in network.sizes.items() for name in (i, i if i in network.outer else f"{i}'")}
    return contract.plan((*network.operands, *twins), (), tuple(sizes.items()))


def deviation(layer: nn.Module) -> float:
    """Standard deviation of torch's initialization of a linear layer, a convolution or an embedding."""
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return 1.0
    return 1 / math.sqrt(3 * math.prod(layer.weight.shape[1:]))
