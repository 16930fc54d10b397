"""Layers made factorized from the start: torch's arguments, torch's scale, torch's seed."""

from __future__ import annotations

import copy
import math

import pytest

import tnc
from tnc.errors import RankError, TncError, UnknownNameError, WeightError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

LAYERS = {
    "Linear": (96, 64),
    "Conv1d": (32, 24, 5),
    "Conv2d": (16, 32, 3),
    "Conv3d": (8, 16, 3),
    "ConvTranspose1d": (32, 24, 4),
    "ConvTranspose2d": (16, 32, 3),
    "ConvTranspose3d": (8, 16, 2),
    "Embedding": (128, 48),
    "EmbeddingBag": (128, 48),
}
EVERY = sorted(tnc.decompositions)
each_layer = pytest.mark.parametrize("name", LAYERS)


def made(name, decomposition="svd", rank=4, **options):
    return getattr(tnc.nn, name)(*LAYERS[name], decomposition=decomposition, rank=rank, **options)


def example(name):
    if name.startswith("Embedding"):
        return torch.randint(0, 128, (2, 5))
    axes = int(name[-2]) if name[-1] == "d" else 0
    return torch.randn(2, LAYERS[name][0], *(6,) * axes) if axes else torch.randn(2, 3, 96)


@each_layer
def test_the_weight_is_as_large_as_torch_makes_it(name, method):
    """For a rank of 4 few numbers decide: the scale is exact, not only on average."""
    dense = getattr(nn, name)(*LAYERS[name])
    weight = made(name, method).weight
    expected = 1.0 if name.startswith("Embedding") else 1 / math.sqrt(3 * math.prod(dense.weight.shape[1:]))
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(expected, rel=1e-4)
    assert float(weight.detach().std()) == pytest.approx(float(dense.weight.detach().std()), rel=0.05)
    assert abs(float(weight.detach().mean())) < 0.2 * expected


@pytest.mark.pairwise("executions differ in the plan, plugins in the network, kinds in the kernel")
@pytest.mark.parametrize("plugin", EVERY)
@pytest.mark.parametrize("name", ["Linear", "Conv2d", "Embedding"])
def test_every_installed_decomposition_makes_layers(planted, name, plugin, execution):
    """Of torch's scale, with the output of the weight they show, and with a gradient for every core."""
    layer, x = made(name, plugin, execution=execution), example(name)
    dense = getattr(nn, name)(*LAYERS[name])
    with torch.no_grad():
        dense.weight.copy_(layer.weight)
        if name != "Embedding":
            dense.bias.copy_(layer.bias)
    expected = 1.0 if name == "Embedding" else 1 / math.sqrt(3 * math.prod(dense.weight.shape[1:]))
    assert float(dense.weight.detach().square().mean().sqrt()) == pytest.approx(expected, rel=0.05)
    assert planted.gap(layer(x), dense(x)) < 1e-5
    planted.total(layer(x)).backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


@pytest.mark.pairwise("methods meet layers in the test of scale", together=1)
@each_layer
def test_outputs_are_as_large_as_torch_makes_them(planted, name, method):
    dense, x = getattr(nn, name)(*LAYERS[name]), example(name)
    found, expected = made(name, method)(x), dense(x)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert 0.5 < float(found.detach().std() / expected.detach().std()) < 2


@pytest.mark.pairwise("executions differ in the plan, kinds in the kernel")
@each_layer
def test_every_core_trains(planted, name, method, execution):
    layer = made(name, method, execution=execution)
    planted.total(layer(example(name))).backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


@pytest.mark.pairwise("methods meet layers in the test of scale", together=1)
@each_layer
def test_the_seed_is_torchs(name, method):
    states = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        states.append(made(name, method).state_dict())
    same, other = (all(torch.equal(states[0][key], state[key]) for key in states[0]) for state in states[1:])
    assert same and not other


def test_two_layers_differ():
    assert not torch.equal(made("Linear").weight, made("Linear").weight)


@pytest.mark.pairwise("methods meet layers in the test of scale", together=1)
@each_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_dtype_is_the_one_asked_for(name, dtype):
    layer = made(name, dtype=dtype)
    assert {p.dtype for p in layer.parameters()} == {dtype} == {layer.weight.dtype}


