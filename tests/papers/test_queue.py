"""The papers' queue: its order, its pages, when it stops, and what it refuses."""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from benchmarks.papers import index, plan, publish, queue, report  # noqa: E402 - after the check for torch
from benchmarks.papers.plan import Cost  # noqa: E402
from benchmarks.papers.state import State, locked  # noqa: E402
from benchmarks.papers.train import Recipe  # noqa: E402
from benchmarks.papers.work import Job, Terms  # noqa: E402
from tests.papers import tiny  # noqa: E402
from tnc.demo.data import DataError  # noqa: E402
from tnc.errors import CheckpointError, TncError  # noqa: E402

RECIPE = Recipe(epochs=1, batch=12, rates=(1e-2,))  # six steps


def small(*names, **changed):
    """A study with these rows of the tiny one."""
    made = tiny.study(recipe=RECIPE, **changed)
    return replace(made, methods=[method for method in made.methods if method.name in (names or ("dense", "adtn"))])


@pytest.fixture
def work_off(tmp_path, monkeypatch):
    """Runs a queue over studies; returns the rows, the page and what it said."""
    monkeypatch.setattr("benchmarks.papers.work.pace", lambda *_: 0.5)

    def call(*studies, state="state", picked=(), **terms):
        said = []
        known = [tiny.paper(*studies)]
        made = queue.Queue(known, Terms(tmp_path / state, every=1.0, **terms), tmp_path, rows=picked, say=said.append)
        made.run()
        rows = report.read(tmp_path / "mpo.json")
        return {row["method"]: row for row in rows}, (tmp_path / "mpo.md").read_text(), said

    return call


def test_every_row_is_run_with_three_seeds_and_never_again(work_off, tmp_path, monkeypatch, no_plots):
    rows, page, said = work_off(small())
    assert {name: [run["seed"] for run in row["runs"]] for name, row in rows.items()} == {
        "dense": [0, 1, 2],
        "adtn": [0, 1, 2],
    }
    assert "| 6 of 6 |" in page and "goes on" not in page
    starts = [text.split("/")[2:] for text in said if "steps" in text and "{" not in text]
    assert [(name, seed[0]) for name, seed in starts] == [(name, seed) for seed in "012" for name in ("dense", "adtn")]
    overview = (tmp_path / "index.md").read_text()
    assert "| [mpo](mpo.md) | tiny on made-up |" in overview and "(3) | adtn |" in overview
    assert "Every row has been started." in overview

    monkeypatch.setattr(Job, "run", lambda *_: pytest.fail("run again"))
    again, _, _ = work_off(small(), state="another")
    assert again == rows


