"""One cell of the benchmarks' grid from the timing to the page; how long anything takes is no matter here."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CELL = "linear768-mpo2-1pc-b1-inference"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The JSON of one cell, as `make bench` writes it."""
    pytest.importorskip("pytest_benchmark")
    path = tmp_path_factory.mktemp("grid") / "layers.json"
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", CELL, f"--benchmark-json={path}"]
    # pytest-xdist's worker says in the environment that it is one, and pytest-benchmark would time nothing.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, *command, "benchmarks/test_layers.py"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**alone, "BENCH_SECONDS": "0.01", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def test_a_cell_holds_every_library_in_the_same_rounds_at_the_same_size(measured):
    (entry,) = json.loads(measured.read_text())["benchmarks"]
    cell = entry["extra_info"]
    names = {
        "dense",
        "tnc dense",
        "tnc factorized",
        "tnc auto",
        "tltorch factorized",
        "tltorch reconstructed",
        "tednet",
    }

    assert set(cell["seconds"]) | set(cell["missing"]) == names, "each is measured, or it is said why not"
    assert all(len(taken) == entry["stats"]["rounds"] >= 5 for taken in cell["seconds"].values())
    assert sum(map(sum, cell["seconds"].values())) <= entry["stats"]["total"], "the round that is timed holds them all"
    assert cell["pattern"] == "m0 n0 r1, r1 m1 n1 -> (m0 m1) (n0 n1)"
    ours = (64 * 32 + 48 * 24) * cell["ranks"][0] + 3072
    assert {name: cell["parameters"][name] for name in names - {"dense"} if name in cell["seconds"]} == dict.fromkeys(
        (names - {"dense"}) & set(cell["seconds"]), ours
    )
    assert cell["kept_bytes"]["dense"] == 4 * 3072 * 768 and cell["kept_bytes"]["factorized"] == 0
    assert cell["flops"]["dense"] == 2 * 3072 * 768


