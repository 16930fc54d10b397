"""The judge: distances of outputs that mean the same for every model, whatever it returns."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import pytest

from tnc.errors import DataError

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402 - after the check that torch is here

from tests.nn.clouds import net  # noqa: E402
from tnc.nn import Judge  # noqa: E402
from tnc.nn.data.calls import Calls  # noqa: E402


def inputs(count=3, size=16):
    return [torch.randn(size, 32) for _ in range(count)]


class Plus(nn.Module):
    """Returns something that is made of its inputs and of one parameter."""

    def __init__(self, made, amount=0.0):
        super().__init__()
        self.made, self.amount = made, nn.Parameter(torch.tensor(float(amount)))

    def forward(self, *given, **named):
        return self.made(*given, **named, p=self.amount)


@dataclass
class Pair:
    first: Tensor
    second: list
    note: str = "x"


def test_the_distance_is_that_of_its_definition():
    model, other = net(), net()
    data = inputs()
    judge = Judge(model, Calls.of(model, data))
    x = torch.cat(data)
    with torch.no_grad():
        y, z = model(x).double(), other(x).double()
    expected = float((z - y).square().sum() / (y - y.mean(0)).square().sum())
    assert judge.distance(other) == pytest.approx(expected, rel=1e-6)
    assert judge.distance(model) == 0.0 and judge.distance(copy.deepcopy(model)) == 0.0


def test_scale_and_offset_of_the_outputs_do_not_matter():
    def scaled(factor, shift):
        return lambda x, p: factor * (x + p * x.flip(0)) + shift

    found = []
    for factor, shift in ((1.0, 0.0), (100.0, 0.0), (1e-3, 0.0), (1.0, 50.0)):
        made, data = scaled(factor, shift), [torch.ones(8, 3).cumsum(0)]
        judge = Judge(Plus(made), Calls.of(Plus(made), data))
        found.append(judge.distance(Plus(made, 0.1)))
    assert found == pytest.approx([found[0]] * 4, rel=1e-3) and 0 < found[0] < 1


MADE = {
    "tuple": lambda x, p: (x + p, (2 * x, p)),
    "dict": lambda x, p: {"a": x + p, "loss": 1e9 * p, "past_key_values": 1e9 * (x + p), "whole": x.long()},
    "dataclass": lambda x, p: Pair(x + p, [x * (1 + p)]),
    "one axis": lambda x, p: x[:, 0] + p,
    "images": lambda x, p: x[:, :, None, None].expand(-1, -1, 2, 2) + p,
    "half": lambda x, p: (x + p).half(),
}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_every_kind_of_output_is_compared(made):
    data = inputs()
    judge = Judge(Plus(made), Calls.of(Plus(made), data))
    assert judge.distance(Plus(made)) == 0
    near, far = (judge.distance(Plus(made, amount)) for amount in (0.1, 1.0))
    assert 0 < near < far < 10  # the loss and the keys would give far more


def test_masked_positions_do_not_count():
    def embed(ids, attention_mask, p):
        hidden = ids[:, :, None] * torch.tensor([1.0, -2.0])
        return {"last_hidden_state": hidden + p * (1 - attention_mask)[:, :, None] * 1e6}

    ids = torch.arange(12.0).reshape(2, 6)
    masked = {"ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])}
    judge = Judge(Plus(embed), Calls.of(Plus(embed), [masked]))
    assert judge.distance(Plus(embed, 1.0)) == 0
    whole = masked | {"attention_mask": torch.ones(2, 6)}
    assert Judge(Plus(embed), Calls.of(Plus(embed), [whole])).distance(Plus(embed, 1.0)) == 0
    shifted = Plus(lambda ids, attention_mask, p: embed(ids + p, attention_mask, 0.0), 1.0)
    assert judge.distance(shifted) > 0


def test_nan_is_infinitely_far_and_infinities_of_the_dense_model_do_not_count():
    def logits(x, p):
        return torch.where(x > 1, -math.inf, x) + p

    judge = Judge(Plus(logits), Calls.of(Plus(logits), inputs()))
    assert judge.distance(Plus(logits)) == 0 and 0 < judge.distance(Plus(logits, 0.1)) < 1
    assert judge.distance(Plus(logits, math.nan)) == math.inf
    with pytest.raises(DataError, match="no finite number"):
        Judge(Plus(logits, math.nan), Calls.of(Plus(logits), inputs()))


def test_constant_outputs_are_relative_to_their_size():
    def constant(x, p):
        return torch.ones_like(x) + p

    assert Judge(Plus(constant), Calls.of(Plus(constant), inputs())).distance(Plus(constant, 0.5)) == pytest.approx(
        0.25
    )
    judge = Judge(Plus(lambda x, p: 0 * x + p), Calls.of(Plus(constant), inputs()))
    assert judge.distance(Plus(lambda x, p: 0 * x)) == 0 and judge.distance(Plus(constant)) == math.inf


def named(x, p):
    return {"logits": torch.cat([x, x[:, :1] * p], 1), "hidden": None}


def test_what_is_named_logits_is_compared_as_a_softmax_reads_it():
    """Relative to the divergence from the mean prediction; a number that is added to all logits does not count."""
    data = inputs()
    judge = Judge(Plus(named, 1.0), Calls.of(Plus(named), data))
    found = judge.distance(Plus(named, 0.5))
    with torch.no_grad():
        y, z = (named(torch.cat(data), amount)["logits"].double().log_softmax(-1) for amount in (1.0, 0.5))
        mean = y.exp().mean(0).log()
        expected = (y.exp() * (y - z)).sum() / (y.exp() * (y - mean)).sum()
    assert found == pytest.approx(float(expected), rel=1e-4) and judge.distance(Plus(named, 1.0)) == 0
    shifted = Plus(lambda x, p: {"logits": named(x, 1.0)["logits"] + 1000 * x.mean(1, keepdim=True) + p})
    assert judge.distance(shifted) < 1e-5
    assert judge.distance(Plus(lambda x, p: {"logits": mean.float().expand(len(x), -1) + p})) == pytest.approx(1.0)
    assert judge.distance(Plus(lambda x, p: {"logits": named(x, 1.0)["logits"] * math.nan})) == math.inf


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_logits_that_no_softmax_reads_are_compared_as_numbers(problem):
    class Config:
        problem_type = problem

    model, other = Plus(named, 1.0), Plus(lambda x, p: {"logits": named(x, 1.0)["logits"] + 5 + p})
    model.config = Config()
    data = Calls.of(model, inputs())
    assert Judge(model, data).distance(other) > 1
    del model.config
    assert Judge(model, data).distance(other) < 1e-5


def test_a_class_for_every_token_is_no_mask():
    """Logits (samples, classes) beside a mask (samples, tokens) of the same shape."""

    def classify(ids, attention_mask, p):
        return {"logits": ids * (1 + p * torch.arange(6.0))}

    ids = torch.arange(12.0).reshape(2, 6) / 4
    batch = {"ids": ids, "attention_mask": torch.tensor([[1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]])}
    assert Judge(Plus(classify), Calls.of(Plus(classify), [batch])).distance(Plus(classify, 0.5)) > 0.1


def test_memory_is_bounded_and_the_distance_nearly_the_same():
    model, other, data = net(), net(), inputs(4, 200)
    whole = Judge(model, Calls.of(model, data))
    part = Judge(model, Calls.of(model, data), most=2000)
    again = Judge(model, Calls.of(model, data), most=2000)
    held = sum(kept.values.numel() for of_batch in part._kept for kept in of_batch)
    assert 1500 < held <= 2000
    assert part.distance(other) == again.distance(other) == pytest.approx(whole.distance(other), rel=0.2)
    assert part.distance(model) == 0


def test_modes_are_restored_and_dropout_is_off():
    model = net(dropout=0.9).train()
    model[1].eval()
    judge = Judge(model, Calls.of(model, inputs()))
    assert judge.distance(model) == 0
    assert [module.training for module in model.modules()] == [True, True, False, True, True, True, True]

    def interrupt(module, given):
        raise KeyboardInterrupt

    hook = model[5].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        judge.distance(model)
    hook.remove()
    assert model.training and not model[1].training and model[2].training


def test_adapters_do_not_merge_their_weights():
    class Adapter(nn.Linear):
        """Merges in evaluation mode, and separates in training mode, as some adapters do."""

        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    model = Adapter(4, 3)
    Judge(model, Calls.of(model, torch.ones(2, 4))).distance(model)
    assert model.training and not model.merged


def test_outputs_of_another_shape_are_refused():
    model = net()
    judge = Judge(model, Calls.of(model, inputs()))
    with pytest.raises(DataError, match=r"have 64 features at 16 positions, and the dense model's 10 at 16"):
        judge.distance(model[:4])
    with pytest.raises(DataError, match=r"returned 2 tensors, and the dense model 1"):
        judge.distance(Plus(lambda x, p: (x, x + p)))
    with pytest.raises(DataError, match=r"returned a list without floating tensors.*forward="):
        Judge(Plus(lambda x, p: [x.long()]), Calls.of(model, inputs()))


def test_a_transformers_model_is_judged():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.BertModel(config)
    batch = {"input_ids": torch.randint(50, (4, 7)), "attention_mask": torch.ones(4, 7, dtype=torch.long)}
    batch["attention_mask"][:, 5:] = 0
    judge, other = Judge(model, Calls.of(model, [batch])), copy.deepcopy(model)
    assert judge.distance(model) == 0
    with torch.no_grad():
        other.encoder.layer[1].output.dense.weight.mul_(0.5)
    assert 0 < judge.distance(other) < 1
