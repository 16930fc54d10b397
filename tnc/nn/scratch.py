"""Room for large intermediates, used again and again: fresh memory costs more than what is written into it.

The allocator of torch's CPU returns large blocks to the system, which hands them out zeroed page by page: 25 ms for
64 MB, where the product that fills them takes 7.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tnc.nn.native import xp
from tnc.typing import Shape

__all__ = ["paged", "room"]

LARGE = 1 << 25
"""Bytes above which glibc maps a block of its own; smaller ones are recycled by it."""

torch.empty(LARGE - (1 << 13), dtype=torch.uint8)  # which it begins to do once so large a block has been freed

_local = threading.local()


def paged(shape: Shape, like: Tensor) -> Tensor:
    """Uninitialized memory that is read many times: on a CPU in large pages, up to a sixth faster to stream from.

    NumPy asks the system for such pages; torch does not.
    """
    if like.device.type != "cpu":
        return like.new_empty(shape)
    return torch.from_numpy(np.empty(prod(shape) * like.element_size(), np.uint8)).view(like.dtype).view(shape)


class _Room:
    """An array namespace whose large products are written into blocks that the next `room` uses again."""

    reshape, permute_dims, broadcast_to, matrix_transpose = (
        staticmethod(f) for f in (xp.reshape, xp.permute_dims, xp.broadcast_to, xp.matrix_transpose)
    )

    def __init__(self, free: list[Tensor]) -> None:
        self._free = free
        self._taken: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(xp, name)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """As torch's."""
        if a.numel() * b.shape[-1] < LARGE // 8 * a.shape[-1]:  # of doubles or less
            return xp.matmul(a, b)
        many = b.shape[:-2] if b.dim() > a.dim() else a.shape[:-2]
        shape = (*many, a.shape[-2], b.shape[-1])
        size = prod(shape) * a.element_size()
        plain = a.dtype != b.dtype or a.device.type != "cpu" or torch.is_autocast_enabled("cpu")
        if size < LARGE or plain or torch.is_grad_enabled():
            return xp.matmul(a, b)
        return torch.matmul(a, b, out=self._block(size).view(a.dtype)[: prod(shape)].view(shape))

    def _block(self, size: int) -> Tensor:
        """The smallest free block that holds so many bytes, or a new one in place of one that is too small."""
        fitting = [block for block in self._free if len(block) >= size]
        found = min(fitting, key=len, default=None)
        if found is None:
            found = paged((-(-size // 8) * 8,), torch.empty(0, dtype=torch.uint8))
            self._free[:] = self._free[1:]
        else:
            self._free[:] = [block for block in self._free if block is not found]
        self._taken.append(found)
        return found

    def close(self) -> None:
        """Hand the blocks back; results made in them are no longer valid."""
        self._free += self._taken
        self._free.sort(key=len)


@contextmanager
def room() -> Iterator[_Room]:
    """A namespace for products that do not outlive the block; every thread has its own memory."""
    if not hasattr(_local, "free"):
        _local.free = []
    made = _Room(_local.free)
    try:
        yield made
    finally:
        made.close()
