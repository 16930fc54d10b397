"""Gradients at outputs against autograd, one sample after another."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from tests.nn.calibration.models import STATES, Raw, x  # noqa: E402
from tnc.errors import DataError  # noqa: E402
from tnc.nn.calibration import gather  # noqa: E402
from tnc.nn.calibration.loss import loss  # noqa: E402
from tnc.nn.data.answers import Answer  # noqa: E402


def net():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, **STATES), nn.BatchNorm2d(4, **STATES), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, groups=2, **STATES), nn.Tanh(), nn.Flatten(), nn.Linear(16, 6, **STATES),
        nn.ReLU(inplace=True), nn.Linear(6, 3, **STATES),
    )  # fmt: skip


def expected(model, layer, inputs, labels, groups=1):
    """The second moment of the gradients at the outputs of a layer, by a backward pass for each sample."""
    total, kept = 0, []
    hook = layer.register_forward_hook(lambda module, args, out: kept.append(out))
    for sample, label in zip(inputs, labels, strict=True):
        value = F.cross_entropy(model(sample[None]), label[None])
        (g,) = torch.autograd.grad(value, kept.pop())
        g = g.movedim(1, -1).reshape(-1, groups, g.shape[1] // groups).transpose(0, 1)
        total = total + g.mT @ g
    hook.remove()
    return total.squeeze(0) / len(inputs)


def test_gradients_of_the_loss_with_labels():
    model, inputs, labels = net(), x(6, 2, 9, 9), torch.tensor([0, 1, 2, 2, 1, 0])
    pairs = [(inputs[:4], labels[:4]), (inputs[4:], labels[4:])]
    statistics = gather(model, pairs, gradients=True)
    model.eval()
    for name, groups in (("0", 1), ("3", 2), ("6", 1), ("8", 1)):
        copy = nn.Sequential(*(nn.ReLU() if isinstance(m, nn.ReLU) else m for m in model))
        wanted = expected(copy, copy[int(name)], inputs, labels, groups)
        assert torch.allclose(statistics[f"{name}.weight"].rows, wanted), name
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_parameters_have_gradients_at_their_outputs(frozen):
    model, inputs, labels = nn.Linear(4, 3, **STATES).requires_grad_(not frozen), x(6, 4), torch.arange(6) % 3
    moments = gather(model, [(inputs, labels)], gradients=True)["weight"]
    g = model(inputs).softmax(-1).detach() - F.one_hot(labels, 3)
    assert torch.allclose(moments.rows, g.T @ g / 6)
    assert all(p.requires_grad is not frozen for p in model.parameters())


def test_gradients_of_outputs_are_the_gauss_newton_matrix():
    model = nn.Sequential(nn.Linear(4, 5, **STATES), nn.Linear(5, 3, **STATES))
    statistics = gather(model, x(3000, 4), samples=3000, gradients=True)
    weight = model[1].weight.detach()
    assert torch.allclose(statistics["1.weight"].rows, torch.eye(3, **STATES), atol=0.1)
    assert torch.allclose(statistics["0.weight"].rows, weight.T @ weight, atol=0.1)


def test_sampled_labels_give_the_fisher_matrix():
    model, inputs = nn.Linear(4, 3, **STATES), x(1, 4).expand(4000, 4)
    p = model(inputs[0]).softmax(-1).detach()
    rows = gather(model, inputs, samples=4000, gradients=True, objective="sampled")["weight"].rows
    assert torch.allclose(rows, torch.diag(p) - torch.outer(p, p), atol=0.03)


class Named(nn.Module):
    """A classifier of every token that names its outputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3, **STATES)

    def forward(self, inputs, attention_mask=None):
        return {"logits": self.linear(inputs)}


def test_labels_are_sampled_where_logits_are_named():
    """Only for tokens that the mask shows: the hidden ones have no gradient."""
    model, one = Named(), x(1, 4)
    inputs = one.expand(2000, 2, 4).clone()
    inputs[:, 1] = 50.0
    mask = torch.tensor([[1, 0]]).expand(2000, 2)
    p = model.linear(one[0]).softmax(-1).detach()
    statistics = gather(model, [{"inputs": inputs, "attention_mask": mask}], samples=2000, gradients=True)
    assert torch.allclose(statistics["linear.weight"].rows, torch.diag(p) - torch.outer(p, p), atol=0.04)


