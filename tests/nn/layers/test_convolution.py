"""Convolutions of every installed decomposition: against torch's own with the rebuilt kernel, at odd sizes, too."""

from __future__ import annotations

import copy

import pytest

import tnc

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here
from torch.export import Dim, export  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from tnc.contract import convolution  # noqa: E402
from tnc.contract.cost import Device  # noqa: E402
from tnc.nn.runtime import namespace  # noqa: E402
from tnc.nn.runtime.convolve import Route, Window, convolve  # noqa: E402

EVERY = sorted(tnc.decompositions)
each_plugin = pytest.mark.parametrize("plugin", EVERY)
each_kind = pytest.mark.parametrize("kind", ["Conv1d", "Conv2d", "ConvTranspose2d", "ConvTranspose3d"])


def pair(kind, *args, plugin, rank=4, **options):
    """A layer through its cores, in float64, and torch's with the same kernel and bias."""
    layer = getattr(tnc.nn, kind)(*args, decomposition=plugin, rank=rank, execution="factorized", **options).double()
    dense = getattr(nn, kind)(*args, **options).double()
    with torch.no_grad():
        dense.weight.copy_(layer.weight)
        if dense.bias is not None:
            dense.bias.copy_(layer.bias)
    return layer, dense


def image(kind, channels=8, batch=2):
    return torch.randn(batch, channels, *(7, 6, 5)[: int(kind[-2])], dtype=torch.float64)


# --------------------------------------------------------------------- values


@pytest.mark.pairwise("plugins differ in the network, kinds in the window, sizes in what is cut")
@each_plugin
@each_kind
@pytest.mark.parametrize(("channels", "kernel"), [((8, 12), 3), ((7, 11), 2), ((64, 16), 3)], ids=str)
def test_outputs_and_gradients_are_torchs(planted, plugin, kind, channels, kernel):
    """A bias finds its channels, also where the last cores permute them; a kernel that is overshot is cut."""
    layer, dense = pair(kind, *channels, kernel, plugin=plugin)
    for batch in (1, 9):
        x, y = (image(kind, channels[0], batch).requires_grad_() for _ in range(2))
        with torch.no_grad():
            y.copy_(x)
            assert planted.gap(layer.eval()(x), dense(x)) < 1e-12
        layer.train().zero_grad(), dense.zero_grad()
        found, expected = layer(x), dense(y)
        assert planted.gap(found, expected) < 1e-12
        planted.total(found).backward()
        planted.total(expected).backward()
        kernels = torch.autograd.grad(layer.weight, list(layer.tnc_weight), dense.weight.grad)
        assert planted.gap([x.grad, layer.bias.grad], [y.grad, dense.bias.grad]) < 1e-12
        assert planted.gap([core.grad for core in layer.tnc_weight], list(kernels)) < 1e-12


