"""Healing: it improves accuracy, whatever the gauge, however often interrupted, on however many processes."""

from __future__ import annotations

import copy
import math
import os
import socket
import subprocess
import sys

import pytest

import tnc
from tnc.errors import CheckpointError, TncError, WeightError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from tnc.nn.task import cosine, distillation  # noqa: E402

QUIET = {"progress": False}


def blobs(n, seed, spread=1.2):
    """Ten Gaussian clouds in 32 dimensions, the same for every seed; as many of each as chance will."""
    centres = torch.randn(10, 32, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (n,), generator=generator)
    return TensorDataset(centres[labels] + spread * torch.randn(n, 32, generator=generator), labels)


def loader(n=512, seed=1, batch=64, shuffle=True, **options):
    return DataLoader(blobs(n, seed), batch, shuffle=shuffle, **options)


def net(dtype=torch.float32, dropout=0.0):
    return nn.Sequential(
        *(nn.Linear(32, 96), nn.ReLU(), nn.Dropout(dropout), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10))
    ).to(dtype)


def small(model=None, method="mpo(order=2)", rank=2):
    return tnc.compress(copy.deepcopy(model or net()), [tnc.Rule("[03].weight", method, rank)])


def state(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = net()
    tnc.nn.heal(model, loader(2000), epochs=3, lr=3e-3, **QUIET)
    return model


# ------------------------------------------------------------------- it heals


@pytest.mark.parametrize("taught", [False, True], ids=["labels", "teacher"])
@pytest.mark.parametrize("method", ["svd", "mpo(order=2)", "ring"])
def test_healing_improves_accuracy(trained, method, taught):
    """On samples seen neither in training nor in validation."""
    model, test = small(trained, method, 0.2), loader(1000, 3)
    before = correct(model, test)
    history = tnc.nn.heal(
        model, loader(1000), validation=loader(500, 2), teacher=trained if taught else None, epochs=3, lr=3e-3, **QUIET
    )
    after = correct(model, test)
    assert correct(trained, test) > 0.95 and after > max(before + 0.05, 0.8)
    assert len(history.epochs) == 3 and 1 <= history.best <= 3
    assert history.epochs[-1].loss < history.epochs[0].loss and all(e.seconds > 0 for e in history.epochs)
    assert history.validation == history.epochs[history.best - 1].validation and history.before.accuracy < 0.9
    assert abs(history.validation.accuracy - after) < 0.05


@torch.no_grad()
def correct(model, data):
    model.eval()
    x, y = data.dataset.tensors
    return float((model(x).argmax(1) == y).float().mean())


def test_a_factorized_model_from_scratch_trains():
    torch.manual_seed(0)
    model = tnc.nn.tensorize(net(), [tnc.Rule("[03].weight", "mpo(order=2)", 4)])
    history = tnc.nn.heal(model, loader(2000), epochs=4, lr=5e-3, **QUIET)
    assert history.best == 4 and history.validation is None and correct(model, loader(500, 3)) > 0.9


def test_distillation_is_hintons():
    student, teacher = torch.randn(6, 10, dtype=torch.float64, requires_grad=True), torch.randn(6, 10).double()
    p, q = torch.softmax(teacher / 3, 1), torch.softmax(student / 3, 1)
    value = distillation(student, teacher, 3.0)
    assert float((value - 9 * (p * (p / q).log()).sum(1).mean()).detach()) == pytest.approx(0, abs=1e-14)
    value.backward()
    assert torch.allclose(student.grad, 3 * (q - p).detach() / 6)  # T² / T: as large as that of cross-entropy
    maps = (x.detach()[:, :, None, None].expand(6, 10, 2, 2) for x in (student, teacher))
    assert float(distillation(*maps, 3.0)) == pytest.approx(float(value.detach()))


def test_the_teacher_alone_teaches(trained):
    """With alpha=1 labels do not matter: wrong ones are not learned."""
    model, (x, y) = small(trained, rank=0.2), blobs(1000, 1).tensors
    wrong = DataLoader(TensorDataset(x, (y + 1) % 10), 64, shuffle=True)
    before = state(trained)
    trained.zero_grad()
    tnc.nn.heal(model, wrong, teacher=trained, alpha=1.0, epochs=3, lr=3e-3, **QUIET)
    assert correct(model, loader(500, 3)) > 0.8
    assert same(before, state(trained)) and all(p.grad is None for p in trained.parameters())


def test_another_loss():
    """A regression: there is no accuracy, and the best epoch is the one of the least loss."""
    torch.manual_seed(0)
    model = tnc.compress(nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 8)), "svd", rank=4)
    batches = [(x, x[:, :8].sin()) for x in torch.randn(256, 32).split(64)]
    history = tnc.nn.heal(model, batches, validation=batches, loss=nn.functional.mse_loss, epochs=5, lr=1e-2, **QUIET)
    assert math.isnan(history.validation.accuracy) and history.validation.loss < 0.8 * history.before.loss
    assert history.best == min(range(1, 6), key=lambda k: history.epochs[k - 1].validation.loss)


