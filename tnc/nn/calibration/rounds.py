"""In which order weights are fitted again, which of them together, and for how many the dense inputs are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tnc.nn.calibration.observe import Observer
from tnc.nn.calibration.operations import Use
from tnc.nn.calibration.swap import quiet
from tnc.nn.calibration.tallies import vectors
from tnc.nn.calibration.weights import weights
from tnc.nn.data.calls import Calls

__all__ = ["Round", "parts", "rounds", "stretches"]

_ROUNDS = 64
"""The most rounds. Models of more are fitted some rounds at a time, and each takes a pass of the compressed model."""

_KEPT = 2**26
"""The most numbers of inputs that are kept at once: 256 MiB in float32."""


class Round(NamedTuple):
    """Weights that are fitted together.

    Attributes
    ----------
    names : list of str
    numbers : int
        How many numbers their inputs are, over all batches. Only estimated.
    """

    names: list[str]
    numbers: int


def rounds(model: nn.Module, calls: Calls, names: Iterable[str]) -> list[Round]:
    """Weights in the order in which the first batch uses them; those that it does not use come last.

    Weights that see the same tensor come together, as queries, keys and values do: the fit of one does not change what
    the others see.

    Parameters
    ----------
    model : torch.nn.Module
    calls : Calls
    names : iterable of str
        Of weights.
    """
    known, wanted = weights(model), list(names)
    found: dict[str, int] = {}
    groups: list[list[str]] = []
    last: tuple[Tensor, tuple[Any, ...]] | None = None

    def see(use: Use) -> None:
        nonlocal last
        name = use.weight.name
        size = 0 if use.lookup else vectors(use, len(calls), 0)[0].numel()
        if name not in found:
            if last is not None and _place(use.x) == last[1]:
                groups[-1].append(name)
            else:
                groups.append([name])
        found[name] = found.get(name, 0) + size
        last = use.x, _place(use.x)  # as long as it lives, no other tensor gets its memory

    with torch.no_grad(), quiet(model), Observer((known[name] for name in wanted), see):
        calls(model, calls.batches[0])
    made = [Round(group, len(calls) * sum(found[name] for name in group)) for group in groups]
    return _joined(made + [Round([name], _KEPT) for name in wanted if name not in found])


def _place(x: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same numbers in the same place."""
    version = -1 if x.is_inference() else x._version  # it counts changes in place
    return x.untyped_storage()._cdata, x.shape, x.stride(), x.storage_offset(), version


def _joined(found: Sequence[Round]) -> list[Round]:
    """At most `_ROUNDS` rounds."""
    size = max(1, ceil(len(found) / _ROUNDS))
    groups = [found[k : k + size] for k in range(0, len(found), size)]
    return [Round([name for one in group for name in one.names], sum(one.numbers for one in group)) for group in groups]


def stretches(found: Iterable[Round]) -> Iterator[list[Round]]:
    """The rounds in order, as many at a time as have inputs that can be kept. A round with more stands alone."""
    held: list[Round] = []
    for one in found:
        if held and sum(each.numbers for each in held) + one.numbers > _KEPT:
            yield held
            held = []
        held.append(one)
    if held:
        yield held


def parts(batches: int, numbers: int) -> list[range]:
    """The numbers of the batches, in as few parts as have inputs that can be kept; one batch at least."""
    size = max(1, batches * _KEPT // max(numbers, _KEPT))
    return [range(k, min(k + size, batches)) for k in range(0, batches, size)]
