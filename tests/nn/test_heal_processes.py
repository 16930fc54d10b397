"""Healing on several processes gives what one gives."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from tests.nn.clouds import same  # noqa: E402 - after the check that torch is here

WORKER = """
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import tnc

out, rank, count = Path(sys.argv[1]), *map(int, sys.argv[2:])


def model():
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Embedding(20, 24), nn.Unflatten(1, (2, 4)), nn.Conv2d(2, 12, (2, 5)), nn.ReLU(), nn.Flatten(),
        nn.Linear(720, 48), nn.ReLU(), nn.Linear(48, 10),
    ).double()
    for name, execution in (("0", "factorized"), ("2", "factorized"), ("5", "dense")):
        tnc.compress(made, tnc.Rule(f"{name}.weight", "mpo(order=2)", 3), execution=execution)
    tnc.compress(made, tnc.Rule("7.weight", "svd", 4), execution="auto")
    return made


def run(name, n, batch, teacher=None, **options):
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randint(20, (n, 8), generator=generator), torch.randint(10, (n,), generator=generator))
    if options.pop("sampler", False) and count > 1:
        loader = DataLoader(data, batch // count, sampler=DistributedSampler(data, shuffle=False))
    else:
        loader = DataLoader(data, batch, shuffle=name == "shares")
    made = model()
    options |= {"validation": DataLoader(data, 7), "teacher": teacher, "lr": 1e-2, "progress": False}
    history = tnc.nn.heal(made, loader, **options)
    torch.save({"state": made.state_dict(), "numbers": [(e.loss, e.accuracy, *e.validation) for e in history.epochs]},
               out / f"{name}.{rank}.pt")


# 33 samples in batches of 16: of the last, which has one, a process has no part.
run("shares", 33, 16, teacher=model(), epochs=3, weight_decay=0.1, checkpoint=out / "run.safetensors")
assert not distributed.is_initialized()
if count > 1:
    distributed.init_process_group("gloo")
run("sampler", 32, 16, epochs=2, sampler=True)
assert distributed.is_initialized() == (count > 1)
if count > 1:
    distributed.destroy_process_group()
"""


def test_two_processes_are_one(tmp_path, planted, monkeypatch):
    """Gradients through recomputed layers, rebuilt weights and lookups; uneven parts; a sampler that divides."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "worker.py").write_text(WORKER)
    for folder in ("1", "2"):
        (tmp_path / folder).mkdir()
    # What torchrun and `accelerate launch` set.
    shared = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    jobs = []
    for rank in ("0", "1"):
        command = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path / "2"), rank, "2"]
        env = os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}
        jobs.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    monkeypatch.setattr(sys, "argv", ["worker.py", str(tmp_path / "1"), "0", "1"])
    exec(WORKER, {})
    said = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    for name in ("shares", "sampler"):
        one, first, second = (
            torch.load(tmp_path / file) for file in (f"1/{name}.0.pt", f"2/{name}.0.pt", f"2/{name}.1.pt")
        )
        assert same(first["state"], second["state"]) and first["numbers"] == second["numbers"]
        assert planted.gap(first["state"], one["state"]) < 1e-8
        for a, b in zip(first["numbers"], one["numbers"], strict=True):
            assert a == pytest.approx(b, rel=1e-8)
