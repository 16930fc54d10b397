"""A weight that is computed from cores can be read like a parameter; a write that could not reach the cores raises."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import tnc
from tnc.errors import WeightError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here
from torch.nn.utils import fusion, parametrizations, prune  # noqa: E402

from tnc.nn.layers.guard import Guarded  # noqa: E402

ALL = (nn.Conv2d(8, 12, 3), nn.Embedding(24, 18), nn.LSTM(24, 18), nn.MultiheadAttention(24, 4))
OUT = r"tnc\.nn\.uninstall"


@pytest.fixture(params=["training", "evaluation", "no_grad"])
def layer(request):
    torch.manual_seed(0)
    made = tnc.compress(nn.Linear(24, 18), "svd", rank=3)
    made.train(request.param == "training")
    with torch.set_grad_enabled(request.param != "no_grad"):
        yield made


def set_data(weight, other):
    weight.data = other


def set_entry(weight, other):
    weight[0, 0] = 1.0


def add_in_place(weight, other):
    weight += other


WRITES = {
    "PEFT merges": lambda w, x: add_in_place(w.data, x),
    "copy_": lambda w, x: w.copy_(x),
    "clamp_": lambda w, x: w.clamp_(0),
    "data.mul_": lambda w, x: w.data.mul_(2),
    "data =": set_data,
    "[...] =": set_entry,
    "+=": add_in_place,
    "detach().view().fill_": lambda w, x: w.detach().view(-1)[3:5].fill_(0),
    "out=": lambda w, x: torch.add(x, 1, out=w.detach()),
    "foreach": lambda w, x: torch._foreach_mul_([w.data], 2.0),
    "init": lambda w, x: nn.init.xavier_uniform_(w),
    "transposed": lambda w, x: w.T.zero_(),
    "set_": lambda w, x: w.data.set_(x),
    "requires_grad": lambda w, x: w.data.requires_grad_(),
    "share_memory_": lambda w, x: w.share_memory_(),
}


@pytest.mark.pairwise("a guard knows neither the mode nor the gradient mode", together=1)
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_raises_and_changes_nothing(layer, write):
    x = torch.randn(3, 24)
    before = layer(x).detach()
    with pytest.raises(WeightError, match=OUT), torch.no_grad():
        write(layer.weight, torch.randn(18, 24))
    assert torch.equal(layer(x).detach(), before)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("execution", ["auto", "dense", "factorized"])
def test_all_kinds_of_modules(kind, execution):
    model = tnc.compress(copy.deepcopy(kind), "svd", rank=3, execution=execution).eval()
    names = [name for name, _ in kind.named_parameters() if isinstance(getattr(model, name, None), Guarded)]
    assert names
    for name in names:
        with pytest.raises(WeightError, match=OUT):
            getattr(model, name).data.mul_(2)


def test_arrays_cannot_be_written(layer):
    for array in (layer.weight.detach().numpy(), np.asarray(layer.weight.detach())):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1.0
    with pytest.raises(BufferError, match="copy"):
        np.from_dlpack(layer.weight.detach())


def test_it_is_read_like_a_parameter(layer):
    weight, plain = layer.weight, layer.tnc_weight.rebuilt(*layer.tnc_weight)
    assert isinstance(weight, torch.Tensor) and weight.shape == (18, 24) and weight.dtype == torch.float32
    assert torch.equal(weight, plain)
    assert repr(weight.detach()) == repr(plain.detach()) and weight.tolist() == plain.tolist()
    for made in (weight + 1, weight.clone(), weight.double(), weight @ weight.T, nn.functional.linear(plain, weight)):
        assert type(made) is torch.Tensor
    copied = weight.detach().clone()
    copied.mul_(2)  # a copy is anyone's
    assert type(copy.deepcopy(weight.detach())) is torch.Tensor
    assert torch.equal(pickle.loads(pickle.dumps(weight.detach())), plain)
    dense = nn.Parameter(weight.detach().clone())
    dense.data.zero_()
    assert weight.requires_grad == (torch.is_grad_enabled())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda core: pickle.loads(pickle.dumps(core))], ids=["copy", "file"])
def test_a_frozen_core_alone_stays_read_only(again):
    """Unlike a weight, whose copy is anyone's: a core that can be written is none of a frozen model."""
    layer = tnc.nn.freeze(tnc.compress(nn.Linear(24, 18), "svd", rank=3))
    core = next(p for name, p in layer.named_parameters() if "tnc_" in name)
    twin = again(core)
    assert torch.equal(twin, core) and isinstance(twin, nn.Parameter)
    with pytest.raises(WeightError, match=r"tnc\.nn\.unfreeze"):
        twin.data.mul_(2)


