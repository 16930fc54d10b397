"""Moments of what weights see in a dense model and in its compressed version, on the same inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tnc.errors import DataError, listed
from tnc.nn.calibration.observe import Observer
from tnc.nn.calibration.operations import Use, light
from tnc.nn.calibration.rounds import Round, parts, stretches
from tnc.nn.calibration.swap import quiet, swapped
from tnc.nn.calibration.tallies import Inputs, narrow, vectors
from tnc.nn.calibration.tally import Sums
from tnc.nn.calibration.weights import Weight, weights
from tnc.nn.data.calls import Calls

__all__ = ["Shift", "shifts"]


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


def shifts(
    model: nn.Module,
    calls: Calls,
    rounds: Iterable[Round],
    dense: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    seed: int = 0,
) -> Iterator[dict[str, Shift | None]]:
    """For one round after the other, moments of the inputs of its weights with dense values and with the present ones.

    Present values are read when a round begins, so that they may change between the rounds. Every batch runs once a
    round with the present values, up to the last weight of the round. With the dense values it runs once for as many
    rounds as have inputs that can be kept in memory. These runs end early, too, if each weight was used exactly once in
    the batch before.

    Parameters
    ----------
    model : torch.nn.Module
        It is as it was afterwards, and between the rounds.
    calls : Calls
        The inputs.
    rounds : iterable of Round
        Weights whose inputs are wanted. A tied weight may have any of its names.
    dense : mapping of str to Tensor
        Values of the dense model, of all parameters that differ.
    present : mapping of str to Tensor
        Values of the same parameters in the present version.
    seed : int
        Chooses the patches of large images. They are the same in both runs.

    Yields
    ------
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
    runs = _Runs(model, calls, seed)
    for stretch in stretches(rounds):
        own = [weights(model, one.names) for one in stretch]
        pairs = {name: _Pair(weight) for each in own for name, weight in each.items()}
        batches = parts(len(calls), sum(one.numbers for one in stretch))
        for k, each in enumerate(own):
            mine = {name: pairs[name] for name in each}
            for part in batches:
                if k == 0:  # once for all rounds of the stretch, which has one part if it has several rounds
                    runs.keep(pairs, part, dense)
                runs.take(mine, part, present)
            yield {name: pair.shift(calls.samples) for name, pair in mine.items()}


class _Runs:
    """Runs of a model on its batches, in which pairs see the uses of their weights."""

    def __init__(self, model: nn.Module, calls: Calls, seed: int) -> None:
        self.model, self.calls, self.seed = model, calls, seed
        self.parameters = dict(model.named_parameters(remove_duplicate=False))

    @contextmanager
    def _with(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        with torch.no_grad(), quiet(self.model), swapped(self.parameters, values):
            yield

    def keep(self, pairs: Mapping[str, _Pair], part: Sequence[int], dense: Mapping[str, Tensor]) -> None:
        """Keep the inputs of some batches in the dense model."""
        with self._with(dense):
            for k in part:
                live = _fitting(pairs)
                often = dict.fromkeys(live, 1) if all(pair.once for pair in live.values()) else {}
                self._observe(live, k, _Pair.keep, often)
                for pair in live.values():
                    pair.kept_all(k)

    def take(self, pairs: Mapping[str, _Pair], part: Sequence[int], present: Mapping[str, Tensor]) -> None:
        """Add the inputs of these batches in the present model, and those that were kept."""
        with self._with(present):
            for k in part:
                live = _fitting(pairs)
                often = {name: number for name, pair in live.items() if (number := pair.uses(k))}
                self._observe(live, k, _Pair.take, often)
                for pair in live.values():
                    pair.close(k)
                _check_finite(live, k)

    def _observe(
        self,
        live: Mapping[str, _Pair],
        k: int,
        see: Callable[[_Pair, Use, int, int, int], None],
        often: Mapping[str, int],
    ) -> None:
        """Run the model on a batch; `see` gets every use of these weights. It ends when all were used so often."""
        if not live:
            return
        left = Counter(often)

        def watch(use: Use) -> None:
            see(live[use.weight.name], use, k, len(self.calls), self.seed + k)
            left[use.weight.name] -= 1
            if often and not any(left[name] > 0 for name in often):
                raise _Reached

        with suppress(_Reached), Observer((pair.weight for pair in live.values()), watch):
            self.calls(self.model, self.calls.batches[k])


def _fitting(pairs: Mapping[str, _Pair]) -> dict[str, _Pair]:
    return {name: pair for name, pair in pairs.items() if pair.fits}


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
    once : bool
        Whether one use of the last batch took the whole weight. Otherwise the next batch may use it more often.
    """

    def __init__(self, weight: Weight) -> None:
        self.weight = weight
        self.fits = self.finite = True
        self.once = False
        self._kept: dict[int, list[tuple[Use, Tensor]]] = {}  # by batch
        self._taken = 0
        self._present: Inputs | None = None
        self._cross: Sums | None = None
        self._straight = True

    def uses(self, k: int) -> int:
        """How often the dense model used the weight in a batch."""
        return len(self._kept.get(k, ()))

    def keep(self, use: Use, k: int, batches: int, seed: int) -> None:
        """Keep the inputs of a use in the dense run of batch `k`."""
        mixed = bool(self._kept or self._present) and use.straight != self._straight
        if use.lookup or mixed:
            self._give_up()
        if not self.fits:
            return
        self._straight = use.straight
        x, _ = vectors(use, batches, seed)
        x = x.clone() if use.geometry is None else x  # the model may write to it
        self._kept.setdefault(k, []).append((light(use), x))

    def kept_all(self, k: int) -> None:
        """End a batch of the dense run."""
        self.once = [len(use.members) == use.matrices for use, _ in self._kept.get(k, ())] == [True]

    def take(self, use: Use, k: int, batches: int, seed: int) -> None:
        """Add the inputs of a use in the present run of batch `k`, and those of the same use in the dense run."""
        if not self.fits:
            return
        if self._taken == self.uses(k):
            return self._give_up()
        before, x = self._kept[k][self._taken]
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

    def close(self, k: int) -> None:
        """End a batch of the present run. All uses of the dense run must have come again."""
        if self._taken < self.uses(k):
            self._give_up()
        self._taken = 0
        self._kept.pop(k, None)

    def _give_up(self) -> None:
        self.fits, self._kept = False, {}

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
