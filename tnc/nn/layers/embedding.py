"""`Embedding` and `EmbeddingBag`: they compute the rows that are looked up, not the whole table."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tnc.contract.cost import Device
from tnc.contract.lookup import Rows as LookUp
from tnc.nn.layers.base import Factorized, leaf
from tnc.nn.layers.cores import Cores, Tensors
from tnc.nn.runtime import schedule
from tnc.nn.runtime.autograd import recomputed, tracked
from tnc.nn.runtime.cache import Rows
from tnc.nn.runtime.fingerprint import Fingerprint
from tnc.nn.runtime.lookup import look_up

__all__ = ["Embedding", "EmbeddingBag"]


_CACHE_DIVISOR = 4
"""With execution "auto", evaluation keeps at most the table's number of rows divided by this."""


class _Table(Factorized):
    """The base of both layers: rows of a table by their numbers."""

    sparse = property(lambda self: False)  # the gradient of a lookup reaches every core

    def _tnc_plans(self, rates: Device) -> schedule.Schedule:
        weight = self._tnc_cores
        core_bytes = weight.held()[0].element_size() * weight.network.n_params
        self._tnc.check = rates.call * len(weight.names) + core_bytes / rates.bytes
        return schedule.lookup(weight.network, self._tnc.execution, rates)

    @property
    def _tnc_keeps_weight(self) -> bool:
        return self._tnc.execution == "dense"

    @property
    def _tnc_keeping(self) -> int:
        if self._tnc.execution != "auto":
            return super()._tnc_keeping
        return self._tnc_cores.shape[0] // _CACHE_DIVISOR * self._tnc_cores.shape[1]

    def _tnc_rows(self, numbers: Tensor) -> Tensor | None:
        """Rows of the table, (n, columns), or None where rebuilding the table is cheaper."""
        if self.max_norm is not None or self.scale_grad_by_freq:
            return None
        weight: Cores = self._modules["tnc_weight"]  # for speed, as in `Linear`
        cores, (rows, columns) = weight.held(), weight.shape
        plan = self._tnc.schedule.plan(numbers.shape[0], tracked(*cores))
        cache = self._tnc_cache(weight, cores, plan)
        if cache is not None:
            return cache(numbers, self._tnc_compute_rows)
        if plan is None:
            return None
        compute = partial(look_up, plan=plan, columns=columns, deep=weight.recipe.deep)
        return recomputed(compute, _checked(numbers, rows), *cores)

    def _tnc_cache(self, weight: Cores, cores: Tensors, plan: LookUp | None) -> Rows | None:
        """The cached rows; None where computing rows with `plan` is cheaper than checking the cores for changes.

        A frozen table needs no check. On a GPU no rows are kept: the CPU would have to wait for the GPU to learn
        which rows are there.
        """
        state, capacity = self._tnc, weight.shape[0] // _CACHE_DIVISOR
        if state.execution != "auto" or not capacity or cores[0].device.type != "cpu" or not weight.lasting(cores):
            return None
        frozen, rows = weight.frozen is not None, state.rows
        if not frozen and plan is not None and plan.seconds <= state.check:
            return None
        if rows is None or not (frozen or (rows.content is not None and rows.content.holds(cores))):
            with torch.inference_mode(False):
                state.rows = rows = Rows(weight.shape[0], capacity, None if frozen else Fingerprint(cores))
        return rows

    def _tnc_compute_rows(self, numbers: Tensor) -> Tensor:
        """Compute rows for the cache: from numbers (n,) to rows (n, columns)."""
        weight = self._tnc_cores
        cores, plan = weight.held(), self._tnc.schedule.plan(len(numbers), False)
        if plan is None:
            return weight.rebuilt(*cores).index_select(0, numbers)
        return look_up(numbers, *cores, plan=plan, columns=weight.shape[1], deep=weight.recipe.deep)

    def _tnc_table(self) -> Tensor:
        """The whole table. With ``max_norm`` it is a copy, because torch writes to it to limit the norms of rows."""
        weight = self._tnc_cores
        cores = weight.held()
        if self.max_norm is not None:
            return weight.rebuilt(*cores).clone()
        return weight.weight(cores, self._tnc_keeps_weight)

    @property
    def weight(self) -> Tensor:
        """The table, computed from the cores. It is for reading only."""
        return self._tnc_cores.handed(self._tnc_keeps_weight)


def _checked(numbers: Tensor, rows: int) -> Tensor:
    """The numbers, after torch's own lookup has checked that each is the number of a row.

    A number out of range would otherwise give a wrong row without an error. On a GPU this check does not wait.
    """
    return numbers + nn.functional.embedding(numbers, numbers.new_zeros(()).expand(rows, 1))[:, 0]


class Embedding(_Table, nn.Embedding):
    """`torch.nn.Embedding` with a factorized table; the padding row keeps its values.

    With ``max_norm`` or ``scale_grad_by_freq`` the table is rebuilt. ``sparse`` has no effect.
    """

    _tnc_base = nn.Embedding

    @staticmethod
    def _tnc_kept_row(module: Any) -> int | None:
        return module.padding_idx

    @leaf
    def forward(self, input: Tensor) -> Tensor:
        """Rows of the table for row numbers of any shape (...), as (..., embedding_dim)."""
        rows = self._tnc_rows(input.reshape(-1))
        if rows is None:
            return nn.functional.embedding(
                input, self._tnc_table(), self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq
            )
        weight = self._tnc_cores
        if (pinned := weight.row_values) is not None:
            padding = (input.reshape(-1) == weight.row)[:, None]  # (n, 1)
            rows = torch.where(padding, pinned.to(rows.dtype), rows)
        return rows.reshape(*input.shape, self.embedding_dim)


class EmbeddingBag(_Table, nn.EmbeddingBag):
    """`torch.nn.EmbeddingBag` with a factorized table."""

    _tnc_base = nn.EmbeddingBag

    @leaf
    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Sum, mean or maximum of the rows in each bag, as in torch's layer.

        Parameters
        ----------
        input : Tensor (bags, n) or (n,)
            Row numbers.
        offsets : Tensor (bags,), optional
            Where each bag starts in an input of one axis.
        per_sample_weights : Tensor, optional
            Factors of the rows in a sum, of the shape of `input`.

        Returns
        -------
        Tensor (bags, embedding_dim)
        """
        options: dict[str, Any] = {"mode": self.mode, "per_sample_weights": per_sample_weights}
        options["include_last_offset"] = self.include_last_offset
        rows = self._tnc_rows(input.reshape(-1))
        if rows is None:
            limits = self.max_norm, self.norm_type, self.scale_grad_by_freq
            return nn.functional.embedding_bag(
                input, self._tnc_table(), offsets, *limits, padding_idx=self.padding_idx, **options
            )
        places, padding = torch.arange(prod(input.shape), device=input.device), None
        if self.padding_idx is not None:  # padding becomes an extra row, which torch leaves out of the bags
            padding = len(places)
            rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
            places = torch.where(input.reshape(-1) == self.padding_idx, padding, places)
        return nn.functional.embedding_bag(
            places.reshape(input.shape).to(input.dtype), rows, offsets, padding_idx=padding, **options
        )
