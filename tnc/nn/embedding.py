"""`Embedding` and `EmbeddingBag`: only the rows asked for are made, never the table."""

from __future__ import annotations

from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from tnc.cost import Device
from tnc.nn import execution
from tnc.nn.cores import Cores
from tnc.nn.factorized import Factorized
from tnc.nn.recompute import recomputed, tracked
from tnc.nn.through import look_up

__all__ = ["Embedding", "EmbeddingBag"]


_SHARE = 4
"""In evaluation `auto` keeps the rows that were asked for, up to this part of the table: never the table."""


class _Table(Factorized):
    """What both share: rows by their numbers."""

    sparse = property(lambda self: False)  # a lookup's gradient reaches every core

    def plans(self, rates: Device) -> execution.Schedule:
        self.cores.keeps = self.execution == "dense"
        return execution.lookup(self.cores.network, self.execution, rates)

    @property
    def keeping(self) -> int:
        if self.execution != "auto":
            return super().keeping
        return self.cores.shape[0] // _SHARE * self.cores.shape[1]

    def rows(self, numbers: Tensor) -> Tensor | None:
        """Rows of the table, (n, columns), or None where rebuilding the table is cheaper."""
        if self.max_norm is not None or self.scale_grad_by_freq:
            return None
        held: Cores = self._modules["cores"]  # as in `Linear`
        cores, (rows, columns) = tuple(held), held.shape
        if self.execution == "auto" and (known := held.recalled(cores, rows // _SHARE)):
            return known(numbers, self._made)
        made = self.schedule.plan(numbers.shape[0], tracked(*cores))
        if made is None:
            return None
        return recomputed(partial(look_up, made=made, columns=columns), _checked(numbers, rows), *cores)

    def _made(self, numbers: Tensor) -> Tensor:
        """Rows to be kept."""
        cores, made = tuple(self.cores), self.schedule.plan(len(numbers), False)
        if made is None:
            return self.cores.rebuilt(*cores).index_select(0, numbers)
        return look_up(numbers, *cores, made=made, columns=self.cores.shape[1])


def _checked(numbers: Tensor, rows: int) -> Tensor:
    """The numbers, found to be those of rows by torch's own lookup: on a GPU nothing waits for the answer.

    The digits of any other number would be those of some row.
    """
    return numbers + nn.functional.embedding(numbers, numbers.new_zeros(()).expand(rows, 1))[:, 0]


class Embedding(_Table, nn.Embedding):
    """`torch.nn.Embedding` with a factorized table; the padding row stays as it was.

    With ``max_norm`` or ``scale_grad_by_freq`` the table is rebuilt; ``sparse`` is as if it were not set.
    """

    base = nn.Embedding

    @property
    def kept_row(self) -> int | None:
        return self.padding_idx

    def forward(self, input: Tensor) -> Tensor:
        """Rows of the table for numbers of any shape."""
        found = self.rows(input.reshape(-1))
        if found is None:
            return super().forward(input)
        if self.cores.pinned is not None:
            padding = (input.reshape(-1) == self.padding_idx)[:, None]
            found = torch.where(padding, self.cores.pinned.to(found.dtype), found)
        return found.reshape(*input.shape, self.embedding_dim)


class EmbeddingBag(_Table, nn.EmbeddingBag):
    """`torch.nn.EmbeddingBag` with a factorized table."""

    base = nn.EmbeddingBag

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Sum, mean or maximum of the rows in each bag, as torch's layer."""
        found = self.rows(input.reshape(-1))
        if found is None:
            return super().forward(input, offsets, per_sample_weights)
        places, padding = torch.arange(prod(input.shape), device=input.device), None
        if self.padding_idx is not None:  # a row of its own, which the bags leave out
            padding = len(places)
            found = torch.cat([found, found.new_zeros(1, found.shape[1])])
            places = torch.where(input.reshape(-1) == self.padding_idx, padding, places)
        return nn.functional.embedding_bag(
            places.reshape(input.shape).to(input.dtype),
            found,
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )
