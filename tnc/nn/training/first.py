"""The first batches of a loader, which are read before a training to find its settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from typing import Any, NamedTuple

from tnc.errors import TncError
from tnc.nn.training.distributed import Part

__all__ = ["First", "peekable"]

_BATCHES = 4
"""The number of batches that judge a trial, and of those that show how batch normalization does."""


class First(NamedTuple):
    """The first batches of a loader, for several purposes.

    Attributes
    ----------
    beginning : Part
        The very first ones. They are the same for trials of any length.
    learned : Part
        Those that the steps of a trial learn from.
    judging : Part
        Those after them, which judge. If there is one batch only, it does both.
    """

    beginning: Part
    learned: Part
    judging: Part

    @classmethod
    def of(cls, loader: Iterable[Any], steps: int) -> First:
        """Read the first batches, which are enough for trials of so many steps.

        Raises
        ------
        TncError
            The loader gives no batch.
        """
        count = steps + _BATCHES
        found = loader.first(count) if isinstance(loader, _Peekable) else list(islice(loader, count))
        if not found:
            raise TncError("the loader gave no batch: pass a DataLoader or a list, which can be iterated once an epoch")
        judging = min(_BATCHES, max(1, len(found) // 4))
        learned = islice(cycle(found[:-judging] or found), steps)
        return cls(*(Part(batches, loader) for batches in (found[:_BATCHES], learned, found[-judging:])))


def peekable(loader: Iterable[Any]) -> Iterable[Any]:
    """A loader whose first batches can be read without losing them: an iterator is wrapped, others are left alone."""
    if not isinstance(loader, Iterator):
        return loader
    return _Sized(loader) if hasattr(loader, "__len__") else _Peekable(loader)


class _Peekable:
    """The batches of an iterator, which may be looked at before they are used. It has the iterator's attributes."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches
        self._seen: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def first(self, count: int) -> list[Any]:
        """The first batches. They come again when this object is iterated."""
        self._seen += islice(self._batches, max(0, count - len(self._seen)))
        return self._seen[:count]

    def __iter__(self) -> Iterator[Any]:
        while self._seen:
            yield self._seen.pop(0)
        yield from self._batches


class _Sized(_Peekable):
    """The same of an iterator that knows its number of batches."""

    def __init__(self, batches: Any) -> None:
        super().__init__(batches)
        self._length = len(batches)

    def __len__(self) -> int:
        return self._length
