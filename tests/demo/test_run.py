"""The demo on made images, in seconds: every row, every file, and what happens when a method fails."""

from __future__ import annotations

import copy
import io
import json
import math

import numpy as np
import pytest

import tnc
from tnc.demo.data import Images
from tnc.errors import CheckpointError, UnknownNameError

torch = pytest.importorskip("torch")

from tnc.demo import lenet  # noqa: E402
from tnc.demo import run as demonstration  # noqa: E402
from tnc.demo.scores import Score, Scores  # noqa: E402


def made_images(n_train: int = 600, n_test: int = 200) -> Images:
    """Ten easy classes: a bright bar whose row is the label."""
    rng = np.random.default_rng(0)

    def pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(0, 10, n).astype(np.uint8)
        x = rng.integers(0, 60, (n, 28, 28)).astype(np.uint8)
        x[np.arange(n), 2 + 2 * y.astype(int), 4:24] += 180
        return x, y

    return Images(*pairs(n_train), *pairs(n_test))


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """More threads than free cores wait for each other, for minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images():
    return made_images()


QUICK = {"epochs": 4.0, "tune": 1.0, "seconds": 60.0}


@pytest.fixture(scope="module")
def result(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    return demonstration.run(out, images=images, methods=["svd", "mpo(order=3)"], **QUICK), out


def test_every_method_has_a_row_after_the_dense_one(result):
    rows = result[0].rows
    assert [row.method for row in rows] == ["dense", "svd", "mpo(order=3)"]
    dense, *others = rows
    assert dense.parameters == 431080 == sum(p.numel() for p in lenet.lenet5().parameters())
    assert dense.kept == 1 and dense.error == 0 and dense.compressed is None
    for row in others:
        assert row.parameters < 0.12 * dense.parameters
        assert 0 < row.kept <= 0.1
        assert 0 < row.error < 1
        assert row.before == dense.before
        assert row.tuned > 0.8 and 0 <= row.compressed <= 1
        assert row.milliseconds > 0 and row.steps == dense.steps == math.ceil(550 / 128)
        assert row.note == ""


def test_the_best_model_is_saved_and_loads(result, images):
    scores, out = result
    assert scores.reloaded and scores.best in {"svd", "mpo(order=3)"}
    model = lenet.lenet5()
    tnc.nn.load(model, out / "model.safetensors")
    row = next(row for row in scores.rows if row.method == scores.best)
    assert lenet.accuracy(model, lenet.splits(images).test) == row.tuned
    assert sum(p.numel() for p in model.parameters()) == row.parameters


def test_the_files_are_written(result):
    scores, out = result
    assert {p.name for p in out.iterdir()} == {"model.safetensors", "accuracy.png", "scores.json"}
    assert (out / "accuracy.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((out / "scores.json").read_text())["rows"][1]["method"] == "svd"
    assert scores.files["model"] == str(out / "model.safetensors")


def test_the_title_does_not_call_other_images_mnist(result):
    assert "not the published MNIST" in result[0].title


def test_the_same_seed_gives_the_same_scores(images, tmp_path):
    runs = [
        demonstration.run(tmp_path / str(k), images=images, methods=["svd"], **QUICK, seed=3).rows for k in range(2)
    ]
    for a, b in zip(*runs, strict=True):
        assert (a.error, a.before, a.compressed, a.tuned) == (b.error, b.before, b.compressed, b.tuned)


def test_the_callers_random_state_is_left_alone(images, tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    demonstration.run(tmp_path, images=images, methods=["svd"], epochs=0.2, tune=0.2)
    assert torch.equal(torch.rand(3), expected)


def test_a_method_that_fails_has_a_row_and_the_others_go_on(images, tmp_path, monkeypatch):
    real = tnc.decompositions.parse

    def parse(spec):
        if spec == "broken":
            raise RuntimeError("no such luck")
        return real(spec)

    monkeypatch.setattr(type(tnc.decompositions), "__iter__", lambda self: iter(["broken", "svd"]))
    monkeypatch.setattr(tnc.decompositions, "parse", parse, raising=False)
    scores = demonstration.run(tmp_path, images=images, epochs=0.5, tune=0.5)
    assert [row.method for row in scores.rows] == ["dense", "broken", "svd"]
    assert scores.rows[1].note == "RuntimeError: no such luck"
    assert scores.rows[1].tuned is None and scores.rows[2].tuned is not None
    assert scores.best == "svd"
    assert "no such luck" in rendered(scores)


def test_a_misspelt_method_is_told_before_the_training(images, tmp_path, monkeypatch):
    monkeypatch.setattr(demonstration, "train", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(UnknownNameError, match="svd"):
        demonstration.run(tmp_path, images=images, methods=["sdv"])


def test_a_machine_that_is_too_slow_takes_fewer_steps_in_every_row(images, tmp_path, monkeypatch):
    """Decided before the first, from the time that all of them need; the table says so."""
    monkeypatch.setattr(demonstration, "step_seconds", lambda *_: 10.0)
    scores = demonstration.run(tmp_path, images=images, methods=["svd", "tt"], epochs=0.5, tune=1.0, seconds=120.0)
    (steps,) = {row.steps for row in scores.rows}
    assert 0 < steps < 5 and scores.settings["steps"] == steps and scores.settings["planned"] == 5
    assert f"Every row was tuned for {steps} of 5 steps: this machine has no time" in rendered(scores)
    assert all(row.tuned is not None and row.note == "" for row in scores.rows)


def test_a_machine_without_time_takes_no_steps(images, tmp_path):
    scores = demonstration.run(tmp_path, images=images, methods=["svd"], epochs=0.5, tune=1.0, seconds=0.1)
    assert [row.steps for row in scores.rows] == [0, 0]
    assert "trained" in scores.rows[0].note and "of 3 steps for want of time" in scores.rows[0].note
    assert scores.rows[1].tuned == scores.rows[1].compressed and "for 0 of 5 steps" in rendered(scores)


def test_time_decides_on_what_all_rows_need(images, monkeypatch):
    """A slow method costs every row its share, not itself alone."""
    bench = demonstration.Bench(images, tnc.Ratio(0.1), 1.0, 1000.0, 0, None)
    bench.taught = None
    entries = [demonstration.Entry(Score(name), torch.nn.Linear(1, 1), 1.0) for name in ("dense", "fast", "slow")]
    entries.append(demonstration.Entry(Score("broken")))
    costs = {id(entry.model): cost for entry, cost in zip(entries, (50.0, 50.0, 150.0, 0.0), strict=True)}
    monkeypatch.setattr(demonstration, "step_seconds", lambda model, *_: costs[id(model)])
    assert bench.affordable(entries) == 3  # 0.9 (1000 - 2 * 3) / 250
    assert bench.affordable(entries[:2]) == 5


def test_few_steps_are_worse_than_none(images, monkeypatch):
    """On a loaded machine 3 of 144 steps took a network from 98 to 82 %: below a quarter of them there are none."""
    bench = demonstration.Bench(images, tnc.Ratio(0.1), 1.0, 1000.0, 0, None)
    bench.taught, entries = None, [demonstration.Entry(Score("one"), torch.nn.Linear(1, 1), 0.0)]
    monkeypatch.setattr(bench, "steps", lambda epochs: 100)
    monkeypatch.setattr(demonstration, "step_seconds", lambda *_: 30.0)
    assert bench.affordable(entries) == 29
    monkeypatch.setattr(demonstration, "step_seconds", lambda *_: 40.0)
    assert bench.affordable(entries) == 0


def test_a_model_that_fails_in_training_has_a_row_that_says_so(images, tmp_path, monkeypatch):
    real = demonstration.train

    def train(model, *arguments, description="", **options):
        if description.startswith("tt"):
            raise RuntimeError("no gradient")
        return real(model, *arguments, description=description, **options)

    monkeypatch.setattr(demonstration, "train", train)
    scores = demonstration.run(tmp_path, images=images, methods=["tt", "svd"], epochs=0.5, tune=0.5)
    assert scores.rows[1].note == "RuntimeError: no gradient" and scores.rows[1].compressed is not None
    assert scores.rows[1].tuned is None and scores.rows[2].steps == 3 and scores.best == "svd"


def test_fine_tuning_does_not_harm_the_dense_network(images):
    """It starts from what the network itself says: nothing pulls at what is right already."""
    data, ends = lenet.splits(images), []
    torch.manual_seed(0)
    dense = lenet.lenet5()
    lenet.train(dense, data.train, steps=60)
    taught, before = lenet.outputs(dense, data.train.x), lenet.accuracy(dense, data.test)
    for seed in range(3):
        tuned = copy.deepcopy(dense)
        lenet.train(tuned, data.train, steps=20, lr=demonstration.RATE, taught=taught, seed=seed)
        ends.append(lenet.accuracy(tuned, data.test))
    assert before > 0.9 and min(ends) >= before - 0.005
    moved = (tuned.fc1.weight - dense.fc1.weight).detach().norm() / dense.fc1.weight.detach().norm()
    assert 0 < float(moved) < 1e-3


def test_a_step_is_timed_on_a_copy(images):
    model, pairs = lenet.lenet5(), lenet.splits(images).train
    before = model.fc1.weight.detach().clone()
    assert 0 < lenet.step_seconds(model, pairs, lenet.outputs(model, pairs.x)) < 10
    assert torch.equal(model.fc1.weight, before)


def test_a_model_that_does_not_load_back_is_an_error(images, tmp_path, monkeypatch):
    monkeypatch.setattr(tnc.nn, "load", lambda model, path: model)
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not make the same predictions"):
        demonstration.run(tmp_path, images=images, methods=["svd"], epochs=2.0, tune=0.5)


def test_without_matplotlib_there_is_all_but_the_picture(images, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    scores = demonstration.run(tmp_path, images=images, methods=["svd"], epochs=0.2, tune=0.2)
    assert set(scores.files) == {"model", "scores"}


def test_progress_sees_every_step(images, tmp_path):
    seen = {}

    def progress(iterable, *, total=None, description=""):
        for item in iterable:
            seen[description] = seen.get(description, 0) + 1
            yield item

    demonstration.run(tmp_path, images=images, methods=["svd"], epochs=1.0, tune=0.5, progress=progress)
    assert seen["methods"] == 1
    assert seen["training"] == 5 and seen["svd: fine-tuning"] == seen["dense: fine-tuning"] == 3


def rendered(scores: Scores, width: int = 80) -> str:
    from rich.console import Console

    console = Console(width=width, file=io.StringIO())
    console.print(scores.table())
    return console.file.getvalue()


def test_the_table_fits_a_narrow_terminal():
    row = Score("mpo(order=3)", 48_000, 0.0999, 0.512, 0.9921, 0.4321, 0.9876, 0.99, 2.345, 107)
    text = rendered(
        Scores("t", [Score("dense", 431_080, 1, 0, 0.9921, None, 0.993, 0.99, 12.5, 107), row], "mpo(order=3)")
    )
    for cell in ("mpo(order=3)", "48,000", "0.512", "99.21", "43.21", "98.76", "2.35", "dense", "431,080"):
        assert cell in text
    assert "…" not in text


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_training_takes_the_steps_it_is_asked_for(images, steps):
    torch.manual_seed(0)
    model = lenet.lenet5()
    before = model.fc2.weight.detach().clone()
    assert lenet.train(model, lenet.splits(images).train, steps=steps) == steps
    assert torch.equal(model.fc2.weight, before) == (steps == 0)
    assert not model.training


def test_training_ends_when_its_time_is_up(images):
    assert lenet.train(lenet.lenet5(), lenet.splits(images).train, steps=10**6, seconds=0.2) < 1000
    assert lenet.train(lenet.lenet5(), lenet.splits(images).train, steps=10, seconds=-1.0) == 0


def test_every_image_is_seen_once_per_epoch():
    order = torch.cat(list(lenet._order(10, 5, 4, np.random.default_rng(0))))
    assert sorted(order[:10].tolist()) == sorted(order[10:].tolist()) == list(range(10))


def test_the_splits_share_no_image(images):
    data = lenet.splits(images)
    assert [len(part.y) for part in data] == [550, 50, 200]
    assert abs(float(data.train.x.mean())) < 0.1
    assert data.test.x.shape == (200, 1, 28, 28)
