"""Embedding and EmbeddingBag: every mode of torch, the padding row exact, no sparse gradient, no stale norm."""

from __future__ import annotations

import copy

import pytest

import tnc

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here


@pytest.fixture
def words():
    return torch.randint(0, 24, (3, 5))


@pytest.mark.pairwise("torch does what is asked of rows, however they were made")
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 2)], ids=str)
def test_embedding(planted, method, execution, dtype, shape):
    x = torch.randint(0, 24, shape)
    small = planted.agree(nn.Embedding(24, 18), method, x, dtype=dtype, execution=execution)
    assert type(small) is tnc.nn.Embedding


@pytest.mark.pairwise("torch does what is asked of rows, however they were made")
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)], ids=str)
def test_embedding_of_nothing(planted, method, execution, dtype, shape):
    """No rows, as torch gives them; gradients that are 0 for every core; and rows asked for later are right."""
    model = planted.plant(nn.Embedding(24, 18).to(dtype), method)
    small, none = planted.compressed(model, method, execution=execution), torch.zeros(shape, dtype=torch.long)
    found, expected = small(none), model(none)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    found.sum().backward()
    assert all(p.grad.shape == p.shape and not p.grad.any() for p in small.parameters())
    tnc.nn.freeze(small)  # rows are kept: first none of them, then some, then none again
    with torch.no_grad():
        for numbers in (none, torch.tensor([5, 0, 5]), none, torch.tensor([0, 7])):
            assert planted.gap(small(numbers), model(numbers)) < 1e-5


@pytest.mark.pairwise("torch does what is asked of rows, however they were made")
@pytest.mark.parametrize("row", [3, -1, 0])
def test_the_padding_row_is_exact_and_gets_no_gradient(planted, method, execution, row):
    model = planted.plant(nn.Embedding(24, 18, padding_idx=row), method)
    with torch.no_grad():
        model.weight[row] = torch.linspace(-1, 1, 18)  # far from the low-rank rest
    kept = model.weight[row].clone()
    small = tnc.compress(copy.deepcopy(model), method, rank=2, execution=execution)
    assert small.tnc_report.rows[0].method != "dense"
    index = torch.tensor([row % 24])
    assert torch.equal(small(index)[0], kept) and torch.equal(small.weight[row], kept)
    small(index).sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in small.parameters())
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1, weight_decay=0.1)
    small(torch.arange(24)).square().sum().backward()
    optimizer.step()
    assert torch.equal(small(index)[0], kept)
    assert torch.equal(tnc.nn.uninstall(small).weight[row], kept)


def test_the_padding_row_follows_the_model(planted):
    model = planted.compressed(planted.plant(nn.Embedding(24, 18, padding_idx=2)))
    moved = copy.deepcopy(model).double()
    assert moved(torch.tensor([2, 3])).dtype == torch.float64
    other = planted.compressed(planted.plant(nn.Embedding(24, 18, padding_idx=2), rank=1), rank=2)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other.weight, model.weight)


@pytest.mark.pairwise("torch does what is asked of rows, however they were made")
@pytest.mark.parametrize("norm_type", [2.0, 1.0])
def test_max_norm(planted, method, execution, norm_type):
    """Torch shrinks the rows it reads, in place; here the rebuilt rows are shrunk at every reading."""
    model = planted.plant(nn.Embedding(24, 18, max_norm=1.0, norm_type=norm_type).double(), method)
    small = planted.compressed(model, method, execution=execution)
    before = small.weight.clone()
    x = torch.tensor([[1, 5, 1], [7, 5, 0]])
    for _ in range(2):
        assert planted.gap(small(x), model(x)) < 1e-12
    assert small(x).norm(norm_type, dim=-1).max() <= 1 + 1e-6 < before[x].norm(norm_type, dim=-1).max()
    assert torch.equal(small.weight, before)  # reading changes no core
    small(x).sum().backward()
    assert all(p.grad.any() for p in small.parameters())


