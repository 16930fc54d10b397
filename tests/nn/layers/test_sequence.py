"""Recurrent layers, attention and transformers: packed weights, packed sequences, and torch's eval fast path."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest

import tnc

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence  # noqa: E402

from tnc.nn.layers.cores import Cores  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:LSTM with projections is not supported with oneDNN",
        "ignore:The PyTorch API of nested tensors is in prototype stage",
    ),
    pytest.mark.pairwise("methods differ in the network, executions in the plan, options in what torch is asked for"),
]

RECURRENT = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
each_kind = pytest.mark.parametrize("kind", RECURRENT)


# ------------------------------------------------------------------- recurrent


@each_kind
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "batch_first": True},
        {"bidirectional": True, "bias": False},
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
    ],
    ids=str,
)
def test_recurrent(planted, method, kind, options):
    model = RECURRENT[kind](16, 24, **options)
    small = planted.agree(model, method, torch.randn(4, 3, 16))
    assert isinstance(small, RECURRENT[kind])
    assert len(small.tnc_report.rows) == sum(p.ndim == 2 for p in model.parameters())


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_lstm_with_projections(planted, method, options):
    model = nn.LSTM(16, 24, proj_size=8, **options)
    planted.agree(model, method, torch.randn(4, 3, 16))


@each_kind
def test_recurrent_in_single_precision(planted, method, kind):
    planted.agree(RECURRENT[kind](16, 24), method, torch.randn(4, 3, 16), dtype=torch.float32)


@each_kind
def test_recurrent_of_one_sequence(planted, method, kind):
    planted.agree(RECURRENT[kind](16, 24), method, torch.randn(4, 16))


@each_kind
def test_recurrent_of_packed_sequences(planted, method, execution, kind):
    model = planted.plant(RECURRENT[kind](16, 24, num_layers=2).double(), method)
    small = planted.compressed(model, method, execution=execution)
    sequence = pack_sequence([torch.randn(n, 16, dtype=torch.float64) for n in (2, 5, 3)], enforce_sorted=False)
    (found, state), (expected, wanted) = small(sequence), model(sequence)
    assert planted.gap(pad_packed_sequence(found)[0], pad_packed_sequence(expected)[0]) < 1e-12
    assert planted.gap(state, wanted) < 1e-12


@each_kind
def test_recurrent_takes_an_initial_state(planted, method, kind):
    model = planted.plant(RECURRENT[kind](16, 24).double(), method)
    small = planted.compressed(model, method)
    x, h = torch.randn(4, 3, 16, dtype=torch.float64), torch.randn(1, 3, 24, dtype=torch.float64)
    state = (h, h.flip(0)) if kind == "lstm" else h
    assert planted.gap(small(x, state), model(x, state)) < 1e-12


@each_kind
def test_recurrent_weights_are_never_stale(planted, kind):
    """Torch keeps a list of the weights: a step, a cast or a copy must show in the next output."""
    model = planted.compressed(planted.plant(RECURRENT[kind](16, 24)))
    x = torch.randn(4, 3, 16)
    before = model(x)[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert not torch.allclose(model(x)[0], before)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x)[0], model(x)[0])
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert not torch.equal(twin(x)[0], model(x)[0])
    assert model.double()(x.double())[0].dtype == torch.float64
    dense = tnc.nn.uninstall(copy.deepcopy(model))
    assert type(dense) is RECURRENT[kind] and planted.gap(dense(x.double())[0], model(x.double())[0]) < 1e-12
    with torch.no_grad():
        dense.weight_ih_l0.zero_()
    assert not torch.equal(dense(x.double())[0], model(x.double())[0])


@each_kind
def test_in_evaluation_a_kept_recurrent_weight_is_never_stale(planted, execution, kind):
    """Without gradients the weights are kept: a write that torch does not count must show, in whichever weight."""
    model = planted.compressed(planted.plant(RECURRENT[kind](16, 24, num_layers=2)), execution=execution).eval()
    x = torch.randn(4, 3, 16)
    made = [part for part in model.modules() if isinstance(part, Cores)]
    assert len(made) == 4
    with torch.no_grad():
        before = model(x)[0]
        assert all((cores.kept is None) == (execution == "factorized") for cores in made)
        for cores in made:
            next(iter(cores)).data.mul_(1.5)
            after = model(x)[0]
            assert not torch.allclose(after, before)
            assert planted.gap(after, tnc.nn.uninstall(copy.deepcopy(model))(x)[0]) < 1e-5
            before = after


@each_kind
@pytest.mark.parametrize("recorded", [True, False])
def test_recurrent_weights_are_contracted_once_a_forward(planted, monkeypatch, kind, recorded):
    """Not once a time step, nor once each time torch's checks look at them."""
    model = planted.compressed(planted.plant(RECURRENT[kind](16, 24, num_layers=2)))
    made, rebuilt = [], Cores.rebuilt
    monkeypatch.setattr(Cores, "rebuilt", lambda self, *cores: made.append(self) or rebuilt(self, *cores))
    for again in range(2):
        made.clear()
        with torch.set_grad_enabled(recorded):
            model(torch.randn(7, 3, 16))
        assert len(made) == len(set(made)) == (0 if again and not recorded else 4)  # or kept