def test_the_device_in_force_is_taken():
    with torch.device("meta"):
        layer = made("Linear")
    assert {p.device.type for p in layer.parameters()} == {"meta"} == {made("Linear", device="meta").weight.device.type}


@pytest.mark.parametrize("name", ["Linear", "Conv2d", "ConvTranspose1d"])
def test_no_bias(name):
    layer = made(name, bias=False)
    assert layer.bias is None and not layer(torch.zeros_like(example(name))).any()
    bias = made(name).bias.detach()
    fan_in = math.prod(made(name).weight.shape[1:])
    assert bias.abs().max() <= fan_in**-0.5 and float(bias.std()) == pytest.approx((3 * fan_in) ** -0.5, rel=0.3)


def test_arguments_are_torchs(planted):
    layer = tnc.nn.Conv2d(
        16, 32, 3, stride=(2, 1), padding=1, groups=4, padding_mode="reflect", decomposition="mpo(order=2)", rank=4
    )
    dense = nn.Conv2d(16, 32, 3, stride=(2, 1), padding=1, groups=4, padding_mode="reflect")
    x = torch.randn(2, 16, 9, 8)
    with torch.no_grad():
        dense.weight.copy_(layer.weight)
        dense.bias.copy_(layer.bias)
    assert planted.gap(layer(x), dense(x)) < 1e-5


def test_the_padding_row_is_zero_and_stays_so():
    layer = made("Embedding", padding_idx=3)
    assert not layer.weight[3].any() and layer.weight[4].all()
    layer(torch.tensor([3, 4])).sum().backward()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter -= parameter.grad
    assert not layer.weight[3].any()


@pytest.mark.parametrize("rank", [0.1, "ratio:0.1", tnc.Ratio(0.1), tnc.Budget(0.1)], ids=str)
def test_a_ratio_is_kept(method, rank):
    layer = made("Linear", method, rank=rank, bias=False)
    assert 0.05 * 96 * 64 < sum(p.numel() for p in layer.parameters()) <= 0.1 * 96 * 64


def test_one_rank_for_each_bond():
    layer = made("Linear", "mpo(order=3)", rank=(2, 5))
    assert layer.tnc_weight.network.ranks == (2, 5)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"rank": "tolerance:0.1"}, RankError, "a new layer takes a rank or a ratio"),
        ({"rank": tnc.Tolerance(0.1)}, RankError, "a new layer takes a rank or a ratio"),
        ({"rank": 0}, RankError, "at least 1"),
        ({"rank": -0.1}, RankError, "fraction"),
        ({"rank": 1e-5}, RankError, "already keeps"),
        ({"rank": "many"}, RankError, "not understood"),
        ({"rank": None}, RankError, "no rank given"),
        ({"rank": (1, 2, 3)}, RankError, "3 entries"),
        ({"rank": 4, "decomposition": "sdv"}, UnknownNameError, "Did you mean 'svd'"),
        ({"rank": 4, "decomposition": None}, WeightError, "layer of torch.nn"),
        ({"rank": 4, "execution": "quick"}, TncError, "auto, dense, factorized"),
    ],
    ids=str,
)
def test_bad_requests(options, error, said):
    with pytest.raises(error, match=said):
        tnc.nn.Linear(96, 64, **{"decomposition": "svd", **options})


def test_arguments_without_a_default_are_asked_for():
    with pytest.raises(TypeError, match="decomposition"):
        tnc.nn.Linear(96, 64)


@pytest.mark.pairwise("methods meet layers in the test of scale", together=1)
@each_layer
def test_they_are_models_like_others(planted, name, method, tmp_path):
    """Copied, saved, loaded into a dense model, made dense, and trained on."""
    layer, x = nn.Sequential(made(name, method)), example(name)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    tnc.nn.save(layer, tmp_path / "layer.safetensors")
    fresh = tnc.nn.load(nn.Sequential(getattr(nn, name)(*LAYERS[name])), tmp_path / "layer.safetensors")
    assert torch.equal(fresh(x), layer(x)) and type(fresh[0]) is getattr(tnc.nn, name)
    dense = tnc.nn.uninstall(copy.deepcopy(layer))
    assert type(dense[0]) is getattr(nn, name) and planted.gap(dense(x), layer(x)) < 1e-5
    assert list(dense.state_dict()) == list(nn.Sequential(getattr(nn, name)(*LAYERS[name])).state_dict())
