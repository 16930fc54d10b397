"""Which part of a weight a tensor shows, found from where it lies in memory.

A view of a parameter (transposed, expanded, sliced, reshaped) has the same storage, so its offset, sizes and strides
tell which axis of the view is which axis of the parameter. A copy in another dtype or order is followed, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

__all__ = ["REPEATED", "Layout", "Part", "View"]

REPEATED = -1
"""The axis of a part that repeats the same values, as ``expand`` does."""


class Part(NamedTuple):
    """A range of one axis of the weight."""

    axis: int
    start: int
    length: int


class _Strided(NamedTuple):
    """A part, and its stride in memory."""

    part: Part
    stride: int


class View(NamedTuple):
    """A tensor that shows a weight or a part of it.

    Attributes
    ----------
    axes : tuple of tuple of Part
        For each axis of the tensor the parts that it runs over, the slowest first. Those of length 1 are left out.
    fixed : dict of int to int
        For each axis of the weight the position where the tensor begins.
    """

    axes: tuple[tuple[Part, ...], ...]
    fixed: dict[int, int]


class Layout(NamedTuple):
    """How a weight lies in memory.

    Attributes
    ----------
    parts : tuple of _Strided
        Axes longer than 1, the largest stride first.
    fixed : dict of int to int
        Positions of the other axes.
    base : int
        Offset of the first value in its storage.
    """

    parts: tuple[_Strided, ...]
    fixed: dict[int, int]
    base: int

    @classmethod
    def of(cls, sizes: Sequence[int], strides: Sequence[int], base: int) -> Layout:
        """The layout of a whole weight.

        Parameters
        ----------
        sizes, strides : sequence of int
            Of its axes.
        base : int
            Offset in the storage.
        """
        parts = [_Strided(Part(k, 0, n), s) for k, (n, s) in enumerate(zip(sizes, strides, strict=True)) if n > 1]
        fixed = {k: 0 for k, n in enumerate(sizes) if n <= 1}
        return cls(tuple(sorted(parts, key=lambda part: -part.stride)), fixed, base)

    def copied(self, view: View, strides: Sequence[int], base: int) -> Layout:
        """The layout of a copy of a view.

        Parameters
        ----------
        view : View
        strides : sequence of int
            Of the copy, which has the shape of the view.
        base : int
            Offset in the storage of the copy.
        """
        parts, shown = [], set()
        for axis, stride in zip(view.axes, strides, strict=True):
            for k, part in enumerate(axis):
                parts.append(_Strided(part, stride * prod(p.length for p in axis[k + 1 :])))
                shown.add(part.axis)
        fixed = {axis: start for axis, start in view.fixed.items() if axis not in shown}
        return Layout(tuple(sorted(parts, key=lambda part: -part.stride)), fixed, base)

    def view(self, sizes: Sequence[int], strides: Sequence[int], offset: int) -> View | None:
        """What a tensor in the same storage shows; None if it is no plain view, such as one with steps.

        Parameters
        ----------
        sizes, strides : sequence of int
        offset : int
        """
        starts = self._starts(offset - self.base)
        if starts is None:
            return None
        axes = []
        for size, stride in zip(sizes, strides, strict=True):
            run = self._run(size, stride, starts)
            if run is None:
                return None
            axes.append(run)
        fixed = self.fixed | {
            part.axis: part.start + start
            for (part, _), start in zip(self.parts, starts, strict=True)
            if part.axis != REPEATED
        }
        return View(tuple(axes), fixed)

    def _starts(self, offset: int) -> list[int] | None:
        """The position along each part at which a view with this offset begins."""
        starts = []
        for part, stride in self.parts:
            start, offset = divmod(offset, stride) if stride else (0, offset)
            if not 0 <= start < part.length:
                return None
            starts.append(start)
        return None if offset else starts

    def _run(self, size: int, stride: int, starts: list[int]) -> tuple[Part, ...] | None:
        """The neighbouring parts that one axis of a view runs over. All but the first are whole."""
        if size == 1:
            return ()
        if stride == 0:
            return (Part(REPEATED, 0, size),)
        last = next((k for k, part in enumerate(self.parts) if part.stride == stride), None)
        if last is None:
            return None
        run: list[Part] = []
        for k in range(last, -1, -1):
            part, step = self.parts[k]
            inside = prod(p.length for p in run)
            count, rest = divmod(size, inside)
            if rest or step != stride * inside:
                return None
            if count <= part.length - starts[k]:
                return (Part(part.axis, part.start + starts[k], count), *run)
            if starts[k]:
                return None
            run.insert(0, part)
        return None