def test_a_recurrent_layer_trains_while_another_thread_evaluates(planted):
    """What a forward without gradients has contracted is none of another thread's business."""
    within, done = threading.Event(), threading.Event()

    class Held(nn.LSTM):
        def forward(self, x):
            found = super().forward(x)
            if not torch.is_grad_enabled():
                within.set()
                assert done.wait(60)
            return found

    model, x = planted.compressed(planted.plant(Held(16, 24))), torch.randn(4, 3, 16)

    @torch.no_grad()
    def evaluate():
        model(x)

    other = threading.Thread(target=evaluate)
    other.start()
    try:
        assert within.wait(60)
        for _ in range(2):  # the second step: nothing of the first is kept
            model.zero_grad()
            model(x)[0].square().sum().backward()
            assert all(
                p.grad is not None and p.grad.any() for name, p in model.named_parameters() if "bias" not in name
            )
    finally:
        done.set()
        other.join()


def test_the_dense_weights_are_let_go(planted):
    model = planted.plant(nn.ModuleList(kind(16, 24) for kind in RECURRENT.values()))
    held = [weakref.ref(p) for name, p in model.named_parameters() if "weight" in name]
    tnc.compress(model, "svd", rank=2)
    gc.collect()
    assert [ref() for ref in held] == [None] * 6


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("bias", [True, False])
def test_cells(planted, method, execution, cell, bias):
    state = torch.randn(3, 24, dtype=torch.float64)
    state = (state, state.flip(0)) if cell is nn.LSTMCell else state
    planted.agree(cell(16, 24, bias=bias), method, torch.randn(3, 16), state, execution=execution)


# ------------------------------------------------------------------- attention


class Attention(nn.Module):
    """`MultiheadAttention` on one sequence, or on three of their own widths."""

    def __init__(self, **options):
        super().__init__()
        self.inner = nn.MultiheadAttention(24, 4, batch_first=True, **options)

    def forward(self, query, key=None, value=None, **keywords):
        key = query if key is None else key
        return self.inner(query, key, key if value is None else value, **keywords)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str)
def test_attention(planted, method, execution, options):
    model = Attention(**options)
    model.to(torch.float64)
    planted.plant(model.inner.out_proj, method)
    small = planted_attention(planted, model, method, execution)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    assert planted.gap(small(x), model(x)) < 1e-12
    assert isinstance(small.inner.out_proj, tnc.nn.Linear) and small.inner.in_proj_weight.shape == (72, 24)
    planted.total(small(x)[0]).backward()
    cores = [p for name, p in small.named_parameters() if "tnc_" in name]
    assert len(cores) >= 4 and all(p.grad.any() for p in cores)


