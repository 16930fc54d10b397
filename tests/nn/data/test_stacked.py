"""Calibration inputs as one batch, or in batches of another size."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402 - after the check that torch is here

from tnc.nn.data.batches import mapped, tensors  # noqa: E402
from tnc.nn.data.calls import Calls, samples_of  # noqa: E402


def calls(*sizes, make=lambda x: x, forward=None):
    whole, parts, start = torch.arange(3.0 * sum(sizes)).reshape(-1, 3), [], 0
    for size in sizes:
        parts.append(make(whole[start : start + size]))
        start += size
    return whole, Calls.of(nn.Linear(3, 3), parts, forward)


def test_samples_are_joined_in_order():
    whole, given = calls(2, 5, 1)
    assert torch.equal(given.stacked(), whole)
    whole, given = calls(2, 5, make=lambda x: {"x": x, "labels": x[:, 0].long(), "k": 3, "scale": torch.tensor(2.0)})
    stacked = given.stacked()
    assert torch.equal(stacked["x"], whole) and stacked["k"] == 3 and stacked["scale"] == 2
    assert torch.equal(samples_of(stacked, torch.tensor([4, 0]))["labels"], whole[[4, 0], 0].long())


def test_what_differs_is_not_joined():
    ragged = Calls.of(nn.Linear(3, 3), [torch.ones(2, 3, 3), torch.ones(2, 4, 3)])
    assert ragged.stacked() is None and ragged.rebatched(100) is ragged
    assert calls(2, 3, make=lambda x: {"x": x, "shared": x.sum()})[1].stacked() is None
    assert calls(2, 3, make=lambda x: {"x": x, str(len(x)): x})[1].stacked() is None
    assert calls(2, 3, forward=lambda model, batch: model(batch))[1].stacked() is None


def test_small_batches_become_larger_ones_of_nearly_equal_sizes():
    whole, given = calls(*[1] * 11)
    again = given.rebatched(4)
    assert [len(x) for x in again] == [6, 5] and torch.equal(torch.cat(list(again)), whole)
    assert [len(x) for x in calls(1, 2)[1].rebatched(64)] == [3]
    _, large = calls(8, 8)
    assert large.rebatched(8) is large
    assert [len(x) for x in calls(8, 8, 1)[1].rebatched(4)] == [9, 8]


def test_dataclasses_are_seen_through():
    @dataclass
    class Pair:
        first: Tensor
        second: tuple
        name: str = "a"

    pair = Pair(torch.ones(2), (torch.zeros(3), None))
    assert [len(x) for x in tensors([pair])] == [2, 3]
    doubled = mapped(pair, lambda x: 2 * x)
    assert isinstance(doubled, Pair) and float(doubled.first[0]) == 2 and doubled.name == "a"


def test_whether_inputs_are_tokens():
    assert not calls(2)[1].of_tokens()
    assert Calls((({"mask": torch.tensor(1.0), "ids": torch.ones(2, 2).long()}),)).of_tokens()


class Named(nn.Module):
    def forward(self, ids, scale=1.0):
        return scale * ids


def test_a_dict_of_tensors_is_one_batch():
    calls = Calls.of(Named(), {"ids": torch.ones(3, 2)})
    assert len(calls) == 1 and calls.samples == 3
    assert torch.equal(calls(Named(), calls.batches[0]).outputs, torch.ones(3, 2))


def test_what_a_tokenizer_gives_is_one_batch():
    transformers = pytest.importorskip("transformers")
    encoded = transformers.BatchEncoding({"ids": torch.ones(3, 2), "scale": torch.full((3, 1), 2.0)})
    for data in (encoded, [encoded, encoded]):
        calls = Calls.of(Named(), data)
        assert calls.samples == 3 * len(data if isinstance(data, list) else [data])
        assert torch.equal(calls(Named(), calls.batches[0]).outputs, torch.full((3, 2), 2.0))
