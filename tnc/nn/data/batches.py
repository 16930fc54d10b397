"""Read batches from loaders, move them to a device, and divide them between processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tnc.errors import TncError

__all__ = ["IGNORED", "LABELS", "Batch", "mapped", "read", "tensors"]

LABELS = ("labels", "label", "label_ids")
"""Names under which a mapping may hold its labels. The first one that it has is used."""

IGNORED = -100
"""The label that the losses of torch and of Hugging Face leave out."""


@dataclass(frozen=True)
class Batch:
    """One batch, or the part of it that one process takes.

    Attributes
    ----------
    inputs : object
        A tensor, a sequence of arguments, or a mapping of named arguments; without the labels.
    labels : object
        None if the loader gives none.
    name : str, optional
        The name of the labels, if the batch was a mapping.
    weight : float
        Factor of the loss. With it, the mean over all processes is the mean over the whole batch.
    samples : float
        The number of samples of the whole batch that this part counts for. It may be a fraction, because parts are
        weighted by their labels.
    """

    inputs: Any
    labels: Any
    name: str | None = None
    weight: float = 1.0
    samples: float = 0.0

    def moved(self, device: torch.device) -> Batch:
        """The same batch on a device."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        return replace(self, inputs=mapped(self.inputs, move), labels=mapped(self.labels, move))

    def dealt(self, rank: int, count: int) -> Batch:
        """The part of the batch for process `rank` of `count`: every `count`-th sample, from sample `rank` on.

        Tensors whose first axis has the length of the batch are divided; others are the same in all parts. A part is
        weighted by its number of labels, without those that losses leave out. If a part has no label, it is the whole
        batch with weight 0: every process must compute gradients, so that torch can add them up.

        Parameters
        ----------
        rank : int
            The number of the process, from 0.
        count : int
            The number of processes.
        """
        size = _size(self)

        def take(x: Tensor) -> Tensor:
            return x[rank::count] if x.ndim and len(x) == size else x

        labels = mapped(self.labels, take)
        samples_taken = len(range(rank, size, count))
        share = _label_count(labels, samples_taken) / max(_label_count(self.labels, size), 1)
        if not share:
            return Batch(self.inputs, self.labels, self.name, 0.0, 0.0)
        return Batch(mapped(self.inputs, take), labels, self.name, count * share, size * share)


def read(given: Any) -> Batch:
    """Read what a loader gives: inputs and labels, a sequence of inputs alone, or a mapping of named arguments.

    Raises
    ------
    TncError
        It is none of these, or holds no tensor with samples on its first axis.
    """
    match given:
        case Mapping():
            batch = _from_mapping(given)
        case [inputs]:
            batch = Batch(inputs, None)
        case [inputs, labels]:
            batch = Batch(inputs, labels)
        case _:
            kind = type(given).__name__
            if isinstance(given, Sequence):
                kind += f" of {len(given)}"
            raise TncError(
                f"a batch is a {kind}: give pairs (inputs, labels), inputs being a tuple where the model takes "
                "several, or a dict of the model's arguments with its labels under 'labels'"
            )
    return replace(batch, samples=_size(batch))


def _from_mapping(given: Mapping[str, Any]) -> Batch:
    """A batch of named arguments, without the labels among them."""
    name = next((name for name in LABELS if name in given), None)
    if name is None:
        return Batch(dict(given), None)
    inputs = {key: value for key, value in given.items() if key != name}
    return Batch(inputs, given[name], name)


def tensors(tree: Any) -> Iterator[Tensor]:
    """All tensors in nested mappings, sequences and dataclasses, in order."""
    match tree:
        case Tensor():
            yield tree
        case Mapping():
            for part in tree.values():
                yield from tensors(part)
        case tuple() | list():
            for part in tree:
                yield from tensors(part)
        case _ if is_dataclass(tree) and not isinstance(tree, type):
            for each in fields(tree):
                yield from tensors(getattr(tree, each.name, None))


def mapped(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same nested mappings, sequences and dataclasses with `change` applied to every tensor.

    Other values stay.
    """
    match tree:
        case Tensor():
            return change(tree)
        case Mapping():
            return {name: mapped(part, change) for name, part in tree.items()}
        case tuple() if hasattr(tree, "_fields"):
            return type(tree)(*(mapped(part, change) for part in tree))
        case tuple() | list():
            return type(tree)(mapped(part, change) for part in tree)
        case _ if is_dataclass(tree) and not isinstance(tree, type):
            parts = {each.name: mapped(getattr(tree, each.name), change) for each in fields(tree) if each.init}
            return replace(tree, **parts)
    return tree


def _size(batch: Batch) -> int:
    """The number of samples: the length of the labels, or of the first input that has an axis."""
    for tensor in (*tensors(batch.labels), *tensors(batch.inputs)):
        if tensor.ndim:
            return len(tensor)
    raise TncError("a batch holds no tensor with samples on its first axis: collate samples to tensors")


def _label_count(labels: Any, samples: int) -> int:
    """The number of labels that a mean loss divides by; `samples` if the labels are no whole numbers.

    Only ratios of it are used, so that a factor which all parts share does not matter.
    """
    if isinstance(labels, Tensor) and labels.ndim and not labels.is_floating_point():
        return int((labels != IGNORED).sum())
    return samples
