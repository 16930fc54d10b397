"""A paper with one tiny network, for the queue."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from torch import nn

from benchmarks.papers import publish
from benchmarks.papers.changes import Format
from benchmarks.papers.study import Method, Study, counted
from benchmarks.papers.train import Recipe, split
from benchmarks.papers.work import Job
from tnc.demo.data import Images


def data():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (80, 6, 6), dtype=np.uint8), np.arange(80, dtype=np.uint8) % 4
    return split(Images(x, y, x[:20].copy(), y[:20]))


def network():
    """A network with everything that has a state or random numbers of its own: BatchNorm and dropout."""
    layers = nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4)
    return nn.Sequential(*layers)


def study(**changed):
    recipe = Recipe(epochs=2, batch=12, rates=(1e-3, 1e-2), augmented=True)
    wall = {"1.weight": Format("adtn(depth=1)", 2)}
    methods = [
        Method("dense", "dense", network, start="dense"),
        Method("adtn", "paper", network, wall),
        Method("adtn, frozen", "control", network, wall, frozen=True),
        Method("svd", "control", network, {"1.weight": Format("svd", 2, clip=True)}, start="fit"),
    ]
    made = Study("tiny", "made-up", (["1.weight"], network), methods, recipe, data)
    return replace(made, **changed)


def job(name="adtn", seed=0, of=None):
    of = of or study()
    rows = {row["method"]: row for row in counted(of)}
    return Job("mpo", of, next(method for method in of.methods if method.name == name), seed, rows[name])


def finished(run):
    """What a run says, without the time it took."""
    return {key: value for key, value in run.items() if key != "seconds"}


def paper(*studies, name="mpo"):
    module = SimpleNamespace(TITLE="A paper", INTRO="Its claim.")
    return publish.Paper(module, name, studies, [row for each in studies for row in counted(each)])
