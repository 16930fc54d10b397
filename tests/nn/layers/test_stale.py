"""What a layer answers is what its cores hold now, however they were written."""

from __future__ import annotations

import copy
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

import tnc

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tests.nn.kinds import KINDS, first  # noqa: E402
from tnc.nn.layers.cores import Cores  # noqa: E402


def by_data(core):
    core.data.mul_(1.5)


def by_foreach(core):
    torch._foreach_mul_([core.data], 1.5)


def by_out(core):
    torch.mul(core.data, 1.5, out=core.data)


def by_numpy(core):
    core.detach().numpy()[...] *= 1.5


def by_dlpack(core):
    np.from_dlpack(core.detach())  # what is read there is the same memory
    torch.from_dlpack(core.detach()).mul_(1.5)


def by_permutation(core):
    flat = core.data.view(-1)
    flat.copy_(flat.flip(0))


def by_one_entry(core):
    core.data.view(-1)[core.numel() // 2] += 1.0


def by_optimizer(core):
    optimizer = torch.optim.SGD([core], lr=0.5)
    core.grad = torch.ones_like(core)
    optimizer.step()
    core.grad = None


def by_another(core):
    """A step of an optimizer that is not torch's."""
    core.data = core.data - 0.5 * torch.ones_like(core.data)


WAYS = (by_data, by_foreach, by_out, by_numpy, by_dlpack, by_permutation, by_one_entry, by_optimizer, by_another)


def answer(model, x):
    with torch.no_grad():
        return first(model(x))


def truth(model, x):
    """What a model answers that has never answered before."""
    return answer(tnc.nn.uninstall(copy.deepcopy(model)), x)


@pytest.mark.pairwise(
    "writes are noticed by content: the way to write and the kind of module do not know of each other"
)
@pytest.mark.parametrize("write", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_no_write_goes_unnoticed(kind, write, execution):
    made, x = KINDS[kind][0], KINDS[kind][1]()
    model = nn.Sequential(made()).eval()
    tnc.compress(model, "svd", rank=3, execution=execution)
    before = answer(model, x)
    assert torch.allclose(answer(model, x), before)
    cores = [m for m in model.modules() if isinstance(m, Cores)][-1]
    write(next(iter(cores)))
    after = answer(model, x)
    assert not torch.allclose(after, before)
    assert torch.allclose(after, truth(model, x), atol=1e-5)


@pytest.mark.parametrize("plugin", sorted(tnc.decompositions))
@pytest.mark.parametrize("execution", ["auto", "dense"])
def test_every_decomposition(plugin, execution):
    model, x = nn.Linear(24, 24).eval(), torch.randn(3, 24)
    tnc.nn.tensorize(model, plugin, 2, execution=execution)  # what the cores are is no matter: nothing is fitted
    for core in model.tnc_weight:
        answer(model, x)
        by_data(core)
        assert torch.allclose(answer(model, x), truth(model, x), atol=1e-5)


def test_uninstall_and_save_write_what_is_there(tmp_path):
    model, x = nn.Sequential(nn.Linear(24, 18)).eval(), torch.randn(3, 24)
    fresh = copy.deepcopy(model)
    tnc.compress(model, "svd", rank=3, execution="dense")
    answer(model, x)
    by_data(next(iter(model[0].tnc_weight)))
    tnc.nn.save(model, tmp_path / "model.safetensors")
    tnc.nn.load(fresh, tmp_path / "model.safetensors")
    assert torch.equal(answer(fresh, x), answer(model, x))
    assert torch.allclose(truth(model, x), answer(fresh, x), atol=1e-6)


def _written(core):
    core.mul_(1.5)
    return True


def test_another_process_writes():
    model, x = nn.Linear(24, 18).eval(), torch.randn(3, 24)
    tnc.compress(model, "svd", rank=3, execution="dense").share_memory()
    before, core = answer(model, x), next(iter(model.tnc_weight)).detach()
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(_written, core).result(timeout=120)
    assert not torch.allclose(answer(model, x), before)
    assert torch.allclose(answer(model, x), truth(model, x), atol=1e-5)


@pytest.fixture
def rebuilt(monkeypatch):
    calls, made = [], Cores.rebuilt
    monkeypatch.setattr(Cores, "rebuilt", lambda self, *cores: calls.append(self) or made(self, *cores))
    return calls


@pytest.mark.parametrize("kind", ["linear", "convolution", "lstm", "attention"])
def test_whether_a_weight_is_kept_depends_on_gradients_alone(kind, rebuilt):
    model, x = nn.Sequential(KINDS[kind][0]()), KINDS[kind][1]()
    tnc.compress(model, "svd", rank=3, execution="dense")
    assert model.training
    answer(model, x)
    once = len(rebuilt)
    answer(model, x)
    assert len(rebuilt) == once > 0


def test_the_mode_carries_over(tmp_path):
    dense = nn.Sequential(nn.Linear(24, 18), nn.LSTM(18, 12)).eval()
    model = tnc.compress(copy.deepcopy(dense), "svd", rank=3)
    assert not any(m.training for m in model.modules())
    tnc.nn.save(model, tmp_path / "m.safetensors")
    loaded = tnc.nn.load(copy.deepcopy(dense), tmp_path / "m.safetensors")
    assert not any(m.training for m in loaded.modules())
    assert not any(m.training for m in tnc.nn.tensorize(copy.deepcopy(dense), "svd", 3).modules())
    assert all(m.training for m in tnc.compress(dense.train(), "svd", rank=3).modules())