def test_time_that_is_over_is_said_in_the_page_and_changes_no_result(work_off, tmp_path, monkeypatch, no_plots):
    whole, _, _ = work_off(small("dense"))
    (tmp_path / "mpo.json").unlink()
    clock = [0.0]
    monkeypatch.setattr("benchmarks.papers.segments.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("benchmarks.papers.segments.Segments._drawn", _ticking(clock))
    pages, over = [], True
    while over and len(pages) < 20:
        clock[0] += 1.0
        rows, page, said = work_off(small("dense"), state="other", deadline=clock[0] + 4.5)
        pages.append(page)
        over = any("time is over" in text for text in said)
    assert not over and len(pages) > 3 and "| 4 of 6, seed 0 goes on |" in pages[0]
    assert "goes on" not in pages[-1]
    assert [*map(tiny.finished, rows["dense"]["runs"])] == [*map(tiny.finished, whole["dense"]["runs"])]


@pytest.fixture
def no_plots(monkeypatch):
    """A plot takes a second, and a test of many runs does not look at it."""
    monkeypatch.setattr(report, "plot", lambda *_: False)
    monkeypatch.setattr(index, "figure", lambda *_: False)


def _ticking(clock):
    """`Segments._drawn` with a clock that goes on by one second a step."""
    from benchmarks.papers.segments import Segments

    drawn = Segments._drawn

    def tick(self, step):
        clock[0] += 1.0
        return drawn(self, step)

    return tick


def test_a_long_row_has_one_seed_and_the_page_says_so(work_off, monkeypatch, no_plots):
    for module in (plan, queue):
        monkeypatch.setattr(module, "LONG", 0.0)
    rows, page, _ = work_off(small())
    assert all(len(row["runs"]) == 1 for row in rows.values())
    assert "* One seed, as a run takes 40 minutes or more: dense, adtn." in page


def test_a_row_that_needs_the_dense_network_has_it_trained(work_off, no_plots):
    rows, _, _ = work_off(small("dense", "svd"), picked=["svd"])
    assert len(rows["svd"]["runs"]) == 3 and rows["dense"]["runs"] == []
    assert [row["runs"] for row in work_off(small("dense", "svd"))[0].values()][1] == rows["svd"]["runs"]


def test_the_steps_are_a_share_of_the_recipe(work_off, no_plots):
    rows, page, _ = work_off(small("dense"), share=0.5)
    assert [run["steps"] for run in rows["dense"]["runs"]] == [3, 3, 3] and "3 of 6 steps (50%)" in page
    with pytest.raises(CheckpointError, match="is of other settings: steps=3 there, 6 here"):
        work_off(small("dense"))
    assert len(work_off(small("dense"), state="new")[0]["dense"]["runs"]) == 3


def test_a_shorter_schedule_does_not_replace_a_longer_one(work_off, no_plots):
    rows, _, _ = work_off(small("dense"))
    longer = replace(small("dense"), recipe=replace(RECIPE, epochs=2))
    kept, _, _ = work_off(longer, state="new", share=0.25)
    assert kept["dense"]["runs"] == rows["dense"]["runs"] and kept["dense"]["full_steps"] == 6
    taken, _, _ = work_off(longer, state="newer")
    assert taken["dense"]["full_steps"] == 12 and [run["steps"] for run in taken["dense"]["runs"]] == [12] * 3


def test_a_gpu_takes_larger_batches_and_the_longest_rows_first(work_off, tmp_path, monkeypatch, no_plots):
    seen = []
    go_on = queue.Job._trained.__globals__["go_on"]

    def spy(model, batches, rate, file, teacher, autocast, core_rate):
        seen.append((batches.batch, rate, autocast))
        return go_on(model, batches, rate, file, teacher, autocast, core_rate)

    monkeypatch.setattr("benchmarks.papers.work.go_on", spy)
    rows, page, _ = work_off(small("dense"), gpu=True)
    assert set(seen) == {(48, 2e-2, torch.bfloat16)} and ", bfloat16" in page and "batch 48" in page
    assert rows["dense"]["runs"][0]["steps"] == 2

    minutes = {"dense": 1.0, "adtn": 5.0}
    monkeypatch.setattr(queue, "cost", lambda study, method, *_: Cost(6, minutes[method.name], 1.0, True))
    order = {
        gpu: [
            item.job.method.name
            for item in queue.Queue([tiny.paper(small())], Terms(tmp_path, gpu=gpu), tmp_path).items
        ]
        for gpu in (True, False)
    }
    assert order[True][:2] == ["adtn", "dense"] and order[False][:2] == ["dense", "adtn"]


def test_mixed_precision_is_said_and_is_the_same_schedule(work_off, monkeypatch, no_plots):
    rows, page, _ = work_off(small("dense"), mixed=True)
    assert ", batch 12, 1 epochs, bfloat16" in page and rows["dense"]["runs"][0]["steps"] == 6
    monkeypatch.setattr(Job, "run", lambda *_: pytest.fail("run again"))
    assert work_off(small("dense"), state="another")[0] == rows


# ------------------------------------------------------------------------------------------------ bad input


def test_data_that_are_missing_stop_only_the_networks_that_need_them(tmp_path, work_off):
    def missing():
        raise DataError("no MNIST here: set TNC_DATA to a folder with it")

    known = [tiny.paper(small("dense", net="without", load=missing), small("dense"))]
    made = queue.Queue(known, Terms(tmp_path / "state"), tmp_path, say=lambda _: None)
    made.run()
    assert made.missing == {"without on made-up": "no MNIST here: set TNC_DATA to a folder with it"}
    rows = report.read(tmp_path / "mpo.json")
    assert [len(row["runs"]) for row in rows] == [0, 3]
    assert "| mpo | without on made-up | dense |" in (tmp_path / "index.md").read_text()


def test_a_loss_that_is_not_finite_does_not_stop_the_queue(work_off, monkeypatch, no_plots):
    run = Job.run

    def diverges(self, data, terms):
        if self.method.name == "dense":
            raise TncError("the loss has become nan")
        return run(self, data, terms)

    monkeypatch.setattr(Job, "run", diverges)
    rows, _, said = work_off(small())
    assert rows["dense"]["runs"] == [] and len(rows["adtn"]["runs"]) == 3
    assert "mpo/tiny-made-up/dense/0 ended without a result: the loss has become nan" in said


def test_a_full_disk_leaves_the_last_state(tmp_path, monkeypatch, work_off):
    monkeypatch.setattr("benchmarks.papers.segments.Segments._drawn", _full_after(4, monkeypatch))
    with pytest.raises(CheckpointError, match="No space left on device; a file that was there is unchanged"):
        tiny.job("dense", of=small()).run(tiny.data(), Terms(tmp_path / "full", every=1.0))
    monkeypatch.undo()
    monkeypatch.setattr("benchmarks.papers.work.pace", lambda *_: 0.5)
    state = tiny.job("dense", of=small()).state(Terms(tmp_path / "full"), 72)
    assert state.values["progress"] == 2
    run = tiny.job("dense", of=small()).run(tiny.data(), Terms(tmp_path / "full", every=1.0))
    whole = tiny.job("dense", of=small()).run(tiny.data(), Terms(tmp_path / "whole"))
    assert tiny.finished(run) == tiny.finished(whole)


def _full_after(steps, monkeypatch):
    """`Segments._drawn` that fills the disk with a step."""
    from benchmarks.papers.segments import Segments

    drawn = Segments._drawn

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fills(self, step):
        if step + 1 == steps:
            monkeypatch.setattr("tnc.files._flush", full)
        return drawn(self, step)

    return fills


def test_a_second_queue_is_refused(tmp_path):
    refused = pytest.raises(TncError, match=rf"is running on .* already \(process {os.getpid()}\)")
    with locked(tmp_path), refused, locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "[]", '{"settings": {}}', '{"settings": 3, "values": {}}', "\xff"])
