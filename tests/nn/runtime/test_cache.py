"""Rows that evaluation keeps: found again, never stale, never more than a part of the table, from any thread."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

import tnc

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tnc.nn.layers import embedding  # noqa: E402
from tnc.nn.runtime import schedule  # noqa: E402


@pytest.fixture
def made(monkeypatch):
    """How many rows were made, call by call."""
    counts, find = [], embedding._Table._tnc_compute_rows

    def counted(table, numbers):
        counts.append(len(numbers))
        return find(table, numbers)

    monkeypatch.setattr(embedding._Table, "_tnc_compute_rows", counted)
    return counts


@pytest.fixture(params=["through the cores", "through the table"])
def table(request):
    """A table of 240 rows in evaluation, of which 60 may be kept."""
    torch.manual_seed(0)
    made = tnc.nn.Embedding(240, 18, decomposition="mpo(order=2)", rank=3).eval().requires_grad_(False)
    if request.param == "through the cores":
        made._tnc.schedule = tnc.nn.runtime.schedule.lookup(
            made.tnc_weight.network, "factorized", tnc.contract.cost.Device()
        )
    else:
        made._tnc.schedule = schedule.Schedule()
    return tnc.nn.freeze(made)


def expected(table, numbers):
    return table.tnc_weight.rebuilt(*table.tnc_weight)[numbers]


def store(table):
    return table._tnc.rows.store


def test_rows_are_made_once(table, made):
    for numbers in ([3, 5, 3], [5, 3], [[3, 9], [5, 9]], [], [9]):
        numbers = torch.tensor(numbers, dtype=torch.long)
        found = table(numbers)
        assert found.shape == (*numbers.shape, 18)
        assert torch.allclose(found, expected(table, numbers), atol=1e-6)
    assert made == [2, 1]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_no_more_rows_than_a_part_of_the_table(table, made, dtype):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        numbers = torch.randint(0, 240, (50,), generator=generator).to(dtype)
        assert torch.allclose(table(numbers), expected(table, numbers), atol=1e-6)
    assert len(store(table)) <= 60 and table._tnc.rows.count == 60
    assert (table._tnc.rows.positions >= 0).sum() == 60  # every position has its row
    assert made[-1] > 0  # what is not kept is made again
    assert table._tnc_keeping == 60 * 18


@pytest.mark.parametrize("number", [-1, 240])
def test_only_rows_of_the_table(table, number):
    table(torch.tensor([0]))
    with pytest.raises(IndexError, match="index out of range in self"):
        table(torch.tensor([0, number]))


def test_rows_follow_the_cores(table):
    numbers = torch.arange(7)
    before = table(numbers)
    tnc.nn.unfreeze(table)
    for core in table.tnc_weight:
        core.mul_(2)
    assert torch.allclose(table(numbers), before * 2 ** len(list(table.tnc_weight)), rtol=1e-4)
    optimizer = torch.optim.AdamW(table.requires_grad_().parameters(), lr=0.1, fused=True)
    table(numbers).sum().backward()
    with torch.no_grad():
        table(numbers)
    optimizer.step()
    with torch.no_grad():
        assert torch.allclose(table(numbers), expected(table, numbers), atol=1e-5)
        table.double()
        assert table(numbers).dtype == torch.float64


def test_rows_are_forgotten(table):
    numbers = torch.arange(7)
    table(numbers)
    assert store(table) is not None
    for twin in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert twin._tnc.rows is None and twin.tnc_weight.frozen is not None
        assert torch.equal(twin(numbers), table(numbers)) and store(twin) is not None
    assert table.double()._tnc.rows is None
    assert tnc.nn.unfreeze(table)._tnc.rows is None
    table._tnc.check = 0.0  # as if looking cost nothing
    table(numbers)
    assert store(table) is not None and table._tnc.rows.content is not None
    for core in table.tnc_weight:
        core.data.mul_(2)  # what may be written is looked at
        assert torch.allclose(table(numbers), expected(table, numbers), atol=1e-5)
    table._tnc.check = 1.0
    before = table._tnc.rows
    assert torch.allclose(table(numbers), expected(table, numbers), atol=1e-5)
    table._tnc.check = 0.0
    table(numbers)
    next(iter(table.tnc_weight)).data.mul_(2)
    assert torch.allclose(tnc.nn.freeze(table)(numbers), expected(table, numbers), atol=1e-5)
    tnc.nn.unfreeze(table)
    table._tnc.check, before = 1.0, table._tnc.rows
    table(numbers)
    if table._tnc.schedule.inference:  # rows are made anew where that is cheaper than to look
        assert table._tnc.rows is before


def test_gradients_pass_by_what_is_kept(table):
    """Also after rows were kept in inference mode, and inside transforms of torch.func."""
    numbers = torch.arange(7)
    with torch.inference_mode():
        table(numbers)
    table(numbers + 2)
    tnc.nn.unfreeze(table).requires_grad_()
    table(numbers).sum().backward()
    assert all(core.grad.any() for core in table.tnc_weight)
    table.requires_grad_(False)
    with torch.no_grad():
        found = torch.func.vmap(table)(numbers[:6].reshape(2, 3))
    assert torch.allclose(found.flatten(0, 1), expected(table, numbers[:6]), atol=1e-6)


def test_the_padding_row_and_bags_take_part(planted, made):
    numbers = torch.tensor([[3, 5, 2], [3, 3, 2]])
    for kind, options in ((nn.Embedding, {}), (nn.EmbeddingBag, {"mode": "sum"})):
        model = planted.plant(kind(240, 18, padding_idx=3, **options), "mpo(order=2)")
        small = planted.compressed(copy.deepcopy(model), "mpo(order=2)").eval()
        tnc.nn.freeze(small)
        with torch.no_grad():
            for _ in range(2):
                assert planted.gap(small(numbers), model(numbers)) < 1e-5
    assert made == [3, 3]


def test_threads_fill_one_store(table):
    def ask(seed):
        numbers = torch.randint(0, 100, (40,), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            return torch.allclose(table(numbers), expected(table, numbers), atol=1e-6)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(200)))
    assert table._tnc.rows.count <= 60


@pytest.mark.parametrize("execution", ["factorized", "dense"])
def test_other_executions_keep_no_rows(planted, execution):
    small = tnc.nn.freeze(planted.compressed(planted.plant(nn.Embedding(240, 18)), execution=execution).eval())
    with torch.no_grad():
        small(torch.arange(9))
    assert small._tnc.rows is None and (small.tnc_weight.kept is None) == (execution == "factorized")
    assert small._tnc_keeping == (0 if execution == "factorized" else 240 * 18)
