"""What the papers' command cannot do it says in one sentence."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from benchmarks.papers import cli  # noqa: E402 - after the check that torch is here

FC2 = ("mpo", "--net", "fc2")


@pytest.fixture
def refused(capsys, tmp_path):
    """Runs the command; returns the sentence it ends with."""

    def call(*options):
        with pytest.raises(SystemExit) as caught:
            cli.main([*FC2, *("--out", str(tmp_path / "out")), *map(str, options)])
        assert caught.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return call


@pytest.mark.parametrize("minutes", ["nan", "-3", "-inf"])
def test_a_budget_is_a_number_of_minutes(refused, tmp_path, minutes):
    assert f"--budget {minutes} is no number of minutes" in refused(f"--budget={minutes}")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "file is a file: name a folder" in refused("--budget", 0, "--out", tmp_path / "file")
    assert "file" in refused("--budget", 0, "--out", tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("content", ['{"rows": [{"net": "fc2"', "[]", '{"rows": [{"net": "fc2"}]}', '{"rows": 5}'])
def test_damaged_results_are_not_overwritten(refused, tmp_path, content):
    held = tmp_path / "out" / "mpo.json"
    held.parent.mkdir()
    held.write_text(content)
    said = refused("--budget", 0)
    assert "mpo.json is damaged" in said and "remove it to begin anew" in said
    assert held.read_text() == content


def test_what_a_run_writes_the_next_one_reads(tmp_path):
    for _ in range(2):
        cli.main([*FC2, "--budget", "0", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "mpo.json").read_text())["rows"]


def test_data_that_are_not_there(refused, monkeypatch):
    monkeypatch.setenv("TNC_DATA", "nowhere")
    assert "TNC_DATA=nowhere is no folder" in refused("--budget", 1)
