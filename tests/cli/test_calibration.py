"""``tnc compress --calibration``: fits for the outputs of a model, from a file of statistics."""

from __future__ import annotations

import json
import sys

import pytest
from safetensors.numpy import save_file

import tnc
from tests.cli.test_cli import call, refused

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tnc.nn.calibration import gather  # noqa: E402


@pytest.fixture
def files(tmp_path):
    """A file of weights, statistics with and without moments of gradients, and where to write."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 10))
    x = torch.randn(64, 24) * torch.logspace(-1, 1, 24)
    source, full, part = (tmp_path / f"{name}.safetensors" for name in ("in", "full", "part"))
    save_file({name: value.numpy() for name, value in model.state_dict().items()}, source)
    gather(model, x, gradients=True).save(full)
    gather(model, x).save(part)
    return source, full, part, tmp_path / "out.safetensors"


def rows(done):
    assert done.exit_code == 0, done.output
    return {row["name"]: row for row in json.loads(done.stdout)["rows"]}


def test_fits_are_for_the_outputs(files):
    source, full, part, out = files
    seen = rows(call("compress", source, out, "--rule", "*=svd@4", "--calibration", part, "--json"))
    plain = rows(call("compress", source, out, "--rule", "*=svd@4", "--json"))
    assert plain["0.weight"]["output_error"] is None and plain["0.weight"]["operations_before"] is None
    assert seen["0.weight"]["output_error"] < plain["0.weight"]["error"] < seen["0.weight"]["error"]
    assert seen["0.weight"]["operations_after"] == 4 * (24 + 32) < seen["0.weight"]["operations_before"] == 24 * 32
    fisher = rows(
        call("compress", source, out, "--rule", "*=svd@4", "--calibration", full, "--objective", "fisher", "--json")
    )
    assert fisher["0.weight"]["output_error"] != seen["0.weight"]["output_error"]
    assert tnc.load(out).report.rows[0].output_error == fisher["0.weight"]["output_error"]


def test_a_dry_run_predicts(files):
    source, full, _, out = files
    rule = ("--rule", "*=auto(among=('svd','tt'))@budget:0.4")
    said = rows(call("compress", source, out, *rule, "--calibration", full, "--dry-run", "--json"))
    assert not out.exists()
    methods = {row["method"] for row in said.values()}
    assert methods <= {"svd", "tt", "dense"} and methods != {"dense"}
    row = next(row for row in said.values() if row["method"] != "dense")
    assert row["predicted"] > 0 and {c[0] for c in row["candidates"]} == {"svd", "tt"}
    shown = call("compress", source, out, *rule, "--dry-run")
    assert "predicted" in shown.stdout and "would be written (dry run)" in shown.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--objective", "fisher"], ["--calibration"]),
        (["--calibration", "part", "--objective", "fisher"], ["gradients=True"]),
        (["--calibration", "in"], ["no file of statistics"]),
        (["--calibration", "none"], ["none"]),
        (["--calibration", "part", "--objective", "best"], ["best"]),
        (["--calibration", "part", "--roles", "0.*=columns rows"], ["0.weight", "roles"]),
    ],
)
def test_a_bad_request_is_one_line(files, options, words):
    source, *_, out = files
    options = [str(source.with_name(f"{o}.safetensors")) if o in ("part", "in", "none") else o for o in options]
    refused(call("compress", source, out, "--rule", "*=svd@4", *options), *words)
    assert not out.exists()


def test_without_torch_the_extra_is_named(files, monkeypatch):
    source, full, _, out = files
    for name in [name for name in sys.modules if name == "tnc.nn" or name.startswith("tnc.nn.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(tnc, "nn", None, raising=False)
    done = call("compress", source, out, "--rule", "*=svd@4", "--calibration", full)
    refused(done, "--calibration needs PyTorch", "pip install 'tncompress[torch]'")
