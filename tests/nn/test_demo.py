"""The demo on made images, in seconds: every row, every file, and what happens when a method fails."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest

import tnc
from tnc.data import Images
from tnc.errors import CheckpointError, UnknownNameError

torch = pytest.importorskip("torch")

from tnc.nn import demo, lenet  # noqa: E402 - after the check that torch is here
from tnc.nn.scores import Score, Scores  # noqa: E402


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
    return demo.run(out, images=images, methods=["svd", "mpo(order=3)"], **QUICK), out


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
        assert row.milliseconds > 0 and row.steps == math.ceil(550 / 128)
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
    runs = [demo.run(tmp_path / str(k), images=images, methods=["svd"], **QUICK, seed=3).rows for k in range(2)]
    for a, b in zip(*runs, strict=True):
        assert (a.error, a.before, a.compressed, a.tuned) == (b.error, b.before, b.compressed, b.tuned)


def test_the_callers_random_state_is_left_alone(images, tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    demo.run(tmp_path, images=images, methods=["svd"], epochs=0.2, tune=0.2)
    assert torch.equal(torch.rand(3), expected)


def test_a_method_that_fails_has_a_row_and_the_others_go_on(images, tmp_path, monkeypatch):
    real = tnc.decompositions.parse

    def parse(spec):
        if spec == "broken":
            raise RuntimeError("no such luck")
        return real(spec)

    monkeypatch.setattr(type(tnc.decompositions), "__iter__", lambda self: iter(["broken", "svd"]))
    monkeypatch.setattr(tnc.decompositions, "parse", parse, raising=False)
    scores = demo.run(tmp_path, images=images, epochs=0.5, tune=0.5)
    assert [row.method for row in scores.rows] == ["dense", "broken", "svd"]
    assert scores.rows[1].note == "RuntimeError: no such luck"
    assert scores.rows[1].tuned is None and scores.rows[2].tuned is not None
    assert scores.best == "svd"
    assert "no such luck" in rendered(scores)


def test_a_misspelt_method_is_told_before_the_training(images, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "train", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(UnknownNameError, match="svd"):
        demo.run(tmp_path, images=images, methods=["sdv"])


def test_a_machine_that_is_too_slow_takes_fewer_steps_and_says_so(images, tmp_path):
    scores = demo.run(tmp_path, images=images, methods=["svd"], epochs=0.5, tune=1.0, seconds=0.1)
    assert scores.rows[1].steps == 0
    assert "0 of 5 steps for want of time" in scores.rows[1].note


def test_a_model_that_does_not_load_back_is_an_error(images, tmp_path, monkeypatch):
    monkeypatch.setattr(tnc.nn, "load", lambda model, path: model)
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not predict"):
        demo.run(tmp_path, images=images, methods=["svd"], epochs=2.0, tune=0.5)


def test_without_matplotlib_there_is_all_but_the_picture(images, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    scores = demo.run(tmp_path, images=images, methods=["svd"], epochs=0.2, tune=0.2)
    assert set(scores.files) == {"model", "scores"}


def test_progress_sees_every_step(images, tmp_path):
    seen = {}

    def progress(iterable, *, total=None, description=""):
        for item in iterable:
            seen[description] = seen.get(description, 0) + 1
            yield item

    demo.run(tmp_path, images=images, methods=["svd"], epochs=1.0, tune=0.5, progress=progress)
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
    order = torch.cat(list(lenet._batches(10, 5, 4, np.random.default_rng(0))))
    assert sorted(order[:10].tolist()) == sorted(order[10:].tolist()) == list(range(10))


def test_the_splits_share_no_image(images):
    data = lenet.splits(images)
    assert [len(part.y) for part in data] == [550, 50, 200]
    assert abs(float(data.train.x.mean())) < 0.1
    assert data.test.x.shape == (200, 1, 28, 28)
