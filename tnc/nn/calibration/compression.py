"""Compression that knows the data: fits and allocation in the norm of outputs, judged by the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from tnc.checkpoint import Checkpoint
from tnc.errors import listed
from tnc.nn.calibration.recalibrate import recalibrate
from tnc.nn.calibration.versions import Version, Work

__all__ = ["Calibrated", "calibrated"]


_FAR = 1.5
"""Versions whose quick fits end farther from the dense model than the best ones by this factor are not continued."""

_CLOSE = 1.1
"""Versions up to this factor farther than the best one are fitted again in order, too: some gain more by it."""


@dataclass(frozen=True)
class Calibrated:
    """The result of a calibrated compression.

    Attributes
    ----------
    checkpoint : Checkpoint
    biases : dict of str to Tensor
        New values of biases, which correct the means of outputs.
    work : Work
        What it was made from.
    summary : dict
        What was tried: seconds of each part, the distance of each version's outputs, and which one was kept.
    """

    checkpoint: Checkpoint
    biases: dict[str, Tensor]
    work: Work
    summary: dict[str, Any] = field(default_factory=dict)

    def finish(self, model: nn.Module) -> dict[str, Any]:
        """Correct means in the compressed model: by its biases, and by batch normalization if that is better.

        Parameters
        ----------
        model : torch.nn.Module
            It has the factorized weights of the checkpoint already.

        Returns
        -------
        dict
            What happened, for the report.
        """
        start = perf_counter()
        parameters = dict(model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, value in self.biases.items():
                parameters[name].copy_(value)
        normalized = recalibrate(model, self.work.seen, reference=self.work.judge)
        found = self.summary | {"recalibrated": normalized.kept, "biases": len(self.biases)}
        if normalized.after is not None:
            found["distances"] = self.summary["distances"] | {"recalibrated": normalized.after}
            found["distance"] = normalized.after if normalized.kept else normalized.before
        found["seconds"] = self.summary["seconds"] | {"recalibration": perf_counter() - start}
        return found


def calibrated(work: Work) -> Calibrated:
    """Factorize weights of a dense model so that its outputs change least. The model is not changed.

    Raises
    ------
    TncError
        As `compress_weights` and `Judge`, or nothing is known for any of the objectives.
    """
    versions = work.versions()
    limit = _FAR * min(version.distance for version in versions)
    with work.timing("polish"):
        ends = [_polished(work, version) if version.distance <= limit else version for version in versions]
    limit = _CLOSE * min(version.distance for version in ends)
    close = [version for version in ends if version.distance <= limit]
    shifted: list[Version] = []
    if work.options.shift:
        with work.timing("shift"):
            shifted = [work.shifted(version) for version in close]
        close = [_nearer(*pair) for pair in zip(close, shifted, strict=True)]
    best = _preferred(close)
    biases = {name: value for name, value in best.values.items() if name not in best.checkpoint.factorized}
    return Calibrated(best.checkpoint, biases, work, _summary(work, best, ends, shifted))


def _summary(work: Work, best: Version, ends: Sequence[Version], shifted: Sequence[Version]) -> dict[str, Any]:
    """What was tried. The distance after the shift is that of the plan that was kept."""
    distances = {str(version.plan): version.distance for version in ends}
    for version in shifted:
        if version.plan == best.plan:
            distances["shift"] = version.distance
    found = {
        "samples": work.observed.statistics.samples, "held_out": work.judge.calls.samples, "distances": distances,
        "distance": best.distance, "objective": str(best.plan), "shift": any(best is each for each in shifted),
        "seconds": work.seconds,
    }  # fmt: skip
    return found | ({"unreached": listed(work.observed.unreached)} if work.observed.unreached else {})


def _polished(work: Work, version: Version) -> Version:
    """The version with cores that are swept to the end, if its outputs are nearer then."""
    return _nearer(version, work.polished(version))


def _nearer(first: Version, second: Version) -> Version:
    """The version whose outputs are nearer to those of the dense model."""
    return min(first, second, key=lambda version: version.distance)


def _preferred(versions: Sequence[Version]) -> Version:
    """The nearest version; but one of gradients wherever the others are not surely nearer.

    Gradients are of all samples. Distances are measured on few samples, and a budget that they divide suits these few.
    """
    best, *others = sorted(versions, key=lambda version: (version.plan.objective != "fisher", version.plan.measured))
    for version in others:
        if version.surely_nearer(best):
            best = version
    return best
