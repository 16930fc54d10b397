"""`make compare`: verdicts on made-up numbers, which commit is the base, and two tiny trees of which one is slower."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.compare.__main__ import main
from benchmarks.compare.base import (
    BACK,
    NothingToCompare,
    UnknownCommit,
    check_out,
    default_base,
    named_base,
    write_metadata,
)
from benchmarks.compare.driver import CELLS, Effort, unusual, value
from benchmarks.compare.verdict import Result, confirmed, refused


def result(*ratios: float, **more: str) -> Result:
    return Result("cell", "s", ratios, [1.0] * len(ratios), **more)


# ------------------------------------------------------------------ verdicts


@pytest.mark.parametrize(
    ("ratios", "limit", "verdict"),
    [
        ((1.2, 1.21, 1.22, 1.23), 1.1, "slower"),
        ((1.2, 1.21, 1.22, 1.23), 1.5, ""),
        ((0.9, 1.0, 1.3, 1.4, 1.5), 1.1, ""),  # the median is above the limit, the spread is not
        ((1.0, 1.01, 0.99, 7.0), 1.1, ""),  # one disturbed pair
        ((0.5, 0.51, 0.52), 1.1, "faster"),
        ((0.5, 0.9, 1.0, 1.1), 1.1, ""),
        ((1.2,), 1.1, "slower"),
        ((), 1.1, "not measured"),
    ],
)
def test_a_cell_is_slower_beyond_its_spread_only(ratios, limit, verdict):
    assert result(*ratios).verdict(limit) == verdict


def test_ratios_are_taken_within_pairs():
    drifting = Result("cell", "s", [1.0, 2.0, 40.0], [1.0, 2.0, 40.0])
    assert drifting.ratios == [1.0, 1.0, 1.0]
    assert drifting.spread == (1.0, 1.0)


def test_the_spread_is_the_quartiles():
    assert result(1.0, 2.0, 3.0, 4.0, 5.0).spread == (2.0, 4.0)


def test_a_slowdown_that_was_meant_is_said_and_not_refused():
    cell = "benchmarks/compare/cells/test_fits.py::test_fit[mpo-matrix]"
    meant = Result(cell, "s", [6.0] * 3, [1.0] * 3)
    assert meant.verdict(1.5) == "slower, as meant" and refused([meant], 1.5) == []
    beyond = Result(cell, "s", [9.0] * 3, [1.0] * 3)
    assert beyond.verdict(1.5) == "slower" and refused([beyond], 1.5) == [beyond]


@pytest.mark.parametrize("note", ["new", "vanished", "failed in the base", "skipped here", "no time left"])
def test_what_was_not_measured_is_listed_and_not_refused(note):
    assert result(note=note).verdict() == note
    assert refused([result(note=note)]) == []


@pytest.mark.parametrize("note", ["failed here", "failed on both sides"])
def test_a_cell_that_does_not_run_here_is_refused(note):
    assert [found.note for found in refused([result(note=note), result(1.0)])] == [note]


def test_a_slowdown_counts_when_a_second_run_repeats_it():
    slow, slower, fine = result(1.3, 1.3), result(1.6, 1.6), result(1.0, 1.0)
    assert confirmed(slower, slow) is slow
    assert confirmed(slow, slower) is slow
    assert confirmed(slow, fine) is fine
    assert refused([confirmed(slow, fine)]) == []
    unconfirmed = confirmed(slow, None)
    assert unconfirmed.verdict() == "not repeated" and "1.30" in unconfirmed.reason


def test_which_side_failed_is_said():
    fine, failed = {"min": 1.0, "extra": {}}, {"failed": "ValueError: no"}
    assert unusual({"here": fine, "base": fine}) is None
    assert unusual({"here": failed, "base": fine}) == ("failed here", "ValueError: no")
    assert unusual({"here": fine, "base": failed}) == ("failed in the base", "ValueError: no")
    assert unusual({"here": failed, "base": failed}) == ("failed on both sides", "ValueError: no")
    assert unusual({"here": {"skipped": "no torch"}, "base": fine}) == ("skipped here", "no torch")


def test_what_a_cell_measured_itself_counts_before_the_clock():
    assert value({"min": 2.0, "extra": {}}) == (2.0, "s")
    assert value({"min": 2.0, "extra": {"seconds": 0.5}}) == (0.5, "s")
    assert value({"min": 2.0, "extra": {"bytes": 1024}}) == (1024.0, "bytes")


def test_long_cells_get_fewer_pairs():
    effort = Effort(least=5, most=9, seconds=1.0, few=3)
    assert not effort.enough(4, 0.5) and not effort.enough(5, 0.5) and effort.enough(9, 0.5)
    assert effort.enough(5, 1.5) and effort.enough(3, 9.0) and not effort.enough(2, 9.0)


# ---------------------------------------------------------------------- base


def git(folder: Path, *words: str) -> str:
    """Git without the settings of whoever runs the tests."""
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for who in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{who}_NAME": "A", f"GIT_{who}_EMAIL": "a@example.invalid"}
    done = subprocess.run(["git", *words], cwd=folder, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder: Path, count: int = 1) -> list[str]:
    made = []
    for _ in range(count):
        git(folder, "commit", "-q", "--allow-empty", "-m", "a change")
        made.append(git(folder, "rev-parse", "HEAD"))
    return made


@pytest.fixture
def repository(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    return folder


def test_without_a_release_the_base_is_some_commits_back(repository):
    commits = commit(repository, BACK + 2)
    assert default_base(repository).commit == commits[-1 - BACK]


def test_of_few_commits_the_base_is_the_first(repository):
    commits = commit(repository, 3)
    found = default_base(repository)
    assert found.commit == commits[0] and "first commit, 2 back" in found.why


def test_the_last_release_before_this_commit_is_the_base(repository):
    first, second, _ = commit(repository, 3)
    git(repository, "tag", "v0.1.0", first)
    git(repository, "tag", "v0.2.0", second)
    git(repository, "tag", "nightly")  # no release
    assert default_base(repository).commit == second
    git(repository, "checkout", "-q", second)  # a release is compared with the one before it
    assert default_base(repository).commit == first


def test_without_another_commit_there_is_nothing_to_compare_with(repository):
    with pytest.raises(NothingToCompare, match="no commit"):
        default_base(repository)
    commit(repository)
    with pytest.raises(NothingToCompare, match="this commit is the first one"):
        default_base(repository)


def test_a_shallow_clone_says_so(repository, tmp_path):
    commit(repository, 4)
    for depth in (1, 2):
        git(tmp_path, "clone", "-q", "--depth", str(depth), repository.as_uri(), str(tmp_path / str(depth)))
    with pytest.raises(NothingToCompare, match="shallow"):
        default_base(tmp_path / "1")
    assert "oldest of a shallow clone" in default_base(tmp_path / "2").why
    with pytest.raises(UnknownCommit, match="shallow"):
        named_base(tmp_path / "1", "HEAD~1")


def test_without_git_the_comparison_passes_and_says_so(tmp_path, capsys):
    assert main([], root=tmp_path) == 0
    assert "nothing to compare with, as there is no git repository" in capsys.readouterr().out


def test_a_base_that_does_not_exist_is_an_error(repository, capsys):
    commit(repository)
    assert main(["--base", "v9"], root=repository) == 2
    assert "'v9' is no commit" in capsys.readouterr().out
    assert "this very commit" in named_base(repository, "HEAD").why


def test_the_base_is_checked_out_with_its_own_entry_points(repository, tmp_path):
    project = '[project]\nname = "tncompress"\n[project.entry-points."tnc.decompositions"]\nold = "tnc.old:Old"\n'
    (repository / "pyproject.toml").write_text(project)
    git(repository, "add", ".")
    (first,) = commit(repository)
    (repository / "pyproject.toml").write_text(project.replace("old", "new"))
    check_out(repository, first, tmp_path / "tree")
    write_metadata(tmp_path / "tree", tmp_path / "metadata")
    (entries,) = (tmp_path / "metadata").rglob("entry_points.txt")
    assert "[tnc.decompositions]\nold = tnc.old:Old\n" in entries.read_text()


# ---------------------------------------------------------------- two trees

CELL = """
import pytest
import tnc

