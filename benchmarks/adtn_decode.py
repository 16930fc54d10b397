"""Rebuilding an ADTN's weight, and the gradient through it: seconds, memory, and the floor set by memory bandwidth.

``python benchmarks/adtn_decode.py`` runs every case in a process of its own and writes a table and its numbers to
``benchmarks/results/adtn_decode.{md,json}``. The floor is the time the same library needs to copy as many bytes as the
passes over the large array read and write, or to fill those that are written only: into fresh memory, as a pass does,
and into memory touched before, as no pass can without a buffer of its own. Huge pages: ``THP_MEM_ALLOC_ENABLE=1``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from math import prod
from pathlib import Path
from statistics import median
from time import perf_counter

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("tncompress", "numpy", "torch", "opt_einsum")


def seconds(function, repeats: int = 9) -> float:
    """Median over repeats, after one run to warm up."""
    function()
    times = []
    for _ in range(repeats):
        begin = perf_counter()
        function()
        times.append(perf_counter() - begin)
    return median(times)


def network_of(depth: int, sites: int):
    import tnc

    shape = (2 ** (sites // 2), 2 ** (sites - sites // 2))
    made = tnc.decompositions["adtn"](depth=depth)
    return made, made.network(shape, 1), shape


def traffic(network) -> tuple[int, int, int]:
    """Passes over arrays of at least half the weight's size, activations included; entries read and entries written."""
    from tnc.contract import recipe

    made, passes, read, written = recipe(network), 0, 0, 0
    while made is not None:
        results = [work.many * work.m * work.n for work in made.plan.work]
        passes += sum(entries >= prod(network.shape) // 2 for entries in results)
        read, written = read + made.plan.moved - sum(results), written + sum(results)
        if made.inner is not None and made.activation != "identity":
            passes, read, written = passes + 1, read + prod(made.split), written + prod(made.split)
        made = made.inner
    return passes, read, written


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def floors(library: str, size: int, read: int, written: int) -> tuple[float, float]:
    """Seconds to copy what is read and to fill the rest: into fresh memory and into memory touched before."""
    if library == "numpy":
        import numpy

        x, y = numpy.ones(size, dtype=numpy.float32), numpy.ones(size, dtype=numpy.float32)
        copies = seconds(x.copy), seconds(lambda: numpy.copyto(y, x))
        fills = seconds(lambda: numpy.full(size, 2.0, dtype=numpy.float32)), seconds(lambda: y.fill(2.0))
    else:
        import torch

        x, y = torch.ones(size), torch.ones(size)
        copies = seconds(x.clone), seconds(lambda: y.copy_(x))
        fills = seconds(lambda: torch.full((size,), 2.0)), seconds(lambda: y.fill_(2.0))
    fresh, warm = (
        (min(read, written) * copy + max(written - read, 0) * fill) / size
        for copy, fill in zip(copies, fills, strict=True)
    )
    return fresh, warm


def decode(depth: int, sites: int, library: str) -> dict:
    """Forward alone."""
    import numpy

    from tnc import contract
    from tnc.contract import recipe
    from tnc_plugins.gates import start

    _, network, shape = network_of(depth, sites)
    begin = perf_counter()
    recipe(network)
    planning = perf_counter() - begin
    cores = [core.astype(numpy.float32) for core in start(network)]
    if library == "torch":
        import torch

        cores = [torch.from_numpy(core) for core in cores]
    before = peak_megabytes()
    took = seconds(lambda: contract.dense(network, cores, shape))
    peak = peak_megabytes() - before
    passes, read, written = traffic(network)
    fresh, warm = floors(library, prod(shape), read, written)
    return {
        "planning": planning, "seconds": took, "passes": passes, "megabytes_moved": 4 * (read + written) / 2**20,
        "floor_fresh": fresh, "floor_warm": warm, "peak_megabytes": peak,
    }  # fmt: skip


def train(depth: int, sites: int, library: str, recompute: bool = True) -> dict:
    """Forward and backward: the gradient of all gates for a given gradient of the weight."""
    import array_api_compat.torch as xp
    import torch

    from tnc.contract import rebuild, recipe
    from tnc.decomposition import Factorization
    from tnc.nn.layers.cores import Cores
    from tnc_plugins.gates import start

    _, network, shape = network_of(depth, sites)
    cores = [torch.from_numpy(core).float().requires_grad_() for core in start(network)]
    held = Cores(Factorization(network, [core.detach() for core in cores], shape))
    layer = held.rebuilt if recompute else lambda *cores: rebuild(recipe(network), cores, xp)
    upstream = torch.ones(shape)
    before = peak_megabytes()
    took = seconds(lambda: layer(*cores).backward(upstream), 5)
    return {"seconds": took, "peak_megabytes": peak_megabytes() - before}


def keep(depth: int, sites: int, library: str) -> dict:
    """As `train`, with every intermediate kept for the backward pass."""
    return train(depth, sites, library, recompute=False)


CASES = {"decode": decode, "train": train, "keep": keep}


def run(case: str, depth: int, sites: int, library: str, **environment: str) -> dict:
    """One case in a fresh process: its peak memory is its own."""
    command = [sys.executable, __file__, "--case", case, library, "--depths", str(depth), "--sites", str(sites)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    found = {"case": case, "depth": depth, "sites": sites, "library": library, **environment, **json.loads(done.stdout)}
    print(found, file=sys.stderr)
    return found


def table(rows: list[dict]) -> str:
    lines = [
        "| depth M | library | forward, ms | passes | moved, MiB | floor, ms (fresh, warm) | ratio (fresh, warm) "
        "| peak, MiB | forward + backward, ms | peak, MiB | nothing recomputed: ms | peak, MiB |",
        "| --- " * 12 + "|",
    ]
    trained = {(row["case"], row["depth"], row["library"]): row for row in rows}
    for row in (row for row in rows if row["case"] == "decode"):
        library = row["library"] + (", huge pages" if "THP_MEM_ALLOC_ENABLE" in row else "")
        both = [trained.get((case, row["depth"], library)) for case in ("train", "keep")]
        floors = [row["floor_fresh"], row["floor_warm"]]
        cells = [
            row["depth"], library, f"{1e3 * row['seconds']:.0f}", row["passes"], f"{row['megabytes_moved']:.0f}",
            ", ".join(f"{1e3 * floor:.1f}" for floor in floors),
            ", ".join(f"{row['seconds'] / floor:.1f}" for floor in floors), f"{row['peak_megabytes']:.0f}",
        ]  # fmt: skip
        for other in both:
            cells += [f"{1e3 * other['seconds']:.0f}", f"{other['peak_megabytes']:.0f}"] if other else ["", ""]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--sites", type=int, default=24, help="the weight has 2^SITES entries")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        case, library = given.case
        print(json.dumps(CASES[case](given.depths[0], given.sites, library)))
        return
    rows = []
    for depth in given.depths:
        rows += [run("decode", depth, given.sites, library) for library in ("numpy", "torch")]
        rows.append(run("decode", depth, given.sites, "torch", THP_MEM_ALLOC_ENABLE="1"))
        rows += [run(case, depth, given.sites, "torch") for case in ("train", "keep")]
    machine = {"cores": os.cpu_count(), "architecture": platform.machine(), "system": platform.system()}
    made = {"date": str(date.today()), "machine": machine, "python": platform.python_version()}
    made["versions"] = {name: version(name) for name in PACKAGES}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "adtn_decode.json").write_text(json.dumps({**made, "rows": rows}, indent=1) + "\n")
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    head = f"ADTN, 2^{given.sites} entries, float32. {made['date']}, {machine['cores']} CPU cores, {versions}.\n\n"
    (RESULTS / "adtn_decode.md").write_text(head + table(rows) + "\n")


if __name__ == "__main__":
    main()