def test_the_schedule():
    assert cosine(0.0) == pytest.approx(0.01) and cosine(0.025) == pytest.approx(0.5) and cosine(0.05) == 1
    assert cosine(0.525) == pytest.approx(0.5) and cosine(1.0) == pytest.approx(0, abs=1e-15)
    asked, data = [], loader(256, shuffle=False)
    for given in (data, (batch for batch in data)):  # the second cannot say how long it is
        asked.append([])
        tnc.nn.heal(net(), given, epochs=1, schedule=lambda done: asked[-1].append(done) or 1.0, **QUIET)
    assert asked == [[0, 0.25, 0.5, 0.75], [0, 0, 0, 0]]


# ------------------------------------------------------------------- the gauge


def turned(model, scale):
    """The same weights from other cores: the first times `scale`, the last divided by it."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (model[0], model[3]):
            first, *_, last = layer.cores
            first.mul_(scale)
            last.div_(scale)
    return model


@pytest.mark.parametrize("method", ["svd", "mpo(order=3)", "tucker", "ring", "cp", "adtn"])
@pytest.mark.parametrize("scale", [64.0, 0.037])
def test_the_gauge_does_not_matter(planted, method, scale):
    """Several steps with decay, from two gauges: the same weights, where one rate for all cores gives others."""
    given = small(net(torch.float64), method, 3)
    x, y = torch.randn(4, 16, 32, dtype=torch.float64), torch.randint(10, (4, 16))
    ends, plain = [], []
    for model in (copy.deepcopy(given), turned(given, scale)):
        assert planted.gap(model[0].weight, given[0].weight) < 1e-12
        one = copy.deepcopy(model)
        tnc.nn.heal(model, list(zip(x, y, strict=True)), epochs=3, lr=1e-2, weight_decay=0.1, **QUIET)
        ends.append([model[k].weight for k in (0, 3, 5)])
        steps = torch.optim.AdamW(one.parameters(), lr=1e-2, weight_decay=0.1)
        for _ in range(12):
            steps.zero_grad()
            nn.functional.cross_entropy(one(x[0]), y[0]).backward()
            steps.step()
        plain.append([one[k].weight for k in (0, 3, 5)])
    assert planted.gap(ends[0][0], given[0].weight) > 0.01  # it did train
    assert planted.gap(ends[1], ends[0]) < 1e-10
    assert planted.gap(plain[1], plain[0]) > 1e-3


@pytest.mark.parametrize("method", ["svd", "mpo(order=3)", "tucker", "ring", "cp", "adtn"])
def test_a_rate_means_what_it_means_to_a_dense_weight(method):
    """One step of Adam moves the entries of a rebuilt weight by about the rate, those of a dense one by the rate."""
    torch.manual_seed(0)
    layer = tnc.nn.Linear(96, 64, decomposition=method, rank=4)
    before = layer.weight.detach().clone()
    steps = torch.optim.AdamW(tnc.nn.parameter_groups(layer, 1e-4))
    (layer(torch.randn(32, 96)) * torch.randn(32, 64)).sum().backward()
    steps.step()
    moved = float((layer.weight.detach() - before).square().mean().sqrt())
    assert 0.2e-4 < moved < 2e-4


@pytest.mark.parametrize("method", ["svd", "mpo(order=3)", "tucker"])
def test_decay_is_that_of_the_weight(method):
    """Where no gradient is, each of n cores shrinks by wd / n: the weight as a dense one does; a bias not at all."""
    model = small(net(torch.float64), method, 3)
    before = {k: model[k].weight.detach().clone() for k in (0, 3, 5)}
    biases = [model[k].bias.detach().clone() for k in before]

    def nothing(outputs, labels):
        return 0 * outputs.sum()

    tnc.nn.heal(model, [(torch.randn(4, 32).double(), torch.zeros(4).long())] * 10, loss=nothing, epochs=1, lr=0.05,
                weight_decay=0.2, schedule=lambda done: 1.0, **QUIET)  # fmt: skip
    for k, n in zip((0, 3, 5), (*(len(list(model[k].cores)) for k in (0, 3)), 1), strict=True):
        left = model[k].weight.detach() / before[k]
        assert torch.allclose(left, torch.full_like(left, (1 - 0.05 * 0.2 / n) ** (10 * n)), rtol=1e-9)
        assert abs(float(left.mean()) - 0.99**10) < 5e-4
    assert all(torch.equal(model[k].bias, bias) for k, bias in zip(before, biases, strict=True))


def test_groups_hold_every_parameter_once():
    tied = nn.ModuleDict({"a": nn.Linear(16, 24), "b": nn.Linear(16, 24), "gru": nn.GRU(8, 8), "c": nn.Conv2d(4, 4, 3)})
    tied["b"].weight = tied["a"].weight
    nn.utils.parametrizations.weight_norm(tied["c"])
    tnc.compress(tied, [tnc.Rule("[ab].weight", "svd", 2), tnc.Rule("gru.weight_hh*", "svd", 2)])
    tied["gru"].bias_hh_l0.requires_grad_(False)
    with torch.no_grad():
        next(tied["gru"].parametrizations.parameters()).zero_()  # a core of zeros must be able to grow
    groups = tnc.nn.parameter_groups(tied, 0.1, weight_decay=0.01)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in tied.parameters() if p.requires_grad)
    assert all(group["lr"] > 0 for group in groups)


# ------------------------------------------------------- early stopping and seeds


def test_what_does_not_help_is_taken_back(trained):
    """Learning wrong labels: stopped after two epochs, and the model is as it was given."""
    model, (x, y) = small(trained, rank=6), blobs(256, 1).tensors
    model.train()
    model[3].eval()
    before, random = state(model), torch.get_rng_state()
    wrong = DataLoader(TensorDataset(x, (y + 1) % 10), 32, shuffle=True)
    history = tnc.nn.heal(model, wrong, validation=loader(500, 2), epochs=9, patience=2, lr=3e-3, **QUIET)
    assert len(history.epochs) == 2 and history.best == 0 and history.validation == history.before
    assert same(before, state(model))
    assert torch.equal(random, torch.get_rng_state()) and model.training and not model[3].training


def test_the_best_epoch_stays(trained):
    """The schedule first helps, then spoils: what is left is the model of the epoch that was best."""
    model, held = small(trained), loader(500, 2)
    rates = [1.0, 1.0, 300.0, 300.0, 300.0]
    history = tnc.nn.heal(
        model, loader(), validation=held, epochs=5, patience=2, schedule=lambda done: rates[int(5 * done)], **QUIET
    )
    assert history.best == 2 and len(history.epochs) == 4
    assert correct(model, held) == pytest.approx(history.epochs[1].validation.accuracy)
    assert history.epochs[3].validation.accuracy < history.validation.accuracy


def test_the_seed_decides(trained):
    ends = []
    for seed, noise in ((1, 0), (1, 5), (2, 0)):
        model = small(trained)
        torch.manual_seed(noise)
        tnc.nn.heal(model, loader(128), epochs=1, seed=seed, **QUIET)
        ends.append(state(model))
    assert same(ends[0], ends[1]) and not same(ends[0], ends[2])


# ------------------------------------------------------------------ interruptions


class Interrupted(list):
    """Batches, the last of which is never reached in one of the epochs."""

    epoch = 0

    def __iter__(self):
        self.epoch += 1
        for k, batch in enumerate(super().__iter__()):
            if self.epoch == 3 and k == 4:
                raise KeyboardInterrupt
            yield batch


class Cut(DataLoader):
    """A shuffling loader whose third epoch ends in the middle."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        for k, batch in enumerate(super().__iter__()):
            if self.passes == 3 and k == 4:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize("generator", [False, True], ids=["global", "own"])
