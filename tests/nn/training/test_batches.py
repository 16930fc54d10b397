"""Healing takes batches and answers as Hugging Face makes them, and as people write them."""

from __future__ import annotations

import copy
import math
from collections import UserDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest

import tnc
from tnc.errors import TncError

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402 - after the check that torch is here
from torch.nn import functional  # noqa: E402

from tests.nn.clouds import QUIET, loader, net, same, small, state  # noqa: E402
from tnc.nn.data.answers import ask, takes  # noqa: E402
from tnc.nn.data.batches import Batch  # noqa: E402


@pytest.fixture(scope="module")
def bert():
    """Says whether a sequence begins with a small or a large word."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=60, max_position_embeddings=16, num_labels=2, **sizes)

    def made(**options):
        torch.manual_seed(0)
        return transformers.BertForSequenceClassification(config.__class__(**config.to_dict() | options))

    return made


@pytest.fixture(scope="module")
def llama():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=40, num_key_value_heads=2, max_position_embeddings=32, **sizes)
    )


def sentences(n=48, seed=1, batch=16):
    """Batches of a tokenizer's: a UserDict, as `BatchEncoding` is."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(60, (n, 8), generator=generator)
    return [
        UserDict(input_ids=x, attention_mask=torch.ones_like(x), labels=(x[:, 0] >= 30).long())
        for x in ids.split(batch)
    ]


def counting(n=48, seed=1, batch=16):
    """Every token is the one before plus one; the last ones are padding in half of the sequences."""
    generator = torch.Generator().manual_seed(seed)
    ids = (torch.randint(40, (n, 1), generator=generator) + torch.arange(10)) % 40
    labels = ids.clone()
    labels[::2, 7:] = -100
    return [{"input_ids": x, "labels": y} for x, y in zip(ids.split(batch), labels.split(batch), strict=True)]


def without(batches, name):
    return [{k: x for k, x in batch.items() if k != name} for batch in batches]


# ------------------------------------------------------------------ Hugging Face


def test_a_sequence_classifier_heals(bert):
    model = tnc.compress(bert(), [tnc.Rule("*.intermediate.dense.weight", "svd", 4)])
    history = tnc.nn.heal(model, sentences(240), validation=sentences(80, 2), epochs=8, lr=5e-3, **QUIET)
    assert history.validation.accuracy > history.before.accuracy + 0.2 and history.validation.accuracy > 0.85
    assert history.validation.loss < history.before.loss


def test_a_classifier_learns_the_same_from_pairs(bert):
    """Its own loss is cross-entropy: the labels may as well stand beside the inputs."""
    ends = []
    for batches in (sentences(), [(dict(b) | {"labels": None}, b["labels"]) for b in sentences()]):
        model = bert()
        tnc.nn.heal(model, batches, epochs=2, lr=1e-2, **QUIET)
        ends.append(state(model))
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-6) for name in ends[0])


def test_a_language_model_heals_from_its_own_loss(llama):
    """Which knows that labels are the next tokens; accuracy is not counted, and the loss decides."""
    model = tnc.compress(copy.deepcopy(llama), [tnc.Rule("*.mlp.*.weight", "svd", 4)])
    with torch.no_grad():
        expected = float(model(**counting()[0]).loss)
    history = tnc.nn.heal(model, counting(480), validation=counting(16), epochs=3, lr=2e-2, **QUIET)
    assert history.before.loss == pytest.approx(expected, rel=1e-5) and math.isnan(history.before.accuracy)
    assert history.validation.loss < 0.7 * expected
    assert history.best == min((1, 2, 3), key=lambda k: history.epochs[k - 1].validation.loss)


