"""What it costs to look whether a kept weight is still right, and what a frozen model saves: beside the dense layer.

``python -m benchmarks.kept`` times inference of the dense layer, of ours under ``auto`` as it is, and of ours frozen,
in turn, and writes ``benchmarks/results/kept.json`` and ``kept.md``. It runs with the code of an older commit, too,
which had no frozen models: with that first on the path, and another file for ``--out``.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
from datetime import date
from itertools import product
from pathlib import Path
from statistics import median

import torch

import tnc
from benchmarks.layers import FORMATS, LAYERS
from benchmarks.paired import Paired

LAYER_NAMES = ("linear768", "linear1024", "linear4096", "conv256", "embedding")
FORMAT_NAMES = ("mpo2", "mpo3", "tucker", "ring")
PERCENTS = (1, 5, 20)
BATCHES = (1, 64)
RESULTS = Path(__file__).parent / "results"


def cell(layer: str, format: str, percent: int, batch: int) -> dict[str, object]:
    """Milliseconds of one call, and the medians of the ratios to the dense layer within a round."""
    kind = LAYERS[layer]
    plugin, fields = FORMATS[format]
    torch.manual_seed(0)
    made = getattr(tnc.nn, kind.kind)(
        *kind.sizes, **kind.options, decomposition=tnc.decompositions[plugin](**fields), rank=tnc.Ratio(percent / 100)
    )
    modules = {"dense": kind.dense().eval(), "checked": made.eval()}
    if hasattr(tnc.nn, "freeze"):
        modules["frozen"] = tnc.nn.freeze(copy.deepcopy(made))
    x = kind.input(batch)
    with torch.no_grad():
        paired = Paired({name: lambda m=module: m(x) for name, module in modules.items()}, tuple(modules))
        for _ in range(paired.rounds):
            paired.round()
    times = paired.seconds
    ratios = {
        name: round(median(a / b for a, b in zip(taken, times["dense"], strict=True)), 3)
        for name, taken in times.items()
    }
    seconds = {name: round(1e3 * median(taken), 5) for name, taken in times.items()}
    return {
        "layer": layer, "format": format, "percent": percent, "batch": batch, "milliseconds": seconds, "ratios": ratios,
    }  # fmt: skip


def table(cells: list[dict[str, object]]) -> str:
    """The cells as Markdown, and how many hold what is promised."""
    rows = ["| layer | format | kept | rows or images | dense ms | auto | auto, frozen |", "| --- " * 7 + "|"]
    for c in cells:
        ratios, seconds = c["ratios"], c["milliseconds"]
        rows.append(
            f"| {c['layer']} | {c['format']} | {c['percent']} % | {c['batch']} | {seconds['dense']:.3f} "
            f"| {ratios['checked']:.2f} | {ratios['frozen']:.2f} |"
        )
    frozen = sum(c["ratios"]["frozen"] <= 1.05 for c in cells)
    one = [c for c in cells if c["batch"] == 1]
    checked = sum(c["ratios"]["checked"] <= 1.15 for c in one)
    held = f"Frozen at most 1.05: {frozen} of {len(cells)} cells. "
    held += f"Not frozen, one row, at most 1.15: {checked} of {len(one)}."
    words = [
        "# What the check of a kept weight costs",
        "",
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {date.today()}. Inference; medians of paired rounds; ratios to the dense "
        "layer. `python -m benchmarks.kept` makes this page.",
        "",
        held,
        "",
    ]
    return "\n".join([*words, *rows]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "kept.json")
    parser.add_argument("--layers", nargs="*", default=LAYER_NAMES)
    given = parser.parse_args()
    cells = []
    for key in product(given.layers, FORMAT_NAMES, PERCENTS, BATCHES):
        try:
            cells.append(cell(*key))
        except tnc.errors.TncError as error:
            print(*key, error, file=sys.stderr)
            continue
        print(*key, cells[-1]["ratios"], file=sys.stderr)
        given.out.write_text(json.dumps(cells, indent=0) + "\n")
    if "frozen" in cells[0]["ratios"]:
        given.out.with_suffix(".md").write_text(table(cells))


if __name__ == "__main__":
    main()
