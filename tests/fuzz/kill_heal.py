"""`kill -9` at random moments of `tnc.nn.heal`: the checkpoint is whole, and the run goes on to the same bytes.

``python -m tests.fuzz.kill_heal 50`` prints what was tried and what held as JSON. One process imports torch and forks
a child for every run, so that a trial takes a fraction of a second.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

EPOCHS = 8


def kills(count: int, seed: int = 0) -> dict[str, float]:
    """Kill so many runs, let each go on, and compare.

    Parameters
    ----------
    count : int
        Runs to kill: one in two at a moment of its time, the others at a change in the checkpoint's folder.
    seed : int
        Of the moments.

    Returns
    -------
    dict
        ``tried``; of these ``while writing`` and ``before the first checkpoint``; ``damaged`` checkpoints, runs that
        ended ``otherwise`` or not at all (``failed``), files ``left`` beside; ``seconds`` in all.
    """
    command = [sys.executable, "-m", "tests.fuzz.kill_heal", str(count), str(seed)]
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | one, capture_output=True, text=True, timeout=120 + 30 * count, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def run(folder: Path) -> None:
    """Heal a small network in this process, with a checkpoint, and write its end."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    import tnc

    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Dropout(0.1), nn.BatchNorm1d(64), nn.Linear(64, 6))
    model = tnc.compress(teacher.__class__(*(layer for layer in teacher)), [tnc.Rule("0.weight", "mpo(order=2)", 4)])
    x = torch.randn(256, 24)
    data = DataLoader(TensorDataset(x, x[:, :6].argmax(1)), 32, shuffle=True)
    tnc.nn.heal(
        model, data, validation=[(x, x[:, :6].argmax(1))], epochs=EPOCHS, lr=1e-2, progress=False,
        checkpoint=folder / "run.safetensors",
    )  # fmt: skip
    beside = folder / "end.new"
    beside.write_bytes(b"".join(name.encode() + x.numpy().tobytes() for name, x in model.state_dict().items()))
    beside.rename(folder / "end")


def _start(folder: Path) -> int:
    """A child that runs, and ends without what Python does at its end."""
    if child := os.fork():
        return child
    status = 1
    try:
        run(folder)
        status = 0
    finally:
        os._exit(status)


def _ended(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG)[0] == child


def _kill(child: int, folder: Path, moment: float, change: int) -> bool:
    """Kill the child after some seconds, or at the so manieth change in its folder; whether it still ran."""
    end, seen, changes = time.monotonic() + moment, _look(folder), 0
    while time.monotonic() < end or change:
        time.sleep(1e-4)
        if _ended(child):
            return False
        if change and (now := _look(folder)) != seen:
            seen, changes = now, changes + 1
            if changes >= change:
                break
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def _look(folder: Path) -> tuple[tuple[str, int], ...]:
    """Files, and their inodes: a new one appears, and takes the place of the old one."""
    return tuple(sorted((entry.name, entry.inode()) for entry in os.scandir(folder)))


def _intact(path: Path) -> bool:
    from tnc import storage

    try:
        storage.read(path)
    except Exception:
        return False
    return True


def tried(count: int, seed: int, folder: Path) -> dict[str, float]:
    """What `kills` says, from within the process that forks."""
    started, rng = time.monotonic(), random.Random(seed)
    whole = folder / "whole"
    whole.mkdir()
    _, status = os.waitpid(_start(whole), 0)
    if status:
        raise RuntimeError("the run that nobody kills failed")
    length, expected = time.monotonic() - started, (whole / "end").read_bytes()
    names = ("tried", "while writing", "before the first checkpoint", "damaged", "otherwise", "failed", "left")
    found: dict[str, float] = dict.fromkeys(names, 0)
    while found["tried"] < count:
        place = folder / f"{int(found['tried'])}-{rng.random()}"
        place.mkdir()
        change = rng.randint(1, 2 * EPOCHS - 1) if found["tried"] % 2 else 0
        if not _kill(_start(place), place, rng.uniform(0, length), change):
            continue  # it had ended
        found["tried"] += 1
        path = place / "run.safetensors"
        found["while writing"] += len(list(place.iterdir())) > path.exists()
        found["before the first checkpoint"] += not path.exists()
        found["damaged"] += path.exists() and not _intact(path)
        _, status = os.waitpid(_start(place), 0)
        found["failed"] += bool(status)
        found["otherwise"] += not status and (place / "end").read_bytes() != expected
        found["left"] += len(list(place.iterdir())) - 2 + bool(status)
    return found | {"seconds": round(time.monotonic() - started, 1)}


if __name__ == "__main__":
    import rich.progress
    import torch
    import torch.utils.data

    import tnc

    # All that a run imports, before the first fork: optimizers bring half of torch. No thread is started.
    torch.optim.AdamW(torch.nn.Linear(1, 1).parameters())
    _ = tnc.nn.heal, tnc.nn.compress, rich.progress.Progress
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(tried(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, Path(temporary))))
