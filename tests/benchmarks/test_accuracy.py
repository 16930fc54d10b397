"""The accuracy benchmark: controls keep the share that they state, its state goes on, and its table is complete."""

from __future__ import annotations

import copy
import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tensorly")
nn = torch.nn

from benchmarks.accuracy import healing, moments  # noqa: E402
from benchmarks.accuracy.controls import CONTROLS, svd, svd_llm, tucker2, tucker_parameters, tucker_ranks  # noqa: E402
from benchmarks.accuracy.networks import SUBJECTS  # noqa: E402
from benchmarks.accuracy.networks.images import labelled  # noqa: E402
from benchmarks.accuracy.rows import ROWS  # noqa: E402
from benchmarks.accuracy.sections import sections  # noqa: E402
from benchmarks.accuracy.state import Key, State  # noqa: E402
from benchmarks.accuracy.subject import Subject  # noqa: E402
from benchmarks.accuracy.table import page  # noqa: E402
from benchmarks.papers.changes import matched  # noqa: E402
from benchmarks.papers.train import Data, Split, accuracy  # noqa: E402
from tnc.demo.data import DataError  # noqa: E402

WEIGHTS = "body.*.weight linear.weight"


class Net(nn.Module):
    """Convolutions of two kernels with a stride, an LSTM and a linear layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        layers = (nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 1), nn.ReLU())
        self.body = nn.Sequential(*layers)
        self.linear = nn.Linear(16, 24)
        self.rnn = nn.LSTM(24, 10, bidirectional=True, batch_first=True)

    def forward(self, x):
        seen = self.body(torch.relu(self.first(x))).flatten(2).transpose(1, 2)
        return self.rnn(self.linear(seen))[0]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def inputs():
    """Smooth images: neighbouring pixels and colours are correlated."""
    torch.manual_seed(1)
    return list(nn.functional.avg_pool2d(torch.randn(96, 3, 16, 16), 5, 1, 2).cumsum(1).split(32))


def error(net, other, inputs):
    with torch.no_grad():
        return float(sum((net(x) - other(x)).square().sum() for x in inputs))


@pytest.mark.parametrize(("name", "share"), [(name, (0.5, 0.3)[k % 2]) for k, name in enumerate(CONTROLS)])
def test_a_control_keeps_its_share(net, inputs, name, share):
    weights = f"{WEIGHTS} rnn.weight_*"

    model, parameters, *_ = CONTROLS[name](copy.deepcopy(net), weights, share, inputs, None)

    before, after = matched(net, weights), matched(model, weights)
    assert sum(w.numel() for w in before.values()) * share * 0.7 < parameters
    assert parameters <= share * sum(w.numel() for w in before.values())
    assert all(not torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(net.first.weight, model.first.weight)
    if name != "tucker" and name != "tucker2_calibrated":
        ranks = {key: int(torch.linalg.matrix_rank(w.flatten(1), rtol=1e-5)) for key, w in after.items()}
        assert parameters >= sum(ranks[key] * (w.shape[0] + w[0].numel()) for key, w in after.items())


def test_calibration_lowers_the_output_error(net, inputs):
    made = {
        name: error(net, row(copy.deepcopy(net), WEIGHTS, 0.4, inputs, None).model, inputs)
        for name, row in CONTROLS.items()
    }

    assert made["svd_llm"] < 0.7 * made["svd"]
    assert made["aa_svd"] < 1.01 * made["svd_llm"]
    assert made["tucker2_calibrated"] < 0.7 * made["tucker"]


@torch.no_grad()
def test_one_layer_has_the_least_output_error_of_all_matrices_of_its_rank(net, inputs):
    dense = net.body[0]
    x = [torch.relu(net.first(batch)).detach() for batch in inputs]
    plain, calibrated = (row(copy.deepcopy(dense), "weight", 0.3, x, None).model for row in (svd, svd_llm))

    assert error(dense, calibrated, x) < error(dense, plain, x)
    outputs = torch.cat([(dense(batch) - dense.bias[:, None, None]).transpose(0, 1).flatten(1) for batch in x], 1)
    rank = int(torch.linalg.matrix_rank(calibrated.weight.flatten(1), rtol=1e-5))
    least = float(torch.linalg.svdvals(outputs.double())[rank:].square().sum())
    assert error(dense, calibrated, x) == pytest.approx(least, rel=1e-3)


def test_tucker2_falls_with_every_rank_and_is_exact_at_full_ranks():
    torch.manual_seed(2)
    weight, root = torch.randn(6, 5, 3, 3), torch.randn(45, 30)
    moment = (root @ root.T).double()

    def norm(ranks):
        wrong = (weight.double() - tucker2(weight, moment, ranks)).flatten(1)
        return float((wrong @ moment * wrong).sum())

    errors = [norm(ranks) for ranks in ((1, 1), (2, 2), (4, 3), (6, 5))]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12 * errors[0]
    ranks = tucker_ranks(weight.shape, 0.5)
    assert tucker_parameters(weight.shape, ranks) <= 0.5 * weight.numel() and min(ranks) > 1


def test_weights_that_take_the_same_inputs_stand_together():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.after, self.one, self.other = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return self.after(self.one(x) * self.other(x))

    net = Pair()
    found = moments.groups(net, list(matched(net, "*.weight")), torch.ones(2, 4), None)

    assert found == [["one.weight", "other.weight"], ["after.weight"]]


def test_a_state_goes_on(tmp_path):
    path, key = tmp_path / "state.json", Key("resnet20", 0.5, "svd")
    about = {"samples": 512, "limit": None, "threads": 1, "date": "2026-01-01"}

    State(path).put(key, {"score": 50.0, "kept": 0.49, "seconds": 1.0, **about})
    other = State(path)
    other.put(Key("resnet20", 1.0, "dense"), {"score": 91.0, "kept": 1.0, "seconds": 0.0, **about})
    other.put(Key("resnet20", 0.25, "svd"), {"error": "ValueError: no", **about})

    held = State(path)
    assert held.has(key, {"samples": 512, "limit": None}) and not held.has(key, {"samples": 64})
    assert not held.has(Key("resnet20", 0.25, "svd"), {}), "what failed is tried again"
    assert [one["share"] for one in json.loads(path.read_text())] == [1.0, 0.5, 0.25]
    assert list(tmp_path.iterdir()) == [path]
    lines = page(held).splitlines()
    assert "| svd | **50 (49.0)** | fails | 1 |" in lines
    assert "* resnet20, svd at 25%: ValueError: no" in lines


def test_the_page_shows_parts_and_healing(tmp_path):
    rows = {"dense": {"score": 93.0}, "shift": {"score": 90.12, "distance": 0.0512}}
    (tmp_path / "ablation.json").write_text(json.dumps({"net, cp, 0.2": {"rows": rows, "samples": 512, "limit": 2000}}))
    healed = {"before": 90.6, "after": 93.1, "steps": 352, "rate": 3e-4, "seconds": 1200.0}
    healed |= {"batch_norm": "frozen", "mixed": True}
    (tmp_path / "healing.json").write_text(json.dumps({"net, cp, 0.25, 1 epoch": healed}))

    lines = sections(tmp_path)

    assert "| shift | 90.12 | 0.0512 |" in lines and "| dense | 93 |  |" in lines
    assert "| net, cp, 0.25, 1 epoch | 90.6 | 93.1 | 352 | 0.0003 | frozen | yes | 20 |" in lines
    assert sections(tmp_path / "nothing") == []


def test_what_has_no_labels_is_named():
    with pytest.raises(DataError, match="minilm has no labelled images; these have: resnet20"):
        labelled("minilm")


def test_a_refined_row_starts_from_the_budget_before(net, inputs):
    given = (WEIGHTS, 0.4, inputs, None)
    before = ROWS["svd, budget"](copy.deepcopy(net), *given)
    far = error(net, before.model, inputs)

    after = ROWS["svd, refined"](copy.deepcopy(net), *given)

    assert after.parameters == before.parameters and after.earlier > 0 and error(net, before.model, inputs) == far
    assert error(net, after.model, inputs) < far
    assert ROWS["svd, refined"](copy.deepcopy(net), *given).earlier == 0, "nothing is kept any more"


def test_a_refined_row_does_not_take_what_was_made_from_other_inputs(net, inputs):
    ROWS["svd, budget"](copy.deepcopy(net), WEIGHTS, 0.4, inputs, None)

    after = ROWS["svd, refined"](copy.deepcopy(net), WEIGHTS, 0.4, list(inputs), None)

    assert after.earlier == 0, "inputs in another list are those of another network"


def test_healing_goes_on_from_what_was_compressed(net, tmp_path, monkeypatch):
    """The second run starts from the first one's files, and ends where it ended."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(512, 2)).eval()
    images = torch.randint(256, (80, 3, 12, 12), dtype=torch.uint8)
    part = Split(images, (images[:, 0].float().mean((1, 2)) > 127).long())
    data = Data(part, part, part, torch.zeros(1, 3, 1, 1), torch.full((1, 3, 1, 1), 255.0))
    inputs = list(data.prepared(images).split(40))
    asked = []

    def calibration(n):
        asked.append(n)
        return inputs

    def score(scored, limit=None):
        return 100 * accuracy(scored, data, part)

    subject = Subject("tiny", lambda: copy.deepcopy(model), calibration, score, "[24].weight", "accuracy, %")
    monkeypatch.setitem(SUBJECTS, "tiny", subject)
    monkeypatch.setattr(healing, "labelled", lambda name: data)

    first = healing.run("tiny", "svd", 0.5, 2, 64, False, tmp_path)
    second = healing.run("tiny", "svd", 0.5, 2, 64, False, tmp_path)

    assert asked == [64] and first == second and first["after"] >= first["before"] and first["rate"] > 0
