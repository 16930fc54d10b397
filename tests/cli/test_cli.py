"""The command line: every command, machine-readable output, and one clear line for a bad request."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import tnc
from tnc.cli import app


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    weights = {
        "layer.0.fc.weight": rng.standard_normal((16, 24)).astype(np.float32),
        "layer.0.fc.bias": rng.standard_normal(16).astype(np.float32),
        "layer.1.conv.weight": rng.standard_normal((8, 6, 3, 3)).astype(np.float32),
    }
    path = tmp_path / "in.safetensors"
    save_file(weights, path)
    return path


def call(*args, env=None):
    return CliRunner().invoke(app, [str(a) for a in args], env={"TNC_DEBUG": "0", **(env or {})})


def run(*args, **env):
    """The same in a process of its own, as a person would."""
    command = [sys.executable, "-c", "from tnc.cli import main; main()", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "TNC_DEBUG": "0", **env}
    )


def refused(result, *words):
    """Exit code 2, nothing on standard output, and one line with all of `words` on standard error."""
    code = getattr(result, "exit_code", None)
    assert (result.returncode if code is None else code) == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("tnc: ")
    for word in words:
        assert word in result.stderr, result.stderr


RULE = ("--rule", "*fc.weight=svd@4")


def test_compress_then_inspect(source, tmp_path):
    out = tmp_path / "out.safetensors"
    done = call("compress", source, out, *RULE, "--rule", "*conv*=tucker@ratio:0.5")
    assert done.exit_code == 0, done.output
    assert "layer.0.fc.weight" in done.stdout and "svd" in done.stdout and "tucker" in done.stdout
    checkpoint = tnc.load(out)
    assert set(checkpoint) == set(load_file(source))
    assert checkpoint["layer.0.fc.weight"].network.n_params == 4 * (16 + 24)
    shown = call("inspect", out)
    assert shown.exit_code == 0, shown.output
    assert "layer.0.fc.weight" in shown.stdout and "layer.0.fc.bias" in shown.stdout
    assert shown.stdout.strip().splitlines()[-1].endswith(f"; {out.stat().st_size:,} bytes")  # the totals come last


def test_compress_json(source, tmp_path):
    out = tmp_path / "out.safetensors"
    done = call("compress", source, out, *RULE, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    row = next(row for row in said["rows"] if row["name"] == "layer.0.fc.weight")
    assert (row["before"], row["after"]) == (384, 160)
    assert 0 < row["error"] < 1
    assert said["file"] == str(out) and said["bytes"] == out.stat().st_size
    assert said["parameters_before"] == 16 * 24 + 16 + 8 * 6 * 9
    assert said["parameters_after"] == 160 + 16 + 8 * 6 * 9


def test_inspect_json(source, tmp_path):
    out = tmp_path / "out.safetensors"
    assert call("compress", source, out, *RULE).exit_code == 0
    said = json.loads(call("inspect", out, "--json").stdout)
    rows = {row["name"]: row for row in said["rows"]}
    assert rows["layer.0.fc.weight"]["shape"] == [16, 24] and rows["layer.0.fc.weight"]["after"] == 160
    assert "->" in rows["layer.0.fc.weight"]["pattern"]
    assert rows["layer.0.fc.bias"]["after"] == rows["layer.0.fc.bias"]["before"] == 16
    assert said["parameters_after"] == 160 + 16 + 8 * 6 * 9


def test_inspect_reads_a_plain_file(source):
    said = json.loads(call("inspect", source, "--json").stdout)
    assert said["parameters_before"] == said["parameters_after"] == 16 * 24 + 16 + 8 * 6 * 9


def test_a_dry_run_writes_nothing(source, tmp_path):
    out = tmp_path / "out.safetensors"
    done = call("compress", source, out, *RULE, "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["parameters_after"] == 160 + 16 + 8 * 6 * 9
    assert not out.exists()


def test_the_same_seed_gives_the_same_file(source, tmp_path):
    files = [tmp_path / f"{k}.safetensors" for k in range(2)]
    for file in files:
        assert call("compress", source, file, "--rule", "*conv*=tucker@2", "--seed", 7).exit_code == 0
    a, b = map(load_file, files)
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_file_may_replace_itself(source):
    assert call("compress", source, source, *RULE).exit_code == 0
    assert tnc.load(source)["layer.0.fc.weight"].network.n_params == 160


@pytest.mark.parametrize("backend", ["numpy", "torch:cpu"])
def test_the_backend_is_chosen(source, tmp_path, backend):
    if backend.startswith("torch"):
        pytest.importorskip("torch")
    out = tmp_path / "out.safetensors"
    assert call("compress", source, out, *RULE, "--backend", backend).exit_code == 0
    assert out.exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--rule", "*fc*=sdv@4"], ["sdv", "svd"]),
        (["--rule", "*fc*=svd(size=3)@4"], ["size"]),
        (["--rule", "*fc*=svd"], ["*fc*=svd", "@"]),
        (["--rule", "svd@4"], ["svd@4", "="]),
        (["--rule", "*fc*=svd@many"], ["many"]),
        (["--rule", "*fc.weight=svd@0"], ["0"]),
        (["--rule", "*fc.weight=svd@ratio:-0.1"], ["-0.1"]),
        (["--rule", "*missing*=svd@4"], ["*missing*", "layer.0.fc.weight"]),
        ([*RULE, "--backend", "tensorflow"], ["tensorflow", "numpy"]),
        ([*RULE, "--seed", "soon"], ["--seed", "integer"]),
        ([*RULE, "--colour"], ["--colour"]),
        ([], ["--rule"]),
    ],
)
def test_a_bad_request_is_one_line(source, tmp_path, args, words):
    out = tmp_path / "out.safetensors"
    refused(call("compress", source, out, *args), *words)
    assert not out.exists()


def test_bad_files_are_one_line(source, tmp_path):
    out = tmp_path / "out.safetensors"
    refused(call("compress", tmp_path / "none.safetensors", out, *RULE), "none.safetensors")
    refused(call("compress", source, tmp_path / "no" / "such" / "out.safetensors", *RULE), "no/such", "folder")
    refused(call("compress", source, tmp_path, *RULE), "folder")
    refused(call("inspect", tmp_path / "none.safetensors"), "none.safetensors")
    refused(call("inspect", tmp_path), str(tmp_path))
    (tmp_path / "junk").write_bytes(b"junk, and not a checkpoint at all")
    refused(call("inspect", tmp_path / "junk"), "junk")
    refused(call("compress", tmp_path / "junk", out, *RULE), "junk")
    (tmp_path / "short").write_bytes(source.read_bytes()[:-40])
    refused(call("inspect", tmp_path / "short"), "short")
    refused(call("compress", tmp_path / "short", out, *RULE), "short")


def test_a_refused_request_leaves_the_old_file(source, tmp_path):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    refused(call("compress", source, out, "--rule", "*missing*=svd@4"))
    assert out.read_bytes() == b"old"


def test_a_nan_names_the_weight(tmp_path):
    weights = {"good": np.ones((4, 4), np.float32), "sick": np.full((4, 4), np.nan, np.float32)}
    save_file(weights, tmp_path / "in.safetensors")
    refused(call("compress", tmp_path / "in.safetensors", tmp_path / "out.safetensors", "--rule", "*=svd@1"), "sick")


def test_plugins_lists_what_is_installed():
    done = call("plugins")
    assert done.exit_code == 0, done.output
    for name in ("svd", "mpo", "tucker", "numpy", "torch", "tncompress"):
        assert name in done.stdout


def test_plugins_json_says_who_and_whether_it_loads():
    said = json.loads(call("plugins", "--json").stdout)
    svd = next(row for row in said["decompositions"] if row["name"] == "svd")
    assert svd["loads"] is True and svd["problem"] == "" and svd["distribution"] == "tncompress"
    assert svd["version"] and svd["target"].startswith("tnc_plugins.svd:")
    assert svd["summary"] == tnc.decompositions["svd"].__doc__.partition("\n")[0]
    assert next(row for row in said["backends"] if row["name"] == "numpy")["loads"] is True


def test_plugins_says_why_one_does_not_load(monkeypatch):
    from tnc import registry

    real = registry.Registry.plugins
    broken = registry.Plugin("sick", "no_such_module_here:Thing", "stranger", "1.0")
    monkeypatch.setattr(registry.Registry, "plugins", lambda self: [*real(self), broken])
    said = json.loads(call("plugins", "--json").stdout)
    sick = next(row for row in said["decompositions"] if row["name"] == "sick")
    assert sick["loads"] is False and "no_such_module_here" in sick["problem"] and sick["summary"] == ""
    assert "does not load" in call("plugins").stdout


def test_an_internal_error_is_one_line_and_another_code(monkeypatch):
    from tnc import registry

    monkeypatch.setattr(registry.Registry, "plugins", lambda self: 1 / 0)
    done = call("plugins")
    assert done.exit_code == 1 and done.stderr.count("\n") == 1
    assert "ZeroDivisionError" in done.stderr and "TNC_DEBUG=1" in done.stderr
    assert isinstance(call("plugins", env={"TNC_DEBUG": "1"}).exception, ZeroDivisionError)


def test_the_help_and_the_version():
    assert call("--version").stdout.startswith("tncompress ")
    shown = call("--help")
    assert shown.exit_code == 0
    for command in ("compress", "inspect", "plugins", "demo"):
        assert command in shown.stdout
        assert call(command, "--help").exit_code == 0
    assert call().stdout == shown.stdout
    refused(call("compres"), "compres", "compress")
    refused(call("inspect"), "FILE")


def test_demo_refuses_a_folder_without_data(tmp_path):
    pytest.importorskip("torch")
    env = {"TNC_DATA": str(tmp_path)}
    refused(call("demo", "--out", tmp_path / "out", env=env), "TNC_DATA", "train-images-idx3-ubyte")
    assert not (tmp_path / "out").exists()


def test_a_budget_may_count_the_whole_file(source, tmp_path):
    out, sizes = tmp_path / "out.safetensors", []
    for budget in ("budget:0.6", "budget:0.6,whole"):
        done = call("compress", source, out, "--rule", "*fc.weight=svd@" + budget, "--json")
        assert done.exit_code == 0, done.output
        sizes.append(sum(array.size for array in load_file(out).values() if array.dtype == np.float32))
    matched, whole = 16 * 24, 16 * 24 + 16 + 8 * 6 * 9
    assert sizes[0] <= 0.6 * matched + (whole - matched) and sizes[1] <= 0.6 * whole < sizes[0]
    refused(call("compress", source, out, "--rule", "*fc.weight=svd@budget:0.1,whole"), "budget")


@pytest.fixture
def made_mnist(tmp_path):
    """A folder with the four idx files, of noise."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 240), ("t10k", 100)):
        for kind, array in (
            ("images-idx3", rng.integers(0, 256, (n, 28, 28))),
            ("labels-idx1", rng.integers(0, 10, n)),
        ):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (tmp_path / f"{part}-{kind}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
    return tmp_path


@pytest.fixture
def _one_thread():
    """More threads than free cores wait for each other, for minutes."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_demo(made_mnist, tmp_path):
    out, quick = tmp_path / "out", ("--method", "svd", "--epochs", 1, "--tune", 1)
    done = call("demo", "--out", out, *quick, "--json", env={"TNC_DATA": str(made_mnist)})
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert [row["method"] for row in said["rows"]] == ["dense", "svd"] and said["reloaded"]
    assert (out / "model.safetensors").exists()
    done = call("demo", "--out", out, *quick, env={"TNC_DATA": str(made_mnist)})
    assert done.exit_code == 0, done.output
    assert "svd" in done.stdout and str(out / "model.safetensors") in done.stdout


# ------------------------------------------------------------------------------- in a process of its own


def test_a_whole_run_in_processes(source, tmp_path):
    out = tmp_path / "out.safetensors"
    done = run("compress", source, out, *RULE, "--json")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert json.loads(done.stdout)["file"] == str(out)
    done = run("inspect", out)
    assert done.returncode == 0 and "svd" in done.stdout
    assert "…" not in done.stdout  # a pipe has no width


def test_into_a_pipe(source):
    main = "import tnc.cli; tnc.cli.main()"
    command = [sys.executable, "-c", main, "compress", str(source), "/dev/stdout", *RULE]
    done = subprocess.run(command, capture_output=True, check=True)
    assert tnc.load(io.BytesIO(done.stdout))["layer.0.fc.weight"].network.n_params == 160
    assert b"svd" in done.stderr


def test_a_bad_request_in_a_process(source, tmp_path):
    refused(run("compress", source, tmp_path / "o.safetensors", "--rule", "*fc*=sdv@4"), "sdv")
    refused(run("inspect", tmp_path / "none"), "none")
    shown = run("inspect", tmp_path / "none", TNC_DEBUG="1")
    assert shown.returncode != 0 and "Traceback" in shown.stderr


def test_the_command_line_is_light():
    code = "import sys, tnc.cli; print(sorted({'torch', 'cupy', 'tensorly', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_backend_may_come_from_the_environment(source, tmp_path):
    refused(run("compress", source, tmp_path / "o.safetensors", *RULE, TNC_BACKEND="tensorflow"), "tensorflow")


def test_roles_are_stated_by_name(tmp_path):
    source, target = tmp_path / "experts.safetensors", tmp_path / "small.safetensors"
    random = np.random.default_rng(0)
    save_file({name: random.normal(size=(4, 24, 40)).astype("f") for name in ("a.experts", "b.experts", "c")}, source)
    options = (
        "--rule",
        "*=mpo(order=2)@4",
        "--roles",
        "b.*=stack columns rows",
        "--roles",
        "*.experts=stack rows columns",
    )
    done = run("compress", source, target, *options, "--json")
    assert done.returncode == 0, done.stderr
    notes = {row["name"]: row["note"] for row in json.loads(done.stdout)["rows"]}
    assert notes["a.experts"] == notes["b.experts"] == "" and "axes assumed: stack rows columns" in notes["c"]
    rows = {row["name"]: row["roles"] for row in json.loads(run("inspect", target, "--json").stdout)["rows"]}
    assert rows["a.experts"] == rows["c"] == "stack rows columns" and rows["b.experts"] == "stack columns rows"


WRONG_ROLES = {"x*=rows columns": "match no weight", "*": "match no weight", "*=row": "not understood"}


@pytest.mark.parametrize("text", WRONG_ROLES)
def test_wrong_roles_are_refused(source, tmp_path, text):
    done = run("compress", source, tmp_path / "small.safetensors", "--rule", "*=svd@2", "--roles", text)
    assert done.returncode == 2 and WRONG_ROLES[text] in done.stderr and not (tmp_path / "small.safetensors").exists()
