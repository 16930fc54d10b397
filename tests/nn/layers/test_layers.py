"""Convolutions and their transposes: the same outputs as the dense layers, for every argument torch knows."""

from __future__ import annotations

import copy

import pytest

import tnc

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

pytestmark = pytest.mark.pairwise(
    "methods differ in the network, executions in the plan, options in what torch is asked for"
)

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
SPACE = (9, 8, 7)

each_width = pytest.mark.parametrize("axes", [1, 2, 3])


def image(axes, channels=8, batch=2):
    return torch.randn(batch, channels, *SPACE[:axes])


# -------------------------------------------------------------- convolutions


@each_width
def test_conv(planted, method, execution, dtype, axes):
    layer = CONV[axes](8, 12, 3)
    small = planted.agree(layer, method, image(axes), dtype=dtype, execution=execution)
    assert type(small) is getattr(tnc.nn, type(layer).__name__) and isinstance(small, type(layer))


@pytest.mark.parametrize(
    ("axes", "options"),
    [
        (1, {"stride": 2}),
        (2, {"stride": (2, 1)}),
        (2, {"stride": (1, 3), "padding": (0, 2)}),
        (3, {"stride": (1, 2, 1), "padding": (1, 0, 2)}),
        (1, {"padding": "same"}),
        (2, {"padding": "same", "dilation": (2, 1)}),
        (2, {"padding": "valid"}),
        (3, {"padding": "same"}),
        (1, {"dilation": 3}),
        (2, {"dilation": (1, 2), "stride": (2, 1), "padding": 1}),
        (3, {"dilation": (1, 2, 1)}),
        (2, {"bias": False}),
    ],
    ids=str,
)
def test_conv_geometry(planted, method, execution, axes, options):
    small = planted.agree(CONV[axes](8, 12, 3, **options), method, image(axes), execution=execution)
    assert (small.bias is None) == (options.get("bias") is False)


MODES = ["zeros", "reflect", "replicate", "circular"]


@each_width
@pytest.mark.parametrize("mode", MODES)
def test_conv_padding_modes(planted, method, execution, axes, mode):
    layer = CONV[axes](8, 12, 3, padding=1, padding_mode=mode)
    planted.agree(layer, method, image(axes), execution=execution)


@pytest.mark.parametrize("mode", MODES)
def test_conv_padding_modes_per_axis(planted, execution, mode):
    for padding in ((2, 1), "same"):
        layer = nn.Conv2d(8, 12, (3, 5), padding=padding, padding_mode=mode, dilation=(1, 1))
        small = planted.agree(layer, "svd", image(2), execution=execution)
        assert padding != "same" or small(image(2).double()).shape == (2, 12, *SPACE[:2])


@pytest.mark.pairwise("methods meet executions in test_conv", together=1)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_conv_of_an_even_kernel_keeps_its_size(planted, method, execution):
    small = planted.agree(nn.Conv2d(8, 12, (4, 3), padding="same"), method, image(2), execution=execution)
    assert small(image(2).double()).shape == (2, 12, *SPACE[:2])


@each_width
@pytest.mark.parametrize("groups", [2, 4])
def test_conv_of_groups(planted, method, execution, axes, groups):
    planted.agree(CONV[axes](8, 12, 3, groups=groups), method, image(axes), execution=execution, rank=1)


@pytest.mark.parametrize("method", ["svd", "mpo(order=2)"])
@pytest.mark.parametrize("multiple", [1, 2])
@each_width
def test_depthwise_conv(planted, method, execution, axes, multiple):
    """The in-axis has one entry only: Tucker has nothing to gain there."""
    layer = CONV[axes](16, 16 * multiple, 5 - axes, groups=16)
    planted.agree(layer, method, image(axes, 16), execution=execution, rank=1)


@each_width
@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_conv(planted, method, execution, axes, stride):
    planted.agree(CONV[axes](24, 18, 1, stride=stride), method, image(axes, 24), execution=execution)


@each_width
def test_conv_of_one_image(planted, method, execution, axes):
    planted.agree(CONV[axes](8, 12, 3, padding=1), method, image(axes)[0], execution=execution)


@pytest.mark.pairwise("methods meet executions in test_conv", together=1)
def test_conv_of_no_images(planted, method, execution):
    small = planted.compressed(planted.plant(nn.Conv2d(8, 12, 3), method), method, execution=execution)
    assert small(image(2, batch=0)).shape == (0, 12, 7, 6)


@pytest.mark.pairwise("methods meet executions in test_conv", together=1)
def test_conv_of_channels_last(planted, method, execution):
    x = image(2).to(memory_format=torch.channels_last)
    planted.agree(nn.Conv2d(8, 12, 3).to(memory_format=torch.channels_last), method, x, execution=execution)