def test_gradients_pass_through_what_is_read():
    layer = tnc.compress(nn.Linear(24, 18), "svd", rank=3)
    layer.weight.square().sum().backward()
    found = [core.grad.clone() for core in layer.tnc_weight]
    expected = torch.autograd.grad(layer.tnc_weight.rebuilt(*layer.tnc_weight).square().sum(), list(layer.tnc_weight))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("register", [False, True])
def test_a_parameter_makes_the_layer_dense_again(layer, register):
    value, x = nn.Parameter(torch.randn(18, 24)), torch.randn(3, 24)
    if register:
        layer.register_parameter("weight", value)
    else:
        layer.weight = value
    assert type(layer) is nn.Linear and layer.weight is value and list(layer._parameters) == ["weight", "bias"]
    assert torch.allclose(layer(x), x @ value.T + layer.bias, atol=1e-5)
    assert not [name for name in layer.state_dict() if "tnc" in name]


def test_batch_norm_is_fused_into_a_dense_layer():
    conv, norm = nn.Conv2d(8, 12, 3).eval(), nn.BatchNorm2d(12).eval()
    norm.running_mean.uniform_()
    norm.running_var.uniform_(0.5, 2)
    tnc.compress(conv, "tucker", rank=4)
    x = torch.randn(2, 8, 6, 6)
    fused = fusion.fuse_conv_bn_eval(conv, norm)
    assert type(fused) is nn.Conv2d and type(conv) is not nn.Conv2d
    assert torch.allclose(fused(x), norm(conv(x)), atol=1e-5)


def test_one_of_several_parameters_is_assigned():
    rnn, x = tnc.compress(nn.GRU(24, 18), "svd", rank=3), torch.randn(4, 2, 24)
    rnn.weight_ih_l0 = nn.Parameter(torch.randn(54, 24))
    assert isinstance(rnn.weight_hh_l0, Guarded) and isinstance(rnn.weight_ih_l0, nn.Parameter)
    again = copy.deepcopy(rnn)
    assert torch.equal(again(x)[0], rnn(x)[0])
    tnc.nn.uninstall(rnn)
    assert type(rnn) is nn.GRU and torch.allclose(again(x)[0], rnn(x)[0], atol=1e-5)


def test_what_is_no_parameter_is_refused(layer):
    for value in (torch.randn(18, 24), "weight"):
        with pytest.raises(WeightError, match=OUT):
            layer.weight = value
    with pytest.raises(WeightError, match=OUT):
        del layer.weight
    assert isinstance(layer.weight, Guarded)


def test_a_weight_read_elsewhere_ties(layer):
    twin = tnc.compress(nn.Linear(24, 18), "svd", rank=5)
    layer.weight = layer.weight  # nothing
    twin.weight = layer.weight
    assert twin.tnc_weight is layer.tnc_weight
    other = tnc.compress(nn.Linear(24, 12), "svd", rank=3)
    with pytest.raises(WeightError, match="shape"):
        other.weight = layer.weight


TOOLS = {
    "prune": lambda m: prune.l1_unstructured(m, "weight", 0.5),
    "old spectral_norm": lambda m: nn.utils.spectral_norm(m),
    "remove": lambda m: delattr(m, "weight"),
}


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
@pytest.mark.parametrize("made", [lambda: nn.Linear(24, 18), lambda: nn.Conv2d(8, 12, 3)])
def test_tools_that_take_the_parameter_say_so(tool, made):
    layer = tnc.compress(made(), "svd", rank=3)
    before = dict(layer.state_dict())
    with pytest.raises(WeightError, match=OUT):
        tool(layer)
    assert list(layer.state_dict()) == list(before)


@pytest.mark.parametrize("tool", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_of_parametrizations_torch_says_that_there_is_no_parameter(tool):
    layer = tnc.compress(nn.Linear(24, 18), "svd", rank=3)
    with pytest.raises(ValueError, match="does not have a parameter"):
        tool(layer)
    assert isinstance(layer.weight, Guarded)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_older_weight_norm_says_so():
    layer = tnc.compress(nn.Linear(24, 18), "svd", rank=3)
    with pytest.raises(WeightError, match=OUT):
        nn.utils.weight_norm(layer)
