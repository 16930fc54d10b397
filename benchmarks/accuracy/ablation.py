"""What each part of a calibrated compression brings: ``python -m benchmarks.accuracy.ablation resnet56 cp 0.25``.

Every line is the network after one more part, scored on test data. Results are added to ``ablation.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tnc
from benchmarks.accuracy.networks import SUBJECTS
from benchmarks.accuracy.subject import Subject
from benchmarks.papers.study import stamp
from tnc.nn.calibration.swap import swapped
from tnc.nn.calibration.versions import Options, Version, Work
from tnc.nn.data.calls import Calls
from tnc.nn.surgery.matching import dense_weights

RESULTS = Path(__file__).parents[1] / "results" / "ablation.json"
REFINE_STEPS = 200


def parts(subject: Subject, decomposition: str, share: float, samples: int) -> Iterator[tuple[str, Any]]:
    """The name of each part, and a model or the values of a model's parameters after it."""

    def rules(policy: Any) -> list[tnc.Rule]:
        return [tnc.Rule(glob, decomposition, policy(share)) for glob in subject.weights.split()]

    for policy in (tnc.Ratio, tnc.Budget):
        yield f"{policy.__name__}, weights", tnc.compress(subject.load(), rules(policy))
    model, data = subject.load(), subject.calibration(samples)
    calls = Calls.of(model, data, subject.forward)
    uniform = work_of(model, calls, rules(tnc.Ratio), Options(objectives=("output",)))
    yield "Ratio, metric", uniform.polished(*uniform.versions())
    work = work_of(model, calls, rules(tnc.Budget), Options())
    polished = [work.polished(version) for version in work.versions()]
    for version in polished:
        yield f"Budget by {version.plan}, metric", version
    best = min(polished, key=lambda version: version.distance)
    yield "shift", work.shifted(best)
    small = tnc.compress(deepcopy(model), rules(tnc.Budget), data=data, forward=subject.forward)
    yield "all of it", small
    tnc.nn.refine(small, model, data, steps=REFINE_STEPS, forward=subject.forward, progress=False)
    yield f"refined, {REFINE_STEPS} steps", small


def work_of(model: nn.Module, calls: Calls, rules: list[tnc.Rule], options: Options) -> Work:
    """What the versions of a model are made from."""
    found = dense_weights(model, rules)
    return Work.of(model, calls, found.weights, found.rules, found.roles, options, None)


def score(subject: Subject, model: nn.Module, part: Any, limit: int | None) -> tuple[float, float | None]:
    """The score of a model, or of the dense model with other values, and the distance of its outputs if it is known."""
    if not isinstance(part, Version):
        return subject.score(part.eval(), limit), None
    with torch.no_grad(), swapped(dict(model.named_parameters(remove_duplicate=False)), part.values):
        return subject.score(model, limit), part.distance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=SUBJECTS)
    parser.add_argument("decomposition")
    parser.add_argument("share", type=float)
    parser.add_argument("--samples", type=int, help="calibration samples; by default those of the network")
    parser.add_argument("--limit", type=int)
    given = parser.parse_args()
    subject = SUBJECTS[given.network]
    samples = given.samples or subject.samples
    model, rows = subject.load(), {}
    with torch.no_grad():
        rows["dense"] = {"score": subject.score(model, given.limit)}
    for name, part in parts(subject, given.decomposition, given.share, samples):
        found, distance = score(subject, model, part, given.limit)
        rows[name] = {"score": found} | ({} if distance is None else {"distance": distance})
        print(name, rows[name], file=sys.stderr, flush=True)
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    key = f"{given.network}, {given.decomposition}, {given.share}"
    held[key] = {"rows": rows, "samples": samples, "limit": given.limit, **stamp()}
    RESULTS.write_text(json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    main()