@pytest.mark.pairwise("a bias is added after the split, whatever it is")
@pytest.mark.parametrize("plugin", ["stt", "str", "adtn", "mpo(order=2)"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_every_split_of_the_cores_agrees(planted, plugin, transposed, bias):
    """Not only the cheapest: any of the cores may act before, within and after the convolution."""
    layer, dense = pair("ConvTranspose2d" if transposed else "Conv2d", 8, 12, 3, plugin=plugin, bias=bias)
    network, x = layer.tnc_weight.network, image("2d")
    kernel = {i for axis in network.axes[2:] for i in axis}
    others = [k for k, core in enumerate(network.operands) if not kernel & set(core)]
    window = Window((1, 1), (0, 0), (1, 1), transposed, (0, 0))
    for number in range(3 ** len(others)):
        places = [number // 3**k % 3 for k in range(len(others))]
        early, late = (tuple(k for k, p in zip(others, places, strict=True) if p == side) for side in (0, 2))
        inner = tuple(k for k in range(len(network.operands)) if k not in (*early, *late))
        made = convolution.planned(network, (early, inner, late), convolution.Extent(2, 20), Device(), True, transposed)
        route = Route(made, network, layer.tnc_weight.shape, window)
        for tracked in (False, True):
            with torch.set_grad_enabled(tracked):
                found = convolve(route, x, layer.bias, tuple(layer.tnc_weight))
                assert planted.gap(found, dense(x)) < 1e-12


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that an operation returns."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for made in found if isinstance(found, tuple | list) else (found,):
            if isinstance(made, torch.Tensor):
                self.bytes = max(self.bytes, made.numel() * made.element_size())
        return found


def one_before(network):
    """A split of the cores: the first acts before the convolution, those of the kernel within, all others after."""
    kernel = {i for axis in network.axes[2:] for i in axis}
    others = [k for k, core in enumerate(network.operands) if not kernel & set(core)]
    inner = tuple(k for k in range(len(network.operands)) if k not in others)
    return tuple(others[:1]), inner, tuple(others[1:])


@pytest.mark.parametrize("plugin", ["stt", "tucker", "cp", "ring", "mpo(order=2)"])
@pytest.mark.parametrize("transposed", [False, True])
def test_pieces_of_a_batch_are_as_good_as_the_whole(planted, plugin, transposed):
    """Outputs and gradients, for a batch that does not split evenly, strides, and kept values of every piece."""
    kind = "ConvTranspose2d" if transposed else "Conv2d"
    layer, dense = pair(kind, 16, 24, 3, plugin=plugin, rank=2, stride=(1, 2))
    network = layer.tnc_weight.network
    made = convolution.planned(network, one_before(network), convolution.Extent(7, 42), Device(), True, transposed)
    for images in (1, 2, 7):
        x = image(kind, 16, 7).requires_grad_()
        y = x.detach().clone().requires_grad_()
        places = images * (42 if transposed else 21)
        route = Route(
            made._replace(places=places),
            network,
            layer.tnc_weight.shape,
            Window(layer.stride, (0, 0), (1, 1), transposed, (0, 0)),
        )
        assert len(list(route.pieces(x))) == -(-7 // images)
        cores = tuple(layer.tnc_weight)
        with torch.no_grad():
            assert planted.gap(convolve(route, x, layer.bias, cores), dense(x)) < 1e-12
        expected = dense(y)
        found = convolve(route, x, layer.bias, cores)
        assert planted.gap(found, expected) < 1e-12
        for z in (found, expected):
            planted.total(z).backward()
        kernels = torch.autograd.grad(layer.weight, list(cores), dense.weight.grad)
        assert planted.gap([x.grad, layer.bias.grad], [y.grad, dense.bias.grad]) < 1e-12
        assert planted.gap([core.grad for core in cores], list(kernels)) < 1e-12
        layer.zero_grad(), dense.zero_grad()


def test_no_map_between_is_large():
    """Many folded images would take 16 times the input, in fresh memory: pieces of the batch stay near."""
    layer = tnc.nn.Conv2d(64, 64, 3, decomposition="mpo(order=2)", rank=4, padding=1)
    network = layer.tnc_weight.network
    inner, *others = sorted(range(3), key=lambda k: "k0" not in network.operands[k])
    split = (), (inner,), tuple(others)
    made = convolution.planned(network, split, convolution.Extent(64, 256), Device(), False, False)
    window, x = Window((1, 1), (1, 1), (1, 1), False, (0, 0)), torch.randn(64, 64, 16, 16)
    sizes = []
    for way in (made, made._replace(places=1 << 30)):
        with torch.no_grad(), Largest() as seen:
            convolve(Route(way, network, layer.tnc_weight.shape, window), x, None, tuple(layer.tnc_weight))
        sizes.append(seen.bytes / (4 * x.numel()))
    assert sizes[0] == 1 and sizes[1] > 3


def test_the_kernel_above_is_overshot():
    layer, _ = pair("Conv2d", 8, 12, 3, plugin="adtn")
    assert layer.tnc_weight.network.shape[2:] == (4, 4) and layer._tnc.schedule.plan(50, False) is not None


@pytest.mark.parametrize("plugin", ["adtn", "tucker", "stt"])
def test_exported_at_the_size_of_its_input(planted, plugin):
    layer, dense = pair("Conv1d", 16, 32, 3, plugin=plugin, padding="same")
    x = image("1d", 16)
    program = export(layer.eval(), (x,), dynamic_shapes=({0: Dim("batch", max=64)},)).module()
    for batch in (1, 2, 9):
        inputs = image("1d", 16, batch)
        assert planted.gap(program(inputs), dense(inputs)) < 1e-12


# ------------------------------------------------------------------- autograd


@pytest.mark.pairwise("what is written into depends on the last stage alone")
@each_plugin
@pytest.mark.parametrize("kind", ["Conv2d", "ConvTranspose2d"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("channels", [(8, 12), (7, 11)], ids=str)
def test_the_output_may_be_edited_in_place(planted, plugin, kind, bias, channels):
    layer, dense = pair(kind, *channels, 3, plugin=plugin, bias=bias)
    for form in (torch.contiguous_format, torch.channels_last):
        x = image(kind, channels[0]).contiguous(memory_format=form)
        found = nn.Sequential(layer, nn.ReLU(inplace=True))(x)
        assert planted.gap(found, torch.relu(dense(x))) < 1e-12
        assert found.is_contiguous(memory_format=form)
        layer.zero_grad(), dense.zero_grad()
        planted.total(found).backward()
        planted.total(torch.relu(dense(x))).backward()
        expected = torch.autograd.grad(layer.weight, list(layer.tnc_weight), dense.weight.grad)
        assert planted.gap([core.grad for core in layer.tnc_weight], list(expected)) < 1e-12


@pytest.mark.parametrize("plugin", ["svd", "tucker", "cp", "mpo", "tt", "stt", "ring"])
@pytest.mark.parametrize("kind", ["Conv2d", "ConvTranspose2d"])
def test_what_is_kept_for_the_backward_pass_is_not_overwritten(planted, monkeypatch, plugin, kind):
    """Large products are written into memory that is used again, but not those that are kept."""
    layer, dense = pair(kind, 16, 24, 3, plugin=plugin, rank=2)
    first, second = image(kind, 16), image(kind, 16)
    for x in (first, second):
        planted.total(dense(x)).backward()
    expected = torch.autograd.grad(layer.weight, list(layer.tnc_weight), dense.weight.grad)
    monkeypatch.setattr(namespace, "LARGE", 8)
    total = planted.total(layer(first)) + planted.total(layer(second))  # the second one takes the first one's memory
    total.backward()
    assert planted.gap([core.grad for core in layer.tnc_weight], list(expected)) < 1e-12


# --------------------------------------------------------------------- inputs


@pytest.mark.pairwise("one check before any plan is chosen")
@pytest.mark.parametrize("kind", ["Conv1d", "Conv2d", "ConvTranspose2d"])
@pytest.mark.parametrize("channels", [1, 11, 13, 24])
def test_other_channels_are_refused_in_torchs_words(execution, kind, channels):
    layer = getattr(tnc.nn, kind)(12, 18, 3, decomposition="tucker", rank=2, execution=execution)
    for training in (True, False):
        with pytest.raises(RuntimeError, match=f"to have 12 channels, but got {channels} channels"):
            layer.train(training)(image(kind, channels).float())


def test_other_shapes_are_refused_in_torchs_words(execution):
    layer = tnc.nn.Conv2d(12, 18, 3, decomposition="tucker", rank=2, execution=execution)
    with pytest.raises(RuntimeError, match=r"3D \(unbatched\) or 4D \(batched\) input"):
        layer(torch.randn(1, 2, 12, 6, 6))


# --------------------------------------------------------------------- casts


@each_plugin
@pytest.mark.parametrize(
    ("kind", "args", "form"),
    [
        ("Conv2d", (16, 32, 3), torch.channels_last),
        ("Conv2d", (1, 32, 3), torch.channels_last),
        ("Conv3d", (8, 16, 3), torch.channels_last_3d),
    ],
    ids=str,
)
def test_a_memory_format_is_the_kernels_not_the_cores(planted, plugin, kind, args, form):
    """Torch gives the format to every tensor of so many axes, and refuses it to others of four or five."""
    layer = getattr(tnc.nn, kind)(*args, decomposition=plugin, rank=4)
    before, x = copy.deepcopy(layer), image(kind, args[0]).float()
    moved = layer.to(torch.float64, memory_format=form)
    assert moved is layer and {p.dtype for p in layer.parameters()} == {torch.float64}
    assert all(core.is_contiguous() for core in layer.tnc_weight)
    assert [core.shape for core in layer.tnc_weight] == [core.shape for core in before.tnc_weight]
    assert layer.weight.is_contiguous(memory_format=form)
    assert planted.gap(layer.float()(x), before(x)) < 1e-5


def test_casts_keep_the_parameters(planted):
    """Their identity, their sharing between processes, their place in memory where nothing changes."""
    layer = tnc.nn.Conv2d(16, 32, 3, decomposition="stt", rank=4)
    cores, places = list(layer.tnc_weight), [core.data_ptr() for core in layer.tnc_weight]
    layer.to(torch.float32)
    assert places == [core.data_ptr() for core in layer.tnc_weight]
    layer.half().float().share_memory()
    assert all(a is b and a.is_shared() for a, b in zip(cores, layer.tnc_weight, strict=True))
    layer.to_empty(device="meta")
    assert {core.device.type for core in layer.tnc_weight} == {"meta"}
    assert [core.shape for core in layer.tnc_weight] == [core.shape for core in cores]
