"""Healing on several processes gives what one gives, as often as one likes, and ends."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from torch import distributed  # noqa: E402 - after the check that torch is here

from tests.nn import pair  # noqa: E402
from tests.nn.clouds import same  # noqa: E402
from tnc.errors import TncError  # noqa: E402
from tnc.nn.training import distributed as processes  # noqa: E402
from tnc.nn.training.distributed import Processes  # noqa: E402

WORKER = """
import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import tnc

out, count = Path(sys.argv[1]), int(sys.argv[2])
rank = int(os.environ.get("RANK", "0"))


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
    options = {"lr": 1e-2} | options | {"validation": DataLoader(data, 7), "teacher": teacher, "progress": False}
    history = tnc.nn.heal(made, loader, **options)
    numbers = [(e.loss, e.accuracy, *e.validation) for e in history.epochs] + [(history.rate,)]
    torch.save({"state": made.state_dict(), "numbers": numbers},
               out / f"{name}.{rank}.pt")


# A connection of the caller's is used and left alone.
if count > 1:
    distributed.init_process_group("gloo")
    theirs = distributed.group.WORLD
run("sampler", 32, 16, epochs=2, sampler=True)
run("rate", 64, 16, epochs=1, sampler=True, lr="auto")
if count > 1:
    assert distributed.group.WORLD is theirs
    distributed.destroy_process_group()
# 33 samples in batches of 16: of the last, which has one, a process has no part.
run("shares", 33, 16, teacher=model(), epochs=3, weight_decay=0.1, checkpoint=out / "run.safetensors")
assert distributed.is_initialized() == (count > 1)
"""

OFTEN = """
import os

import torch
from torch import distributed, nn

import tnc

torch.manual_seed(0)
batches = [(torch.randn(4, 8), torch.randint(3, (4,))) for _ in range(2)]
for k in range(10):
    model = tnc.compress(nn.Linear(8, 3), "svd", rank=2)
    tnc.nn.heal(model, batches, validation=batches, epochs=1, progress=False)
    if k == 7:  # some libraries end all connections when their training ends
        distributed.destroy_process_group()
print("ten times", model.weight.sum().item())
"""

FAILS = """
import torch
from torch import nn

import tnc

torch.manual_seed(0)
model = nn.Linear(8, 3)
tnc.nn.heal(model, [(torch.randn(4, 8), torch.randint(3, (4,)))], epochs=1, progress=False)
own = nn.parallel.DistributedDataParallel(model)  # on the connection that is there, and never freed
own(torch.randn(2, 8)).sum().backward()
bad = [(torch.full((4, 8), torch.nan), torch.randint(3, (4,)))]
tnc.nn.heal(nn.Linear(8, 3), bad, epochs=1, lr=1e-3, progress=False)
"""

NAMED = """
import os
import sys
from pathlib import Path

import torch
from torch import nn

import tnc

torch.manual_seed(0)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 5)

    def forward(self, ids, scale):
        return {"logits": self.head(self.embed(ids)) * scale}


model = tnc.compress(Tagger().double(), [tnc.Rule("embed.weight", "svd", 4)])
batches = []
for size in (6, 5, 1):  # labels that count are not dealt out evenly, and one process may have none of them
    ids, labels = torch.randint(20, (size, 7)), torch.randint(5, (size, 7))
    labels[::2, 2:] = -100
    labels[0] = -100 if size > 1 else 1
    batches.append({"ids": ids, "labels": labels, "scale": torch.tensor(2.0)})
history = tnc.nn.heal(model, batches, validation=batches, epochs=2, lr=1e-2, progress=False)
numbers = [(e.loss, e.accuracy, *e.validation) for e in history.epochs]
torch.save({"state": model.state_dict(), "numbers": numbers}, Path(sys.argv[1]) / f"{os.environ.get('RANK', '0')}.pt")
"""


def alone(script, monkeypatch, *arguments):
    """Run a script here, as one process."""
    monkeypatch.setattr(sys, "argv", ["worker.py", *arguments])
    exec(script, {})


def both(tmp_path, script, *arguments, **env):
    (tmp_path / "worker.py").write_text(script)
    return pair.run_pair(tmp_path / "worker.py", *arguments, **env)


def alike(one, first, second, planted):
    """The two processes hold the same to the last bit, and what one process alone gives to rounding."""
    one, first, second = (torch.load(file) for file in (one, first, second))
    assert same(first["state"], second["state"]) and first["numbers"] == second["numbers"]
    assert planted.gap(first["state"], one["state"]) < 1e-8
    for a, b in zip(first["numbers"], one["numbers"], strict=True):
        assert a == pytest.approx(b, rel=1e-8)


def test_a_connection_is_open_only_while_it_is_the_one_in_use(monkeypatch):
    """None was made here; one was, and is in use; someone else's took its place; it was ended."""
    made, mine, another = processes._Connection(), object(), object()

    def seen(group):
        found = SimpleNamespace(is_initialized=lambda: group is not None, group=SimpleNamespace(WORLD=group))
        monkeypatch.setattr(processes, "distributed", found)
        return made.is_open()

    assert not seen(None) and not seen(another)
    made.group = mine
    assert seen(mine) and not seen(another) and not seen(None)