@pytest.mark.short
def test_work(benchmark):
    benchmark.pedantic(tnc.work, rounds=2)

@pytest.mark.short
def test_rest(benchmark):
    benchmark.extra_info["bytes"] = benchmark.pedantic(lambda: 1024, rounds=1)
"""
PROJECT = """
[project]
name = "tncompress"
[project.entry-points."tnc.decompositions"]
here = "tnc:work"
"""


def fill(folder: Path, milliseconds: int, cell: str) -> None:
    (folder / "tnc").mkdir(exist_ok=True)
    code = f"import time\ndef work(): time.sleep({milliseconds} / 1000)\n"
    (folder / "tnc" / "__init__.py").write_text(code)
    (folder / CELLS).mkdir(parents=True, exist_ok=True)
    (folder / CELLS / "test_tiny.py").write_text(cell)
    (folder / "pyproject.toml").write_text(PROJECT)


def test_a_tree_that_became_slower_is_refused(repository, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    only = "\n@pytest.mark.short\ndef test_{name}(benchmark):\n    benchmark({call})\n"
    fill(repository, 4, CELL + only.format(name="gone", call="int") + only.format(name="broken", call="int"))
    git(repository, "add", ".")
    commit(repository)
    fill(repository, 20, CELL + only.format(name="fresh", call="int") + only.format(name="broken", call="tnc.absent"))
    git(repository, "commit", "-q", "-a", "-m", "slower")
    path = tmp_path / "told.json"
    assert main(["--short", "--repeat", "--base", "HEAD~1", "--json", str(path)], root=repository) == 1
    told = json.loads(path.read_text())
    verdicts = {cell["cell"].partition("::")[2]: cell["verdict"] for cell in told["cells"]}
    assert verdicts == {
        "test_work": "slower",
        "test_rest": "",
        "test_fresh": "new",
        "test_gone": "vanished",
        "test_broken": "failed here",
    }
    (slow,) = [cell for cell in told["cells"] if cell["verdict"] == "slower"]
    assert len(slow["ratios"]) >= 3 and slow["quartiles"][0] > 1.1
    printed = capsys.readouterr().out
    assert "REFUSED tiny work: slower" in printed and "REFUSED tiny broken: failed here" in printed
    assert [name.name for name in tmp_path.glob("tnc-compare-*")] == []


def test_a_process_that_would_measure_another_tree_is_refused(repository, capsys):
    fill(repository, 0, CELL)
    project = repository / "pyproject.toml"
    project.write_text(PROJECT.replace("tnc:work", "numpy:array"))
    git(repository, "add", ".")
    commit(repository)
    assert main(["--short", "--base", "HEAD"], root=repository) == 2
    assert "entry point here comes from" in capsys.readouterr().out


def test_a_base_older_than_the_cells_gets_those_of_this_tree(repository, tmp_path):
    fill(repository, 0, CELL)
    (repository / CELLS / "test_tiny.py").unlink()
    (repository / "tnc" / "__init__.py").write_text("import os\ndef work(): os._exit(3)\n")  # takes its process along
    git(repository, "add", ".")
    commit(repository)
    fill(repository, 0, CELL)
    path = tmp_path / "told.json"
    assert main(["--short", "--base", "HEAD", "--json", str(path)], root=repository) == 0
    told = {cell["cell"].partition("::")[2]: cell for cell in json.loads(path.read_text())["cells"]}
    assert told["test_work"]["verdict"] == "failed in the base" and "died" in told["test_work"]["reason"]
    assert told["test_rest"]["ratio"] == 1.0


def test_an_interruption_leaves_nothing_behind(repository, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    fill(repository, 0, CELL)
    git(repository, "add", ".")
    commit(repository)
    seen = []

    def interrupted(sides, *unused):
        seen.extend(side.process for side in sides)
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.compare.__main__.compare", interrupted)
    assert main(["--base", "HEAD"], root=repository) == 130
    assert "interrupted" in capsys.readouterr().out
    assert len(seen) == 2 and all(process.returncode is not None for process in seen)
    assert list(tmp_path.glob("tnc-compare-*")) == []


# ------------------------------------------------------------------- peers


def test_peers_are_compared_in_the_same_table(tmp_path, capsys, monkeypatch):
    pytest.importorskip("tensorly")
    from benchmarks.compare import peers

    monkeypatch.setattr(peers, "FITS", [("tucker", "16x16x3x3", (4, 4))])
    path = tmp_path / "peers.json"
    assert peers.main(["--only", "fits", "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["cells"]
    assert row["cell"] == "fit tucker 16x16x3x3, tensorly" and row["reason"].startswith("error 0.")
    assert row["ratio"] > 0 and "ours / theirs" in capsys.readouterr().out


def test_a_peer_that_fails_is_a_row():
    from benchmarks.compare.peers import against
    from benchmarks.paired import Paired

    paired = Paired({"tnc": int, "other": lambda: 1 / 0}, always=("tnc",))
    (row,) = against("count", paired, "tnc", {})
    assert row.cell == "count, other" and row.note == "failed" and "ZeroDivisionError" in row.reason
