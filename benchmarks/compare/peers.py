"""``python -m benchmarks.compare.peers``: our fits and layers beside TensorLy's and TensorLy-Torch's, in one table.

One process, each in turn (`paired`), at the same ranks; the ratio is taken within a round. This is the short look:
`make bench` measures the whole grid, and `fits_against_tensorly` who reaches which error first.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import tensorly
import torch

import tnc
from benchmarks.compare.table import show, table, write
from benchmarks.compare.verdict import LIMIT, Result
from benchmarks.fits_against_tensorly import as_tensor, theirs, weight
from benchmarks.layers import LAYERS, variants
from benchmarks.paired import Paired
from benchmarks.test_layers import MODES

FITS = [
    ("mpo", "1024x1024", 16),
    ("tucker", "64x32x3x3", (16, 8)),
    ("tucker", "256x128x3x3", (64, 32)),
    ("cp", "64x32x3x3", 16),
    ("ring", "64x32x3x3", 6),
]
CELLS = [
    *(("linear1024", "mpo3", batch, mode) for batch in (1, 64) for mode in MODES),
    *(("conv64", "tucker", batch, mode) for batch in (1, 64) for mode in MODES),
    *(("embedding", "mpo3", 64, mode) for mode in MODES),
]
KEPT = 0.05
OURS = "tnc auto"


def against(what: str, paired: Paired, ours: str, notes: dict[str, str]) -> Iterator[Result]:
    """A result per alternative that is not ours.

    Parameters
    ----------
    what : str
        What both do.
    paired : Paired
        Alternatives that were called once, not timed yet.
    ours : str
        Which of them is ours.
    notes : dict of str to str
        What is said of an alternative.
    """
    for _ in range(paired.rounds):
        paired.round()
    mine = paired.seconds.pop(ours)
    for name, seconds in paired.seconds.items():
        pairs = min(len(mine), len(seconds))  # an alternative that takes long has fewer turns, the first ones
        yield Result(f"{what}, {name}", "s", mine[:pairs], seconds[:pairs], reason=notes.get(name, ""))
    for name, reason in paired.failed.items():
        yield Result(f"{what}, {name}", note="failed", reason=reason)


def fits() -> Iterator[Result]:
    """Our fits at their defaults beside TensorLy's at its own, with both errors."""
    for name, shape, rank in FITS:
        x, decomposition = weight(shape, 0), tnc.decompositions[name]()
        network = decomposition.network(x.shape, rank)
        target = as_tensor(x, network, name)
        fit, rebuild = next(theirs(name, target, rank))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            calls = {"tnc": lambda d=decomposition, x=x, n=network: d.fit(x, n), "tensorly": fit}
            paired = Paired(calls, always=("tnc", "tensorly"))
            notes = {}
            if "tensorly" in paired.results:
                cores = paired.results["tnc"]
                error = tnc.Factorization(network, list(cores), x.shape).error(x)
                difference = rebuild(paired.results["tensorly"]) - target
                other = float((difference**2).sum() ** 0.5 / (target**2).sum() ** 0.5)
                notes["tensorly"] = f"error {float(error):.4f}, theirs {other:.4f}"
            yield from against(f"fit {name} {shape}", paired, "tnc", notes)


def layers() -> Iterator[Result]:
    """Our layers as users get them, beside the dense layer and TensorLy-Torch's, which hold as many parameters."""
    for layer, format, batch, mode in CELLS:
        modules, missing = variants(LAYERS[layer], format, KEPT)
        wanted = {name: m for name, m in modules.items() if name in ("dense", OURS) or name.startswith("tltorch")}
        input = LAYERS[layer].input(batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            calls = {name: MODES[mode](module, input) for name, module in wanted.items()}
            what = f"{layer} {format} {batch} {mode}"
            yield from against(what, Paired(calls, always=("dense", OURS)), OURS, {})
        if "tltorch" in missing:
            yield Result(f"{what}, tltorch", note="missing", reason=missing["tltorch"])


def main(words: list[str] | None = None) -> int:
    """Measure, print and write; a peer that is faster is no failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare.peers", description=__doc__)
    parser.add_argument("--json", type=Path, help="where all values are written")
    parser.add_argument("--only", choices=["fits", "layers"], help="one half of the table")
    asked, begin = parser.parse_args(words), monotonic()
    results: list[Result] = []
    halves: dict[str, Any] = {"fits": fits, "layers": layers}
    for name, half in halves.items():
        if asked.only in (None, name):
            with tensorly.backend_context("numpy" if name == "fits" else "pytorch"):
                results += half()
    show(table(results, f"ours / theirs, {monotonic() - begin:.0f} s", LIMIT, names=("theirs", "ours")))
    if asked.json:
        write(asked.json, results, LIMIT, base="peers")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
