"""Whole networks, every weight of two or more axes at a tenth of its parameters, against the dense network.

``python -m benchmarks.networks_bench`` times inference of one example and a training step, in turn (`paired`), measures
the peak memory of both in processes of their own, and writes ``benchmarks/results/networks.{json,md}``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import tnc
from benchmarks.paired import Paired
from tnc.errors import PromiseError
from tnc.fit import random_cores

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("tncompress", "torch", "numpy", "opt_einsum")
KEPT = 0.1
MODES = ("inference", "training")


def vgg16() -> nn.Module:
    """VGG-16 for CIFAR: 13 convolutions with batch normalization, 512-512-10."""
    made: list[nn.Module] = []
    channels = 3
    for stage in ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3):
        for width in stage:
            made += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        made.append(nn.MaxPool2d(2))
    return nn.Sequential(*made, nn.Flatten(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def transformer() -> nn.Module:
    """An encoder as large as BERT's base model, without its embeddings."""
    layer = nn.TransformerEncoderLayer(768, 12, 3072, dropout=0.0, activation="gelu", batch_first=True)
    return nn.TransformerEncoder(layer, 12)


@dataclass(frozen=True)
class Case:
    """A network, the shape of one example, how many make a training step, and the methods that compress it."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    methods: tuple[str, ...]


CASES = {
    "VGG-16": Case(vgg16, (3, 32, 32), 64, ("tucker", "mpo", "svd")),
    "transformer": Case(transformer, (128, 768), 8, ("tucker", "mpo", "svd")),
}


def network(case: Case, method: str) -> nn.Module:
    """The dense network, or one with random cores in place of its weights: what they hold does not matter here."""
    torch.manual_seed(0)
    model = case.build()
    if method == "dense":
        return model
    entries: dict[str, Any] = {}
    for name, weight in model.state_dict().items():
        entries[name] = weight
        with suppress(PromiseError):  # a layer so small that no rank keeps a tenth stays dense
            if weight.ndim > 1:
                shape = tuple(weight.shape)
                chosen = tnc.Ratio(KEPT).fresh(shape, tnc.decompositions[method]())
                first, *rest = random_cores(weight, chosen, seed=0)
                entries[name] = tnc.Factorization(chosen, [first * weight.std(), *rest], shape)
    return tnc.install(model, tnc.Checkpoint(entries))


def call(case: Case, model: nn.Module, mode: str) -> Callable[[], Any]:
    generator = torch.Generator().manual_seed(0)
    if mode == "inference":
        model.eval()
        example = torch.randn(1, *case.shape, generator=generator)

        def infer() -> Tensor:
            with torch.no_grad():
                return model(example)

        return infer
    model.train()
    examples = torch.randn(case.batch, *case.shape, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        model(examples).square().mean().backward()
        optimizer.step()

    return step


def peak_megabytes(name: str, method: str, mode: str) -> float:
    """The most memory that calls take, weights included, what building left behind given back, in this process."""
    case = CASES[name]
    run = call(case, network(case, method), mode)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory starts anew
    for _ in range(3):
        run()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def peak(name: str, method: str, mode: str) -> float:
    command = [sys.executable, "-m", "benchmarks.networks_bench", "--peak", name, method, mode]
    root = Path(__file__).parents[1]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout)


def measure(name: str, methods: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row per method and mode; ratios are to the dense network in the same round."""
    case = CASES[name]
    models = {method: network(case, method) for method in ("dense", *methods)}
    size = {method: sum(p.numel() for p in model.parameters()) for method, model in models.items()}
    rows = []
    for mode in MODES:
        paired = Paired({method: call(case, model, mode) for method, model in models.items()}, always=tuple(models))
        for _ in range(max(5, paired.rounds)):
            paired.round()
        for method, seconds in paired.seconds.items():
            ratio = median(a / b for a, b in zip(seconds, paired.seconds["dense"], strict=True))
            found = {"network": name, "method": method, "mode": mode, "parameters": size[method], "seconds": seconds}
            rows.append({**found, "ratio": ratio, "peak_megabytes": peak(name, method, mode)})
            print({**rows[-1], "seconds": median(seconds)}, file=sys.stderr)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| network | method | parameters | mode | ms | relative to dense | peak, MiB |", "| --- " * 7 + "|"]
    for row in rows:
        numbers = f"{1e3 * median(row['seconds']):.1f} | {row['ratio']:.2f} | {row['peak_megabytes']:.0f}"
        lines.append(f"| {row['network']} | {row['method']} | {row['parameters']:,} | {row['mode']} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--methods", nargs="+", help="decompositions in place of those chosen for each network")
    parser.add_argument("--to", type=Path, default=RESULTS)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        print(peak_megabytes(*given.peak))
        return
    rows = [row for name in given.networks for row in measure(name, tuple(given.methods or CASES[name].methods))]
    made = {"date": str(date.today()), "threads": torch.get_num_threads()}
    made["versions"] = {name: version(name) for name in PACKAGES}
    given.to.mkdir(parents=True, exist_ok=True)
    (given.to / "networks.json").write_text(json.dumps({**made, "rows": rows}, indent=1) + "\n")
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    steps = ", ".join(f"{name} {CASES[name].batch}" for name in given.networks)
    head = (
        f"Every weight of two or more axes keeps {KEPT:.0%} of its parameters. Inference of one example; examples in a "
    )
    head += f"training step: {steps}. {made['date']}, {made['threads']} threads, {versions}.\n\n"
    (given.to / "networks.md").write_text(head + table(rows) + "\n")


if __name__ == "__main__":
    main()
