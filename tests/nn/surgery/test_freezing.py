"""A frozen model: its cores cannot be written, and what is made of them is kept without a check."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import tnc
from tnc.errors import MatchError, WeightError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tests.nn.kinds import KINDS, first  # noqa: E402
from tnc.nn.layers.cores import Cores  # noqa: E402
from tnc.nn.runtime.fingerprint import Fingerprint  # noqa: E402

OUT = r"tnc\.nn\.unfreeze"


@pytest.fixture(params=KINDS)
def case(request, execution):
    made, x = KINDS[request.param]
    model = nn.Sequential(made())
    tnc.compress(model, "svd", rank=3, execution=execution)
    x = x()
    return model, x, first(model(x)).detach()


def test_it_answers_as_before_and_checks_nothing(case, execution, monkeypatch):
    model, x, expected = case
    assert tnc.nn.freeze(model) is model
    monkeypatch.setattr(Fingerprint, "holds", lambda *_: pytest.fail("checked"))
    assert torch.allclose(first(model(x)), expected, atol=1e-6)
    if execution != "factorized":
        monkeypatch.setattr(Cores, "rebuilt", lambda *_: pytest.fail("rebuilt"))
        assert torch.allclose(first(model(x)), expected, atol=1e-6)


WRITES = {
    "in place": lambda p: p.mul_(2),
    "data": lambda p: p.data.mul_(2),
    "data =": lambda p: setattr(p, "data", torch.zeros_like(p)),
    "foreach": lambda p: torch._foreach_mul_([p], 2.0),
    "entry": lambda p: p.__setitem__(0, 1.0),
    "requires_grad_": lambda p: p.requires_grad_(),
    "share_memory_": lambda p: p.share_memory_(),
    "init": lambda p: nn.init.normal_(p),
}


@pytest.mark.pairwise("cores refuse writes by themselves, whatever module and execution they are of", together=1)
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_raises(case, write):
    model, x, expected = case
    tnc.nn.freeze(model)
    for core in [p for name, p in model.named_parameters() if "tnc_" in name]:
        with pytest.raises(WeightError, match=OUT), torch.no_grad():
            write(core)
        with pytest.raises(ValueError, match="read-only"):
            core.detach().numpy()[...] = 0
        with pytest.raises(BufferError):
            np.from_dlpack(core.detach())
    assert torch.allclose(first(model(x)), expected, atol=1e-6)


def test_an_optimizer_raises_or_has_nothing_to_do(case):
    model, x, expected = case
    before = torch.optim.SGD(model.parameters(), lr=0.5)  # holds what are no parameters of the model any more
    tnc.nn.freeze(model)
    for group in before.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    dense = {id(p) for p in model.parameters()}
    before.param_groups[0]["params"] = [p for p in before.param_groups[0]["params"] if id(p) not in dense]
    before.step()
    assert torch.allclose(first(model(x)), expected, atol=1e-6)
    assert not any(p.requires_grad for name, p in model.named_parameters() if "tnc_" in name)
    with pytest.raises(RuntimeError, match=OUT):
        model.load_state_dict({name: 0 * x for name, x in model.state_dict().items()})


def test_gradients_reach_the_input():
    model, x = tnc.nn.freeze(tnc.compress(nn.Linear(24, 18), "svd", rank=3)), torch.randn(3, 24, requires_grad=True)
    model(x).sum().backward()
    assert torch.allclose(x.grad, model.weight.detach().sum(0).expand(3, -1), atol=1e-5) and model.bias.grad is not None


def test_unfreeze_gives_parameters_back(case):
    model, x, expected = case
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    tnc.nn.unfreeze(tnc.nn.freeze(tnc.nn.freeze(model)))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert torch.allclose(first(model(x)), expected, atol=1e-6)
    first(model(x)).sum().backward()
    cores = [p for name, p in model.named_parameters() if "tnc_" in name]
    assert all(type(p) is nn.Parameter and p.grad is not None for p in cores)
    for core in cores:
        core.data.mul_(2)
    with torch.no_grad():
        assert not torch.allclose(first(model(x)), expected, atol=1e-6)


def test_copies_casts_and_files_stay_frozen(case, tmp_path):
    model, x, expected = case
    tnc.nn.freeze(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.allclose(first(twin(x)), expected, atol=1e-6)
        assert all(made.frozen is not None for made in twin.modules() if isinstance(made, Cores))
        core = next(p for name, p in twin.named_parameters() if "tnc_" in name)
        with pytest.raises(WeightError, match=OUT):
            core.data.mul_(2)
    wide = x.double() if x.is_floating_point() else x
    assert torch.allclose(first(model.double()(wide)).float(), expected, atol=1e-6)
    with pytest.raises(WeightError, match=OUT):
        next(p for name, p in model.float().named_parameters() if "tnc_" in name).data.mul_(2)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    tnc.nn.uninstall(model)
    assert torch.allclose(first(model(x)), expected, atol=1e-6)
    assert all(p.requires_grad for p in model.parameters())


def test_tied_weights_are_frozen_once():
    table, head = nn.Embedding(24, 18), nn.Linear(18, 24)
    head.weight = table.weight
    model = tnc.nn.freeze(tnc.compress(nn.ModuleList([table, head]), "svd", rank=3, execution="dense"))
    assert model[0].tnc_weight is model[1].tnc_weight and model[0].weight.data_ptr() == model[1].weight.data_ptr()


def test_a_compiled_graph_takes_the_weight_as_it_is(monkeypatch):
    model, x = nn.Sequential(nn.Linear(24, 18), nn.Linear(18, 12)), torch.randn(3, 24)
    tnc.nn.freeze(tnc.compress(model, "svd", rank=3, execution="dense"))
    monkeypatch.setattr(Cores, "rebuilt", lambda *_: pytest.fail("rebuilt"))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), model(x), atol=1e-6)


def test_there_must_be_something_to_freeze():
    with pytest.raises(MatchError, match=r"tnc\.compress"):
        tnc.nn.freeze(nn.Linear(4, 4))
