"""What a file says reaches the terminal as text: nothing in it moves the cursor, changes colours or hides."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import tnc
from tnc import Checkpoint, Factorization, Network, Report, storage
from tnc.cli import app
from tnc.cli.terminal import show
from tnc.errors import CheckpointError, listed, printable
from tnc.report import Row

EVIL = "\x1b[2J\x1b]0;title\x07\x9b31m\rname\u202etxt\x7f\b\u200b"
SAFE = "\\x1b[2J\\x1b]0;title\\x07\\x9b31m\\rname\\u202etxt\\x7f\\x08\\u200b"


def harmless(text):
    return all(c.isprintable() or c == "\n" for c in text)


def test_printable():
    assert printable(EVIL) == SAFE and printable("fc1.weight ключ ×") == "fc1.weight ключ ×"
    assert printable("a\nb\ud800") == "a\\nb\\ud800"


@pytest.fixture
def file(tmp_path):
    network = Network("m r, r n -> m n", {"m": 2, "r": 1, "n": 2})
    entry = Factorization(network, [np.ones((2, 1)), np.ones((1, 2))], (2, 2))
    report = Report([Row(EVIL, EVIL, (2, 2), (1,), 4, 4, 4, note=EVIL)])
    made = Checkpoint(
        {EVIL: entry, f"{EVIL}b": np.ones(2)}, methods={EVIL: EVIL}, aliases={f"{EVIL}z": EVIL}, report=report
    )
    made.save(tmp_path / "x")
    return tmp_path / "x"


def test_inspect_shows_escapes(file):
    shown = CliRunner().invoke(app, ["inspect", str(file)])
    assert shown.exit_code == 0 and harmless(shown.stdout)
    folded = "".join(shown.stdout.split())
    assert "\\x1b[2J" in folded and "\\u202e" in folded
    said = CliRunner().invoke(app, ["inspect", str(file), "--json"])
    assert harmless(said.stdout) and json.loads(said.stdout)["rows"][0]["name"] == EVIL


def test_a_report_shows_escapes(file):
    report = tnc.load(file).report
    assert harmless(str(report)) and "\\x1b[2J" in "".join(str(report).split())
    assert report.rows[0].name == EVIL  # what is kept is what was given


def test_errors_show_escapes(file, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        storage.write(tmp_path / "y", {EVIL: np.ones(2, np.complex128)}, {}, frozenset())
    layout = {EVIL: {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}
    raw = json.dumps(layout).encode()
    (tmp_path / "y").write_bytes(len(raw).to_bytes(8, "little") + raw + b"x")
    for arguments in (
        ["inspect", str(tmp_path / "y")],
        ["compress", str(file), str(tmp_path / "z"), "--rule", "q=svd@1"],
    ):
        shown = CliRunner().invoke(app, arguments)
        assert shown.exit_code == 2 and harmless(shown.stderr), arguments
    assert harmless(listed([EVIL])) and str(caught.value)


@pytest.mark.parametrize("err", [False, True])
def test_what_is_no_terminal_has_wide_lines(capsys, monkeypatch, err):
    """A file or a pipe gets whole lines; a terminal gets lines of its own width."""
    words = " ".join(["word"] * 30)  # 149 characters
    monkeypatch.setenv("COLUMNS", "60")
    show(words, err=err)
    assert capsys.readouterr()[err] == words + "\n"
    monkeypatch.setattr(sys.stderr if err else sys.stdout, "isatty", lambda: True)
    show(words, err=err)
    assert max(map(len, capsys.readouterr()[err].splitlines())) <= 60


def test_text_is_no_markup(capsys):
    show("a [red]file[/red]")
    assert capsys.readouterr().out == "a [red]file[/red]\n"