def planted_attention(planted, model, method, execution):
    """Rules name the matrices: ``bias_k`` of shape (1, 1, width) is a weight of three axes to a glob."""
    with torch.no_grad():
        alone = planted.plant(nn.MultiheadAttention(24, 1, bias=False).double(), method)
        model.inner.in_proj_weight.copy_(alone.in_proj_weight)
    rules = [tnc.Rule("*weight", method, 2)]
    small = tnc.compress(copy.deepcopy(model), rules, execution=execution)
    assert [row.method != "dense" for row in small.tnc_report.rows] == [True, True]
    return small


def test_attention_of_other_widths(planted, method, execution):
    """With ``kdim`` and ``vdim`` the projections are three parameters of their own."""
    inputs = torch.randn(2, 5, 24), torch.randn(2, 7, 16), torch.randn(2, 7, 12)
    small = planted.agree(Attention(kdim=16, vdim=12), method, *inputs, execution=execution)
    assert len(small.tnc_report.rows) == 4


def test_attention_masks(planted, method):
    model = planted.plant(Attention().double(), method)
    small = planted.compressed(model, method)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    for keywords in ({"key_padding_mask": padding}, {"attn_mask": causal, "need_weights": False}):
        assert planted.gap(small(x, **keywords), model(x, **keywords)) < 1e-12


# ---------------------------------------------------------------- transformers


def encoder(layers=2, **options):
    layer = nn.TransformerEncoderLayer(24, 4, 48, dropout=0.0, batch_first=True, **options)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=not options) if layers else layer


@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"activation": "gelu"}, {"bias": False}], ids=str)
@pytest.mark.parametrize("layers", [0, 2])
def test_transformer_in_training(planted, method, options, layers):
    planted.agree(encoder(layers, **options), method, torch.randn(2, 5, 24))


@pytest.fixture
def fused_calls(monkeypatch):
    """A list that grows by one with every call of torch's fused kernel."""
    calls, fused = [], torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *a: calls.append(1) or fused(*a))
    return calls


def has_plan(layer):
    """Whether a linear map runs through its cores in evaluation, for inputs of some size."""
    return any(plan for _, plan in layer._tnc.schedule.inference)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("layers", [0, 2])
def test_transformer_fast_path(planted, method, execution, layers, masked, fused_calls):
    """In eval mode torch hands all weights to one fused kernel; ours run through their cores where that is planned."""
    calls = fused_calls
    model = planted.plant(encoder(layers), method).eval()
    small = planted.compressed(model, method, execution=execution)
    x = torch.randn(2, 5, 24)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if masked else None
    with torch.no_grad():
        found, expected = (one(x, src_key_padding_mask=padding) for one in (small, model))
    maps = [made for made in small.modules() if isinstance(made, tnc.nn.Linear)]
    through = any(map(has_plan, maps))
    assert through or execution != "factorized"
    assert len(calls) == max(layers, 1) * (1 if through else 2)
    seen = torch.ones(2, 5, dtype=torch.bool) if padding is None else ~padding
    assert planted.gap(found[seen], expected[seen]) < 1e-5
    calls.clear()
    assert planted.gap(small(x)[seen], model(x)[seen]) < 1e-5  # with gradients: the slow path
    assert not calls
    if execution == "factorized":
        assert all(made.tnc_weight.kept is None for made in maps)
    with torch.no_grad():
        tnc.nn.uninstall(small)(x, src_key_padding_mask=padding)
    assert len(calls) == max(layers, 1)  # on again


def test_the_whole_transformer(planted, method):
    model = nn.Transformer(24, 4, 1, 1, 48, dropout=0.0, batch_first=True)
    planted.agree(model, method, torch.randn(2, 5, 24), torch.randn(2, 3, 24))


def test_a_layer_from_scratch_serves_the_fast_path(planted):
    torch.manual_seed(0)
    layer = encoder(0).eval()
    layer.linear1 = tnc.nn.Linear(24, 48, decomposition="mpo(order=2)", rank=3)
    layer.linear2 = tnc.nn.Linear(48, 24, decomposition="svd", rank=3)
    x = torch.randn(2, 5, 24)
    expected = layer(x)
    with torch.no_grad():
        assert planted.gap(layer(x), expected) < 1e-5