def test_gradients_of_lookups_and_experts():
    model, numbers = (
        nn.Sequential(nn.Embedding(7, 4, **STATES), nn.Linear(4, 3, **STATES)),
        torch.arange(14).view(2, 7) % 7,
    )
    moments = gather(model, numbers, gradients=True)["0.weight"]
    assert moments.columns.shape == (4, 4) and moments.columns.trace() > 0
    experts = Raw((3, 5, 4), torch.bmm, roles="stack columns rows")
    rows = gather(experts, x(3, 6, 5), gradients=True)["w"].rows
    assert torch.allclose(rows.diagonal(dim1=1, dim2=2), torch.full((3, 4), 2.0, **STATES))


def test_gradients_of_attention_are_apart_for_queries_keys_and_values():
    layer, inputs = nn.MultiheadAttention(4, 2, batch_first=True, **STATES), x(5, 3, 4)
    statistics = gather(layer, inputs, forward=lambda m, b: m(b, b, b)[0], gradients=True)
    wide = F.linear(inputs, layer.in_proj_weight, layer.in_proj_bias)
    q, k, v = (a.unflatten(-1, (2, -1)).transpose(1, 2) for a in wide.chunk(3, -1))
    out = layer.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    signs = torch.randint(0, 2, out.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (g,) = torch.autograd.grad((out * signs).sum(), wide)
    g = g.reshape(15, 3, 4).transpose(0, 1)
    assert torch.allclose(statistics["in_proj_weight"].rows, g.mT @ g / 5)


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_transposed_convolutions(groups):
    layer, inputs = nn.ConvTranspose2d(4, 6, 3, groups=groups, **STATES), x(2, 4, 3, 3)
    rows = gather(layer, inputs, gradients=True)["weight"].rows
    signs = torch.randint(0, 2, (2, 6, 5, 5), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    g = signs.movedim(1, -1).reshape(-1, groups, 6 // groups).transpose(0, 1)
    assert torch.allclose(rows, (g.mT @ g / 2).squeeze(0))


def test_gradients_inside_inference_mode():
    model = nn.Linear(4, 3)
    with torch.inference_mode():
        assert gather(model, torch.zeros(2, 4).clone(), gradients=True)["weight"].rows is not None


def test_gradients_of_what_computes_its_own_loss():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=11, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config)
    batch = {"input_ids": torch.randint(0, 11, (4, 5)), "labels": torch.tensor([0, 1, 2, 0])}
    rows = gather(model, [batch], gradients=True)["classifier.weight"].rows
    logits = model.eval()(batch["input_ids"]).logits
    g = (logits.softmax(-1) - F.one_hot(batch["labels"], 3)).detach()
    assert torch.allclose(rows, g.T @ g / 4, atol=1e-6)
    hidden = transformers.BertModel(config)
    statistics = gather(hidden, [{"input_ids": batch["input_ids"]}], gradients=True)
    assert all(m.rows is not None or m.columns is not None for m in statistics.values())


def test_what_cannot_be():
    make, none = torch.Generator().manual_seed(0), torch.zeros(2, 3)
    with pytest.raises(DataError, match="needs batches with whole-number labels"):
        loss("labels", Answer(none), None, make)
    with pytest.raises(DataError, match="needs batches with whole-number labels"):
        loss("labels", Answer(none), torch.zeros(5, dtype=torch.long), make)
    with pytest.raises(DataError, match="returns logits"):
        loss("sampled", Answer((none, none)), None, make)
    with pytest.raises(DataError, match="no floating-point tensor that depends"):
        loss("outputs", Answer(none), None, make)


def test_gradients_that_are_not_finite():
    class Root(nn.Linear):
        def forward(self, x):
            return super().forward(x).abs().sqrt()

    with pytest.raises(DataError, match="gradient at the output of weight"):
        gather(Root(3, 2, bias=False), torch.zeros(2, 3), gradients=True)


def test_outputs_in_a_data_class_are_found():
    @dataclass
    class Out:
        hidden: torch.Tensor
        count: int = 0

    class Model(nn.Linear):
        def forward(self, x):
            return Out(super().forward(x))

    rows = gather(Model(4, 3, **STATES), x(6, 4), gradients=True)["weight"].rows
    assert torch.allclose(rows.diagonal(), torch.ones(3, **STATES))
