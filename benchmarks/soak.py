"""An hour of compress, train, save, load and uninstall in one process: is memory flat, and is every handle given back?

``python -m benchmarks.soak --minutes 60 --out benchmarks/results/soak.json``. The same rounds over and over: every
installed method, three kinds of layers, each way to run them. After a warm-up, in which plans are made and kept, the
memory that the process holds must stay within 2 % and the number of open handles and threads must not change.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from itertools import cycle, product
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tnc

__all__ = ["Round", "judged", "soak"]

WARM = 0.2
"""Share of the time, and rounds of the whole cycle at least one, before memory is compared."""

FLAT = 0.02
"""Growth of memory that counts as none."""


@dataclass(frozen=True)
class Round:
    """One pass over a method and an execution.

    Attributes
    ----------
    second : float
        Since the start.
    name : str
    resident : int
        Bytes in memory.
    handles, threads : int
        Open files and sockets; threads of Python.
    """

    second: float
    name: str
    resident: int
    handles: int
    threads: int


class Small(nn.Module):
    """A table, a convolution and a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv, self.head = nn.Embedding(64, 36), nn.Conv2d(4, 16, 3), nn.Linear(16, 32)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        maps = self.conv(self.table(numbers).unflatten(2, (6, 6)))
        return self.head(maps.amax((2, 3)))


def soak(minutes: float, folder: Path, progress: bool = True) -> dict[str, Any]:
    """Go round for so many minutes; all rounds, and what they show.

    Parameters
    ----------
    minutes : float
    folder : Path
        For the files, each written anew in every round.
    """
    torch.manual_seed(0)
    dense, started, rounds = Small(), time.monotonic(), []
    kinds = list(product(tnc.decompositions, ("auto", "dense", "factorized")))
    for k, (method, execution) in enumerate(cycle(kinds)):
        if k >= len(kinds) and time.monotonic() - started > 60 * minutes:
            break
        once(dense, method, execution, folder)
        gc.collect()
        rounds.append(Round(time.monotonic() - started, f"{method} {execution}", *held()))
        if progress and k % len(kinds) == 0:
            print(f"{rounds[-1].second:6.0f} s  {rounds[-1].resident / 2**20:7.1f} MiB  {rounds[-1].handles} handles")
    return {"machine": machine(), "minutes": minutes, "kinds": len(kinds), **judged(rounds, len(kinds)),
            "rounds": [asdict(one) for one in rounds]}  # fmt: skip


def once(dense: nn.Module, method: str, execution: str, folder: Path) -> None:
    """Compress, train, save, load into a fresh network, compare, and make both dense again."""
    model = tnc.compress(copy.deepcopy(dense), method, rank=0.5, execution=execution)
    batches = [(torch.randint(64, (8, 4)), torch.randint(32, (8,))) for _ in range(3)]
    (run := folder / "run.safetensors").unlink(missing_ok=True)
    tnc.nn.heal(model, batches, validation=batches, epochs=2, checkpoint=run, progress=False)
    tnc.nn.save(model, folder / "model.safetensors")
    fresh = tnc.nn.load(Small(), folder / "model.safetensors")
    model.eval(), fresh.eval()
    x = batches[0][0]
    with torch.no_grad():
        if not torch.allclose(model(x), fresh(x), rtol=1e-4, atol=1e-5):
            raise RuntimeError(f"{method} {execution}: the loaded network differs from the saved one")
    for one in (model, fresh):
        tnc.nn.uninstall(one)


def held() -> tuple[int, int, int]:
    """Bytes resident, open handles, threads of this process; as Linux counts them."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), threading.active_count()


def judged(rounds: list[Round], kinds: int) -> dict[str, Any]:
    """Growth of memory after the warm-up, over whole cycles, and of handles and threads."""
    last = rounds[-1].second
    warm = max(kinds, next(k for k, one in enumerate(rounds) if one.second >= WARM * last))
    after = rounds[warm:]
    part = max(kinds, len(after) // 10)
    if len(after) < 2 * part:
        return {"verdict": "too short: let it run for more cycles", "flat": None, "leaked": None}
    first, final = after[:part], after[-part:]
    growth = statistics.median(x.resident for x in final) / statistics.median(x.resident for x in first) - 1
    more = {name: max(getattr(x, name) for x in final) - max(getattr(x, name) for x in first)
            for name in ("handles", "threads")}  # fmt: skip
    flat, leaked = abs(growth) <= FLAT, any(n > 0 for n in more.values())
    said = f"memory {growth:+.2%} after the warm-up, {more['handles']:+d} handles, {more['threads']:+d} threads"
    return {
        "verdict": said,
        "flat": flat,
        "leaked": leaked,
        "growth": growth,
        "more": more,
        "peak": max(x.resident for x in rounds),
        "count": len(rounds),
    }


def machine() -> dict[str, Any]:
    """Where this ran."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> int:
    """Run, write the file, and fail where memory grew or a handle was left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "soak.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(options.minutes, Path(folder))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{found['verdict']}; {options.out}")
    return 0 if found["flat"] and not found["leaked"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
