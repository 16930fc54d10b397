"""The whole road on a real network: train, compress with everything installed, fine-tune, save, load, compare."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tnc
from tnc.data import Images, is_official_mnist, mnist
from tnc.errors import CheckpointError, MissingExtraError
from tnc.nn.lenet import BATCH, Progress, accuracy, lenet5, milliseconds, predictions, silent, splits, train
from tnc.nn.scores import Score, Scores

__all__ = ["LAYERS", "run"]

LAYERS = ("conv2.weight", "fc1.weight")
"""The weights that are replaced: 98.6 % of LeNet-5's parameters."""

TUNING = 4.0
"""Epochs of fine-tuning in all."""

MEASURING = 2.0
"""Seconds kept back, of every method's time, for its accuracy and speed."""


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
    """Train LeNet-5 on MNIST, compress it with every method, and say what each one costs and keeps.

    Parameters
    ----------
    out : path
        Folder for the picture, the scores and the chosen model; made if it does not exist.
    images : Images, optional
        The data; `tnc.data.mnist` where not given.
    methods : sequence of str, optional
        Such as ``"mpo(order=3)"``; every installed decomposition where empty.
    ratio : float
        Parameters to keep of those in `LAYERS`.
    epochs : float
        Passes over the training data for the dense network.
    tune : float, optional
        The same for each compressed one; where not given, `TUNING` are shared by all, at most one for each.
    seconds : float
        Time in which the run should end. A slow machine takes fewer steps, and the rows say so; a method
        whose fit alone takes longer is not stopped.
    seed : int
        Of everything random.
    progress : callable, optional
        ``progress(iterable, total=..., description=...)``, for progress bars.

    Raises
    ------
    DataError
        If MNIST cannot be had.
    UnknownNameError, RankError
        If a method in `methods` is not installed, or `ratio` is not in (0, 1].
    CheckpointError
        If the saved model, loaded back, does not predict the same.
    """
    for spec in methods:
        tnc.decompositions.parse(spec)  # a slip of the pen is told now, not after the training
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
    scores.settings = {"ratio": ratio, "epochs": epochs, "tune": tune, "seconds": seconds, "seed": seed, "batch": BATCH}
    _record(scores, out)
    return scores


def _compare(bench: Bench, specs: Sequence[str], epochs: float, path: Path) -> Scores:
    """Measure the dense network and every method; the best model goes to `path`."""
    dense = bench.trained(epochs)
    scores = Scores(bench.title, [bench.control(dense, len(specs))])
    best: tuple[Score, nn.Module] | None = None
    for spec in bench.progress(specs, total=len(specs), description="methods"):
        score, model = bench.compressed(dense, spec, len(specs) + 1 - len(scores.rows))
        scores.rows.append(score)
        if model is not None and (best is None or bench.merit(score) > bench.merit(best[0])):
            best = score, model
    if best:
        scores.best = best[0].method
        _keep(best[1], path, scores, bench)
    return scores


class Bench:
    """One data set, one clock and one dense network: what every method is measured with."""

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
        """A dense network, trained in at most 40 % of the time."""
        model = lenet5()
        steps, seconds = self._steps(epochs), 0.4 * self._left()
        taken = train(model, self.data.train, steps=steps, seconds=seconds, seed=self.seed, progress=self.progress)
        self.shortened = _shortened("trained", taken, steps)
        self.before = accuracy(model, self.data.test)
        self.squares = {name: float(model.get_parameter(name).detach().square().sum()) for name in LAYERS}
        return model

    def control(self, dense: nn.Module, methods: int) -> Score:
        """The dense network with the fine-tuning that every other row gets, so that the comparison is fair."""
        end = time.perf_counter() + self._left() / (methods + 1)
        return self._score(copy.deepcopy(dense), "dense", end, kept=1.0, error=0.0, note=self.shortened)

    def compressed(self, dense: nn.Module, spec: str, methods: int) -> tuple[Score, nn.Module | None]:
        """One of the last `methods` methods; one that fails has a row that says why, and the others go on."""
        end = time.perf_counter() + self._left() / methods
        try:
            rules = [tnc.Rule(name, tnc.decompositions.parse(spec), self.promise) for name in LAYERS]
            model = tnc.compress(copy.deepcopy(dense), rules, seed=self.seed, progress=self.progress)
            facts = self._facts(model.tnc_report) | {"compressed": accuracy(model, self.data.test)}
            return self._score(model, spec, end, **facts), model
        except Exception as error:  # a stranger's plugin may raise anything
            words = " ".join(str(error).split())
            return Score(spec, before=self.before, note=f"{type(error).__name__}: {words}"), None

    def merit(self, score: Score) -> tuple[bool, float]:
        """What the best model has most of: first the size that was asked for, then validation accuracy."""
        return (score.kept or 1.0) <= self.promise.ratio, score.validation or 0.0

    def _facts(self, report: Any) -> dict[str, Any]:
        rows = [row for row in report.rows if row.name in LAYERS]
        lost = sum(row.error**2 * self.squares[row.name] for row in rows)
        return {
            "kept": sum(row.after for row in rows) / sum(row.before for row in rows),
            "error": math.sqrt(lost / sum(self.squares.values())),
            "note": "; ".join(dict.fromkeys(row.note for row in rows if row.note)),
        }

    def _score(self, model: nn.Module, method: str, end: float, **facts: Any) -> Score:
        """Fine-tune `model` until `end` at most, and measure it."""
        planned = self._steps(self.tune)
        steps = train(
            model,
            self.data.train,
            steps=planned,
            seconds=end - time.perf_counter() - MEASURING,
            lr=2e-3,
            seed=self.seed + 1,
            progress=self.progress,
            description=f"{method}: fine-tuning",
        )
        return Score(
            method,
            parameters=sum(p.numel() for p in model.parameters()),
            before=self.before,
            tuned=accuracy(model, self.data.test),
            validation=accuracy(model, self.data.validation),
            milliseconds=milliseconds(model, self.data.test.x[:BATCH]),
            steps=steps,
            **facts | {"note": "; ".join(filter(None, (facts["note"], _shortened("fine-tuned", steps, planned))))},
        )

    def _left(self) -> float:
        return self.deadline - time.perf_counter()

    def _steps(self, epochs: float) -> int:
        return math.ceil(epochs * len(self.data.train.y) / BATCH)


def _shortened(what: str, taken: int, planned: int) -> str:
    return f"{what} {taken} of {planned} steps for want of time" if taken < planned else ""


def _keep(model: nn.Module, path: Path, scores: Scores, bench: Bench) -> None:
    """Save `model`, load it into a network that has never seen it, and compare all predictions."""
    tnc.nn.save(model, path)
    fresh = lenet5()
    tnc.nn.load(fresh, path)
    x = bench.data.test.x
    if not torch.equal(predictions(fresh, x), predictions(model, x)):
        raise CheckpointError(f"{path} does not predict what the model that was saved predicts")
    scores.reloaded = True
    scores.files["model"] = str(path)


def _record(scores: Scores, out: Path) -> None:
    with contextlib.suppress(MissingExtraError):  # without matplotlib there is no picture, and all else
        scores.picture(out / "accuracy.png")
        scores.files["picture"] = str(out / "accuracy.png")
    scores.files["scores"] = str(out / "scores.json")
    (out / "scores.json").write_text(scores.to_json() + "\n")
