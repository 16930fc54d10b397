"""Calibration inputs: some batches of a user's data, and how the model is called on each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tnc.errors import DataError
from tnc.nn.data.answers import Answer, answer, call
from tnc.nn.data.batches import Batch, mapped, read, tensors

__all__ = ["Calls", "Forward", "samples_of"]

Forward = Callable[[nn.Module, Any], Any]
"""``forward(model, batch)`` calls the model on a batch as the loader gave it, and returns the outputs."""


@dataclass(frozen=True)
class Calls:
    """Batches of calibration inputs, and how the model is called on each.

    Parameters
    ----------
    batches : tuple
        As the loader gave them, on the device of the model.
    forward : callable, optional
        ``forward(model, batch)``, where calling the model takes more than passing the batch.
    """

    batches: tuple[Any, ...]
    forward: Forward | None = field(default=None)

    @classmethod
    def of(cls, model: nn.Module, data: Any, forward: Forward | None = None, samples: int = 1024) -> Calls:
        """Read calibration inputs.

        Parameters
        ----------
        model : torch.nn.Module
            Its device is that of the batches.
        data : Calls, Tensor, mapping or iterable
            A loader, or any iterable of batches: tensors; pairs (inputs, labels), of which the labels are left out;
            or mappings of named arguments. A tensor or a mapping is one batch.
        forward : callable, optional
        samples : int
            No batch is read after this number of samples.

        Raises
        ------
        DataError
            There is no batch, or a batch is not understood, holds no tensor, or has values that are not finite.
        """
        if isinstance(data, Calls):
            return data
        if isinstance(data, Tensor | Mapping):
            data = [data]
        if not isinstance(data, Iterable):
            raise DataError(
                f"data= is {type(data).__name__}: give a loader or another iterable of batches, which are tensors, "
                "pairs (inputs, labels) or dicts of the model's arguments"
            )
        device = next((x.device for x in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        batches, count = [], 0
        for k, given in enumerate(data):
            size = _checked(given, k, forward is None)
            batches.append(mapped(given, lambda x: _usable(x, device)))
            count += size
            if count >= samples:
                break
        if not batches:
            raise DataError("data= yields no batch: calibration needs some inputs")
        return cls(tuple(batches), forward)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def samples(self) -> int:
        """The number of samples in all batches."""
        return sum(_size(batch) for batch in self.batches)

    def size(self, batch: Any) -> int:
        """The number of samples in one of the batches."""
        return _size(batch)

    def of_tokens(self) -> bool:
        """Whether the first input is of whole numbers, as tokens are."""
        first = next(x for x in tensors(self.batches[0]) if x.ndim)
        return not (first.is_floating_point() or first.is_complex())

    def __call__(self, model: nn.Module, batch: Any) -> Answer:
        """Call the model on one of the batches. Gradients are recorded where they are enabled."""
        return answer(self.returned(model, batch))

    def returned(self, model: nn.Module, batch: Any) -> Any:
        """What the model returns for one of the batches, as it is."""
        return call(model, _read(batch)) if self.forward is None else self.forward(model, batch)

    def labels(self, batch: Any) -> Any:
        """The labels of a batch; None if it has none."""
        return None if isinstance(batch, Tensor) or self.forward is not None else _read(batch).labels

    def first(self, samples: int) -> Calls:
        """The first samples."""
        taken: list[Any] = []
        for batch in self.batches:
            if samples <= 0:
                break
            size = _size(batch)
            taken.append(batch if size <= samples else samples_of(batch, slice(0, samples)))
            samples -= size
        return Calls(tuple(taken), self.forward)

    def stacked(self) -> Any:
        """All samples as one batch; None if the shapes of samples differ, or where `forward` reads the batches.

        Tensors whose first axis is not the samples must be equal in all batches.
        """
        form = _form(self.batches[0])
        if self.forward is not None or any(_form(batch) != form for batch in self.batches):
            return None
        sizes = [_size(batch) for batch in self.batches]
        whole = []
        for parts in zip(*(list(tensors(batch)) for batch in self.batches), strict=True):
            if all(x.ndim and len(x) == size for x, size in zip(parts, sizes, strict=True)):
                whole.append(torch.cat(parts))
            elif all(torch.equal(x, parts[0]) for x in parts):
                whole.append(parts[0])
            else:
                return None
        remaining = iter(whole)
        return mapped(self.batches[0], lambda _: next(remaining))

    def rebatched(self, size: int) -> Calls:
        """The same samples in batches of at least `size`, of nearly equal sizes; unchanged where that is not possible.

        Batches that are larger stay as they are.
        """
        if min(_size(batch) for batch in self.batches) >= size or (whole := self.stacked()) is None:
            return self
        size = max(size, *(_size(batch) for batch in self.batches))
        parts = torch.arange(self.samples).tensor_split(max(1, self.samples // size))
        return Calls(tuple(samples_of(whole, slice(int(p[0]), int(p[-1]) + 1)) for p in parts), self.forward)


def _form(batch: Any) -> str:
    """The structure of a batch, with the shapes of its samples, to compare."""
    return repr(mapped(batch, lambda x: (x.dtype, x.ndim, tuple(x.shape[1:]))))


def _read(batch: Any) -> Batch:
    return Batch(batch, None) if isinstance(batch, Tensor) else read(batch)


def _usable(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. One made in inference mode is copied, because autograd could not keep it."""
    x = x.detach().to(device)
    return x.clone() if x.is_inference() and not torch.is_inference_mode_enabled() else x


def _size(batch: Any) -> int:
    """The number of samples: the length of the first tensor that has an axis."""
    return next((len(x) for x in tensors(batch) if x.ndim), 1)


def samples_of(batch: Any, part: slice | Tensor) -> Any:
    """Some samples of a batch, by a slice or their numbers.

    Tensors whose first axis has the length of the batch are cut; others stay.
    """
    size = _size(batch)
    return mapped(batch, lambda x: x[part] if x.ndim and len(x) == size else x)


def _checked(given: Any, k: int, plain: bool) -> int:
    """The number of samples of a batch.

    Raises
    ------
    DataError
        The batch is not understood, or has no samples, or values that are not finite.
    """
    if plain:
        try:
            _read(given)
        except Exception as error:
            raise DataError(
                f"batch {k} of data=: {error}; or pass forward=, a function of the model and the batch"
            ) from error
    found = list(tensors(given))
    if not found or not any(x.numel() for x in found):
        raise DataError(f"batch {k} of data= holds no tensor with values: collate samples to tensors")
    for x in found:
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise DataError(f"batch {k} of data= has values that are NaN or infinite: repair the data")
    return _size(given)
