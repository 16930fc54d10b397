"""Processes that are killed while they save: what was there is there, whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

import tnc
from tests.fuzz.originals import factorized
from tnc import Checkpoint, Network
from tnc.errors import CheckpointError

WIDE = Network("m r, r n -> m n", {"m": 500, "r": 40, "n": 500})

CHILD = """
import sys
from pathlib import Path
from tests.fuzz.kills import checkpoint
for k in range(1_000_000):
    checkpoint(k % 2).save(sys.argv[1])
    if k == 1:
        print("ready", flush=True)
"""


def checkpoint(k: int) -> Checkpoint:
    """One of two of some MB, every entry of which differs from the other's."""
    dense = {f"dense.{j}": np.full((200, 1000), float(10 * j + k)) for j in range(3)}
    return Checkpoint({"w": factorized(WIDE, (500, 500), k), **dense})


def _same(a: Checkpoint, b: Checkpoint) -> bool:
    cores = zip(a["w"].cores, b["w"].cores, strict=True)
    return all(np.array_equal(x, y) for x, y in cores) and all(np.array_equal(a[n], b[n]) for n in a if n != "w")


def kill_once(folder: Path, rng: np.random.Generator) -> str:
    """Start a process that saves over and over, kill it at a random moment, and look at what it left."""
    path = folder / "x.safetensors"
    root = str(Path(__file__).parents[2])
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, env=env, cwd=root)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        time.sleep(float(rng.uniform(0, 0.1)))
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    half = [name for name in os.listdir(folder) if name != path.name]
    for name in half:
        os.unlink(folder / name)
    try:
        found = tnc.load(path)
    except CheckpointError as error:
        return f"LOST: {error}"
    if not any(_same(found, checkpoint(k)) for k in (0, 1)):
        return "ANOTHER"
    return "whole, killed while a new one was written" if half else "whole, killed between two"


def run(folder: Path, seed: int, times: int) -> tuple[Counter[str], list[str]]:
    """What so many kills left, and what was not well."""
    found, bad = Counter[str](), []
    for k in range(times):
        said = kill_once(folder, np.random.default_rng([seed, k]))
        found[said if said.startswith("whole") else "failed"] += 1
        if not said.startswith("whole"):
            bad.append(f"kill, seed {seed}, number {k}: {said}")
    return found, bad