def test_an_interrupted_run_ends_the_same(trained, tmp_path, generator):
    """To the last bit: shuffling, dropout, running means, Adam, the best epoch and the record are all there."""
    torch.manual_seed(0)
    given = nn.Sequential(small(trained), nn.BatchNorm1d(10), nn.Dropout(0.2))
    options = {"validation": loader(200, 2), "teacher": trained, "epochs": 4, "weight_decay": 0.1, "seed": 3, **QUIET}

    def data(kind=DataLoader):
        own = {"generator": torch.Generator().manual_seed(9)} if generator else {}
        return kind(blobs(320, 1), 32, shuffle=True, **own)

    whole, path = copy.deepcopy(given), tmp_path / "run.safetensors"
    expected = tnc.nn.heal(whole, data(), **options)
    with pytest.raises(KeyboardInterrupt):
        tnc.nn.heal(copy.deepcopy(given), data(Cut), checkpoint=path, **options)
    torch.manual_seed(77)
    for _ in range(2):  # the second time there is nothing left to do
        model = copy.deepcopy(given)
        found = tnc.nn.heal(model, data(), checkpoint=path, **options)
        assert same(state(model), state(whole))
        assert (found.best, found.before) == (expected.best, expected.before) and len(found.epochs) == 4
        for a, b in zip(found.epochs, expected.epochs, strict=True):
            assert (a.loss, a.accuracy, a.validation) == (b.loss, b.accuracy, b.validation)
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def test_bfloat16_resumes_too(tmp_path):
    """What NumPy cannot hold is kept as it is."""
    given, data = small(net()).bfloat16(), [(x.bfloat16(), y) for x, y in loader(256)]
    whole = copy.deepcopy(given)
    tnc.nn.heal(whole, data, epochs=2, **QUIET)
    cut = Interrupted(data)
    cut.epoch = 1
    with pytest.raises(KeyboardInterrupt):
        tnc.nn.heal(copy.deepcopy(given), Interrupted(data * 2), epochs=3, checkpoint=tmp_path / "run", **QUIET)
    model = copy.deepcopy(given)
    tnc.nn.heal(model, data * 2, epochs=3, checkpoint=tmp_path / "run", **QUIET)
    again = copy.deepcopy(given)
    tnc.nn.heal(again, data * 2, epochs=3, **QUIET)
    assert same(state(model), state(again)) and not same(state(again), state(whole))


