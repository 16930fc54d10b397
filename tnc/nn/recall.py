"""What evaluation keeps until a core changes: rebuilt weights, and rows of a table that were looked up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from tnc.nn.scratch import paged

__all__ = ["Kept", "Rows"]

_VERSION = attrgetter("_version")


class Kept(NamedTuple):
    """Something made of tensors; those are held, so that no other can come to lie in their place."""

    value: Any
    tensors: tuple[Tensor, ...]
    state: list[int]

    @staticmethod
    def of(value: Any, tensors: tuple[Tensor, ...]) -> Kept:
        """`value` as of now; it is part of what may not change where it is a tensor itself."""
        watched = (*tensors, value) if isinstance(value, Tensor) else tensors
        return Kept(value, watched, _state(watched))

    def holds(self, tensors: tuple[Tensor, ...]) -> bool:
        """Whether it was made of these, and nobody has written into them since."""
        return all(map(is_, tensors, self.tensors)) and self.state == _state(self.tensors)


def _state(tensors: tuple[Tensor, ...]) -> list[int]:
    """What changes when someone writes into one of the tensors."""
    return [*map(Tensor.data_ptr, tensors), *map(_VERSION, tensors), _steps]


_steps = 0
"""Steps of all optimizers so far: their fused kernels change parameters past torch's version counters."""


def _stepped(*_: Any) -> None:
    global _steps
    if not torch.compiler.is_compiling():  # what is compiled counts versions, and would be compiled at every step
        _steps += 1


register_optimizer_step_post_hook(_stepped)


class Rows:
    """Rows of a table on a CPU, found again by their numbers: those asked for first, up to `most` of them.

    Parameters
    ----------
    rows : int
        Of the table.
    most : int
        How many to keep.
    """

    def __init__(self, rows: int, most: int) -> None:
        self.place = torch.full((rows,), -1)
        self.most, self.count = most, 0
        self.store: Tensor | None = None
        self.writing = threading.Lock()

    def __call__(self, numbers: Tensor, find: Callable[[Tensor], Tensor]) -> Tensor:
        """The rows of these numbers, (n,) to (n, columns); `find` makes those that are not kept.

        Raises
        ------
        IndexError
            A number is none of a row.
        """
        place = self.place.index_select(0, numbers)
        if self.store is not None:
            try:
                return self.store.index_select(0, place)
            except IndexError:  # cheaper than to look beforehand whether all are there
                pass
        unknown, order = numbers[place < 0].unique(return_inverse=True)
        if not len(unknown):
            return find(numbers)
        with torch.inference_mode(False), torch.no_grad():
            found = find(unknown)
            self._keep(unknown, found)
        if len(order) == len(numbers):
            return found.index_select(0, order)
        assert self.store is not None  # for a row was there
        rows = found.new_empty(len(numbers), found.shape[1])
        rows[place < 0] = found.index_select(0, order)
        rows[place >= 0] = self.store.index_select(0, place[place >= 0])
        return rows

    def _keep(self, numbers: Tensor, found: Tensor) -> None:
        """Take in as many rows as there is room for; whoever reads meanwhile sees a row before its place."""
        with self.writing:
            new = (self.place[numbers] < 0).nonzero()[: self.most - self.count, 0]
            before, self.count = self.count, self.count + len(new)
            if self.store is None or self.count > len(self.store):
                grown = paged((min(self.most, max(2 * self.count, 64)), found.shape[1]), found)
                if self.store is not None:
                    grown[:before] = self.store[:before]
                self.store = grown
            self.store[before : self.count] = found[new]
            self.place[numbers[new]] = torch.arange(before, self.count)
