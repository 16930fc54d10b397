"""The papers' queue end to end on small synthetic data, and the pages they write."""

import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks.papers import adtn, index, mpo, publish, report, stp  # noqa: E402 - after the check that torch is here
from benchmarks.papers.queue import Queue  # noqa: E402
from benchmarks.papers.study import Method, Study, counted  # noqa: E402
from benchmarks.papers.train import Recipe, split  # noqa: E402
from benchmarks.papers.work import Terms  # noqa: E402
from tnc.demo.data import Images  # noqa: E402


def images(size, channels=(), n=60, classes=10):
    """Noise around one pattern per class, which anything can learn."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 200, (classes, size, size, *channels))

    def drawn(count):
        labels = np.arange(count) % classes
        return (patterns[labels] + rng.integers(0, 56, (count, size, size, *channels))).astype(np.uint8), labels

    (x, y), (test_x, test_y) = drawn(n), drawn(n // 2)
    return Images(x, y.astype(np.uint8), test_x, test_y.astype(np.uint8))


def small(study, data, *, epochs=2, rates=(3e-3,)):
    recipe = Recipe(epochs=epochs, batch=18, rates=rates, taught=study.recipe.taught)
    return replace(study, load=lambda: data, recipe=recipe)


def of(paper, studies):
    """A paper that has only these studies."""
    texts = {name: getattr(paper, name) for name in ("TITLE", "INTRO", "alternatives") if hasattr(paper, name)}
    name = paper.__name__.rpartition(".")[2]
    return publish.Paper(SimpleNamespace(**texts), name, studies, [row for study in studies for row in counted(study)])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the queue over studies of a paper, with one seed or more; returns rows and page."""

    def call(paper, studies, nets=(), seeds=1):
        monkeypatch.setattr("benchmarks.papers.queue.seeds", lambda _: seeds)
        monkeypatch.setattr(index, "figure", lambda *_: False)
        known = [of(paper, studies)]
        Queue(known, Terms(tmp_path / "states"), tmp_path, nets=nets, say=lambda _: None).run()
        name = known[0].name
        return report.read(tmp_path / f"{name}.json"), (tmp_path / f"{name}.md").read_text()

    return call


@pytest.fixture(scope="module")
def digits():
    return split(images(28))


@pytest.fixture(scope="module")
def photos():
    return split(images(32, (3,)), mean=(0.5,) * 3, std=(0.2,) * 3)


def by_method(rows):
    return {row["method"]: row for row in rows}


def learned(row, least=0.5):
    return min(run["accuracy"] for run in row["runs"]) >= least


# ---------------------------------------------------------------------------------------------- end to end


def test_mpo_trains_every_row_and_keeps_the_rows_it_does_not_run(tmp_path, digits, run):
    fc2, lenet5 = (small(study, digits, epochs=n) for study, n in zip(mpo.studies()[:2], (12, 1), strict=True))
    rows, text = run(mpo, [fc2, lenet5], nets=["fc2"], seeds=2)

    ours = [row for row in rows if row["net"] == "fc2"]
    assert [row["method"] for row in ours] == [method.name for method in fc2.methods]
    assert all([one["seed"] for one in row["runs"]] == [0, 1] for row in ours)
    assert learned(by_method(ours)["dense"], 0.9) and learned(by_method(ours)["mpo D=8"], 0.9)
    assert all(row["steps"] == row["full_steps"] == 36 and row["schedule"] == str(fc2.recipe) for row in ours)
    assert {"date", "machine", "versions"} <= ours[0].keys()
    assert "shortened" not in text and "lenet5" not in text  # of which nothing was run
    assert (tmp_path / "mpo-fc2-mnist.svg").is_file() and not (tmp_path / "mpo-lenet5-mnist.svg").exists()

    rows, text = run(mpo, [fc2, lenet5], nets=["lenet5"])
    assert [row["runs"] for row in rows if row["net"] == "fc2"] == [row["runs"] for row in ours]
    assert all(row["runs"] for row in rows) and "not run" not in text


def test_adtn_trains_in_two_stages_and_leaves_frozen_gates_alone(digits, run):
    study = small(adtn.studies()[1], digits, epochs=12)
    study = replace(
        study, methods=[method for method in study.methods if "M=1" in method.name or method.kind == "dense"]
    )
    rows, _ = run(adtn, [study])

    assert all(len(row["runs"]) == 1 for row in rows) and learned(by_method(rows)["dense"], 0.9)
    frozen = by_method([vars(method) | {"method": method.name} for method in study.methods])["adtn M=1, frozen"]
    torch.manual_seed(0)
    model = Method(**{key: value for key, value in frozen.items() if key != "method"}).made(None)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["fc1.bias", "fc2.bias"]


@pytest.mark.slow
def test_stp_heals_what_it_compressed_under_the_dense_network(photos, run):
    torch.manual_seed(0)
    dense = mpo.build("resnet20").eval()
    chosen = {"tt": "3×", "stt": "9×"}
    study = stp.study(
        "resnet20", partial(_same, dense), _two_layers, chosen, "stt", rank=14, budgets="layer3.2.conv?.weight"
    )
    picked = ("dense", "stt", "tucker, budget", "narrow")
    study = replace(study, methods=[method for method in study.methods if method.name.split(" at")[0] in picked])
    rows, text = run(stp, [small(study, photos, epochs=1)])

    assert [row["runs"][0]["steps"] for row in rows] == [0, 3, 3, 3]
    assert rows[1]["replaced"] == rows[2]["replaced"] > rows[3]["replaced"]
    assert "* dense: scored as it was given, not trained here" in text
    assert "(published 9×)" in text and "Compression factors of other tensorisations" in text