def test_a_damaged_state_is_refused(tmp_path, content):
    path = tmp_path / "one.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"one.json' is damaged .*: delete it to begin anew"):
        State(path, {"seed": 0})


def test_a_state_of_other_settings_is_refused(tmp_path):
    State(tmp_path / "one.json", {"seed": 0, "steps": 10}).put(progress=3)
    assert State(tmp_path / "one.json", {"seed": 0, "steps": 10}).values == {"progress": 3}
    with pytest.raises(CheckpointError, match=r"other settings: steps=10 there, 20 here\. Use the same settings"):
        State(tmp_path / "one.json", {"seed": 0, "steps": 20})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--budget", "nan"), "--budget nan is no number of minutes"),
        (("--budget=-3",), "--budget -3 is no number of minutes"),
        (("--gpu=-1",), "--gpu -1 is no number of minutes"),
        (("--share", "0"), "--share 0 is not a share"),
        (("--threads", "0"), "--threads 0 is no number of threads"),
        (("--net", "vgg99"), "no row is called so; papers are mpo, adtn, stp, networks fc2"),
    ],
)
def test_options_that_make_no_sense(capsys, tmp_path, options, said):
    with pytest.raises(SystemExit) as caught:
        queue.main([*options, "--out", str(tmp_path), "--state", str(tmp_path / "state")])
    assert caught.value.code == 2 and said in capsys.readouterr().err


