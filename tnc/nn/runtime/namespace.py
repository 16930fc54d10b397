"""torch as an array namespace, and reusable memory for large intermediates.

Where torch's own functions follow the array API standard, they are called directly. `array_api_compat` promotes types
in Python in every call, which the operands of a layer never need. This takes 4 microseconds, and a small product 2.

New memory can cost more than the product that fills it. torch's allocator for the CPU gives large blocks back to the
system. The system fills each new page with zeros: 25 ms for 64 MB, where the product takes 7 ms.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from math import prod
from typing import Any

import array_api_compat.torch as compat
import numpy as np
import torch
from torch import Tensor

from tnc.contract.executor import Executor
from tnc.typing import Shape

__all__ = ["LARGE", "paged", "recycle", "workspace", "xp"]


class _Torch:
    """torch's functions under their names in the standard. All others come from `array_api_compat`."""

    reshape = staticmethod(torch.reshape)
    permute_dims = staticmethod(torch.permute)
    broadcast_to = staticmethod(torch.broadcast_to)

    @staticmethod
    def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """As ``torch.matmul``, which needs six operations for expanding and reshaping where these need one."""
        if (axes := a.dim()) == b.dim() == 2:
            return torch.mm(a, b)
        return torch.bmm(a, b) if axes == b.dim() == 3 and a.shape[0] == b.shape[0] else torch.matmul(a, b)

    @staticmethod
    def matrix_transpose(x: torch.Tensor) -> torch.Tensor:
        return x.mT

    def __getattr__(self, name: str) -> Any:
        return getattr(compat, name)


xp: Any = _Torch()
"""The array namespace of layers."""

LARGE = 1 << 25
"""Size in bytes above which glibc gets each block from the system. After `recycle` it reuses smaller blocks itself."""

_local = threading.local()


@cache
def recycle() -> None:
    """Make glibc reuse blocks of up to `LARGE` bytes.

    It does so after a block of that size was freed. Before, its limit is 128 kB. This is called when the first
    compressed layer is made, so that the import of this package does not change the process.
    """
    torch.empty(LARGE - (1 << 13), dtype=torch.uint8, device="cpu")  # whatever the default device


def paged(shape: Shape, like: Tensor) -> Tensor:
    """Uninitialized memory for a tensor that is read many times.

    On a CPU it is in large pages, which are up to a sixth faster to read. NumPy asks the system for such pages, and
    torch does not.

    Parameters
    ----------
    shape : tuple of int
    like : Tensor
        Has the dtype and the device.

    Returns
    -------
    Tensor
    """
    if like.device.type != "cpu":
        return like.new_empty(shape)
    return torch.from_numpy(np.empty(prod(shape) * like.element_size(), np.uint8)).view(like.dtype).view(shape)


class _Recycling(_Torch):
    """torch, but large products are written into blocks of memory that the next `workspace` uses again."""

    def __init__(self, free: list[Tensor]) -> None:
        self._free = free
        self._taken: list[Tensor] = []

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """The product of (..., m, k) and (..., k, n). A large one is written into a block of the workspace."""
        if a.numel() * b.shape[-1] < LARGE // 8 * a.shape[-1]:  # the product is small, even in float64
            return xp.matmul(a, b)
        batch = b.shape[:-2] if b.dim() > a.dim() else a.shape[:-2]
        shape = (*batch, a.shape[-2], b.shape[-1])
        size = prod(shape) * a.element_size()
        plain = a.dtype != b.dtype or a.device.type != "cpu" or torch.is_autocast_enabled("cpu")
        if size < LARGE or plain or torch.is_grad_enabled():
            return xp.matmul(a, b)
        return torch.matmul(a, b, out=self._block(size).view(a.dtype)[: prod(shape)].view(shape))

    def _block(self, size: int) -> Tensor:
        """The smallest free block of at least `size` bytes, or a new block that replaces a smaller one."""
        fitting = [block for block in self._free if len(block) >= size]
        smallest = min(fitting, key=len, default=None)
        if smallest is None:
            smallest = paged((-(-size // 8) * 8,), torch.empty(0, dtype=torch.uint8))
            self._free[:] = self._free[1:]
        else:
            self._free[:] = [block for block in self._free if block is not smallest]
        self._taken.append(smallest)
        return smallest

    def close(self) -> None:
        """Free the blocks for other workspaces. Results in them are no longer valid."""
        self._free += self._taken
        self._free.sort(key=len)


@contextmanager
def workspace() -> Iterator[Executor]:
    """An executor whose intermediates are valid inside the ``with`` block only. Each thread has its own memory."""
    if not hasattr(_local, "free"):
        _local.free = []
    namespace = _Recycling(_local.free)
    try:
        yield Executor(xp, namespace)
    finally:
        namespace.close()
