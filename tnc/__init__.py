"""Smaller and faster neural networks by tensor networks: any module, any decomposition, any device, one call."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tnc.checkpoint import Checkpoint, load
from tnc.decomposition import Decomposition, Factorization
from tnc.network import Network
from tnc.ranks.budget import Budget
from tnc.ranks.policies import Fixed, Ratio, Tolerance
from tnc.registry import decompositions
from tnc.report import Report
from tnc.rules import Rule
from tnc.settings import set_backend as set_backend
from tnc.settings import use_backend
from tnc.weights import compress_weights

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Checkpoint",
    "Decomposition",
    "Factorization",
    "Fixed",
    "Network",
    "Ratio",
    "Report",
    "Rule",
    "Tolerance",
    "compress",
    "compress_weights",
    "decompositions",
    "install",
    "load",
    "use_backend",
]

_LAZY = {"compress": "tnc.nn", "install": "tnc.nn", "sensitivity": "tnc.nn"}
_MODULES = ("backends", "errors", "nn", "testing")


def __getattr__(name: str) -> Any:  # what needs torch is imported when it is asked for
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _MODULES:
        return import_module(f"tnc.{name}")
    raise AttributeError(f"module 'tnc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_MODULES})