def test_language_models_are_distilled_over_words(llama):
    """On the last axis of (batch, tokens, words): the value, and a student that learns what its teacher says."""
    student = tnc.compress(copy.deepcopy(llama), [tnc.Rule("*.mlp.*.weight", "svd", 4)])
    batches = without(counting(), "labels")
    with torch.no_grad():
        ours, theirs = (model.eval()(**batches[0]).logits.double() for model in (student, llama))
    p, q = (torch.softmax(x / 2, -1) for x in (theirs, ours))
    expected = float(4 * (p * (p / q).log()).sum(-1).mean())
    options = {"teacher": llama, "alpha": 1.0, "temperature": 2.0, **QUIET}
    first = tnc.nn.heal(copy.deepcopy(student), batches[:1], epochs=1, lr=1e-9, **options)
    assert first.epochs[0].loss == pytest.approx(expected, rel=1e-3)
    history = tnc.nn.heal(student, batches, epochs=6, lr=1e-2, **options)
    assert history.epochs[-1].loss < 0.5 * history.epochs[0].loss


def test_a_given_loss_sees_logits_and_labels(bert):
    seen = []

    def loss(outputs, labels):
        seen.append((tuple(outputs.shape), tuple(labels.shape)))
        return functional.cross_entropy(outputs, labels, label_smoothing=0.1)

    history = tnc.nn.heal(bert(), sentences(), loss=loss, epochs=1, lr=1e-3, **QUIET)
    assert seen == [((16, 2), (16,))] * 3 and 0 < history.epochs[0].accuracy <= 1


def test_a_regression_heals_by_its_own_loss(bert):
    batches = [dict(b) | {"labels": b["labels"].float()} for b in sentences()]
    history = tnc.nn.heal(bert(num_labels=1), batches, validation=batches, epochs=3, lr=1e-2, **QUIET)
    assert math.isnan(history.validation.accuracy) and history.validation.loss < history.before.loss