@pytest.mark.pairwise("methods meet executions in test_conv", together=1)
def test_a_kernel_keeps_its_memory_format(planted, method, execution):
    """A kernel of channels last makes torch compute so, often faster: the compressed layer does as the dense one."""
    last, plain = torch.channels_last, torch.contiguous_format
    dense = planted.plant(nn.Conv2d(8, 12, 3).to(memory_format=last), method)
    small = planted.compressed(dense, method, execution=execution)
    for layer in (small, copy.deepcopy(small).double(), copy.deepcopy(small).to(memory_format=plain)):
        form = layer.tnc_weight.layout
        assert layer.weight.is_contiguous(memory_format=getattr(torch, form))
        for way in (layer.train(), layer.eval()):
            assert way(image(2).to(layer.bias.dtype)).is_contiguous(memory_format=getattr(torch, form))
    assert (small.tnc_weight.layout, form) == ("channels_last", "contiguous_format")
    assert layer.to(memory_format=last).tnc_weight.layout == "channels_last"


def test_gradients_of_some_are_those_of_all(planted, method, execution):
    """What is frozen, or has no gradient to give, leaves the others' gradients as they were."""
    small = planted.compressed(
        planted.plant(nn.Conv2d(8, 12, 3, stride=2).double(), method), method, execution=execution
    )
    leaves = {"input": image(2).double().requires_grad_(), **dict(small.named_parameters())}

    def gradients(wanted):
        for name, leaf in leaves.items():
            leaf.grad = None
            leaf.requires_grad_(name in wanted)
        planted.total(small(leaves["input"])).backward()
        return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}

    expected = gradients(leaves)
    for wanted in [*({name} for name in leaves), set(leaves) - {"input"}]:
        assert planted.gap(gradients(wanted), {name: expected[name] for name in wanted}) < 1e-12


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_gradients_of_no_images(planted, method, execution, kind):
    small = planted.compressed(planted.plant(kind(8, 12, 3), method), method, execution=execution)
    x = image(2, batch=0).requires_grad_()
    small(x).sum().backward()
    assert x.grad.shape == x.shape
    assert all(p.grad.shape == p.shape and not p.grad.any() for p in small.parameters())


# ------------------------------------------------------- transposed convolutions


@each_width
def test_conv_transpose(planted, method, execution, dtype, axes):
    layer = TRANSPOSE[axes](8, 12, 3)
    small = planted.agree(layer, method, image(axes), dtype=dtype, execution=execution)
    assert type(small) is getattr(tnc.nn, type(layer).__name__)


@pytest.mark.parametrize(
    ("axes", "options"),
    [
        (1, {"stride": 2, "output_padding": 1}),
        (2, {"stride": (3, 2), "output_padding": (2, 1), "padding": 1}),
        (3, {"stride": 2, "output_padding": (1, 0, 1)}),
        (2, {"dilation": 2, "padding": (1, 0)}),
        (1, {"groups": 2}),
        (2, {"groups": 4, "stride": 2}),
        (3, {"groups": 2, "bias": False}),
    ],
    ids=str,
)
def test_conv_transpose_geometry(planted, method, execution, axes, options):
    layer = TRANSPOSE[axes](16, 24, 3, **options)
    planted.agree(layer, method, image(axes, 16), execution=execution, rank=1)


@each_width
def test_conv_transpose_takes_an_output_size(planted, method, execution, axes):
    layer = TRANSPOSE[axes](8, 12, 3, stride=2)
    size = [2 * n + 2 for n in SPACE[:axes]]
    small = planted.agree(layer, method, image(axes), execution=execution, output_size=size)
    assert list(small(image(axes).double(), output_size=size).shape[2:]) == size


# ------------------------------------------------------------------ precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (lambda: nn.Linear(24, 18), lambda: torch.randn(5, 24)),
        (lambda: nn.Conv2d(8, 12, 3), lambda: image(2)),
        (lambda: nn.Embedding(24, 18), lambda: torch.arange(24)),
    ],
    ids=["linear", "conv", "embedding"],
)
def test_half_precision(planted, method, execution, dtype, layer, x):
    """Weight, cores and outputs are rounded to the same few bits: agreement to those."""
    model, x = planted.plant(layer(), method).to(dtype), x()
    x = x.to(dtype) if x.is_floating_point() else x
    small = planted.compressed(model, method, execution=execution)
    assert {p.dtype for p in small.parameters()} == {dtype} and small(x).dtype == dtype
    difference = (small(x).double() - model(x).double()).norm() / model(x).double().norm()
    assert difference < 4 * torch.finfo(dtype).eps
    planted.total(small(x)).backward()
    assert all(p.grad.any() for p in small.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_casting_after_compression(planted, method, dtype):
    model = nn.Sequential(nn.Conv1d(8, 12, 3), nn.Flatten(), nn.Linear(84, 18))
    model = planted.plant(model, method)
    small = planted.compressed(model, method).to(dtype)
    x = image(1)
    y, expected = small(x.to(dtype)), model(x)
    assert y.dtype == dtype
    assert (y.double() - expected.double()).norm() / expected.norm() < max(8 * torch.finfo(dtype).eps, 1e-5)