def test_a_checkpoint_of_another_run_is_refused(trained, tmp_path):
    path, data = tmp_path / "run.safetensors", loader(128)
    tnc.nn.heal(small(trained), data, epochs=1, checkpoint=path, **QUIET)
    other = small(trained, rank=3)
    for model, options, said in (
        (small(trained), {"epochs": 2}, "epochs=1 there, 2 here"),
        (small(trained), {"epochs": 1, "teacher": trained}, "teacher=False there, True here"),
        (other, {"epochs": 1}, "0.cores.0"),
    ):
        before = state(model)
        with pytest.raises(CheckpointError, match=said):
            tnc.nn.heal(model, data, checkpoint=path, **options, **QUIET)
        assert same(before, state(model))
    tnc.nn.save(other, path)
    with pytest.raises(CheckpointError, match="no checkpoint of a training run"):
        tnc.nn.heal(other, data, checkpoint=path, **QUIET)
    with pytest.raises(CheckpointError, match="does not exist"):
        tnc.nn.heal(other, data, epochs=1, checkpoint=tmp_path / "none" / "run", **QUIET)


# ---------------------------------------------------------------- several processes

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


# ------------------------------------------------------------------------ the rest


def test_mixed_precision(trained):
    model, seen = small(trained), []
    model[5].register_forward_hook(lambda layer, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    history = tnc.nn.heal(model, loader(), epochs=2, autocast=torch.bfloat16, **QUIET)
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)} and {p.dtype for p in model.parameters()} == {torch.float32}
    assert history.epochs[-1].loss < history.epochs[0].loss


@pytest.mark.parametrize(("terminal", "wanted"), [(True, True), (True, False), (False, True)])
def test_the_bar_is_for_terminals(capfd, monkeypatch, terminal, wanted):
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    tnc.nn.heal(net(), loader(128), epochs=1, progress=wanted)
    captured = capfd.readouterr()
    assert not captured.out and bool(captured.err) == (terminal and wanted)
    assert "healing" in captured.err or not captured.err


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"epochs": 0}, TncError, "epochs=0"),
        ({"patience": 2}, TncError, "pass validation="),
        ({"autocast": torch.float16}, TncError, "bfloat16"),
        ({"lr": 1e30, "schedule": lambda done: 1.0}, TncError, "lower the learning rate"),
    ],
    ids=["epochs", "patience", "autocast", "lr"],
)
def test_bad_requests(options, error, said):
    with pytest.raises(error, match=said):
        tnc.nn.heal(net(), loader(), **options, **QUIET)


def test_nothing_to_train_on():
    with pytest.raises(WeightError, match="requires a gradient"):
        tnc.nn.heal(net().requires_grad_(False), loader(), **QUIET)
    used = iter(list(loader(128)))
    with pytest.raises(TncError, match="iterated once an epoch"):
        tnc.nn.heal(net(), used, epochs=2, **QUIET)
