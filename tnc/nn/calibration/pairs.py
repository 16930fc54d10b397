"""Moments of what weights see in a dense model and in its compressed version, on the same inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tnc.errors import DataError, listed
from tnc.nn.calibration.observe import Observer
from tnc.nn.calibration.operations import Use, light
from tnc.nn.calibration.swap import quiet, swapped
from tnc.nn.calibration.tallies import Inputs, narrow, vectors
from tnc.nn.calibration.tally import Sums
from tnc.nn.calibration.weights import Weight, weights
from tnc.nn.data.calls import Calls

__all__ = ["Shift", "in_order", "shifted"]


@dataclass(frozen=True)
class Shift:
    """How the inputs of one weight differ between two versions of a model.

    With ``x`` the inputs in the dense model and ``x̂`` those in the present one. Axes are as in `Moments`. The fit of
    ``Ŵ x̂`` to ``W x`` has the metric `columns` and the target ``W cross pinv(columns)``.

    Attributes
    ----------
    columns : Tensor
        ``E[x̂ x̂^T]``; over channels only if `kernel` is given.
    cross : Tensor, optional
        ``E[x x̂^T]``, the dense inputs first. None where the moment is kept apart for channels and kernel.
    mean, mean_shifted : Tensor
        ``E[x]`` and ``E[x̂]``.
    kernel : Tensor, optional
        The moment of ``x̂`` over the kernel.
    uses : float
        Input vectors per sample.
    transposed : bool
        Whether the inputs meet the rows of the weight, not its columns.
    """

    columns: Tensor
    cross: Tensor | None
    mean: Tensor
    mean_shifted: Tensor
    kernel: Tensor | None = None
    uses: float = 0.0
    transposed: bool = False


class _Reached(BaseException):
    """All wanted weights were used. It is not an `Exception`, so that no module catches it."""


def shifted(
    model: nn.Module,
    calls: Calls,
    names: Iterable[str],
    dense: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    seed: int = 0,
) -> dict[str, Shift | None]:
    """Moments of the inputs of some weights, with dense values and with the present ones.

    Each batch runs twice: with the dense values, then with the present ones. The second run ends as soon as it has used
    all these weights as often as the first one. The first run ends early, too, if each weight was used exactly once in
    the batch before. Between the two runs, the inputs of these weights for one batch are kept in memory.

    Parameters
    ----------
    model : torch.nn.Module
        It is as it was afterwards.
    calls : Calls
        The inputs.
    names : iterable of str
        Weights whose inputs are wanted. A tied weight may have any of its names.
    dense : mapping of str to Tensor
        Values of the dense model, of all parameters that differ.
    present : mapping of str to Tensor
        Values of the same parameters in the present version.
    seed : int
        Chooses the patches of large images. They are the same in both runs.

    Returns
    -------
    dict of str to Shift or None
        By the first name of each weight. It is None for a weight that is not used, that is looked up, or that is used
        in several ways. It is also None if the two runs differ in the number of its input vectors: other tokens may be
        routed to an expert, for example.

    Raises
    ------
    MatchError
        A name does not exist.
    DataError
        Values do not fit the model, or inputs of a weight are not finite.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    pairs = {name: _Pair(weight) for name, weight in weights(model, names).items()}
    with torch.no_grad(), quiet(model):
        for k, batch in enumerate(calls):
            live = {name: pair for name, pair in pairs.items() if pair.fits}
            if not live:
                break
            keep, take = (partial(see, batches=len(calls), seed=seed + k) for see in (_Pair.keep, _Pair.take))
            with swapped(parameters, dense):
                often = dict.fromkeys(live, 1) if all(pair.once for pair in live.values()) else {}
                _observe(model, calls, batch, live, keep, often)
            with swapped(parameters, present):
                often = {name: len(pair.kept) for name, pair in live.items() if pair.kept}
                _observe(model, calls, batch, live, take, often)
            for pair in live.values():
                pair.close()
            _check_finite(live, k)
    return {name: pair.shift(calls.samples) for name, pair in pairs.items()}


def in_order(model: nn.Module, calls: Calls, names: Iterable[str]) -> list[str]:
    """The names of weights in the order in which the first batch uses them; those that it does not use come last.

    Parameters
    ----------
    model : torch.nn.Module
    calls : Calls
    names : iterable of str
        Of weights.
    """
    known, names = weights(model), list(names)
    order: dict[str, None] = {}
    with torch.no_grad(), quiet(model):
        observer = Observer((known[name] for name in names), lambda use: order.setdefault(use.weight.name))
        with observer:
            calls(model, calls.batches[0])
    return [*order, *(name for name in names if name not in order)]


