"""What labels bring after the compression: ``python -m benchmarks.accuracy.healing resnet56 cp 0.25 --epochs 1``.

A classifier is compressed as in the row "FORMAT, budget". Then `tnc.nn.heal` trains it, with its defaults and the dense
network as the teacher, on images that are flipped and shifted at random. A run that was killed goes on. Results are
added to ``healing.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tnc
from benchmarks.accuracy.networks import SUBJECTS
from benchmarks.accuracy.networks.images import LEARNED_FROM, labelled
from benchmarks.accuracy.ours import compressed
from benchmarks.accuracy.subject import Subject
from benchmarks.papers.segments import Segments
from benchmarks.papers.study import stamp
from benchmarks.papers.train import Recipe
from tnc.files import writing
from tnc.settings import cache_folder

__all__ = ["run"]

RESULTS = Path(__file__).parents[1] / "results" / "healing.json"
SAVES = 8
"""How often an epoch is saved."""


def healed(model: nn.Module, teacher: nn.Module, batches: Segments, file: Path, mixed: bool) -> dict[str, Any]:
    """Train a model in place to the end, from where `file` left it. What was chosen, and the seconds of all runs."""
    options: dict[str, Any] = {"epochs": batches.count, "schedule": batches.rate, "checkpoint": file}
    history = tnc.nn.heal(model, batches, teacher=teacher, autocast=torch.bfloat16 if mixed else None, **options)
    model.eval()
    chosen = {"rate": history.rate, "batch_norm": history.batch_norm, "mixed": mixed}
    return chosen | {"seconds": sum(epoch.seconds for epoch in history.epochs)}


def start(subject: Subject, decomposition: str, share: float, samples: int, file: Path) -> nn.Module:
    """The compressed network; one that an earlier run has made is loaded from `file`."""
    if file.is_file():
        return tnc.nn.load(subject.load(), file).eval()
    calibration = subject.calibration(samples)
    made = compressed(decomposition, tnc.Budget, subject.load(), subject.weights, share, calibration, subject.forward)
    file.parent.mkdir(parents=True, exist_ok=True)
    tnc.nn.save(made.model, file)
    return made.model.eval()


def run(
    network: str, decomposition: str, share: float, epochs: int, samples: int | None, mixed: bool, folder: Path
) -> dict[str, Any]:
    """The scores before and after. What is needed to go on is kept in a folder, under the names of all settings."""
    subject, data = SUBJECTS[network], labelled(network)
    recipe = Recipe(epochs=epochs, batch=128, rates=(), augmented=True)
    steps = recipe.steps(len(data.train.y))
    samples = samples or subject.samples
    named = f"{network}-{decomposition}-{share}-{samples}"
    model = start(subject, decomposition, share, samples, folder / f"{named}.safetensors")
    found: dict[str, Any] = {"before": subject.score(model), "steps": steps}
    print(found, file=sys.stderr, flush=True)
    batches = Segments(data, recipe, steps=steps, seed=0, length=ceil(steps / epochs / SAVES))
    file = folder / f"{named}-{epochs}{'-mixed' * mixed}.safetensors"
    trained = healed(model, subject.load(), batches, file, mixed)
    return found | trained | {"after": subject.score(model)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=LEARNED_FROM)
    parser.add_argument("decomposition")
    parser.add_argument("share", type=float)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--samples", type=int, help="calibration samples; by default those of the network")
    parser.add_argument("--mixed", action="store_true", help="train in bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    folder = cache_folder() / "healing"
    wanted = given.network, given.decomposition, given.share, given.epochs, given.samples
    found = run(*wanted, given.mixed, folder)
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    held[f"{given.network}, {given.decomposition}, {given.share}, {given.epochs} epoch{'s' * (given.epochs > 1)}"] = (
        found | stamp()
    )
    with writing(RESULTS) as write:
        write((json.dumps(held, indent=1) + "\n").encode())
    print(found, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
