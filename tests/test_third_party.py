"""What a stranger adds: a distribution that pip installs and uninstalls, and a backend of a few lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import tnc
from tnc import backends
from tnc.errors import UnknownNameError

KRONECKER = Path(__file__).resolve().parents[1] / "plugins" / "tnc-kronecker"


# ------------------------------------------------- a decomposition in a distribution of its own

USE = """
import numpy as np, tnc
weights = {"w": np.random.default_rng(0).standard_normal((12, 20))}
checkpoint = tnc.compress_weights(weights, "kronecker", rank=2)
checkpoint.save("python.safetensors")
b, c = (np.asarray(core) for core in checkpoint["w"].cores)
assert np.allclose(sum(map(np.kron, np.moveaxis(b, -1, 0), c)), checkpoint["w"].dense())
np.save("expected.npy", checkpoint["w"].dense())
"""

AFTERWARDS = """
import numpy as np, tnc
checkpoint = tnc.load("python.safetensors")
assert checkpoint.methods["w"] == "kronecker"
assert np.array_equal(checkpoint["w"].dense(), np.load("expected.npy"))
try:
    tnc.compress_weights({"w": np.zeros((4, 4))}, "kronecker", rank=2)
except tnc.errors.UnknownNameError as error:
    print(error)
"""


class Fresh:
    """A virtual environment that sees what this one sees, and installs into itself alone."""

    def __init__(self, folder: Path) -> None:
        for needed in ("pip", "hatchling"):
            pytest.importorskip(needed)
        self.folder, place = folder, folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
        self.python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
        site = self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
        # Ours, pip and its dependencies come from here: nothing is fetched, and no time is spent on copies.
        Path(site, "outer.pth").write_text("\n".join(filter(os.path.isdir, sys.path)), encoding="utf-8")

    def run(self, *args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Call this environment's Python, which must end with `code`."""
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TNC_BACKEND", "TNC_DEBUG")}
        command = [self.python, *map(str, args)]
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{args}\n{done.stdout}\n{done.stderr}"
        return done

    def pip(self, *args: object) -> None:
        self.run("-m", "pip", "--quiet", "--disable-pip-version-check", *args)

    def tnc(self, *args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run("-c", "from tnc.cli import main; main()", *args, code=code)

    def names(self) -> list[str]:
        """Every installed decomposition."""
        return self.run("-c", "import tnc; print(*tnc.decompositions)").stdout.split()


@pytest.mark.slow
def test_a_distribution_comes_and_goes(tmp_path):
    save_file({"a.weight": np.ones((6, 8), np.float32), "a.bias": np.ones(6, np.float32)}, tmp_path / "in.safetensors")
    rule = ("compress", "in.safetensors", "cli.safetensors", "--rule", "*=kronecker@2", "--json")
    fresh = Fresh(tmp_path)
    assert "kronecker" not in (before := fresh.names())

    fresh.pip("install", "--no-index", "--no-build-isolation", KRONECKER)
    listed = json.loads(fresh.tnc("plugins", "--json").stdout)["decompositions"]
    assert sorted(row["name"] for row in listed) == sorted([*before, "kronecker"])
    row = next(row for row in listed if row["name"] == "kronecker")
    assert row["distribution"] == "tnc-kronecker" and row["loads"] and row["summary"]
    fresh.run("-c", USE)
    assert json.loads(fresh.tnc(*rule).stdout)["rows"][0]["method"] == "kronecker"
    fresh.run("-m", "pytest", *("-p", "no:cacheprovider", "-c", KRONECKER / "pyproject.toml", KRONECKER))

    fresh.pip("uninstall", "--yes", "tnc-kronecker")
    assert fresh.names() == before
    said = fresh.run("-c", AFTERWARDS).stdout
    assert "'kronecker' is not installed" in said and "tnc.decompositions" in said and "svd" in said
    assert "kronecker" in fresh.tnc("inspect", "cli.safetensors").stdout
    refused = fresh.tnc(*rule, code=2)
    assert refused.stdout == "" and refused.stderr.startswith("tnc: 'kronecker' is not installed")
    assert refused.stderr.count("\n") == 1


# ------------------------------------------------------------------------------------ a backend

STRICT = '''
"""The strictest reading of the array API standard, as a backend of `tnc`."""

import array_api_strict
import numpy as np

from tnc.backends import Backend


class Strict(Backend):
    """Arrays of array_api_strict, on the host."""

    name = "strict"

    @property
    def xp(self):
        return array_api_strict

    def from_numpy(self, array):
        return array_api_strict.asarray(np.array(array))
'''


@pytest.fixture
def strict(tmp_path, monkeypatch):
    """A distribution on the path that registers the backend ``strict``, as pip would leave it."""
    (tmp_path / "tnc_strict.py").write_text(STRICT, encoding="utf-8")
    info = tmp_path / "tnc_strict-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tnc-strict\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[tnc.backends]\nstrict = tnc_strict:Strict\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("tnc_strict", None)


WEIGHTS = {"w": np.random.default_rng(0).standard_normal((12, 20)), "b": np.zeros(12)}


def test_a_backend_is_found_and_listed(strict):
    assert "tnc-strict" in [plugin.distribution for plugin in backends.registry.plugins()]
    assert repr(backends.get("strict")) == "<backend strict>"


@pytest.mark.parametrize("way", ["argument", "context", "environment"])
def test_a_backend_runs_the_fit(strict, way, monkeypatch):
    seen = []

    class Watched(tnc.decompositions["svd"]):
        def fit(self, x, network, **options):
            seen.append(type(x).__module__.partition(".")[0])
            return super().fit(x, network, **options)

    def compress(**chosen):
        return tnc.compress_weights(WEIGHTS, Watched(), rank=3, **chosen)["w"]

    if way == "environment":
        monkeypatch.setenv("TNC_BACKEND", "strict")
    if way == "context":
        with tnc.use_backend("strict"):
            found = compress()
    else:
        found = compress(backend="strict") if way == "argument" else compress()
    assert seen == ["array_api_strict"]
    assert np.allclose(found.dense(), compress(backend="numpy").dense())
    loaded = backends.get("strict").from_numpy(found.cores[0])
    assert np.array_equal(backends.get("strict").to_numpy(loaded), found.cores[0])


def test_a_backend_that_is_gone_is_unknown():
    with pytest.raises(UnknownNameError, match="'strict' is not installed"):
        backends.get("strict")
