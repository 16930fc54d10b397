"""The observer sees weights whatever happens to them on their way."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tests.nn.calibration.models import Raw, x  # noqa: E402
from tnc.nn.calibration import gather  # noqa: E402
from tnc.nn.calibration.observe import Observer  # noqa: E402
from tnc.nn.calibration.weights import weights  # noqa: E402


def seen(model, run, **options):
    uses = []
    with Observer(weights(model).values(), uses.append, **options) as observer, torch.no_grad():
        run(model)
    return uses, observer


def test_uses_come_in_order():
    model = nn.Sequential(nn.Linear(4, 3), nn.Conv1d(3, 3, 1), nn.Embedding(5, 2))
    uses, _ = seen(model, lambda m: (m[2](torch.tensor([1])), m[0](torch.zeros(2, 4)), m[1](torch.zeros(1, 3, 4))))
    assert [use.weight.name for use in uses] == ["2.weight", "0.weight", "1.weight"]


def test_inference_mode_is_seen_through():
    def run(model):
        with torch.inference_mode():
            return model[1](model[0](torch.zeros(2, 3, 4)).transpose(1, 2))

    uses, _ = seen(nn.Sequential(nn.Linear(4, 3), nn.Conv1d(3, 3, 1)), run)
    assert [use.weight.name for use in uses] == ["0.weight", "1.weight"]


def test_copies_are_followed_and_memory_is_not_confused():
    def run(model):
        for _ in range(20):
            model.w.detach().t().contiguous()  # its memory is free afterwards
            other = torch.zeros(5, 4, dtype=torch.float64)
            assert not torch.any(torch.ones(2, 5, dtype=torch.float64) @ other)

    uses, _ = seen(Raw((4, 5), None), run)
    assert not uses
    uses, _ = seen(Raw((4, 5), None), lambda m: torch.ones(2, 5).bfloat16() @ m.w.bfloat16().T.contiguous())
    assert len(uses) == 1 and uses[0].straight


def test_autocast_inside_a_model_is_seen_through():
    class Cast(nn.Linear):
        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x)

    inputs = torch.randn(6, 4)
    for gradients in (False, True):
        moments = gather(Cast(4, 3), inputs.split(2), gradients=gradients)["weight"]
        assert moments.count == 6 and torch.allclose(moments.columns, inputs.T @ inputs / 6, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    inputs = torch.full((4096, 2), 3.0, dtype=dtype)
    moments = gather(nn.Linear(2, 2).to(dtype), inputs, samples=4096)["weight"]
    assert moments.columns.dtype == torch.float32 and torch.equal(moments.columns, torch.full((2, 2), 9.0))


def test_places_of_gradients_are_before_changes_in_place():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True))
    with Observer(weights(model).values(), lambda use: None, gradients=True) as observer:
        out = model(torch.randn(5, 4))
    observer.settle()
    ((use, edge),) = observer.places
    assert use.x.numel() == 0
    (g,) = torch.autograd.grad(out.sum(), [edge])
    assert torch.equal(g, (out > 0).float()), "after the ReLU it would be ones"


def test_what_is_no_use_of_a_weight():
    model = Raw((4, 5), None)
    runs = (
        lambda m: m.w + 1, lambda m: m.w[:, ::2] @ torch.zeros(3, 2, dtype=torch.float64), lambda m: m.w.sum(),
        lambda m: m.w.view(2, 10) @ torch.zeros(10, 2, dtype=torch.float64), lambda m: m.w[m.w > 0],
        lambda m: torch.zeros(2, 5) @ torch.zeros(5, 4),
    )  # fmt: skip
    assert [len(seen(model, run)[0]) for run in runs] == [0] * len(runs)


def test_compiled_models_run_as_written():
    model = nn.Sequential(nn.Linear(4, 3))
    model[0] = torch.compile(model[0], backend="eager")
    assert list(gather(model, torch.randn(5, 4))) == ["0._orig_mod.weight"]


def test_one_buffer_for_several_weights():
    """Recurrent layers keep their weights in one buffer on CUDA."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    buffer = torch.randn(32)
    model[0].weight.data, model[1].weight.data = buffer[:16].view(4, 4), buffer[16:].view(4, 4)
    inputs = torch.randn(6, 4)
    statistics = gather(model, inputs)
    hidden = model[0](inputs).detach()
    assert torch.allclose(statistics["1.weight"].columns, hidden.T @ hidden / 6, atol=1e-5)


def test_bilinear_use_of_one_weight_on_both_sides():
    """A weight that is used straight and transposed keeps its straight inputs."""
    inputs = x(6, 5)
    moments = gather(Raw((4, 5), lambda x, w: (x @ w.T).tanh() @ w), inputs, gradients=True)["w"]
    assert not moments.transposed and torch.allclose(moments.columns, inputs.T @ inputs / 6)
    assert moments.rows.shape == (4, 4)
