"""How much each weight matters is measured on few samples, and on fewer where each has many outputs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from tnc.nn.calibration.importance import few  # noqa: E402
from tnc.nn.data.calls import Calls  # noqa: E402


@pytest.mark.parametrize(("length", "samples"), [(1, 64), (64, 64), (128, 32), (512, 8), (2048, 8)])
def test_texts_are_fewer_where_they_are_long(length, samples):
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3)).eval()
    calls = Calls.of(model, list(torch.zeros(80, length, dtype=torch.int64).split(16)))

    assert few(model, calls).samples == samples


def test_images_with_one_answer_each_are_not_fewer():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(5)).eval()
    calls = Calls.of(model, torch.zeros(80, 3, 16, 16))

    assert few(model, calls).samples == 64