def test_two_processes_are_one(tmp_path, planted, monkeypatch):
    """Gradients through recomputed layers, rebuilt weights and lookups; uneven parts; a sampler that divides."""
    folders = [tmp_path / name for name in ("1", "2")]
    for folder in folders:
        folder.mkdir()
    alone(WORKER, monkeypatch, str(folders[0]), "1")
    ended = both(tmp_path, WORKER, str(folders[1]), "2")
    assert [status for status, _ in ended] == [0, 0], ended
    for name in ("shares", "sampler", "rate"):
        alike(*(folder / f"{name}.{rank}.pt" for folder, rank in ((folders[0], 0), (folders[1], 0), (folders[1], 1))),
              planted)  # fmt: skip


def test_two_processes_share_named_batches(tmp_path, planted, monkeypatch):
    """Of labels that are left out every process may have another number: they weigh nothing."""
    folders = [tmp_path / name for name in ("1", "2")]
    for folder in folders:
        folder.mkdir()
    alone(NAMED, monkeypatch, str(folders[0]))
    ended = both(tmp_path, NAMED, str(folders[1]))
    assert [status for status, _ in ended] == [0, 0], ended
    alike(folders[0] / "0.pt", folders[1] / "0.pt", folders[1] / "1.pt", planted)


@pytest.mark.parametrize("agent", [False, True], ids=["own store", "torchrun's store"])
def test_healing_again_and_again(tmp_path, agent):
    """One connection serves all calls; whoever ends it does not make the next call hang."""
    env = {}
    if agent:  # torchrun keeps the store in which processes meet in a process of its own
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        env = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": str(store.port)}
    ended = both(tmp_path, OFTEN, **env)
    assert [status for status, _ in ended] == [0, 0], ended
    said = [words.splitlines()[-1] for _, words in ended]
    assert said[0] == said[1] and said[0].startswith("ten times")


def test_a_failure_ends_both_processes(tmp_path):
    """A traceback, or the caller, may hold what gathers gradients until the end: the connection ends all the same."""
    ended = both(tmp_path, FAILS)
    assert [status for status, _ in ended] == [1, 1], ended
    assert all("the loss has become nan" in words for _, words in ended)


@pytest.mark.parametrize("error", ["DistNetworkError", "DistStoreError"])
def test_a_process_without_the_others_says_so(monkeypatch, error):
    def fails(url):
        raise getattr(distributed, error)("gone")

    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "rendezvous", fails)
    monkeypatch.setattr(processes.time, "sleep", lambda seconds: None)
    with pytest.raises(TncError, match=r"process 1 of 2 does not find the others at here:1: .*unset WORLD_SIZE"):
        processes.connect_processes(torch.nn.Linear(1, 1))


def test_half_a_surrounding_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TncError, match="WORLD_SIZE=4 without RANK, MASTER_ADDR, MASTER_PORT: start with torchrun"):
        processes.connect_processes(torch.nn.Linear(1, 1))


def test_parts_of_a_batch_make_the_whole():
    """Tensors whose first axis is the batch's are dealt out, in nested inputs too; all else goes to everyone."""
    x = torch.arange(5)
    whole = {"x": x, "more": (x + 1, [x + 2]), "table": torch.arange(3), "scale": torch.tensor(1.0), "labels": x}
    cpu = torch.device("cpu")
    parts = [next(Processes(rank, 2).batches([whole], cpu)) for rank in (0, 1)]
    for read in (lambda b: b.inputs["x"], lambda b: b.inputs["more"][1][0] - 2, lambda b: b.labels):
        assert [read(part).tolist() for part in parts] == [[0, 2, 4], [1, 3]]
    assert all(part.inputs["table"].tolist() == [0, 1, 2] and part.inputs["scale"] == 1 for part in parts)
    assert [part.weight for part in parts] == pytest.approx([1.2, 0.8])
    assert [part.samples for part in parts] == pytest.approx([3, 2])
    (lone,) = Processes(1, 2).batches([(x[:1], x[:1])], cpu)
    assert lone.labels.tolist() == [0] and lone.weight == lone.samples == 0