def test_a_folder_that_is_a_file(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out, said in ((tmp_path / "file", "file is a file: name a folder"), (tmp_path / "file" / "below", "file")):
        with pytest.raises(SystemExit):
            queue.main(["--budget", "0", "--out", str(out), "--state", str(tmp_path / "state")])
        assert said in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("content", ['{"rows": [{"net": "fc2"', "[]", '{"rows": [{"net": "fc2"}]}', '{"rows": 5}'])
def test_damaged_results_are_not_overwritten(capsys, tmp_path, content):
    held = tmp_path / "mpo.json"
    held.write_text(content)
    with pytest.raises(SystemExit):
        queue.main(["--budget", "0", "--out", str(tmp_path), "--state", str(tmp_path / "state")])
    said = capsys.readouterr().err
    assert "mpo.json is damaged" in said and "remove it to begin anew" in said
    assert held.read_text() == content


def test_what_a_run_writes_the_next_one_reads(tmp_path):
    for _ in range(2):
        queue.main(["--budget", "0", "--out", str(tmp_path), "--state", str(tmp_path / "state")])
    assert json.loads((tmp_path / "mpo.json").read_text())["rows"]


def test_a_gpu_that_is_not_there(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "device", lambda: torch.device("cpu"))
    with pytest.raises(SystemExit):
        queue.main(["--gpu", "1", "--out", str(tmp_path)])
    assert "--gpu needs CUDA, and torch finds none here" in capsys.readouterr().err


def test_the_command_says_what_is_missing_and_fails(capsys, tmp_path, monkeypatch):
    def missing():
        raise DataError("no MNIST here")

    monkeypatch.setattr(queue, "papers", lambda: [tiny.paper(small("dense", load=missing))])
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as caught:
        queue.main(["--gpu", "1", "--stand-in", "--out", str(tmp_path), "--state", str(tmp_path / "state")])
    torch.set_num_threads(threads)
    assert caught.value.code == 1 and "tiny on made-up: no MNIST here" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- index


def test_the_index_keeps_what_stands_between_its_sections(tmp_path):
    own = index.EMPTY.replace("<!-- not run: begin -->", "My words.\n\n<!-- not run: begin -->")
    (tmp_path / "index.md").write_text(own)
    for _ in range(2):  # the second time gives the same
        publish.update_index([tiny.paper(small())], tmp_path)
        text = (tmp_path / "index.md").read_text()
        assert text.count("My words.") == 1 and text.count("| mpo | tiny on made-up | dense |") == 1
    (tmp_path / "index.md").write_text("no markers")
    with pytest.raises(TncError, match="lacks the lines"):
        publish.update_index([tiny.paper(small())], tmp_path)
    assert (tmp_path / "index.md").read_text() == "no markers"


def test_the_figure_shows_every_row_that_was_run(tmp_path):
    own = {"net": "tiny", "kind": "dense", "replaced": 10, "published": {"accuracy": "≈ 60"}}
    rows = [{**own, "runs": [{"accuracy": 0.5}]}]
    assert index.figure([("mpo", rows)], tmp_path / "summary.svg")
    assert "mpo: tiny" in (tmp_path / "summary.svg").read_text()
    assert not index.figure([("mpo", [{**rows[0], "runs": []}])], tmp_path / "summary.svg")
    assert not (tmp_path / "summary.svg").exists()


def test_the_summary_shows_the_row_that_the_paper_states_or_validation_prefers():
    def row(method, validation, **published):
        run = {"validation": validation, "accuracy": 0.9, "steps": 1, "seconds": 1.0}
        return {"method": method, "kind": "paper", "published": published, "runs": [run]}

    plain = [row("a", 0.8), row("b", 0.9)]
    assert index.ours(plain)["method"] == "b"
    assert index.ours([*plain, row("c", 0.1, accuracy="≈ 91.2")])["method"] == "c"
    assert index.ours([{**plain[0], "runs": []}]) is None


def test_minutes_are_measured_where_a_row_was_timed_and_estimated_elsewhere(tmp_path):
    from benchmarks.papers import mpo

    lenet = mpo.studies()[1]
    assert plan.multiplications(lenet) == 5 * 5 * 6 * 28 * 28 + 6 * 5 * 5 * 16 * 10 * 10 + 400 * 120 + 120 * 84 + 840
    method, terms = lenet.methods[1], Terms(tmp_path)
    guess = plan.cost(lenet, method, terms, {})
    assert not guess.measured and guess.steps == 10_800
    assert math.isclose(guess.minutes, 3 * 100 * plan.multiplications(lenet) / plan.SPEED * 10_800 / 60)
    timed = {"dense": {"runs": [{"steps": 100, "seconds": 2.0}]}}
    known = plan.cost(lenet, method, terms, timed)
    assert known.measured and math.isclose(known.minutes, 0.02 * 10_800 / 60)
    trials = 3 * 2160 * 0.02 / 60
    assert math.isclose(known.total, 3 * known.minutes + trials)
    on_gpu = {"dense": {**timed["dense"], "machine": "x86_64, a GPU"}}
    assert plan.cost(lenet, method, terms, on_gpu) == guess
    slow = plan.cost(lenet, method, terms, {"dense": {"runs": [{"steps": 1, "seconds": 1.0}]}})
    assert math.isclose(slow.total, slow.minutes + 3 * 2160 / 60)  # one seed


def test_every_row_that_waits_in_the_docs_has_a_number_of_minutes():
    text = (publish.DOCS / "index.md").read_text(encoding="utf-8")
    assert "unknown" not in text[text.index("<!-- not run: begin -->") :]
    assert json.loads((publish.DOCS / "mpo.json").read_text(encoding="utf-8"))["rows"]