@pytest.mark.pairwise("methods meet executions in test_embedding", together=1)
def test_scale_grad_by_freq(planted, method, execution, words):
    """The gradient of the table is the dense one, so that of the cores is too."""
    model = planted.plant(nn.Embedding(24, 18, scale_grad_by_freq=True).double(), method)
    small = planted.compressed(model, method, execution=execution)
    words[0] = 3
    table = small.weight
    planted.total(small(words)).backward()
    planted.total(model(words)).backward()
    expected = torch.autograd.grad(table, list(small.parameters()), model.weight.grad)
    assert planted.gap([p.grad for p in small.parameters()], list(expected)) < 1e-12


@pytest.mark.pairwise("torch does what is asked of rows, however they were made")
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_gradients_are_dense_for_cores(planted, method, execution, words, kind):
    """One row depends on every core; the dense layer is sparse again afterwards."""
    options = {"mode": "sum"} if kind is nn.EmbeddingBag else {}
    model = planted.plant(kind(24, 18, sparse=True, **options), method)
    small = planted.compressed(model, method, execution=execution)
    planted.total(small(words)).backward()
    assert all(p.grad.layout is torch.strided and p.grad.any() for p in small.parameters())
    torch.optim.Adam(small.parameters()).step()
    tnc.nn.uninstall(small)
    planted.total(small(words)).backward()
    assert small.sparse and small.weight.grad.is_sparse


# ----------------------------------------------------------------------- bags


@pytest.mark.pairwise("torch does what is asked of rows, however they were made")
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bag(planted, method, execution, words, mode):
    small = planted.agree(nn.EmbeddingBag(24, 18, mode=mode), method, words, execution=execution)
    assert type(small) is tnc.nn.EmbeddingBag


@pytest.mark.pairwise("torch does what is asked of rows, however they were made")
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bag_of_offsets(planted, method, execution, mode, last):
    x = torch.tensor([1, 2, 4, 5, 4, 3, 2, 9])
    offsets = torch.tensor([0, 3, 3, 5, 8] if last else [0, 3, 3, 5])  # the second bag is empty
    model = nn.EmbeddingBag(24, 18, mode=mode, include_last_offset=last)
    small = planted.agree(model, method, x, offsets, execution=execution)
    assert not small(x, offsets)[1].any()


@pytest.mark.pairwise("methods meet executions in test_embedding", together=1)
def test_bag_of_weighted_samples(planted, method, execution, words):
    weights = torch.randn(3, 5, dtype=torch.float64)
    model = nn.EmbeddingBag(24, 18, mode="sum")
    planted.agree(model, method, words, execution=execution, per_sample_weights=weights)


@pytest.mark.pairwise("methods meet executions in test_embedding", together=1)
def test_bag_with_padding(planted, method, execution):
    words = torch.tensor([[1, 2, 1], [1, 1, 1]])
    small = planted.agree(nn.EmbeddingBag(24, 18, padding_idx=1), method, words, execution=execution)
    assert not small(words)[1].any()


@pytest.mark.pairwise("torch does what is asked of rows, however they were made")
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bag_with_max_norm(planted, method, execution, words, mode):
    model = planted.plant(nn.EmbeddingBag(24, 18, mode=mode, max_norm=0.5).double(), method)
    small = planted.compressed(model, method, execution=execution)
    assert planted.gap(small(words), model(words)) < 1e-12


def test_a_frozen_table_stays_frozen(planted, words):
    table = planted.plant(nn.Embedding(24, 18)).weight.detach()
    model = nn.Embedding.from_pretrained(table, freeze=True, padding_idx=0)
    small = planted.compressed(model)
    assert not any(p.requires_grad for p in small.parameters())
    assert planted.gap(small(words), model(words)) < 1e-5
    assert not small(words).requires_grad


@pytest.mark.pairwise("the numbers are checked before any plan is chosen")
@pytest.mark.parametrize("rows", [24, 23])  # a table that the network overshoots, too
@pytest.mark.parametrize("kind", [tnc.nn.Embedding, tnc.nn.EmbeddingBag])
@pytest.mark.parametrize("number", [-1, 0, 1, 30])
def test_only_the_tables_rows_are_looked_up(method, execution, rows, kind, number):
    """Digits of any other number would be those of some row."""
    table = kind(rows, 18, decomposition=method, rank=2, execution=execution)
    table(torch.tensor([[0, rows - 1]]))
    with pytest.raises((IndexError, RuntimeError), match=r"index out of range in self|not in the valid range"):
        table(torch.tensor([[0, number if number < 0 else rows + number]]))
