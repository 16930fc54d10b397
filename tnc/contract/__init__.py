"""Contractions: how a network is planned, priced and run.

`plan` is pure and cached: it sees index names and sizes only. `run` permutes, reshapes and multiplies arrays of any
library. On top of both, `rebuild` and `dense` make the weight of a network, and `apply` multiplies inputs by it.
"""

from __future__ import annotations

from tnc.contract.conditioning import terms
from tnc.contract.executor import Executor, contract, run
from tnc.contract.inputs import apply, rebuilds
from tnc.contract.padding import crop, pad
from tnc.contract.plans import Plan, plan
from tnc.contract.recipes import ACTIVATIONS, activate, dense, fed, rebuild, recipe

__all__ = [
    "ACTIVATIONS", "Executor", "Plan", "activate", "apply", "contract", "crop", "dense", "fed", "pad", "plan",
    "rebuild", "rebuilds", "recipe", "run", "terms",
]  # fmt: skip