def test_the_report_shows_the_cell_and_what_it_means(measured, tmp_path):
    command = [sys.executable, "-m", "benchmarks.report", str(measured), "--to", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr

    text = (tmp_path / "layers.md").read_text()
    seconds = json.loads(measured.read_text())["benchmarks"][0]["extra_info"]["seconds"]
    rounds = sorted(a / b for a, b in zip(seconds["tnc factorized"], seconds["dense"], strict=True))
    middle = (rounds[(len(rounds) - 1) // 2] + rounds[len(rounds) // 2]) / 2
    row = next(line for line in text.splitlines() if line.startswith("| mpo2 | 1 % | 1 |"))
    shown = [part.strip(" *") for part in row.split("|")][1:-1]
    assert len(shown) == 10 and shown[5] == f"{middle:.2f}"
    assert "`auto` at most 1.05 × dense" in done.stdout and "## Where we lose" in text
    assert (tmp_path / "inference.svg").read_text().count("linear768") and not (tmp_path / "training.svg").exists()


def cell(**changed):
    from benchmarks.report import Cell

    fields = {
        "layer": "linear1024", "format": "mpo2", "percent": 5, "batch": 1, "mode": "inference",
        "seconds": {"dense": [2.0, 2.0, 4.0], "tnc dense": [1.0, 1.0, 2.0], "tnc factorized": [4.0, 4.0, 8.0],
                    "tnc auto": [1.5, 1.5, 3.0], "tednet": [3.0, 3.0, 6.0]},
        "missing": {"tltorch": "does not offer this format"}, "parameters": {}, "kept_bytes": {"auto": 2**20},
        "saved_bytes": {"dense": 10, "tnc auto": 11, "tednet": 80}, "flops": {"dense": 100, "planned": 20},
        "pattern": "", "ranks": [],
    }  # fmt: skip
    return Cell(**{**fields, **changed})


def test_what_a_cell_says_of_the_goals():
    made = cell()
    assert made.auto == 0.75 and made.over == pytest.approx(0.75 / 1.05)
    assert made.others == {"tednet": 2.0} and made.regret == 1.5
    assert made.light and not cell(flops={"dense": 100, "planned": 25}).light
    assert not cell(flops={"dense": 0, "planned": 20}).light, "a lookup has no dense arithmetic to compare with"


def test_the_goals_are_counted_over_cells():
    from benchmarks.report import losses, numbers

    slow = {"dense": [1.0], "tnc dense": [1.0], "tnc factorized": [2.0], "tnc auto": [1.1], "tednet": [0.55]}
    cells = [cell(), cell(seconds=slow, batch=64)]
    text = "\n".join(numbers(cells))
    assert "in every cell | 1 of 2 (50%) |" in text
    assert "quarter of its FLOPs | 0 of 2 (0%) |" in text
    assert f"(geometric mean) | {math.sqrt(2.0 * 0.5):.2f} × |" in text
    assert "within 15 % of the best execution in 90% of cells | 1 of 2 (50%) |" in text
    lost = "\n".join(losses(cells))
    assert "Another library is faster than `auto` in 1 of 2 cells" in lost
    assert "| linear1024, mpo2, 5 %, batch 64, inference | 2.00 |" in lost
    assert "keeps a rebuilt weight in 2 cells (of an embedding, the rows asked for), at most 1.0 MiB" in lost


def test_what_is_held_for_the_backward_pass_is_told():
    from benchmarks.report import memory

    seconds = {"dense": [1.0], "tnc auto": [1.0], "tednet": [0.5], "tltorch factorized": [0.8]}
    saved = {"dense": 10, "tnc auto": 13, "tednet": 80, "tltorch factorized": 20}
    text = "\n".join(memory([cell(), cell(seconds=seconds, saved_bytes=saved)]))
    assert "at most 1.2 × the activations of the dense layer in 1 of 2 (50%) cells" in text
    assert "faster in 1 cells hold 8 × the dense activations there (median; at least 8 ×)" in text
    assert "faster" not in "\n".join(memory([cell()]))


def test_a_cell_measured_again_replaces_the_first(tmp_path):
    from dataclasses import asdict

    from benchmarks.report import load

    for name, percents in (("a.json", (1, 5)), ("b.json", (5,))):
        entries = [{"extra_info": asdict(cell(percent=p, parameters={"dense": len(percents)}))} for p in percents]
        about = {"machine_info": {"cpu": {}}, "datetime": "2026-01-01T00:00:00"}
        (tmp_path / name).write_text(json.dumps({**about, "benchmarks": entries}))
    cells, about = load([tmp_path / "a.json", tmp_path / "b.json"])
    assert [(made.percent, made.parameters["dense"]) for made in cells] == [(1, 2), (5, 1)]
    assert about["date"] == "2026-01-01"


def test_alternatives_take_turns_and_failures_are_told(monkeypatch):
    from benchmarks.paired import FEW, Paired

    turns = []

    def fails():
        raise ValueError("no such format")

    paired = Paired(
        {"dense": lambda: turns.append("a"), "tnc auto": lambda: turns.append("b"), "tednet": fails}, ("dense",)
    )
    paired.repeats = dict.fromkeys(paired.repeats, 1)
    turns.clear()
    paired.round()
    paired.round()
    assert turns == ["a", "b", "a", "b"]
    assert {name: len(taken) for name, taken in paired.seconds.items()} == {"dense": 2, "tnc auto": 2}
    assert paired.failed == {"tednet": "ValueError: no such format"}
    assert paired.rounds >= 5
    with pytest.raises(ValueError, match="no such format"):
        Paired({"tnc auto": fails}, ())
    monkeypatch.setattr("benchmarks.paired.LONG", 0.0)  # every call takes too long
    assert Paired(paired.calls, ("dense",)).rounds == FEW < 5
