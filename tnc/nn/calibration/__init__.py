"""Statistics of what a model computes, and compression that uses them."""

from __future__ import annotations

from tnc.nn.calibration.gathering import gather
from tnc.nn.calibration.statistics import LARGEST, WIDEST, Moments, Statistics
from tnc.nn.calibration.swap import quiet, swapped
from tnc.nn.calibration.weighings import weighings_of

__all__ = [
    "LARGEST",
    "WIDEST",
    "Moments",
    "Statistics",
    "gather",
    "quiet",
    "swapped",
    "weighings_of",
]