def _observe(
    model: nn.Module,
    calls: Calls,
    batch: Any,
    live: Mapping[str, _Pair],
    see: Callable[[_Pair, Use], None],
    often: Mapping[str, int],
) -> None:
    """Run the model on a batch; `see` gets every use of these weights. The run ends when all were used so often."""
    left = Counter(often)

    def watch(use: Use) -> None:
        see(live[use.weight.name], use)
        left[use.weight.name] -= 1
        if often and not any(left[name] > 0 for name in often):
            raise _Reached

    with suppress(_Reached), Observer((pair.weight for pair in live.values()), watch):
        calls(model, batch)


def _check_finite(live: Mapping[str, _Pair], k: int) -> None:
    if bad := [name for name, pair in live.items() if not pair.finite]:
        raise DataError(
            f"the input of {listed(bad)} is NaN or infinite for batch {k} of data=: "
            "look for the weight before it whose fit is not finite"
        )


class _Pair:
    """Sums of one weight over two runs.

    Attributes
    ----------
    fits : bool
        Whether both runs have used the weight alike so far.
    finite : bool
        Whether all inputs were finite.
    kept : list of (Use, Tensor)
        Uses and inputs of the dense run for one batch.
    once : bool
        Whether one use of the last batch took the whole weight. Otherwise the next batch may use it more often.
    """

    def __init__(self, weight: Weight) -> None:
        self.weight = weight
        self.fits = self.finite = True
        self.kept: list[tuple[Use, Tensor]] = []
        self.once = False
        self._taken = 0
        self._present: Inputs | None = None
        self._cross: Sums | None = None
        self._straight = True

    def keep(self, use: Use, batches: int, seed: int) -> None:
        """Keep the inputs of a use in the dense run."""
        mixed = bool(self.kept or self._present) and use.straight != self._straight
        if use.lookup or mixed:
            self._give_up()
        if not self.fits:
            return
        self._straight = use.straight
        x, _ = vectors(use, batches, seed)
        self.kept.append((light(use), x.clone() if use.geometry is None else x))  # the model may write to it

    def take(self, use: Use, batches: int, seed: int) -> None:
        """Add the inputs of a use in the present run, and those of the same use in the dense run."""
        if not self.fits:
            return
        if self._taken == len(self.kept):
            return self._give_up()
        before, x = self.kept[self._taken]
        self._taken += 1
        y, scale = vectors(use, batches, seed)
        alike = (before.members, before.start, before.straight) == (use.members, use.start, use.straight)
        if y.shape != x.shape or not alike:
            return self._give_up()
        if y.shape[1]:
            self._add(x, y, use, scale)

    def _add(self, x: Tensor, y: Tensor, use: Use, scale: float) -> None:
        size = self.weight.sizes[self.weight.axis(use.straight)]
        if self._present is None or self._cross is None:
            self._present = Inputs(use.matrices, y, size)
            whole = self._present.whole
            self._cross = Sums(whole.matrices, whole.size, whole.diagonal)
        is_finite = self._present.add(y, use, scale)
        x, y = x.flatten(2), y.flatten(2)
        is_both = self._cross.add(x, use.members, shared=use.shared, start=use.start, scale=scale, other=y)
        self.finite = self.finite and is_finite and is_both

    def close(self) -> None:
        """End a batch. All uses of the dense run must have come again."""
        if self._taken < len(self.kept):
            self._give_up()
        self.once = [len(use.members) == use.matrices for use, _ in self.kept] == [True]
        self.kept, self._taken = [], 0

    def _give_up(self) -> None:
        self.fits, self.kept = False, []

    def shift(self, samples: int) -> Shift | None:
        """What came out of all batches."""
        if not self.fits or self._present is None or self._cross is None:
            return None
        columns, kernel, mean, number = self._present.moments()
        cross = self._cross.mean()
        second = None if self._cross.diagonal else self._narrow(cross.second)
        means = self._narrow(cross.first), self._narrow(mean)
        kernel = None if kernel is None else self._narrow(kernel)
        return Shift(self._narrow(columns), second, *means, kernel, number / samples, not self._straight)

    def _narrow(self, x: Tensor) -> Tensor:
        return narrow(x, self.weight.parameter.dtype)
