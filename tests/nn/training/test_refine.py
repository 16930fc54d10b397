"""Refinement brings outputs nearer to the dense model's, never away, and leaves everything else as it was."""

from __future__ import annotations

import copy
import math

import pytest

import tnc
from tnc.errors import DataError, MatchError, TncError, WeightError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tests.nn.clouds import QUIET, correct, loader, net, same, small, state  # noqa: E402
from tnc.nn import Judge, refine  # noqa: E402
from tnc.nn.data.calls import Calls  # noqa: E402
from tnc.nn.data.division import divided  # noqa: E402
from tnc.nn.training.hidden import blocks  # noqa: E402

TRIED = {"steps": 12, **QUIET}
FAST = {"lr": 1e-3, **TRIED}


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.BatchNorm1d(width)

    def forward(self, x):
        return x + torch.relu(self.norm(self.linear(x)))


class Deep(nn.Module):
    """Repeated blocks with batch normalization, dropout and a tied head."""

    def __init__(self, width=32, depth=3):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.drop, self.last = nn.Dropout(0.3), nn.Linear(width, width)
        self.last.weight = self.first.weight

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(self.drop(x))


def deep(rank=4):
    torch.manual_seed(1)
    dense = Deep()
    return dense, tnc.compress(copy.deepcopy(dense), [tnc.Rule("*.weight", "svd", rank)])


def data(count=4, size=32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 32, generator=generator) for _ in range(count)]


def test_accuracy_comes_back_without_labels(trained):
    model, test = small(trained, rank=0.2), loader(1000, 3)
    before = correct(model, test)
    found = refine(model, trained, loader(1000), steps=150, **QUIET)
    assert correct(model, test) > max(before + 0.1, 0.85)
    assert found.after < 0.5 * found.before and found.rate in found.trials and found.steps > 0
    assert found.trials[found.rate] <= 1.05 * min(found.trials.values())
    assert found.seconds > 0 and found.batch_size == 64
    assert f"rate {found.rate:.3g}" in str(found)
    assert min(distance for _, distance in found.watched) == found.after


def test_what_is_returned_is_as_near_as_the_record_says():
    dense, model = deep()
    calls = divided(Calls.of(dense, data()), 0.1, dense)[1]
    judge = Judge(dense, calls)
    before = judge.distance(model)
    found = refine(model, dense, data(), **TRIED)
    assert found.before == pytest.approx(before) and found.after == pytest.approx(judge.distance(model), rel=1e-5)
    assert found.after < found.before and found.targets == ("blocks.0", "blocks.1", "blocks.2")


@pytest.mark.parametrize("rates", [1e3, (1e4, 1e5)], ids=["given", "tried"])
def test_absurd_rates_leave_the_model_as_it_was(rates):
    dense, model = deep()
    before = state(model)
    found = refine(model, dense, data(), lr=rates, **TRIED)
    assert found.after == found.before and found.steps == 0 and same(state(model), before)
    assert "the model is unchanged" in str(found)


def test_if_no_rate_gives_a_finite_loss_the_model_is_unchanged():
    dense, model = deep()
    before = state(model)

    def broken(module, batch):
        return module(batch) * (math.nan if module is model and torch.is_grad_enabled() else 1)

    found = refine(model, dense, data(), forward=broken, **TRIED)
    assert found.rate is None and found.steps == 0 and same(state(model), before)
    assert set(found.trials.values()) == {math.inf}


def test_statistics_modes_and_gradients_are_left_alone():
    dense, model = deep()
    model.train()
    model.blocks[1].eval()
    dense.train()
    model.first.bias.requires_grad_(False)
    model.last.bias.grad = gradient = torch.ones(32)
    buffers = {name: x.clone() for name, x in model.named_buffers()}
    modes = [module.training for module in model.modules()]
    before, of_teacher = model.first.bias.clone(), state(dense)
    found = refine(model, dense, data(), **FAST)
    assert found.steps and all(torch.equal(x, buffers[name]) for name, x in model.named_buffers())
    assert modes == [module.training for module in model.modules()] and all(m.training for m in dense.modules())
    assert same(state(dense), of_teacher) and all(p.grad is None and p.requires_grad for p in dense.parameters())
    assert torch.equal(model.first.bias, before) and model.last.bias.grad is gradient and bool((gradient == 1).all())
    assert all(p.grad is None for p in model.parameters() if p is not model.last.bias)


def test_tied_weights_stay_tied():
    dense, model = deep()
    refine(model, dense, data(), **FAST)
    assert torch.equal(model.first.weight, model.last.weight)


def test_the_same_seed_gives_the_same_weights():
    states = []
    for seed in (0, 0, 1):
        dense, model = deep()
        refine(model, dense, data(), seed=seed, **FAST)
        states.append(state(model))
    assert same(states[0], states[1]) and not same(states[0], states[2])


def test_dicts_pairs_and_generators_are_read():
    class Named(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, attention_mask):
            return {"states": self.inner(x), "mask": attention_mask}

    dense, model = (Named(each) for each in deep())
    mask = torch.ones(32, 5)
    found = refine(model, dense, ({"x": x, "attention_mask": mask} for x in data()), **FAST)
    assert found.after < found.before and found.targets == tuple(f"inner.blocks.{k}" for k in range(3))
    found = refine(model.inner, dense.inner, ((x, None) for x in data()), **FAST)
    assert found.after < found.before


