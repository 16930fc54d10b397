"""A cache of the rows of a table, used in evaluation."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from tnc.nn.runtime.fingerprint import Fingerprint
from tnc.nn.runtime.namespace import paged

__all__ = ["Rows"]


class Rows:
    """A cache of rows of a table on a CPU. It keeps the first `capacity` different rows that are asked for.

    Parameters
    ----------
    rows : int
        Number of rows of the table.
    capacity : int
        Most rows to keep.
    content : Fingerprint, optional
        Fingerprint of the cores that the rows are computed from; None where the cores cannot change.
    """

    def __init__(self, rows: int, capacity: int, content: Fingerprint | None = None) -> None:
        self.content = content
        # The position of each row in the store; -1 where it is not kept. On the CPU whatever the default device is.
        self.positions = torch.full((rows,), -1, device="cpu")
        self.capacity, self.count = capacity, 0
        self.store: Tensor | None = None
        self.writing = threading.Lock()

    def __call__(self, numbers: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """The rows with these numbers.

        Parameters
        ----------
        numbers : Tensor (n,)
        compute : callable
            Computes rows that are not kept: from numbers (m,) to rows (m, columns).

        Returns
        -------
        Tensor (n, columns)

        Raises
        ------
        IndexError
            A number is not that of a row.
        """
        position = self.positions.index_select(0, numbers)
        if self.store is not None:
            try:
                return self.store.index_select(0, position)
            except IndexError:  # some row is not kept; checking before would cost more than this
                pass
        missing, order = numbers[position < 0].unique(return_inverse=True)
        if not len(missing):
            return compute(numbers)
        with torch.inference_mode(False), torch.no_grad():
            computed = compute(missing)
            self._keep(missing, computed)
        if len(order) == len(numbers):
            return computed.index_select(0, order)
        assert self.store is not None  # some of the rows were kept
        rows = computed.new_empty(len(numbers), computed.shape[1])
        rows[position < 0] = computed.index_select(0, order)
        rows[position >= 0] = self.store.index_select(0, position[position >= 0])
        return rows

    def _keep(self, numbers: Tensor, computed: Tensor) -> None:
        """Store as many of the rows as there is room for.

        Each row is written before its position, so that another thread never reads a position without a row.
        """
        with self.writing:
            new = (self.positions[numbers] < 0).nonzero()[: self.capacity - self.count, 0]
            before, self.count = self.count, self.count + len(new)
            if self.store is None or self.count > len(self.store):
                grown = paged((min(self.capacity, max(2 * self.count, 64)), computed.shape[1]), computed)
                if self.store is not None:
                    grown[:before] = self.store[:before]
                self.store = grown
            self.store[before : self.count] = computed[new]
            self.positions[numbers[new]] = torch.arange(before, self.count, device="cpu")
