"""Weights as tensors with one axis per index, and as matrices of some indices against the others."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeAlias

from array_api_compat import array_namespace

from tnc.contract.padding import pad
from tnc.errors import RankError
from tnc.network import Network
from tnc.typing import Array

__all__ = ["tensorize", "unfold"]

Sizes: TypeAlias = dict[str, int]


def tensorize(x: Array, network: Network) -> Array:
    """The weight with one axis per outer index of the network, padded where the network's sizes are larger.

    The padding is zeros. A constant weight is padded with its constant, because it then still has rank one.

    Raises
    ------
    RankError
        The network rebuilds fewer axes than the weight has, or shorter ones.
    """
    given, shape = tuple(x.shape), network.shape
    if not network.holds(given):
        raise RankError(f"a network of shape {shape} ({network.pattern}) cannot hold a weight of shape {given}")
    xp = array_namespace(x)
    if given != shape and bool(xp.all(x == x[(0,) * x.ndim])):
        x = xp.broadcast_to(xp.reshape(x, (-1,))[:1], shape)
    return xp.reshape(pad(x, shape, xp), tuple(network.sizes[i] for i in network.outer))


def unfold(x: Array, held: Sequence[str], rows: Sequence[str]) -> tuple[Array, list[str]]:
    """Matrix of some indices against the others.

    Parameters
    ----------
    x : array
    held : sequence of str
        Indices of the axes of `x`.
    rows : sequence of str
        Those that become the rows, in row-major order.

    Returns
    -------
    matrix : array (rows, columns)
    rest : list of str
        The other indices, in the order of the columns.
    """
    xp, rest = array_namespace(x), [i for i in held if i not in rows]
    if rest and tuple(held) == (*rest, *rows):  # a transposed view needs no copy
        return xp.matrix_transpose(xp.reshape(x, (-1, prod(x.shape[len(rest) :])))), rest
    x = xp.permute_dims(x, tuple(held.index(i) for i in [*rows, *rest]))
    return xp.reshape(x, (prod(x.shape[: len(rows)]), -1)), rest


def ordered(x: Array, held: Sequence[str], target: Sequence[str]) -> Array:
    """`x` with its axes in another order.

    Parameters
    ----------
    x : array
    held : sequence of str
        Indices of the axes of `x`.
    target : sequence of str
        The same indices in the new order.
    """
    return array_namespace(x).permute_dims(x, tuple(list(held).index(i) for i in target))