def test_samples_of_different_shapes_are_used_in_their_batches():
    dense, model = net(), small(net())
    model = small(dense)
    ragged = [torch.randn(8, 3 + k % 3, 32) for k in range(9)]
    found = refine(model, dense, ragged, **FAST)
    assert found.batch_size == 0 and found.after < found.before
    found = refine(model, dense, data(), batch_size=5, targets=(), **FAST)
    assert found.batch_size == 5 and found.targets == ()


def test_time_on_the_first_axis_is_not_shuffled():
    dense = nn.GRU(8, 8)
    model = copy.deepcopy(dense)
    with torch.no_grad():
        model.weight_hh_l0.mul_(0.5)
    found = refine(model, dense, [torch.randn(12, 4, 8) for _ in range(6)], **FAST)
    assert found.batch_size == 0 and found.after < found.before


def test_a_transformers_model_is_refined():
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    dense = transformers.BertModel(transformers.BertConfig(num_hidden_layers=2, **sizes))
    model = tnc.compress(copy.deepcopy(dense), [tnc.Rule("*encoder*dense.weight", "svd", 4)]).train()
    batches = []
    for _ in range(4):
        mask = (torch.arange(7) < torch.randint(3, 8, (16, 1))).long()
        batches.append({"input_ids": torch.randint(50, (16, 7)), "attention_mask": mask})
    found = refine(model, dense, batches, **FAST)
    assert found.after < found.before and found.targets == ("encoder.layer.0", "encoder.layer.1")
    assert found.batch_size == 16 and model.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_learns_as_single_precision_does(dtype):
    """Steps below its rounding add up."""
    found = []
    for each in (torch.float32, dtype):
        dense, model = (net.to(each) for net in deep())
        found.append(refine(model, dense, [x.to(each) for x in data()], lr=1e-4, steps=30, **QUIET))
        assert model.first.bias.dtype is each
    assert found[1].before - found[1].after == pytest.approx(found[0].before - found[0].after, rel=0.1)


def test_large_answers_are_not_kept(monkeypatch):
    dense, model = deep()
    refine(model, dense, data(), **FAST)
    _, again = deep()
    monkeypatch.setattr("tnc.nn.training.lessons._CACHED", 100)
    refine(again, dense, data(), **FAST)
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.allclose(p, q, rtol=1e-3, atol=1e-5) for p, q in pairs)


@pytest.mark.parametrize("after", [9, 60, 120])
def test_an_interrupted_run_leaves_the_model_as_it_was(after):
    dense, model = deep()
    before, calls = state(model), 0

    def interrupt(module, inputs):
        nonlocal calls
        calls += 1
        if calls == after:
            raise KeyboardInterrupt

    hook = model.register_forward_pre_hook(interrupt)
    model.train()
    with pytest.raises(KeyboardInterrupt):
        refine(model, dense, data(), steps=400, **QUIET)
    hook.remove()
    assert same(state(model), before) and model.training and all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_blocks_are_found():
    assert blocks(Deep(depth=4)) == tuple(f"blocks.{k}" for k in range(4))
    stages = nn.Sequential(
        nn.Linear(3, 3), nn.Sequential(Block(3), Block(3)), nn.Sequential(*(Block(3) for _ in "abc"))
    )
    assert blocks(stages) == ("1.0", "1.1", "2.0", "2.1", "2.2")
    assert blocks(net()) == blocks(nn.Sequential(Block(3))) == ()


def test_what_cannot_be_done_is_refused():
    dense, model = deep()
    with pytest.raises(TncError, match=r"the teacher is the model itself: compress a copy"):
        refine(model, model, data(), **FAST)
    shallow = copy.copy(model)
    with pytest.raises(TncError, match=r"shares first.*deep copy"):
        refine(model, shallow, data(), **FAST)
    with pytest.raises(MatchError, match=r"targets= names block.1, which the model does not have. Did you mean 'block"):
        refine(model, dense, data(), targets=["block.1"], **FAST)
    with pytest.raises(DataError, match=r"has one sample"):
        refine(model, dense, data(1, 1), **FAST)
    with pytest.raises(DataError, match=r"yields no batch"):
        refine(model, dense, [], **FAST)
    wrong = ({"steps": 0}, {"lr": -1.0}, {"lr": ()}, {"batch_size": 0}, {"held_out": 1.0}, {"held_out": 0.0})
    for options in wrong:
        with pytest.raises(TncError, match=rf"^{next(iter(options))}="):
            refine(model, dense, data(), **{**FAST, **options})
    with pytest.raises(TncError, match=r"held_out=0.99 leaves no sample"):
        refine(model, dense, data(1, 8), held_out=0.99, **FAST)
    tnc.nn.freeze(model)
    with pytest.raises(WeightError, match=r"first.weight is frozen.*unfreeze"):
        refine(model, dense, data(), **FAST)
    with pytest.raises(WeightError, match=r"no parameter of the model requires a gradient"):
        refine(copy.deepcopy(dense).requires_grad_(False), dense, data(), **FAST)
