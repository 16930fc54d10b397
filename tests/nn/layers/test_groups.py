"""Grouped convolutions through cores: each group has its own, and no group sees another's channels."""

from itertools import product

import pytest

import tnc
from tnc.contract import convolution
from tnc.contract.cost import Device
from tnc.decomposition import InRoles

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tnc.nn.layers.roles import roles_of  # noqa: E402
from tnc.nn.runtime.convolve import Route, Window, convolve  # noqa: E402
from tnc.nn.runtime.schedule import Schedule  # noqa: E402

EVERY = sorted(set(tnc.decompositions) - {"adtn"})
"""adtn feeds networks into networks: its groups share one wall, and the kernel is rebuilt."""


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("method", EVERY)
def test_every_split_of_the_cores(method, transposed):
    """Wherever cores act, before, within or after: output and gradients are those of the rebuilt kernel."""
    torch.manual_seed(0)
    kind = nn.ConvTranspose1d if transposed else nn.Conv1d
    dense = kind(16, 16, 3, groups=2, padding=1, dtype=torch.float64)
    shape = tuple(dense.weight.shape)
    network = InRoles(tnc.decompositions[method](), roles_of(dense, "weight", shape)).network(shape, 2).clipped()
    cores = [torch.randn(core, dtype=torch.float64, requires_grad=True) for core in network.core_shapes]
    x = torch.randn(3, 16, 7, dtype=torch.float64, requires_grad=True)
    weight = tnc.contract.dense(network, cores, shape)
    slide = nn.functional.conv_transpose1d if transposed else nn.functional.conv1d
    expected = slide(x, weight, dense.bias, padding=1, groups=2)
    g = torch.randn_like(expected)
    slopes = torch.autograd.grad(expected, [x, *cores], g)
    window = Window((1,), (1,), (1,), transposed, (0,))
    for split in _splits(network):
        plan = convolution.planned(network, split, convolution.Extent(3, 7), Device(), True, transposed, 2)
        assert plan.groups % 2 == 0
        found = convolve(Route(plan, network, shape, window), x, dense.bias, cores)
        assert torch.allclose(found, expected, rtol=1e-10), split
        for ours, theirs in zip(torch.autograd.grad(found, [x, *cores], g), slopes, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12), split


def _splits(network):
    kernel = {i for axis in network.axes[2:] for i in axis}
    others = [k for k, core in enumerate(network.operands) if not kernel & set(core)]
    fixed = [k for k in range(len(network.operands)) if k not in others]
    for places in list(product(range(3), repeat=len(others)))[::5]:
        parts = [[k for k, place in zip(others, places, strict=True) if place == side] for side in range(3)]
        yield tuple(parts[0]), tuple(sorted(fixed + parts[1])), tuple(parts[2])


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_group_sees_its_own_channels_only(kind, groups):
    layer = tnc.compress(nn.Sequential(kind(16, 32, 3, groups=groups)), "tucker", rank=2, execution="factorized")[0]
    assert layer._tnc.schedule.training and layer.tnc_weight.roles.grouped
    x = torch.randn(2, 16, 9, 9)
    before = layer(x)
    x[:, : 16 // groups] += 1
    changed = (layer(x) - before).abs().amax((0, 2, 3)) > 1e-6
    assert changed[: 32 // groups].all() and not changed[32 // groups :].any()


def test_wide_groups_run_through_their_cores():
    """Where that is cheaper than the kernel; without cores for each group the kernel was rebuilt in every case."""
    layer = tnc.compress(nn.Sequential(nn.Conv2d(512, 512, 3, groups=2, padding=1)), "tucker", rank=16)[0]
    assert any(plan is not None for _, plan in layer._tnc.schedule.training)
    dense = nn.Conv2d(512, 512, 3, groups=2, padding=1)
    dense.load_state_dict({"weight": layer.weight.detach(), "bias": layer.bias.detach()})
    x = torch.randn(2, 512, 14, 14)
    assert torch.allclose(layer(x), dense(x), atol=1e-4)


@pytest.mark.parametrize("own", [2, 8])
def test_groups_of_the_cores_need_not_be_those_of_the_layer(own):
    """A rule, or a file of another layer with a weight of the same shape, may say otherwise: the kernel is rebuilt."""
    rule = tnc.Rule("*", "tucker", 16, roles=f"(group={own} rows) columns kernel kernel")
    layer = tnc.compress(nn.Sequential(nn.Conv2d(256, 512, 3, groups=4)), rule)[0]
    assert layer._tnc.schedule == Schedule()
    dense = nn.Conv2d(256, 512, 3, groups=4)
    dense.load_state_dict({"weight": layer.weight.detach(), "bias": layer.bias.detach()})
    x = torch.randn(2, 256, 9, 9)
    assert torch.allclose(layer(x), dense(x), atol=1e-5)
