"""The demonstration: train a network, compress it with every decomposition, fine-tune, save, load and compare."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

import tnc
from tnc.demo.data import Images, is_official_mnist, mnist
from tnc.demo.lenet import (
    BATCH,
    Progress,
    accuracy,
    lenet5,
    milliseconds,
    outputs,
    predictions,
    silent,
    splits,
    step_seconds,
    train,
)
from tnc.demo.scores import Score, Scores
from tnc.errors import CheckpointError, MissingExtraError

__all__ = ["LAYERS", "run"]

LAYERS = ("conv2.weight", "fc1.weight")
"""The weights to compress: 98.6 % of the parameters of LeNet-5."""

TUNING = 4.0
"""Epochs of fine-tuning for all networks together."""

RATE = 1e-3
"""Largest learning rate of fine-tuning: a third of that of training, so that the weights stay near their values."""

SPARE = 0.9
"""Fraction of the remaining time that is planned for fine-tuning. The rest is a reserve, if the machine slows down."""

FEWEST = 0.25
"""Fraction of the planned steps below which there is no fine-tuning: a few steps make a network worse."""


def run(
    out: str | Path = "tnc-demo",
    *,
    images: Images | None = None,
    methods: Sequence[str] = (),
    ratio: float = 0.1,
    epochs: float = 2.0,
    tune: float | None = None,
    seconds: float = 110.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """Train LeNet-5 on MNIST, compress it with every method, and compare sizes and accuracies.

    Parameters
    ----------
    out : path
        Folder for the picture, the scores and the best model. It is created if it does not exist.
    images : Images, optional
        The data; by default `tnc.demo.data.mnist`.
    methods : sequence of str
        Decompositions, such as ``"mpo(order=3)"``. By default all that are installed.
    ratio : float
        Fraction of the parameters of `LAYERS` to keep.
    epochs : float
        Passes over the training data for the dense network.
    tune : float, optional
        Passes for the fine-tuning of each network. By default all networks share `TUNING`, and each has at most one.
    seconds : float
        Time limit of the run. Every network is fine-tuned for the same number of steps. A slow machine takes fewer
        steps: its speed is measured before the first one. The table then says so. A method that takes longer to fit is
        not stopped.
    seed : int
        Seed of all random numbers.
    progress : callable, optional
        ``progress(iterable, total=..., description=...)``, for progress bars.

    Returns
    -------
    Scores

    Raises
    ------
    DataError
        MNIST is not available.
    UnknownNameError, RankError
        A method in `methods` is not installed, or `ratio` is not in (0, 1].
    CheckpointError
        The saved model does not make the same predictions after it is loaded.
    """
    for spec in methods:
        tnc.decompositions.parse(spec)  # report mistakes now, not after the training
    specs, promise = list(methods) or list(tnc.decompositions), tnc.Ratio(ratio)
    tune = min(1.0, TUNING / (len(specs) + 1)) if tune is None else tune
    images = mnist() if images is None else images
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(images, promise, tune, seconds, seed, progress)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scores = _compare(bench, specs, epochs, out / "model.safetensors")
    scores.seconds = time.perf_counter() - bench.started
    scores.settings |= {"ratio": ratio, "epochs": epochs, "tune": tune, "seconds": seconds, "seed": seed}
    _record(scores, out)
    return scores


def _compare(bench: Bench, specs: Sequence[str], epochs: float, path: Path) -> Scores:
    """Measure the dense network and every method. The best model is saved at `path`."""
    dense = bench.trained(epochs)
    entries = [bench.control(dense)]
    for spec in bench.progress(specs, total=len(specs), description="methods"):
        entries.append(bench.compressed(dense, spec))
    planned, steps = bench.steps(bench.tune), bench.affordable(entries)
    scores = Scores(bench.title, settings={"batch": BATCH, "steps": steps, "planned": planned})
    best: tuple[Score, nn.Module] | None = None
    for k, entry in enumerate(entries):
        score = bench.tuned(entry, steps)
        scores.rows.append(score)
        model = entry.model if k and score.tuned is not None else None
        if model is not None and (best is None or bench.merit(score) > bench.merit(best[0])):
            best = score, model
    if best:
        scores.best = best[0].method
        _keep(best[1], path, scores, bench)
    return scores


@dataclass(frozen=True)
class Entry:
    """A network before fine-tuning, its score so far, and the seconds of one evaluation. No network if it failed."""

    score: Score
    model: nn.Module | None = None
    seconds: float = 0.0


class Bench:
    """The data, the clock and the dense network, which are the same for all methods.

    Parameters
    ----------
    images : Images
    promise : tnc.Ratio
        Fraction of the parameters to keep.
    tune : float
        Epochs of fine-tuning for each network.
    seconds : float
        Time limit of the run.
    seed : int
    progress : callable, optional
        See `tnc.demo.lenet.Progress`.
    """

    def __init__(
        self, images: Images, promise: tnc.Ratio, tune: float, seconds: float, seed: int, progress: Progress | None
    ) -> None:
        self.started = time.perf_counter()
        self.deadline = self.started + seconds
        self.promise, self.tune, self.seed, self.progress = promise, tune, seed, progress or silent
        self.data = splits(images)
        counts = f"{len(images.train_labels)} + {len(images.test_labels)} images"
        source = "MNIST" if is_official_mnist(images) else "images that are not the published MNIST"
        self.title = f"LeNet-5 on {source}, {counts}: {' and '.join(LAYERS)} at {promise.ratio:.0%}"

    def trained(self, epochs: float) -> nn.Module:
        """The dense network, trained in at most 40 % of the time. All other networks learn from its outputs."""
        model = lenet5()
        steps, seconds = self.steps(epochs), 0.4 * self._left()
        taken = train(model, self.data.train, steps=steps, seconds=seconds, seed=self.seed, progress=self.progress)
        self.shortened = f"trained {taken} of {steps} steps for want of time" if taken < steps else ""
        self.taught = outputs(model, self.data.train.x)
        self.squares = {name: float(model.get_parameter(name).detach().square().sum()) for name in LAYERS}
        return model

    def control(self, dense: nn.Module) -> Entry:
        """The dense network as an entry. It is fine-tuned like all others, so that the comparison is fair."""
        started = time.perf_counter()
        self.before = accuracy(dense, self.data.test)
        score = Score("dense", kept=1.0, error=0.0, before=self.before, note=self.shortened)
        return Entry(score, copy.deepcopy(dense), time.perf_counter() - started)

    def compressed(self, dense: nn.Module, spec: str) -> Entry:
        """The network of one method. If the method fails, its row says why, and the run continues."""
        try:
            rules = [tnc.Rule(name, tnc.decompositions.parse(spec), self.promise) for name in LAYERS]
            model = tnc.compress(copy.deepcopy(dense), rules, seed=self.seed, progress=self.progress)
            facts, started = self._facts(model.tnc_report), time.perf_counter()
            score = Score(spec, before=self.before, compressed=accuracy(model, self.data.test), **facts)
            return Entry(score, model, time.perf_counter() - started)
        except Exception as error:  # a foreign plugin may raise anything
            return Entry(_failed(Score(spec, before=self.before), error))

    def affordable(self, entries: Sequence[Entry]) -> int:
        """Number of fine-tuning steps that each of the networks can take in the remaining time; 0 if they are few."""
        planned, step, rest = self.steps(self.tune), 0.0, 0.0
        for entry in entries:
            if entry.model is not None:
                with contextlib.suppress(Exception):  # the row of a network that cannot be trained says so
                    step += step_seconds(entry.model, self.data.train, self.taught)
                rest += 2 * entry.seconds  # evaluation of test and validation images, and the timing
        steps = min(planned, int(SPARE * (self._left() - rest) / max(step, 1e-9)))
        return steps if steps >= FEWEST * planned else 0

    def tuned(self, entry: Entry, steps: int) -> Score:
        """The row of a network after this number of fine-tuning steps."""
        model, score = entry.model, entry.score
        if model is None:
            return score
        try:
            train(
                model,
                self.data.train,
                steps=steps,
                lr=RATE,
                taught=self.taught,
                seed=self.seed + 1,
                progress=self.progress,
                description=f"{score.method}: fine-tuning",
            )
            return replace(
                score,
                parameters=sum(p.numel() for p in model.parameters()),
                tuned=accuracy(model, self.data.test),
                validation=accuracy(model, self.data.validation),
                milliseconds=milliseconds(model, self.data.test.x[:BATCH]),
                steps=steps,
            )
        except Exception as error:
            return _failed(score, error)

    def merit(self, score: Score) -> tuple[bool, float]:
        """Sort key of the best model: first whether it is as small as was asked for, then validation accuracy."""
        return (score.kept or 1.0) <= self.promise.ratio, score.validation or 0.0

    def steps(self, epochs: float) -> int:
        """Number of steps in this number of passes over the training images."""
        return math.ceil(epochs * len(self.data.train.y) / BATCH)

    def _facts(self, report: tnc.Report) -> dict[str, Any]:
        """Fraction kept, relative error and notes of the replaced weights together."""
        rows = [row for row in report.rows if row.name in LAYERS]
        lost = sum(cast("float", row.error) ** 2 * self.squares[row.name] for row in rows)
        return {
            "kept": sum(row.after for row in rows) / sum(row.before for row in rows),
            "error": math.sqrt(lost / sum(self.squares.values())),
            "note": "; ".join(dict.fromkeys(row.note for row in rows if row.note)),
        }

    def _left(self) -> float:
        return self.deadline - time.perf_counter()


def _failed(score: Score, error: Exception) -> Score:
    words = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return replace(score, note="; ".join(filter(None, (score.note, words))))


def _keep(model: nn.Module, path: Path, scores: Scores, bench: Bench) -> None:
    """Save `model`, load it into a new network, and compare all predictions."""
    tnc.nn.save(model, path)
    fresh = lenet5()
    tnc.nn.load(fresh, path)
    x = bench.data.test.x
    if not torch.equal(predictions(fresh, x), predictions(model, x)):
        raise CheckpointError(f"the model loaded from {path} does not make the same predictions as the saved one")
    scores.reloaded = True
    scores.files["model"] = str(path)


def _record(scores: Scores, out: Path) -> None:
    with contextlib.suppress(MissingExtraError):  # without matplotlib there is no picture
        scores.picture(out / "accuracy.png")
        scores.files["picture"] = str(out / "accuracy.png")
    scores.files["scores"] = str(out / "scores.json")
    (out / "scores.json").write_text(scores.to_json() + "\n")
