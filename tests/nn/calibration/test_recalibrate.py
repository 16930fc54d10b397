"""Statistics of batch normalization are those of all samples together, and kept where they help."""

from __future__ import annotations

import copy

import pytest

import tnc
from tnc.errors import DataError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tests.nn.clouds import net, same, state  # noqa: E402
from tnc.nn import Judge, recalibrate  # noqa: E402
from tnc.nn.data.calls import Calls  # noqa: E402


def images(count=5, size=16):
    return [2 + k + torch.randn(size, 3, 6, 6) for k in range(count)]


def first(norm=nn.BatchNorm2d, **options):
    return nn.Sequential(norm(3, **options), nn.Flatten(), nn.Dropout(0.5), nn.Linear(108, 4))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])
@pytest.mark.parametrize("sizes", [(16,) * 5, (1,) * 9, (100, 3, 70), (1,)], ids=str)
def test_mean_and_variance_are_those_of_all_samples(norm, sizes):
    model = first(norm, momentum=None)
    data = [3 + k + torch.randn(size, 3, 6, 6) for k, size in enumerate(sizes)]
    before = {name: x.clone() for name, x in model.named_parameters()}
    result = recalibrate(model, data)
    whole = torch.cat(data).transpose(0, 1).flatten(1)
    assert torch.allclose(model[0].running_mean, whole.mean(1), rtol=1e-5)
    assert torch.allclose(model[0].running_var, whole.var(1), rtol=1e-5)
    assert (result.layers, result.samples, result.kept, result.before) == (1, sum(sizes), True, None)
    assert all(torch.equal(x, before[name]) and x.grad is None for name, x in model.named_parameters())
    assert all(module.training for module in model.modules())
    assert not model[0]._forward_pre_hooks


def test_later_layers_see_normalized_inputs():
    model = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    data = [5 * torch.randn(256, 3, 4, 4)]
    recalibrate(model, data)
    with torch.no_grad():
        y = model(data[0]).transpose(0, 1).flatten(1)
    assert float(y.mean(1).abs().max()) < 1e-4 and float((y.std(1) - 1).abs().max()) < 1e-3
    assert not model.training


def test_half_precision_keeps_its_dtype():
    model = first().bfloat16()
    recalibrate(model, [x.bfloat16() for x in images()])
    assert model[0].running_var.dtype is torch.bfloat16 and float(model[0].running_mean[0]) == pytest.approx(4, abs=0.1)


def test_new_statistics_are_kept_only_if_they_help():
    dense = first().eval()
    recalibrate(dense, images(8, 64))
    good, bad = copy.deepcopy(dense), copy.deepcopy(dense)
    with torch.no_grad():
        bad[0].running_mean.add_(3)
    data = images(8, 64)
    few = [10 + torch.randn(16, 3, 6, 6)]  # not what the judge sees
    judge, before = Judge(dense, Calls.of(dense, data)), state(good)
    result = recalibrate(good, few, reference=judge)
    assert not result.kept and result.before == 0 < result.after and same(state(good), before)
    assert str(result).endswith("the old statistics are kept")
    result = recalibrate(bad, [torch.cat(data)[torch.randperm(512)]], reference=dense)
    assert result.kept and result.after < 0.1 * result.before and result.samples == 409
    assert judge.distance(bad) < 0.1 * result.before


def test_without_batch_normalization_nothing_is_done():
    untouched = first(track_running_stats=False)

    def never():
        raise AssertionError("the data are read")
        yield

    for model in (net(), untouched):
        result = recalibrate(model, never())
        assert not result.kept and result.layers == 0 and "nothing to estimate" in str(result)


def test_a_layer_that_is_not_reached_keeps_its_statistics():
    model = first()
    model[0].spare = nn.BatchNorm1d(4)
    result = recalibrate(model, images())
    assert result.layers == 1 and float(model[0].spare.running_mean.abs().sum()) == 0


@pytest.mark.parametrize("kind", ["interrupt", "nan"])
def test_after_an_error_the_old_statistics_are_back(kind):
    model, count = first(), 0
    before = state(model)

    def forward(module, batch):
        nonlocal count
        count += 1
        if count == 3:
            if kind == "interrupt":
                raise KeyboardInterrupt
            batch = batch * float("nan")
        return module(batch)

    with pytest.raises(KeyboardInterrupt if kind == "interrupt" else DataError, match=r"0 sees|^$"):
        recalibrate(model, images(), forward=forward)
    assert same(state(model), before) and not model[0]._forward_pre_hooks and model.training


def test_a_compressed_network_gains():
    torch.manual_seed(1)
    dense = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)).eval()
    recalibrate(dense, images())
    model = tnc.compress(copy.deepcopy(dense), [tnc.Rule("0.weight", "svd", 2)])
    with torch.no_grad():
        model[1].running_mean.add_(0.5)
    assert recalibrate(model, images(8, 64), reference=dense).kept
