"""Our rows of the table: every format in the metric of outputs, under one budget, then everything together."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

from torch import nn

import tnc
from benchmarks.accuracy.subject import Forward, Made

__all__ = ["ROWS"]

REFINE_STEPS = 200


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


def refined(
    decomposition: str,
    model: nn.Module,
    weights: str,
    share: float,
    calibration: list[Any],
    forward: Forward | None,
) -> Made:
    """The same, and then gradient steps towards the outputs of the dense network, without labels."""
    teacher = deepcopy(model)
    made = compressed(decomposition, tnc.Budget, model, weights, share, calibration, forward)
    result = tnc.nn.refine(model, teacher, calibration, steps=REFINE_STEPS, forward=forward, progress=False)
    return made._replace(note=f"{made.note}; rate {result.rate}, {result.before:.3f} -> {result.after:.3f}")


FORMATS = ("svd", "tucker", "mpo", "tt", "cp")

ROWS = (
    {f"{name}, weights": partial(compressed, name, tnc.Budget, calibrated=False) for name in FORMATS}
    | {f"{name}, uniform": partial(compressed, name, tnc.Ratio) for name in FORMATS}
    | {f"{name}, budget": partial(compressed, name, tnc.Budget) for name in FORMATS}
    | {f"{name}, refined": partial(refined, name) for name in FORMATS}
    | {"auto": partial(compressed, "auto", tnc.Budget), "auto, refined": partial(refined, "auto")}
)
