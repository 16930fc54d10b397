"""Fits: cores that approximate a weight, derived from the topology.

`tree` fits networks whose bonds form a tree, by truncated SVDs. `als` fits all others by alternating least squares.
Networks with a feed are fitted by gradients, in `tnc.fit.gradient`. `calibrated` improves any of these fits in the norm
of a `Metric`.
"""

from __future__ import annotations

from tnc.fit.alternating import als
from tnc.fit.calibrated import calibrated, whitened
from tnc.fit.linalg import balance
from tnc.fit.metric import Factor, Metric
from tnc.fit.starts import random_cores
from tnc.fit.trees import refine, tree, tree_svd
from tnc.fit.unfolding import tensorize, unfold

__all__ = [
    "Factor",
    "Metric",
    "als",
    "balance",
    "calibrated",
    "random_cores",
    "refine",
    "tensorize",
    "tree",
    "tree_svd",
    "unfold",
    "whitened",
]
