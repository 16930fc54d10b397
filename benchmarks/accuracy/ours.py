"""Our rows of the table: every format in the metric of outputs, under one budget, then everything together."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

from torch import nn

import tnc
from benchmarks.accuracy.subject import Forward, Made
from tnc.nn.data.calls import Calls

__all__ = ["REFINED", "REFINE_STEPS", "ROWS"]

REFINE_STEPS = 400
"""Gradient steps of a refinement: a few minutes."""


def compressed(
    decomposition: str,
    policy: type,
    model: nn.Module,
    weights: str,
    share: float,
    calibration: list[Any],
    forward: Forward | None,
    *,
    calibrated: bool = True,
) -> Made:
    """Compress by one call, and say what it chose."""
    rules = [tnc.Rule(glob, decomposition, policy(share)) for glob in weights.split()]
    data = {"data": calibration, "forward": forward} if calibrated else {}
    tnc.compress(model, rules, **data)
    report = model.tnc_report
    found = report.calibration
    note = f"{found['objective']}{', shifted' if found['shift'] else ''}" if found else ""
    return Made(model, report.after, note)


class Last(NamedTuple):
    """What a row "FORMAT, budget" was given and made."""

    decomposition: str
    weights: str
    share: float
    calibration: list[Any]
    made: Made

    def fits(self, decomposition: str, weights: str, share: float, calibration: list[Any]) -> bool:
        """Whether it was given the same. Each network has its own list of inputs."""
        same = (self.decomposition, self.weights, self.share) == (decomposition, weights, share)
        return same and self.calibration is calibration


LAST: list[Last] = []
"""The last one at most, so that the row "FORMAT, refined" need not make it again."""


def budget(decomposition: str, model: nn.Module, *given: Any) -> Made:
    """Compress under one budget for all weights, and keep the result for `refined`. `given` is as in `Row`."""
    begin = perf_counter()
    made = compressed(decomposition, tnc.Budget, model, *given)
    seconds = perf_counter() - begin
    LAST[:] = [Last(decomposition, *given[:3], made._replace(model=deepcopy(made.model), earlier=seconds))]
    return made


def refined(decomposition: str, model: nn.Module, *given: Any, lessons: list[Any] | None = None) -> Made:
    """The same, and then gradient steps towards the outputs of the dense network, without labels.

    The steps are on the inputs `lessons`, or on those of the calibration.
    """
    *known, forward = given
    teacher = deepcopy(model)
    if LAST and LAST[0].fits(decomposition, *known):
        made = LAST.pop().made
    else:
        made = compressed(decomposition, tnc.Budget, model, *given)
    inputs = Calls.of(teacher, known[-1] if lessons is None else lessons, forward, samples=2**20)
    result = tnc.nn.refine(made.model, teacher, inputs, steps=REFINE_STEPS, forward=forward, progress=False)
    found = f"{inputs.samples:,} inputs, rate {result.rate}, step {result.steps}"
    return made._replace(note=f"{made.note}; {found}, {result.before:.3f} -> {result.after:.3f}")


FORMATS = ("svd", "tucker", "mpo", "tt", "cp")
REFINED = tuple(f"{name}, refined" for name in (*FORMATS, "auto"))
"""The rows with a refinement."""

ROWS = (
    {f"{name}, weights": partial(compressed, name, tnc.Budget, calibrated=False) for name in FORMATS}
    | {f"{name}, uniform": partial(compressed, name, tnc.Ratio) for name in FORMATS}
    | {f"{name}, budget": partial(budget, name) for name in FORMATS}
    | {f"{name}, refined": partial(refined, name) for name in FORMATS}
    | {"auto": partial(budget, "auto"), "auto, refined": partial(refined, "auto")}
)
