"""`Embedding` and `EmbeddingBag`: only the rows asked for are made, never the table."""

from __future__ import annotations

from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from tnc.cost import Device
from tnc.nn import execution
from tnc.nn.factorized import Factorized
from tnc.nn.recompute import recomputed, tracked
from tnc.nn.through import look_up

__all__ = ["Embedding", "EmbeddingBag"]


class _Table(Factorized):
    """What both share: rows by their numbers."""

    sparse = property(lambda self: False)  # a lookup's gradient reaches every core

    def plans(self, rates: Device) -> execution.Schedule:
        self.cores.keeps = self.execution == "dense"
        return execution.lookup(self.cores.network, self.execution, rates)

    def rows(self, numbers: Tensor) -> Tensor | None:
        """Rows of the table, (n, columns), or None where rebuilding the table is cheaper."""
        cores = tuple(self.cores)
        made = self.schedule.plan(prod(numbers.shape), tracked(*cores))
        if made is None or self.max_norm is not None or self.scale_grad_by_freq:
            return None
        rows, columns = self.cores.shape
        return recomputed(partial(look_up, made=made, columns=columns), _checked(numbers, rows), *cores)


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