def test_an_interrupted_run_of_named_batches_ends_the_same(bert, tmp_path):
    options = {"validation": sentences(16, 2), "teacher": bert(), "epochs": 3, **QUIET}
    whole, part = bert(), bert()
    tnc.nn.heal(whole, sentences(), **options)

    class Cut(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            if self.passes == 2:
                raise KeyboardInterrupt
            return super().__iter__()

    with pytest.raises(KeyboardInterrupt):
        tnc.nn.heal(part, Cut(sentences()), checkpoint=tmp_path / "run", **options)
    again = bert()
    tnc.nn.heal(again, sentences(), checkpoint=tmp_path / "run", **options)
    assert same(state(again), state(whole))


# ----------------------------------------------------------- what people write


@dataclass
class Said:
    logits: Tensor
    extra: int = 0


class Named(NamedTuple):
    logits: Tensor


FORMS = {
    "tensor": lambda x: x,
    "dict": lambda x: {"logits": x, "loss": None},
    "dataclass": Said,
    "namedtuple": Named,
    "namespace": lambda x: SimpleNamespace(logits=x),
    "tuple": lambda x: (x, None),
    "loss first": lambda x: (x.sum() * 0 + 3, x),
}


class Wrapped(nn.Module):
    """A network that takes named inputs and answers in some form."""

    def __init__(self, inner, form):
        super().__init__()
        self.inner, self.form = inner, form

    def forward(self, points, shift=None):
        return FORMS[self.form](self.inner(points if shift is None else points + shift))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("given", ["pair", "named", "several", "mapping in a pair"])
def test_every_form_learns_what_a_tensor_does(trained, form, given):
    """And is validated, and taught by a teacher that answers in another form."""
    shape = {
        "pair": lambda x, y: (x, y),
        "named": lambda x, y: {"points": x, "label": y},
        "several": lambda x, y: ((x, torch.zeros_like(x)), y),
        "mapping in a pair": lambda x, y: [{"points": x, "shift": torch.zeros(())}, y],
    }[given]
    data = list(loader(256, shuffle=False))
    expected, model = small(trained), Wrapped(small(trained), form)
    options = {"loss": functional.cross_entropy} if form == "loss first" else {}
    reference = tnc.nn.heal(expected, data, validation=data, teacher=trained, epochs=2, lr=3e-3, **QUIET)
    batches = [shape(x, y) for x, y in data]
    history = tnc.nn.heal(
        model, batches, validation=batches, teacher=Wrapped(trained, "dict"), epochs=2, lr=3e-3, **QUIET, **options
    )
    assert same(state(model.inner), state(expected))
    assert history.validation == reference.validation


def test_maps_have_their_classes_on_axis_one(trained):
    """Logits of four axes are those of pixels, as segmentation networks return them; labels of -100 do not count."""
    pixels = nn.Sequential(nn.Conv2d(3, 5, 1))
    x, y = torch.randn(4, 3, 6, 6), torch.randint(5, (4, 6, 6))
    y[:, 2:] = -100
    model = Wrapped(pixels, "dict")
    with torch.no_grad():
        outputs = pixels(x)
        loss, right = functional.cross_entropy(outputs, y), (outputs.argmax(1) == y)[:, :2].double().mean()
    history = tnc.nn.heal(model, [(x, y)], validation=[(x, y)], epochs=1, lr=1e-6, **QUIET)
    assert history.before == pytest.approx((float(loss), float(right)), rel=1e-5)
    tokens = Wrapped(nn.Linear(3, 5), "dict")
    x, y = torch.randn(4, 6, 3), torch.randint(5, (4, 6))
    y[:, 4:] = -100
    with torch.no_grad():
        outputs = tokens.inner(x).movedim(-1, 1)
        loss, right = functional.cross_entropy(outputs, y), (outputs.argmax(1) == y)[:, :4].double().mean()
    history = tnc.nn.heal(tokens, [(x, y)], validation=[(x, y)], epochs=1, lr=1e-6, **QUIET)
    assert history.before == pytest.approx((float(loss), float(right)), rel=1e-5)


def test_wrappers_of_torch_are_looked_through():
    model = Wrapped(net(), "tensor")
    compiled = torch.compile(model, backend="eager")
    assert takes(compiled, "shift") and not takes(compiled, "labels") and takes(nn.DataParallel(model), "points")
    assert ask(compiled, Batch({"points": torch.ones(2, 32)}, None)).outputs.shape == (2, 10)


@pytest.mark.parametrize(
    ("batch", "options", "said"),
    [
        ({"points": torch.ones(4, 32), "idx": torch.arange(4)}, {}, r"Wrapped.forward takes no idx: leave out"),
        ({"points": torch.ones(4, 32)}, {}, r"no labels.*put 'labels' into the dict, or learn from teacher="),
        ({"points": torch.ones(4, 32)}, {"loss": functional.mse_loss}, r"no labels.*alpha=1"),
        ([torch.ones(4, 32)], {}, "no labels"),
        ([torch.ones(4, 32)] * 3, {}, r"a batch is a list of 3: give pairs \(inputs, labels\)"),
        (torch.ones(2, 32), {}, "a batch is a Tensor: give pairs"),
        ({"points": "words", "labels": None}, {}, "no tensor with samples.*collate"),
        (
            (torch.ones(4, 32), torch.ones(4).long()),
            {"teacher": nn.Linear(32, 4)},
            r"the model returned a tensor \(4, 10\), the teacher a tensor \(4, 4\); give both a head",
        ),
        (
            (torch.ones(4, 32), torch.ones(4).long()),
            {"teacher": nn.LSTM(32, 4)},
            r"distillation compares logits",
        ),
    ],
    ids=["name", "labels", "loss", "alone", "three", "tensor", "no tensor", "classes", "kind"],
)
def test_what_cannot_work_says_what_to_do(batch, options, said):
    with pytest.raises(TncError, match=said):
        tnc.nn.heal(Wrapped(net(), "dict"), [batch], epochs=1, **options, **QUIET)


def test_a_model_without_logits_needs_a_loss(bert):
    transformers = pytest.importorskip("transformers")
    body = transformers.BertModel(bert().config)
    batches = [(dict(b) | {"labels": None}, b["labels"]) for b in sentences()]
    for batch in batches:
        batch[0].pop("labels")
    with pytest.raises(TncError, match=r"returned a BaseModelOutput\w* without logits: pass loss="):
        tnc.nn.heal(body, batches, epochs=1, **QUIET)
    loss = lambda said, labels: functional.cross_entropy(said.pooler_output[:, :2], labels)  # noqa: E731
    assert tnc.nn.heal(body, batches, loss=loss, epochs=1, **QUIET).epochs[0].loss > 0
