"""What is held out is spread over the data, and samples that depend on each other stay together."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tnc.errors import DataError  # noqa: E402
from tnc.nn.data.calls import Calls  # noqa: E402
from tnc.nn.data.division import divided  # noqa: E402


@pytest.mark.parametrize("size", [1, 3, 8, 40])
def test_what_is_held_out_is_spread_over_sorted_data(size):
    """A judge that sees the last class only would judge nothing else."""
    model, labels = nn.Linear(1, 1), torch.arange(4).repeat_interleave(10)
    calls = Calls.of(model, list(labels.float()[:, None].split(size)))
    first, second = divided(calls, 0.25, model)
    assert (first.samples, second.samples) == (30, 10)
    held = torch.cat(list(second.batches)).flatten()
    assert size == 40 or set(held.tolist()) == {0.0, 1.0, 2.0, 3.0}
    both = torch.cat([torch.cat(list(first.batches)).flatten(), held]).sort().values
    assert torch.equal(both, labels.float())


def held_batches(calls, model, share):
    """The first numbers of the batches that are held out, which are whole."""
    first, second = divided(calls, share, model)
    assert len(first) + len(second) == len(calls) and first.samples + second.samples == calls.samples
    return [float(batch.flatten()[0]) for batch in second]


def numbered(count, *shape):
    return [torch.full(shape, float(k)) + torch.rand(shape) / 9 for k in range(count)]


@pytest.mark.parametrize(
    ("count", "share", "held"), [(6, 0.1, [3]), (8, 0.25, [2, 6]), (2, 0.9, [1]), (10, 0.3, [1, 5, 8])]
)
def test_time_on_the_first_axis_is_not_cut(count, share, held):
    model = nn.GRU(3, 3)
    calls = Calls.of(model, numbered(count, 5, 2, 3))
    assert [int(x) for x in held_batches(calls, model, share)] == held


def test_what_only_the_user_can_call_is_not_cut():
    model = nn.Linear(3, 3)
    calls = Calls.of(model, numbered(4, 5, 3), lambda model, batch: model(batch))
    assert [int(x) for x in held_batches(calls, model, 0.25)] == [2]


def test_a_model_that_takes_whole_batches_only_gets_them():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.view(5, 3)

    calls = Calls.of(Fixed(), numbered(4, 5, 3))
    assert [int(x) for x in held_batches(calls, Fixed(), 0.25)] == [2]


def test_one_sample_at_least_is_held_out():
    model = nn.Linear(1, 1)
    calls = Calls.of(model, torch.zeros(2, 1))
    assert [part.samples for part in divided(calls, 0.01, model)] == [1, 1]
    with pytest.raises(DataError, match="needs two at least"):
        divided(Calls.of(model, torch.zeros(1, 1)), 0.5, model)
