"""The file of statistics, and checks of what is in it."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tnc import storage  # noqa: E402
from tnc.errors import CheckpointError, DataError  # noqa: E402
from tnc.nn.calibration import Statistics, gather  # noqa: E402

PARTS = ("columns", "kernel", "mean", "rows", "frequency")


@pytest.fixture
def model():
    return nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6), nn.Linear(6, 3))


@pytest.fixture
def statistics(model):
    return gather(model, torch.arange(18).view(2, 9) % 9, gradients=True)


def shapes(model):
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_round_trip(statistics, tmp_path):
    statistics.save(tmp_path / "a.safetensors")
    again = Statistics.load(tmp_path / "a.safetensors")
    assert list(again) == list(statistics) and again.samples == 2 and again.shapes == statistics.shapes
    for name, moments in statistics.items():
        other = again[name]
        assert (other.count, other.uses, other.lookups, other.transposed) == (
            moments.count, moments.uses, moments.lookups, moments.transposed)  # fmt: skip
        for part in PARTS:
            a, b = getattr(moments, part), getattr(other, part)
            assert (a is None and b is None) or torch.equal(a, b)
    again.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert repr(again) == "Statistics(3 weights, 2 samples)"


def test_damaged_files(statistics, tmp_path):
    path = tmp_path / "a.safetensors"
    statistics.save(path)
    data = bytearray(path.read_bytes())
    for harm in (data[:-3], data[:40], bytes(data[:-1]) + bytes([data[-1] ^ 1]), b""):
        path.write_bytes(harm)
        with pytest.raises(CheckpointError):
            Statistics.load(path)
    with pytest.raises(CheckpointError, match="no such file"):
        Statistics.load(tmp_path / "none")


def written(path, change):
    """A file whose description was changed."""
    arrays, header, _ = storage.read(path)
    described = json.loads(header["tnc.statistics"])
    change(described, arrays)
    storage.write(path, arrays, {"tnc.statistics": json.dumps(described)}, frozenset())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, a: d.update(version=2), "version"),
        (lambda d, a: d.update(samples=-1), "number of samples"),
        (lambda d, a: d.pop("samples"), "has no 'samples'"),
        (lambda d, a: d["weights"]["1.weight"].update(uses="many"), "uses of weight '1.weight'"),
        (lambda d, a: d["weights"]["1.weight"].update(transposed=1), "transposed of weight '1.weight'"),
        (lambda d, a: d["weights"].pop("1.weight"), "tensors of no weight: 1.weight:columns"),
        (lambda d, a: a.update({"1.weight:columns": np.zeros((90, 90))}), "cannot have"),
        (lambda d, a: a.update({"1.weight:columns": np.zeros((4, 4), np.int64)}), "cannot have"),
        (lambda d, a: a.update({"1.weight:columns": np.zeros((4, 3))}), "cannot have"),
        (lambda d, a: d.update(weights=[]), "an object is needed"),
    ],
)
def test_files_that_say_nonsense(statistics, tmp_path, change, message):
    path = tmp_path / "a.safetensors"
    statistics.save(path)
    written(path, change)
    with pytest.raises(CheckpointError, match=message):
        Statistics.load(path)


def test_other_files(tmp_path):
    storage.write(tmp_path / "a", {"x": np.zeros(3)}, {}, frozenset())
    with pytest.raises(CheckpointError, match="no file of statistics"):
        Statistics.load(tmp_path / "a")
    with pytest.raises(CheckpointError, match="does not exist"):
        Statistics({}, 0, {}).save(tmp_path / "no" / "a")


def test_statistics_of_another_model(statistics, model):
    statistics.check(shapes(model))
    other = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 7))
    with pytest.raises(DataError, match=r"no 2\.weight; other shapes: 1\.weight \(6, 4\) \(in the model \(7, 4\)\)"):
        statistics.check(shapes(other))
