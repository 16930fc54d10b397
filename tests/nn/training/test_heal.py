"""Healing improves accuracy: from labels or a teacher, from scratch or not; the best epoch stays."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest

import tnc
from tnc.errors import TncError, WeightError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from tests.nn.clouds import QUIET, blobs, correct, loader, net, same, small, state  # noqa: E402
from tnc.nn.training.objective import cosine, distillation  # noqa: E402


@pytest.mark.parametrize("taught", [False, True], ids=["labels", "teacher"])
@pytest.mark.parametrize("method", ["svd", "mpo(order=2)", "ring"])
def test_healing_improves_accuracy(trained, method, taught):
    """On samples seen neither in training nor in validation."""
    share = 0.15 if method == "ring" else 0.2  # a ring with a fifth kept is as good as the dense network at once
    model, test = small(trained, method, share), loader(1000, 3)
    before = correct(model, test)
    history = tnc.nn.heal(
        model, loader(1000), validation=loader(500, 2), teacher=trained if taught else None, epochs=3, lr=3e-3, **QUIET
    )
    after = correct(model, test)
    assert correct(trained, test) > 0.95 and after > max(before + 0.05, 0.8)
    assert len(history.epochs) == 3 and 1 <= history.best <= 3
    assert history.epochs[-1].loss < history.epochs[0].loss and all(e.seconds > 0 for e in history.epochs)
    assert history.validation == history.epochs[history.best - 1].validation and history.before.accuracy < 0.9
    assert abs(history.validation.accuracy - after) < 0.05


def test_a_factorized_model_from_scratch_trains():
    torch.manual_seed(0)
    model = tnc.nn.tensorize(net(), [tnc.Rule("[03].weight", "mpo(order=2)", 4)])
    history = tnc.nn.heal(model, loader(2000), epochs=4, lr=5e-3, **QUIET)
    assert history.best == 4 and history.validation is None and correct(model, loader(500, 3)) > 0.9


def test_distillation_is_hintons():
    student, teacher = torch.randn(6, 10, dtype=torch.float64, requires_grad=True), torch.randn(6, 10).double()
    p, q = torch.softmax(teacher / 3, 1), torch.softmax(student / 3, 1)
    value = distillation(student, teacher, 3.0)
    assert float((value - 9 * (p * (p / q).log()).sum(1).mean()).detach()) == pytest.approx(0, abs=1e-14)
    value.backward()
    assert torch.allclose(student.grad, 3 * (q - p).detach() / 6)  # T² / T: as large as that of cross-entropy
    maps = (x.detach()[:, :, None, None].expand(6, 10, 2, 2) for x in (student, teacher))
    assert float(distillation(*maps, 3.0)) == pytest.approx(float(value.detach()))


def test_the_teacher_alone_teaches(trained):
    """With alpha=1 labels do not matter: wrong ones are not learned."""
    model, (x, y) = small(trained, rank=0.2), blobs(1000, 1).tensors
    wrong = DataLoader(TensorDataset(x, (y + 1) % 10), 64, shuffle=True)
    before = state(trained)
    trained.zero_grad()
    tnc.nn.heal(model, wrong, teacher=trained, alpha=1.0, epochs=3, lr=3e-3, **QUIET)
    assert correct(model, loader(500, 3)) > 0.8
    assert same(before, state(trained)) and all(p.grad is None for p in trained.parameters())


def test_a_large_eps_keeps_rounding_from_being_learned(trained):
    """A student that says the same as its teacher has gradients of rounding alone, which Adam makes full steps of."""
    data, moved = loader(256), []
    for eps in (1e-8, 1e-4):
        student = copy.deepcopy(trained)
        tnc.nn.heal(student, data, teacher=trained, alpha=1.0, epochs=1, weight_decay=0.0, eps=eps, **QUIET)
        pairs = zip(student.parameters(), trained.parameters(), strict=True)
        moved.append(max(float((p - q).abs().max().detach()) for p, q in pairs))
    assert moved[1] < 1e-2 * moved[0]
    with pytest.raises(TncError, match=r"eps=-1\.0: it must be finite and not below 0"):
        tnc.nn.heal(student, data, eps=-1.0, **QUIET)


class Drawn:
    """A loader of so many steps whose labels are the answers of a teacher, kept for every image."""

    def __init__(self, x, taught, steps):
        self.x, self.taught, self.steps = x, taught, steps

    def __len__(self):
        return self.steps

    def __iter__(self):
        for step in range(self.steps):
            index = torch.arange(64) * 3 % len(self.x) + step
            yield self.x[index], self.taught[index]


def test_steps_with_answers_of_a_teacher_that_were_kept(trained):
    """Steps are counted by the loader, a schedule is asked once a step, and answers of a teacher are labels."""
    x = loader(256).dataset.tensors[0]
    with torch.no_grad():
        taught = trained(x)
    model, given, asked = small(trained), small(trained), []

    def schedule(done):
        asked.append(done)
        return 1.0

    history = tnc.nn.heal(
        model, Drawn(x, taught, 5), loss=partial(distillation, temperature=2.0), schedule=schedule, epochs=1, **QUIET
    )
    assert asked == [k / 5 for k in range(5)] and math.isnan(history.epochs[0].accuracy)
    with torch.no_grad():
        assert distillation(model(x), taught, 2.0) < distillation(given(x), taught, 2.0)


def test_another_loss():
    """A regression: there is no accuracy, and the best epoch is the one of the least loss."""
    torch.manual_seed(0)
    model = tnc.compress(nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 8)), "svd", rank=4)
    batches = [(x, x[:, :8].sin()) for x in torch.randn(256, 32).split(64)]
    history = tnc.nn.heal(model, batches, validation=batches, loss=nn.functional.mse_loss, epochs=5, lr=1e-2, **QUIET)
    assert math.isnan(history.validation.accuracy) and history.validation.loss < 0.8 * history.before.loss
    assert history.best == min(range(1, 6), key=lambda k: history.epochs[k - 1].validation.loss)


def test_the_schedule():
    assert cosine(0.0) == pytest.approx(0.01) and cosine(0.025) == pytest.approx(0.5) and cosine(0.05) == 1
    assert cosine(0.525) == pytest.approx(0.5) and cosine(1.0) == pytest.approx(0, abs=1e-15)
    asked, data = [], loader(256, shuffle=False)
    for given in (data, (batch for batch in data)):  # the second cannot say how long it is
        asked.append([])
        tnc.nn.heal(net(), given, epochs=1, schedule=lambda done: asked[-1].append(done) or 1.0, **QUIET)
    assert asked == [[0, 0.25, 0.5, 0.75], [0, 0, 0, 0]]


# ------------------------------------------------------- early stopping and seeds


def test_what_does_not_help_is_taken_back(trained):
    """Learning wrong labels: stopped after two epochs, and the model is as it was given."""
    model, (x, y) = small(trained, rank=6), blobs(256, 1).tensors
    model.train()
    model[3].eval()
    before, random = state(model), torch.get_rng_state()
    wrong = DataLoader(TensorDataset(x, (y + 1) % 10), 32, shuffle=True)
    history = tnc.nn.heal(model, wrong, validation=loader(500, 2), epochs=9, patience=2, lr=3e-3, **QUIET)
    assert len(history.epochs) == 2 and history.best == 0 and history.validation == history.before
    assert same(before, state(model))
    assert torch.equal(random, torch.get_rng_state()) and model.training and not model[3].training


def test_the_best_epoch_stays(trained):
    """The schedule first helps, then spoils: what is left is the model of the epoch that was best."""
    model, held = small(trained), loader(500, 2)
    rates = [1.0, 1.0, 300.0, 300.0, 300.0]
    history = tnc.nn.heal(
        model, loader(), validation=held, epochs=5, patience=2, schedule=lambda done: rates[int(5 * done)], **QUIET
    )
    assert history.best == 2 and len(history.epochs) == 4
    assert correct(model, held) == pytest.approx(history.epochs[1].validation.accuracy)
    assert history.epochs[3].validation.accuracy < history.validation.accuracy


def test_the_seed_decides(trained):
    ends = []
    for seed, noise in ((1, 0), (1, 5), (2, 0)):
        model = small(trained)
        torch.manual_seed(noise)
        tnc.nn.heal(model, loader(128), epochs=1, seed=seed, **QUIET)
        ends.append(state(model))
    assert same(ends[0], ends[1]) and not same(ends[0], ends[2])


# ------------------------------------------------------------------------ the rest


def test_mixed_precision(trained):
    model, seen = small(trained), []
    model[5].register_forward_hook(lambda layer, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    history = tnc.nn.heal(model, loader(), epochs=2, autocast=torch.bfloat16, **QUIET)
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)} and {p.dtype for p in model.parameters()} == {torch.float32}
    assert history.epochs[-1].loss < history.epochs[0].loss


@pytest.mark.parametrize(("terminal", "wanted"), [(True, True), (True, False), (False, True)])
def test_the_bar_is_for_terminals(capfd, monkeypatch, terminal, wanted):
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    tnc.nn.heal(net(), loader(128), epochs=1, progress=wanted)
    captured = capfd.readouterr()
    assert not captured.out and bool(captured.err) == (terminal and wanted)
    assert "healing" in captured.err or not captured.err


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"epochs": 0}, TncError, "epochs=0"),
        ({"patience": 2}, TncError, "pass validation="),
        ({"autocast": torch.float16}, TncError, "bfloat16"),
        ({"lr": 1e30, "schedule": lambda done: 1.0}, TncError, "lower the learning rate.*as the last step left it"),
        *(
            ({name: value}, TncError, f"{name}={value}")
            for name in ("lr", "temperature")
            for value in (0, -1.0, math.nan)
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_requests(options, error, said):
    with pytest.raises(error, match=said):
        tnc.nn.heal(net(), loader(), **options, **QUIET)


def test_nothing_to_train_on():
    with pytest.raises(WeightError, match="requires a gradient"):
        tnc.nn.heal(net().requires_grad_(False), loader(), **QUIET)


@pytest.mark.parametrize(
    ("given", "options", "name"),
    [
        (lambda: iter(list(loader(128))), {"epochs": 2}, "loader"),
        (lambda: list(loader(128)), {"epochs": 1, "validation": iter(list(loader(128)))}, "validation"),
    ],
    ids=["loader", "validation"],
)
def test_data_that_end_with_their_first_pass(given, options, name):
    """Said before anything is trained."""
    model = net()
    before = state(model)
    with pytest.raises(TncError, match=f"{name}= ends with its first pass.*iterated once an epoch"):
        tnc.nn.heal(model, given(), **options, **QUIET)
    assert same(before, state(model))


@pytest.mark.parametrize("spoilt", [0, 2])
def test_a_loss_that_is_not_finite_leaves_the_best_model(trained, spoilt):
    model, held, states = small(trained), loader(500, 2), []

    def loss(outputs, labels):
        if model.training and len(states) > spoilt:
            outputs = outputs * math.inf
        return nn.functional.cross_entropy(outputs, labels)

    class Kept(list):
        def __iter__(self):  # iterated for each validation: before the first epoch and after every one
            states.append(state(model))
            return super().__iter__()

    with pytest.raises(TncError, match=rf"loss has become nan.*model is as it was after epoch {spoilt}"):
        tnc.nn.heal(model, loader(), validation=Kept(held), loss=loss, epochs=4, lr=3e-3, **QUIET)
    assert len(states) == spoilt + 1 and same(states[spoilt], state(model))
    assert correct(model, held) > 0.1 and all(x.isfinite().all() for x in model.parameters())


def test_a_rate_is_found(trained):
    """It is better than the smallest and the largest that are tried, and the same for the same data."""
    found = []
    for lr in ("auto", "auto", 3e-5):
        model = small(trained, rank=0.2)
        history = tnc.nn.heal(model, loader(1000, shuffle=False), lr=lr, epochs=1, **QUIET)
        found.append((history.rate, correct(model, loader(500, 3)), state(model)))
    assert found[0][0] == found[1][0] > 1e-4 and found[2][0] == 3e-5
    assert same(found[0][2], found[1][2]) and found[0][1] > found[2][1]


def test_a_rate_is_found_from_a_teacher_alone_and_the_run_equals_one_with_that_rate(trained):
    data, options = loader(500, shuffle=False), {"teacher": trained, "alpha": 1.0, "epochs": 1, **QUIET}
    model = small(trained, rank=0.2)
    unlabelled = [(x, None) for x, _ in data]
    history = tnc.nn.heal(model, unlabelled, lr="auto", **options)
    again = small(trained, rank=0.2)
    assert tnc.nn.heal(again, unlabelled, lr=history.rate, **options).rate == history.rate
    assert same(state(model), state(again))


def test_a_run_goes_on_with_the_rate_that_was_found(trained, tmp_path):
    path, options = tmp_path / "run.safetensors", {"lr": "auto", "epochs": 2, **QUIET}
    model, again = small(trained, rank=0.2), small(trained, rank=0.2)
    history = tnc.nn.heal(model, loader(300), checkpoint=path, **options)
    assert tnc.nn.heal(again, loader(300), checkpoint=path, **options).rate == pytest.approx(history.rate, rel=1e-5)
    assert same(state(model), state(again))
    with pytest.raises(TncError, match=r"lr='auto' there, 0\.001 here"):
        tnc.nn.heal(again, loader(300), checkpoint=path, epochs=2, lr=1e-3, **QUIET)


def test_a_rate_cannot_be_found_from_nothing(trained):
    model = small(trained)
    before = state(model)
    with pytest.raises(TncError, match=r"the loader gave no batch"):
        tnc.nn.heal(model, [], lr="auto", **QUIET)
    with pytest.raises(TncError, match=r"loss is not finite after a few steps"):
        tnc.nn.heal(model, [(x * math.nan, y) for x, y in loader(300)], lr="auto", **QUIET)
    with pytest.raises(TncError, match=r"lr=fast: it must be finite and above 0, or 'auto'"):
        tnc.nn.heal(model, loader(300), lr="fast", **QUIET)
    assert same(state(model), before)
