"""Moments of every kind of layer against explicit sums."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from tests.nn.calibration.models import LINEAR, STATES, Raw, change, name_of, predicted, x  # noqa: E402
from tnc.errors import DataError, MatchError  # noqa: E402
from tnc.nn.calibration import gather  # noqa: E402
from tnc.nn.calibration import tallies as tallies_module  # noqa: E402
from tnc.nn.layers.roles import roles_of  # noqa: E402


def moment(v):
    v = v.reshape(-1, v.shape[-1]).double()
    return v.T @ v / len(v)


@pytest.mark.parametrize("kind", LINEAR)
def test_moments_predict_how_outputs_change(kind):
    """``uses * tr(dW C dW^T)`` is the squared change of the output for every dW, so C is right in every entry."""
    model, inputs = LINEAR[kind][0](), LINEAR[kind][1]()
    name = name_of(model)
    loose = 2e-2 if "grouped" in kind else 1e-5 if "precision" in kind else 1e-9
    moments = gather(model, [*inputs.split(2)] if "experts" not in kind and "apart" not in kind else inputs)[name]
    roles = roles_of(model, name, tuple(getattr(model, name).shape))
    rows = gather(model, inputs, gradients=True)[name].rows
    assert rows is not None and bool((rows.diagonal(dim1=-2, dim2=-1).sum() > 0).all())
    for _ in range(4):
        delta = torch.randn_like(getattr(model, name))
        actual = change(model, inputs, delta, len(inputs))
        assert predicted(moments, delta, roles) == pytest.approx(actual, rel=loose)
    assert not moments.transposed and moments.kernel is None and moments.rows is None


def test_mean_of_inputs():
    inputs = x(6, 3, 5)
    moments = gather(nn.Linear(5, 4, **STATES), inputs)["weight"]
    assert torch.allclose(moments.mean, inputs.mean((0, 1)))
    assert torch.allclose(moments.columns, moment(inputs)) and moments.columns.dtype == torch.float64
    assert (moments.count, moments.uses) == (18, 3.0)


def test_means_of_experts_are_their_own():
    inputs = x(3, 6, 5)
    moments = gather(Raw((3, 5, 4), torch.bmm, roles="stack columns rows"), inputs)["w"]
    assert torch.allclose(moments.mean, inputs.mean(1))


def test_transposed_convolution_has_the_moment_of_channels():
    inputs = x(2, 4, 3, 5)
    moments = gather(nn.ConvTranspose2d(4, 3, 3, stride=2, **STATES), inputs)["weight"]
    assert torch.allclose(moments.columns, moment(inputs.movedim(1, -1))) and moments.kernel is None
    moments = gather(nn.ConvTranspose2d(4, 6, 3, groups=2, **STATES), inputs)["weight"]
    assert torch.allclose(moments.columns[1], moment(inputs[:, 2:].movedim(1, -1)))


def test_large_kernels_are_kept_in_two_factors(monkeypatch):
    monkeypatch.setattr(tallies_module, "LARGEST", 20)
    conv, inputs = nn.Conv2d(3, 4, 3, **STATES), x(2, 3, 6, 6)
    moments = gather(conv, inputs)["weight"]
    patches = F.unfold(inputs, 3).transpose(1, 2).reshape(-1, 3, 9)
    assert torch.allclose(moments.columns, torch.einsum("vck,vdk->cd", patches, patches) / len(patches))
    whole = torch.kron(moments.columns, moments.kernel)
    assert torch.allclose(whole.trace(), moment(patches.flatten(1)).trace())
    assert torch.allclose(moments.mean, patches.mean(0).flatten()) and moments.kernel.shape == (9, 9)


def test_wide_weights_have_diagonals(monkeypatch):
    monkeypatch.setattr(tallies_module, "WIDEST", 4)
    inputs = x(6, 3)
    moments = gather(nn.Linear(3, 5, **STATES), inputs, gradients=True)["weight"]
    assert torch.allclose(moments.rows, torch.ones(5, **STATES)) and moments.columns.shape == (3, 3)
    inputs = x(6, 5)
    moments = gather(nn.Linear(5, 3, **STATES), inputs)["weight"]
    assert torch.allclose(moments.columns, moment(inputs).diagonal())


def test_what_a_parametrization_starts_from_is_no_weight():
    model = nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 2))
    assert list(gather(model, torch.randn(3, 4))) == ["1.weight"]


def test_many_patches_are_sampled():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1)
    inputs = F.avg_pool2d(torch.randn(8, 3, 64, 64), 3, 1, 1)
    moments = gather(conv, inputs)["weight"]
    exact = moment(F.unfold(inputs, 3, padding=1).transpose(1, 2)).float()
    assert moments.count == 8 * 64 * 64 and moments.uses == 4096
    assert 1e-6 < (moments.columns - exact).norm() / exact.norm() < 0.1
    again = gather(conv, inputs)["weight"]
    assert torch.equal(again.columns, moments.columns), "equal seeds take equal patches"


def test_many_small_batches_cost_no_more():
    conv, inputs = nn.Conv2d(2, 4, 3), torch.randn(64, 2, 40, 40)
    moments = gather(conv, inputs.split(1))["weight"]
    exact = moment(F.unfold(inputs, 3).transpose(1, 2)).float()
    assert (moments.columns - exact).norm() / exact.norm() < 0.1


def _selected():
    return Raw((7, 4), lambda i, w: w.index_select(0, i.flatten()))


@pytest.mark.parametrize("make", [lambda: nn.Embedding(7, 4), lambda: Raw((7, 4), lambda i, w: w[i]), _selected])
def test_lookups_have_frequencies(make):
    numbers = torch.tensor([[1, 1, 3], [0, 6, 1]])
    model = make()
    moments = gather(model, numbers)[name_of(model)]
    assert moments.frequency.tolist() == pytest.approx([1 / 6, 3 / 6, 0, 1 / 6, 0, 0, 1 / 6])
    assert moments.lookups == moments.uses == 3.0 and moments.columns is None and moments.transposed


def test_bags_have_frequencies():
    numbers = torch.tensor([[1, 1, 3], [0, 6, 1]])
    for mode in ("sum", "mean", "max"):
        moments = gather(nn.EmbeddingBag(7, 4, mode=mode), numbers, gradients=True)["weight"]
        assert moments.frequency.tolist() == pytest.approx([1 / 6, 3 / 6, 0, 1 / 6, 0, 0, 1 / 6])
        assert moments.columns.shape == (4, 4) and moments.rows is None


def test_a_tied_table_has_frequencies_and_inputs():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.table.weight

        def forward(self, numbers):
            return self.head(self.table(numbers))

    model, numbers = Tied(), torch.tensor([[1, 1, 3], [0, 6, 1]])
    statistics = gather(model, numbers, names=["head.weight"])
    assert list(statistics) == ["table.weight"]
    moments = statistics["table.weight"]
    assert torch.allclose(moments.columns, moment(model.table(numbers).detach()).float())
    assert moments.frequency.sum() == pytest.approx(1) and (moments.uses, moments.lookups) == (3.0, 3.0)


def test_a_layer_that_is_used_twice_has_both_inputs():
    layer = nn.Linear(4, 4, **STATES)
    model, inputs = nn.Sequential(layer, nn.Tanh(), layer), x(6, 4)
    moments = gather(model, inputs)["0.weight"]
    with torch.no_grad():
        both = torch.cat([inputs, layer(inputs).tanh()])
    assert torch.allclose(moments.columns, moment(both)) and moments.uses == 2


def test_a_weight_of_rows_that_meet_inputs():
    inputs = x(6, 5)
    moments = gather(Raw((5, 4), lambda x, w: x @ w), inputs, gradients=True)["w"]
    assert moments.transposed and torch.allclose(moments.rows, moment(inputs)) and moments.columns.shape == (4, 4)


# ------------------------------------------------------- recurrent, attention


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind):
    net = kind(3, 4, 2, bidirectional=True, batch_first=True, **STATES)
    inputs = x(5, 6, 3)
    statistics = gather(net, inputs)
    first = kind(3, 4, bidirectional=True, batch_first=True, **STATES)
    first.load_state_dict({name: value for name, value in net.state_dict().items() if "_l0" in name})
    with torch.no_grad():
        hidden, top = first(inputs)[0], net(inputs)[0]
    for layer, below, states in ((0, inputs, hidden), (1, hidden, top)):
        none = torch.zeros(5, 1, 4, **STATES)
        forward = torch.cat([none, states[:, :-1, :4]], 1)
        backward = torch.cat([states[:, 1:, 4:], none], 1)
        for suffix, before in (("", forward), ("_reverse", backward)):
            assert torch.allclose(statistics[f"weight_ih_l{layer}{suffix}"].columns, moment(below))
            assert torch.allclose(statistics[f"weight_hh_l{layer}{suffix}"].columns, moment(before))
            assert statistics[f"weight_hh_l{layer}{suffix}"].uses == 6


def test_self_attention():
    layer, inputs = nn.MultiheadAttention(8, 2, batch_first=True, **STATES), x(5, 3, 8)
    statistics = gather(layer, inputs, forward=lambda m, b: m(b, b, b)[0])
    assert torch.allclose(statistics["in_proj_weight"].columns, moment(inputs))
    assert statistics["in_proj_weight"].uses == 3
    assert torch.allclose(statistics["out_proj.weight"].columns, moment(_heads(layer, inputs, inputs, inputs)))


def _heads(layer, q, k, v):
    """What the output projection sees."""
    with torch.no_grad():
        parts = zip((q, k, v), layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True)
        wide = [F.linear(*part) for part in parts]
        q, k, v = (a.unflatten(-1, (2, -1)).transpose(1, 2) for a in wide)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("same", [False, True])
def test_cross_attention(same):
    layer = nn.MultiheadAttention(8, 2, batch_first=True, **STATES)
    q, k = x(5, 3, 8), x(5, 4, 8)
    v = k if same else x(5, 4, 8)
    moments = gather(layer, [(q, None)], forward=lambda m, _: m(q, k, v)[0])["in_proj_weight"]
    sums = torch.stack([15 * moment(q), 20 * moment(k), 20 * moment(v)])
    assert torch.allclose(moments.columns * moments.uses * 5, sums)
    assert torch.allclose(moments.mean, torch.stack([a.mean((0, 1)) for a in (q, k, v)]))


def test_encoder_layers_take_the_slow_road():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.5, **STATES)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)
    statistics = gather(model, x(5, 3, 8), gradients=True)
    assert len(statistics) == 8 and all(m.rows is not None for m in statistics.values())
    assert torch.backends.mha.get_fastpath_enabled()


def test_hugging_face():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=6)
    model = transformers.GPT2LMHeadModel(config)
    batch = {"input_ids": torch.randint(0, 11, (3, 5)), "labels": torch.randint(0, 11, (3, 5))}
    seen = []
    hook = model.transformer.h[0].mlp.c_fc.register_forward_pre_hook(lambda m, a: seen.append(a[0].detach()))
    statistics = gather(model, [batch], gradients=True)
    hook.remove()
    moments = statistics["transformer.h.0.mlp.c_fc.weight"]
    assert torch.allclose(moments.columns, moment(seen[0]).float(), rtol=1e-4, atol=1e-6)
    assert moments.columns.shape == (8, 8) and moments.rows.shape == (32, 32)
    assert statistics["transformer.wte.weight"].frequency is not None
    assert set(statistics) == {name for name, p in model.named_parameters() if p.ndim == 2}


def test_mixture_of_hugging_face():
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        num_local_experts=4, vocab_size=11,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config)
    statistics = gather(model, [{"input_ids": torch.randint(0, 11, (3, 5))}], gradients=True)
    experts = [m for name, m in statistics.items() if "experts.down_proj" in name]
    assert len(experts) == 1 and experts[0].columns.shape == (4, 32, 32) and experts[0].rows.shape == (4, 16, 16)


# ------------------------------------------------------------------ bad input


def test_missing_weights_are_named():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(3, 3) for _ in range(3))

        def forward(self, x):
            return self.a(x)

    model, inputs = Half(), torch.randn(2, 3)
    assert list(gather(model, inputs)) == ["a.weight"]
    with pytest.raises(DataError, match=r"reaches b\.weight, c\.weight"):
        gather(model, inputs, missing="raise")
    with pytest.raises(DataError, match=r"reaches b\.weight"):
        gather(model, inputs, names=["a.weight", "b.weight"])
    assert not gather(model, inputs, names=["b.weight"], missing="ignore")
    with pytest.raises(MatchError, match=r"Did you mean 'a\.weight'"):
        gather(model, inputs, names=["a.weigth"])


def test_values_that_are_not_finite():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.raises(DataError, match="NaN or infinite"):
        gather(model, torch.tensor([[1.0, float("nan"), 0.0]]))
    nn.init.constant_(model[0].bias, float("inf"))
    with pytest.raises(DataError, match=r"input of 1\.weight is NaN or infinite for batch 0"):
        gather(model, torch.randn(2, 3))


def test_no_batch():
    with pytest.raises(DataError, match="yields no batch"):
        gather(nn.Linear(3, 3), [])
    with pytest.raises(DataError, match="'neither' is not known"):
        gather(nn.Linear(3, 3), torch.randn(2, 3), objective="neither")


def test_progress_wraps_the_batches():
    seen = []

    def shown(batches):
        for batch in batches:
            seen.append(len(batch))
            yield batch

    gather(nn.Linear(5, 4, **STATES), list(x(7, 5).split(3)), progress=shown)
    assert seen == [3, 3, 1]
