"""Whether tensors still hold the values that they held earlier.

Torch counts writes to a tensor, but it does not count writes through ``.data``, NumPy, DLPack, fused optimizers or
another process. Therefore the contents are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Fingerprint"]

_SMALL = 1 << 16
"""Size in bytes up to which a tensor is compared with a copy.

For larger tensors, sums over rows and columns are as fast to compare, and they need much less memory than a copy.
"""

_COLUMNS = 4093
"""Words in a row of a block. It is a prime, because rows whose length is a power of two map to the same cache lines."""

_ROWS = 16
"""Rows of a block. A block has half a megabyte, so that its second sum reads from the cache."""


class _Content(NamedTuple):
    """The values of one tensor at one time, and what is needed to compare them with the values now.

    Attributes
    ----------
    pointer : int
        The address of the tensor.
    shape : torch.Size
    dtype : torch.dtype
    blocks : tuple of Tensor
        Parts of the tensor's own memory as matrices of 64-bit words, ``int64[rows, columns]``. Their sums are compared.
    rest : tuple of Tensor
        The other parts of the same memory. They are compared with copies.
    first : Tensor, optional
        The first of these parts; None if the tensor is empty.
    sums : tuple of (Tensor, Tensor)
        For each block, the sums of its rows, ``int64[rows]``, and of its columns, ``int64[columns]``, at that time.
    copies : tuple of Tensor
        Copies of `rest` at that time.
    """

    pointer: int
    shape: torch.Size
    dtype: torch.dtype
    blocks: tuple[Tensor, ...]
    rest: tuple[Tensor, ...]
    first: Tensor | None
    sums: tuple[tuple[Tensor, Tensor], ...]
    copies: tuple[Tensor, ...]

    @staticmethod
    def of(tensor: Tensor) -> _Content:
        words, *tail = _words(tensor)
        blocks: tuple[Tensor, ...] = ()
        in_blocks = 0
        if words.numel() * words.element_size() > _SMALL:
            in_blocks = words.numel() // _COLUMNS * _COLUMNS
            matrix = words[:in_blocks].view(-1, _COLUMNS)
            blocks = torch.split(matrix, _ROWS)
        rest = tuple(part for part in (words[in_blocks:], *tail) if part.numel())
        sums = tuple(_sums(block) for block in blocks)
        copies = tuple(part.clone() for part in rest)
        first = next(iter((*blocks, *rest)), None)
        return _Content(tensor.data_ptr(), tensor.shape, tensor.dtype, blocks, rest, first, sums, copies)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor has the same memory, shape and dtype as the earlier one, and the same values."""
        if not self._is_in_place(tensor):
            return False
        for block, (rows, columns) in zip(self.blocks, self.sums, strict=True):
            # One sum after the other: the second is not needed if the first differs.
            if not torch.equal(block.sum(1), rows) or not torch.equal(block.sum(0), columns):
                return False
        return all(map(torch.equal, self.rest, self.copies))

    def _is_in_place(self, tensor: Tensor) -> bool:
        """Whether a tensor has the same memory, shape and dtype as the earlier one."""
        # The address of our own view of the memory. It is 0 if the memory was freed, or if the tensor is empty.
        address = 0 if self.first is None else self.first.data_ptr()
        same_memory = tensor.data_ptr() == self.pointer == address
        same_type = tensor.dtype == self.dtype and tensor.shape == self.shape
        return same_memory and same_type and tensor.is_contiguous()


def _sums(block: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of the rows and of the columns of a matrix."""
    return block.sum(1), block.sum(0)


class Fingerprint:
    """The content of several tensors on a CPU at one time.

    Small tensors are compared with a copy. The memory of larger ones is read as matrices of 64-bit words. The sums of
    all rows and of all columns, modulo 2^64, are compared. A changed value changes one sum of each kind, and so does an
    exchange of two values in any places. A change is missed only if it changes four words or more and keeps all these
    sums to the last bit.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._contents = [_Content.of(tensor) for tensor in tensors]

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the tensors hold the same values as earlier, in the same memory."""
        if len(tensors) != len(self._contents):
            return False
        return all(content.holds(tensor) for content, tensor in zip(self._contents, tensors, strict=True))

    @staticmethod
    def possible(tensors: Sequence[Tensor]) -> bool:
        """Whether the tensors can be compared: they are on the CPU and lie in memory without gaps."""
        return all(t.is_cpu and t.layout == torch.strided and t.is_contiguous() for t in tensors)


def _words(tensor: Tensor) -> tuple[Tensor, ...]:
    """The memory of a contiguous tensor as 64-bit words and the bytes that remain.

    A tensor that does not start at a multiple of 8 bytes is returned as bytes only.
    """
    with torch.inference_mode(False), torch.no_grad():
        flat = tensor.detach().view(-1).view(torch.uint8)
        if flat.storage_offset() % 8:
            return (flat,)
        whole = flat.numel() // 8 * 8
        return flat[:whole].view(torch.int64), flat[whole:]
