"""Modules say what the axes of their parameters are: kernels, stacks, transposed maps, groups."""

import pytest

import tnc
from tnc.errors import WeightError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tnc.nn.layers.roles import roles_of  # noqa: E402

KNOWN = [
    (nn.Linear(6, 4), "weight", "rows columns"),
    (nn.Embedding(6, 4), "weight", "rows columns"),
    (nn.Conv1d(8, 6, 40), "weight", "rows columns kernel"),
    (nn.Conv2d(8, 6, 3), "weight", "rows columns kernel kernel"),
    (nn.Conv3d(8, 6, 3, groups=2), "weight", "(group=2 rows) columns kernel kernel kernel"),
    (nn.Conv2d(8, 8, 3, groups=8), "weight", "rows columns kernel kernel"),
    (nn.ConvTranspose2d(8, 6, 3), "weight", "columns rows kernel kernel"),
    (nn.ConvTranspose1d(8, 6, 3, groups=2), "weight", "(group=2 columns) rows kernel"),
    (nn.ConvTranspose1d(8, 8, 3, groups=8), "weight", "columns rows kernel"),
    (nn.MultiheadAttention(6, 2), "in_proj_weight", "(stack=3 rows) columns"),
    (nn.MultiheadAttention(6, 2, kdim=4, vdim=4), "k_proj_weight", "rows columns"),
    (nn.Bilinear(3, 4, 5), "weight", "stack rows columns"),
    (nn.LSTM(4, 6), "weight_ih_l0", "rows columns"),
]


@pytest.mark.parametrize(("module", "name", "text"), KNOWN, ids=[type(module).__name__ for module, *_ in KNOWN])
def test_modules_of_torch(module, name, text):
    found = roles_of(module, name, tuple(module.get_parameter(name).shape))
    assert found.text == text and not found.assumed


def test_a_long_kernel_of_a_convolution(planted):
    """It was fitted as 64 matrices: of a planted kernel of rank 8 nearly two thirds were missing."""
    layer = planted.plant(nn.Conv1d(64, 64, 33), "svd", rank=8)
    row = tnc.compress(nn.Sequential(layer), "svd", rank=8).tnc_report.rows[0]
    assert row.error < 1e-6 and row.note == ""


class Experts(nn.Module):
    """Matrices of experts, stored as (stack, in, out)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 64, 32))

    def forward(self, x):
        return torch.einsum("bi,sio->sbo", x, self.weight)


class Stated(Experts):
    tnc_roles = {"weight": "stack columns rows"}  # noqa: RUF012 - as a user writes it


def test_three_axes_of_an_unknown_module_are_a_stack():
    """Of 32 columns or fewer they were taken for a kernel."""
    row = tnc.compress(nn.Sequential(Experts()), "tucker", rank=4).tnc_report.rows[0]
    assert row.ranks == (4, 4, 4) and "axes assumed: stack rows columns" in row.note


def test_a_module_states_its_own():
    model = tnc.compress(nn.Sequential(Stated()), "mpo(order=2)", rank=4)
    cores = model[0].tnc_weight
    assert model.tnc_report.rows[0].note == "" and cores.roles.text == "stack columns rows"
    assert cores.network.pattern == "s0 r0, r0 m0 n0 r1, r1 m1 n1 -> s0 (n0 n1) (m0 m1)"
    assert model(torch.randn(3, 64)).shape == (8, 3, 32)
    by_rule = tnc.compress(nn.Sequential(Experts()), tnc.Rule("*", "mpo(order=2)", 4, roles="stack columns rows"))
    assert by_rule[0].tnc_weight.network == cores.network


def test_wrong_statements_are_refused_before_anything_is_replaced():
    class Wrong(Experts):
        tnc_roles = {"weight": "rows columns"}  # noqa: RUF012

    model = nn.Sequential(Wrong())
    with pytest.raises(WeightError, match=r"Wrong\.tnc_roles\['weight'\].*shape \(8, 64, 32\)"):
        tnc.compress(model, "svd", rank=2)
    assert isinstance(model[0].weight, nn.Parameter)


def test_transformers_say_theirs():
    utils = pytest.importorskip("transformers.pytorch_utils")
    model = tnc.compress(nn.Sequential(utils.Conv1D(18, 24)), "mpo(order=2)", rank=2)
    assert model[0].tnc_weight.roles.text == "columns rows"
    assert model[0].tnc_weight.network.pattern == "m0 n0 r1, r1 m1 n1 -> (n0 n1) (m0 m1)"
    module = Experts()
    module.is_transposed = True
    assert roles_of(module, "weight", (8, 64, 32)).text == "stack columns rows"
    module.is_transposed = False
    found = roles_of(module, "weight", (8, 64, 32))
    assert found.text == "stack rows columns" and not found.assumed


def test_roles_survive_files_copies_and_training(tmp_path):
    model = tnc.compress(nn.Sequential(nn.Conv2d(8, 12, 3, groups=2)), "tucker", rank=2)
    tnc.nn.save(model, tmp_path / "x.safetensors")
    back = tnc.nn.load(nn.Sequential(nn.Conv2d(8, 12, 3, groups=2)), tmp_path / "x.safetensors")
    assert back[0].tnc_weight.roles == model[0].tnc_weight.roles
    assert back[0]._tnc.schedule == model[0]._tnc.schedule and back[0]._tnc.schedule.training
    fresh = tnc.nn.tensorize(nn.Sequential(nn.Conv2d(8, 12, 3, groups=2)), "tucker", rank=2)
    assert fresh[0].tnc_weight.network == model[0].tnc_weight.network
    layer = tnc.nn.Conv2d(8, 12, 3, groups=2, decomposition="tucker", rank=2)
    assert layer.tnc_weight.network == model[0].tnc_weight.network
