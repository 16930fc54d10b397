"""What autograd and torch's users may do to a layer: edit its output, derive twice, change cores past the counters."""

import copy

import pytest
import torch
from torch import nn

import tnc
from tnc.contract.plans import plan
from tnc.errors import WeightError
from tnc.nn.runtime import namespace
from tnc.nn.runtime.autograd import RECORDED

KINDS = {
    "linear": (tnc.nn.Linear, (24, 18), (5, 24)),
    "linear, odd": (tnc.nn.Linear, (23, 19), (5, 23)),
    "convolution": (tnc.nn.Conv2d, (8, 6, 3), (2, 8, 7, 7)),
    "transposed": (tnc.nn.ConvTranspose2d, (8, 6, 3), (2, 8, 5, 5)),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def made(kind, method, execution):
    """A layer in float64, and an input for it."""
    base, arguments, shape = kind
    options = {"decomposition": method, "rank": 2, "execution": execution, "bias": False, "dtype": torch.float64}
    return base(*arguments, **options), torch.randn(shape, dtype=torch.float64)


@pytest.mark.pairwise("kinds, methods and executions are told apart at different places")
def test_the_output_may_be_edited_in_place(made):
    layer, x = made
    expected = torch.autograd.grad(torch.relu(layer(x)).square().sum(), list(layer.tnc_weight))
    found = torch.autograd.grad(torch.relu_(layer(x)).square().sum(), list(layer.tnc_weight))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.pairwise("kinds, methods and executions are told apart at different places")
def test_the_output_may_be_viewed(made):
    layer, x = made
    assert layer(x).view(-1).numel() == layer(x).numel()


@pytest.mark.pairwise("kinds, methods and executions are told apart at different places")
@pytest.mark.parametrize("width", [20, 30])
def test_the_wrong_width_is_refused(made, width):
    """Padding that a network needs must not hide it."""
    layer, x = made
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|to have 8 channels"):
        layer(x.new_zeros(x.shape[0], width, *x.shape[2:]))


@pytest.mark.pairwise("kinds, methods and executions are told apart at different places")
def test_gradients_have_gradients(made):
    """A penalty on the gradient of the input, beside the same through the rebuilt weight."""
    layer, x = made
    dense = tnc.nn.uninstall(copy.deepcopy(layer))
    found = []
    for one in (layer, dense):
        y = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(one(y).square().sum(), y, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), y)[0])
    assert torch.allclose(*found, rtol=1e-8)


def test_what_is_kept_for_the_backward_pass_is_not_overwritten(monkeypatch):
    """Large products are written into memory that is used again, but not those that are kept."""
    monkeypatch.setattr(namespace, "LARGE", 8)
    sizes = (("b", 400), ("n", 30), ("r", 4), ("s", 3), ("m", 20))
    made = plan((("b", "n"), ("r", "n"), ("s", "r"), ("m", "s")), ("b", "m"), sizes, "auto", ((0, 1), (0, 2), (0, 1)))
    shapes = (400, 30), (4, 30), (3, 4), (20, 3)
    x, *cores = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    expected = torch.autograd.grad((x @ cores[0].T @ cores[1].T @ cores[2].T).square().sum(), cores)
    y = RECORDED.run(made, [x, *cores])
    RECORDED.run(made, [2 * x, *cores]).sum().backward()
    found = torch.autograd.grad(y.square().sum(), cores)
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))


def test_a_plan_of_one_operand():
    made = plan((("a", "b", "c"),), ("c", "a", "b"), (("a", 3), ("b", 4), ("c", 5)))
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(RECORDED.run(made, [x]), x.permute(2, 0, 1))
    assert torch.autograd.gradcheck(lambda x: RECORDED.run(made, [x]), x)


@pytest.fixture
def kept():
    """A layer in evaluation that keeps its weight, and an input."""
    torch.manual_seed(0)
    layer = tnc.nn.Linear(24, 18, decomposition="svd", rank=4, execution="dense").eval()
    x = torch.randn(5, 24)
    with torch.no_grad():
        layer(x)
    assert layer.tnc_weight.kept is not None
    return layer, x


@torch.no_grad()
def current(layer, x):
    """What the cores say now."""
    return nn.functional.linear(x, layer.tnc_weight.rebuilt(*layer.tnc_weight), layer.bias)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {}], ids=str)
def test_a_kept_weight_sees_the_steps_of_optimizers(kept, options):
    """Fused kernels change parameters without telling torch's version counters."""
    layer, x = kept
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, **options)
    for _ in range(2):
        layer(x).sum().backward()
        with torch.no_grad():
            layer(x)  # between forward and step: kept again
        optimizer.step()
        with torch.no_grad():
            assert torch.equal(layer(x), current(layer, x))


def test_a_kept_weight_sees_other_tensors_in_place_of_the_cores(kept):
    """Temporary tensors come to lie where those before them lay."""
    layer, x = kept
    state = {name: value.detach() for name, value in layer.state_dict().items()}
    with torch.no_grad():
        for factor in (2.0, 3.0, 4.0, 5.0):
            other = {name: factor * value for name, value in state.items()}
            found = torch.func.functional_call(layer, other, x)
            assert torch.allclose(found, factor**2 * (x @ layer.weight.T) + factor * layer.bias, rtol=1e-4, atol=1e-5)
            del other


def test_a_kept_weight_cannot_be_edited(kept):
    layer, x = kept
    with torch.no_grad():
        with pytest.raises(WeightError, match=r"tnc\.nn\.uninstall"):
            layer.weight.zero_()
        assert torch.equal(layer(x), current(layer, x))


def test_a_weight_kept_in_inference_mode_takes_part_in_gradients(kept):
    layer, x = kept
    layer.requires_grad_(False).eval()
    with torch.inference_mode():
        layer(x)
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad.shape == x.shape


def test_devices_without_autocast():
    layer = tnc.nn.Linear(24, 18, decomposition="tucker", rank=2, execution="factorized", device="meta")
    layer(torch.randn(5, 24, device="meta")).sum().backward()
    assert next(iter(layer.tnc_weight)).grad.device.type == "meta"
