"""The papers' networks: published parameter counts, shapes, a step of each, and convolutions as dense maps."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import tnc
from benchmarks.papers import networks
from benchmarks.papers.networks import MapConv

# All parameters, and those of weights alone, by hand: weights of batch normalization and biases are the difference.
COUNTS = {
    "fc2": (203_530, 203_264),  # published: 203,264 replaced
    "lenet5": (61_706, 5 * 5 * (6 + 6 * 16) + 58_920),  # published: 58,920 replaced
    "alexnet": (24_740_234, 24_730_656),
    "zfnet": (24_735_626, 24_726_048),
    "vgg16": (28_923_850, 28_907_200),  # published: 28.91 M
    "vgg16-map": (28_923_850 + 2 * (2048**2 - 9 * 512**2), 28_907_200 + 2 * (2048**2 - 9 * 512**2)),
    "vgg16-adtn": (33_642_442, 14_710_464 + 2**21 + 2**24 + 40_960),
    "vgg16-bn": (14_991_946, 14_977_728),  # as measured on the trained network
    "vgg19": (38_953_418, 20_018_880 + 18_915_328),
    "vgg19-map": (38_953_418 + 2 * (2048**2 - 9 * 512**2), 38_934_208 + 2 * (2048**2 - 9 * 512**2)),
    "resnet20": (269_722, 268_336),  # published: 0.27 M
    "resnet32": (464_154, 461_872),  # 0.46 M
    "resnet56": (853_018, 848_944),  # 0.85 M
    "wrn-28-10": (36_479_194, 36_461_232),  # 36.5 M
    "wrn-16-4": (2_748_890, 2_745_264),  # 2.7 M
    "wrn-20-4": (4_298_970, 4_293_552),
    "wrn-20-4-map": (4_298_970 + 2 * (16_384**2 - 9 * 256**2), 4_293_552 + 2 * (16_384**2 - 9 * 256**2)),
    "densenet": (1_019_722, 1_001_616),  # 1.0 M
}
# The layers that the MPO paper replaces, and the weights it counts in them.
REPLACED = {
    "fc2": (("fc1", "fc2"), 203_264),
    "lenet5": (("fc1", "fc2", "fc3"), 58_920),
    "vgg16": (("features.conv5_1", "features.conv5_2", *(f"classifier.fc{k}" for k in (1, 2, 3))), 23_633_920),
    "vgg19": (("features.conv5_3", "features.conv5_4", *(f"classifier.fc{k}" for k in (1, 2, 3))), 23_633_920),
    "wrn-20-4": (("group3.2.conv1", "group3.2.conv2", "linear"), 1_182_208),
    "densenet": (("linear",), 4_480),
}


def mpo(rows, columns):
    return tnc.decompositions["mpo"](rows=rows, columns=columns)


def step(model, name, classes=10, channels=None):
    """One forward and backward on two images; the logits."""
    spec = networks.SPECS[name]
    torch.manual_seed(0)
    x = torch.randn(2, channels or spec.channels, spec.size, spec.size)
    y = model(x)
    nn.functional.cross_entropy(y, torch.tensor([0, classes - 1])).backward()
    return y


def test_every_network_has_its_count_here():
    assert list(COUNTS) == list(networks.SPECS)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_and_a_step(name):
    model = networks.build(name)
    sizes = [p.numel() for p in model.parameters()], [p.numel() for p in model.parameters() if p.ndim > 1]
    assert tuple(map(sum, sizes)) == COUNTS[name]
    if name == "wrn-20-4-map":  # has no values before something makes them
        return
    logits = step(model, name)
    assert logits.shape == (2, 10) and logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", REPLACED)
def test_the_replaced_layers_have_the_published_weights(name):
    layers, weights = REPLACED[name]
    model = networks.build(name)
    assert sum(model.get_submodule(layer).weight.numel() for layer in layers) == weights


@pytest.mark.parametrize("name", ["alexnet", "zfnet", "resnet20", "densenet", "lenet5"])
def test_classes_and_channels_are_free(name):
    assert step(networks.build(name, 100, 2), name, 100, 2).shape == (2, 100)


@pytest.mark.parametrize("name", ["alexnet", "zfnet"])
def test_the_large_layers_have_powers_of_two(name):
    head = networks.build(name, 100).get_submodule("classifier")
    assert [head.fc1.weight.numel(), head.fc2.weight.numel()] == [2**22, 2**24]


def test_an_unknown_name_is_told_what_there_is():
    with pytest.raises(ValueError, match=r"no network 'vgg-16'. Did you mean 'vgg16'.*densenet"):
        networks.build("vgg-16")
    with pytest.raises(ValueError, match=r"6n \+ 2 layers.*not 21"):
        networks.resnet(21)


# ------------------------------------------------------------------------------ convolutions as dense maps


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1), (5, 1)])
def test_the_dense_map_of_a_convolution_is_the_convolution(kernel, stride):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, kernel, stride, padding=kernel // 2, bias=False).double()
    made = MapConv.of(conv, 4, 6)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(made(x), conv(x))
    assert made.linear.weight.shape == (made(x)[0].numel(), 72)


def test_a_map_reads_and_writes_channels_last():
    made = MapConv((2, 2, 3), (1, 2, 2))
    x = torch.randn(2, 3, 2, 2)
    expected = x.permute(0, 2, 3, 1).reshape(2, 12) @ made.linear.weight.T
    torch.testing.assert_close(made(x)[:, :, 0, 1], expected[:, 2:])  # height 0, width 1: rows 2 and 3


def test_a_map_refuses_what_it_was_not_made_for():
    with pytest.raises(ValueError, match=r"shape \(3, 2, 2\), not \(3, 4, 4\)"):
        MapConv((2, 2, 3), (2, 2, 3))(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="has a bias"):
        MapConv.of(nn.Conv2d(1, 1, 3), 2, 2)


def test_rules_factorize_the_maps_of_vgg_with_the_published_count():
    model = networks.build("vgg16-map")
    modes = (2, 8, 8, 8, 2)
    hidden = (4, 4, 8, 8, 4)
    rules = [
        tnc.Rule("features.conv5_?.linear.weight", mpo(modes, modes), 4),
        tnc.Rule("classifier.fc1.weight", mpo(hidden, (4, 4, 4, 4, 2)), 4),
        tnc.Rule("classifier.fc2.weight", mpo(hidden, hidden), 4),
        tnc.Rule("classifier.fc3.weight", mpo((1, 10, 1, 1, 1), hidden), 4),
    ]
    tnc.nn.tensorize(model, rules)
    cores = [p for name, p in model.named_parameters() if ".tnc_weight." in name]
    assert sum(p.numel() for p in cores) == 10_944
    assert step(model, "vgg16-map").isfinite().all()
    assert all(p.grad.any() for p in cores)


@pytest.mark.parametrize("way", ["tensorize", "linear"])
def test_maps_of_a_wide_resnet_are_never_dense(way):
    made = mpo((2, 4, 4, 4, 4, 4, 4, 2), (2, 4, 4, 4, 4, 4, 4, 2))
    if way == "tensorize":
        model = networks.build("wrn-20-4-map")
        tnc.nn.tensorize(model, [tnc.Rule("group3.2.conv?.linear.weight", made, 4)], execution="factorized")
    else:
        linear = partial(tnc.nn.Linear, decomposition=made, rank=4, execution="factorized")
        model = networks.build("wrn-20-4-map", linear=linear)
    assert sum(p.numel() for p in model.parameters()) == 4_298_970 - 2 * 9 * 256**2 + 2 * 1568
    assert step(model, "wrn-20-4-map").isfinite().all()
    assert all(p.grad.isfinite().all() and p.grad.any() for n, p in model.named_parameters() if ".tnc_weight." in n)
