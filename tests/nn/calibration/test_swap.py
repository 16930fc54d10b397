"""A model is as it was, whatever happens."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tnc.errors import DataError  # noqa: E402
from tnc.nn.calibration import gather, quiet, swapped  # noqa: E402


def net():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.LSTM(4, 3)).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    return model


def state(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad, p.data_ptr()) for p in model.parameters()],
        torch.get_rng_state(),
        (torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()),
    )


def unchanged(before, after):
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert torch.equal(before[3], after[3])
    assert before[1:3] == after[1:3] and before[4] == after[4]


class Stop(nn.Module):
    """Ends the pass by an error, the second time."""

    def __init__(self, error):
        super().__init__()
        self.error, self.count = error, 0

    def forward(self, x):
        self.count += 1
        if self.count == 2:
            raise self.error
        torch.rand(3)
        return x[0]


@pytest.mark.parametrize("gradients", [False, True])
def test_gathering_leaves_no_trace(gradients):
    model = nn.Sequential(*net(), Stop(None))
    before = state(model)
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert len(gather(model, inputs, gradients=gradients)) == 3
    unchanged(before, state(model))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("stop")])
def test_an_interrupted_pass_leaves_no_trace(gradients, error):
    model = nn.Sequential(*net(), Stop(error))
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    before = state(model)
    with pytest.raises(type(error)):
        gather(model, inputs.split(2), gradients=gradients)
    unchanged(before, state(model))


def test_an_interrupted_loader_leaves_no_trace():
    def loader():
        yield torch.zeros(2, 4)
        raise KeyboardInterrupt

    model = net()
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        gather(model, loader())
    unchanged(before, state(model))


def test_interrupted_progress_leaves_no_trace():
    def progress(batches):
        yield batches[0]
        raise KeyboardInterrupt

    model = net()
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        gather(model, torch.zeros(4, 4).split(2), progress=progress)
    unchanged(before, state(model))


def test_quiet_models_do_not_drop_or_learn():
    model = net()
    x = torch.randn(5, 4)
    with quiet(model), torch.no_grad(), torch.autocast("cpu", enabled=False):
        assert torch.equal(model(x)[0], model(x)[0])
        with quiet(model):
            pass
        assert not model.training
    assert model.training and not model[1].training


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_swapped_values_come_back(error):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    before = state(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    try:
        with swapped(parameters, {"0.weight": torch.ones(3, 3, dtype=torch.float64), "1.weight": torch.zeros(3, 3)}):
            assert model[1].weight is model[0].weight and not model[0].weight.any()
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    unchanged(before, state(model))


def test_swapped_values_must_fit():
    model = nn.Linear(3, 2)
    parameters = dict(model.named_parameters())
    with pytest.raises(DataError, match=r"values of w were given, but the parameters are weight, bias"):
        swapped(parameters, {"w": torch.ones(2, 3)}).__enter__()
    with pytest.raises(DataError, match=r"weight has shape \(3, 3\), the parameter \(2, 3\)"):
        swapped(parameters, {"weight": torch.ones(3, 3)}).__enter__()