def _two_layers(model):
    """All four methods for the last two convolutions alone: every layer more is a fit more."""
    return {name: dict(list(layers.items())[-2:]) for name, layers in stp.resnet_layers(model).items()}


def _same(model):
    """The network given; its shapes alone on the meta device."""
    return mpo.build("resnet20") if torch.get_default_device().type == "meta" else model


# ------------------------------------------------------------------------------------------------ rendering


def row(method="dense", runs=(), **changed):
    sizes = {"replaced": 100, "whole": 200, "dense_replaced": 1000, "dense_whole": 1100}
    about = {"net": "fc2", "data": "mnist", "method": method, "kind": "paper", "published": {}, "note": ""}
    return about | sizes | {"runs": list(runs)} | changed


def ran(*accuracies, steps=10):
    return [{"seed": k, "accuracy": a, "steps": steps, "seconds": 2.0} for k, a in enumerate(accuracies)]


def test_a_line_has_mean_deviation_and_number_of_seeds():
    done = row(
        "mpo", ran(0.97, 0.98, 0.99), published={"parameters": 1760, "accuracy": "98.5", "factor": "9×"}, full_steps=20
    )
    assert report.table([done]).splitlines()[-1] == (
        "| mpo | 100 | 1,760 | 0.1 | 200 | 5.5× (published 9×) | 98.00 ± 1.00 (3) | 98.5 | 10 of 20 | 2 |"
    )
    assert report.mean_and_deviation(ran(0.5)) == "50.00 (1)"
    assert report.table([row()]).splitlines()[-1] == "| dense | 100 |  | 0.1 | 200 | 5.5× | not run |  |  |  |"
    begun = row(progress={"seed": 1, "steps": 300, "of": 1000})
    assert "| not run |  | 300 of 1,000, seed 1 goes on |  |" in report.table([begun])


def test_rows_that_were_run_alike_share_a_line():
    how = {"schedule": "AdamW", "full_steps": 20, "budget_minutes": 5.0, "date": "2026-01-02", "machine": "m"}
    how |= {"versions": {"torch": "2"}}
    how |= {"rate": 0.01}
    rows = [row("a", ran(0.9), **how), row("b", ran(0.8), **how), row("c", ran(0.7, steps=20), **how), row("d")]
    assert report.provenance(rows).splitlines() == [
        "* a, b: AdamW; **shortened schedule**: 10 of 20 steps (50%), budget 5.0 minutes. 2026-01-02, m, torch 2.",
        "* c: AdamW. 2026-01-02, m, torch 2.",
    ]


def test_the_rate_that_validation_chose_is_stated(digits, run):
    study = small(mpo.studies()[0], digits, epochs=10, rates=(1e-7, 1e-2))
    rows, text = run(mpo, [replace(study, methods=study.methods[:2])])
    assert [row["rate"] for row in rows] == [0.01, 0.01]  # the other one cannot learn anything
    assert "* Rates chosen: dense 0.01, mpo D=4 0.01." in text and "rate 1e-07 or 0.01 (chosen on validation" in text


def test_a_run_stays_until_it_is_run_again_or_its_row_is_another():
    counts = [row("a"), row("b"), row("c", replaced=7)]
    held = [row("a", ran(0.1), date="old"), row("c", ran(0.3)), row("gone", ran(0.4))]
    merged = report.merge(held, counts, [row("b", ran(0.2), date="new")])
    assert [(one["method"], one.get("date"), len(one["runs"])) for one in merged] == [
        ("a", "old", 1),
        ("b", "new", 1),
        ("c", None, 0),
    ]
    again = report.merge(merged, counts, [row("a", ran(0.5, 0.6), date="now")])
    assert again[0]["runs"] == ran(0.5, 0.6) and again[1] == merged[1]


def test_no_page_in_the_docs_has_a_number_without_a_run():
    index = (publish.DOCS / "index.md").read_text(encoding="utf-8")
    for name in publish.PAPERS:
        held = report.read(publish.DOCS / f"{name}.json")
        text = (publish.DOCS / f"{name}.md").read_text(encoding="utf-8")
        lines = re.findall(r"^\| .* \|$", text, flags=re.MULTILINE)
        assert held, name
        for one in held:
            assert one["runs"] or "date" not in one
            assert (report.table([one]).splitlines()[-1] in lines) == report.started(one)
            waits = f"| {name} | {one['net']} on {one['data']} | {one['method']} | {one['replaced']:,} |"
            assert (waits in index) == (not report.started(one))


def test_every_study_has_a_dense_row_first_and_two_controls():
    for paper in (mpo, adtn, stp):
        for study in paper.studies():
            kinds = [method.kind for method in study.methods]
            assert kinds[0] == "dense" and kinds.count("dense") == 1, study.net
            assert isinstance(study, Study) and len(counted(study)) == len(kinds)
            assert any(method.name.startswith("svd") for method in study.methods)
