"""The table of `benchmarks/real_weights.py`, on a small random weight and without the network."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "real_weights.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("real_weights", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_cell_is_a_measured_error_or_a_reason(script):
    weight = np.random.default_rng(0).normal(size=(24, 16)).astype("float32")

    rows = script.measure(weight, ["svd", "mpo", "adtn"], (0.5, 0.1, 0.02))

    of_svd = {row["ratio"]: row for row in rows if row["plugin"] == "svd"}
    values = np.linalg.svd(weight, compute_uv=False)
    for ratio, rank in ((0.5, 4), (0.1, None), (0.02, None)):
        if rank is None:
            assert of_svd[ratio]["reason"].startswith("PromiseError: rank 1 of svd already keeps 40 of 384")
        else:
            assert of_svd[ratio]["kept"] == rank * 40 / 384
            assert of_svd[ratio]["error"] == pytest.approx(np.linalg.norm(values[rank:]) / np.linalg.norm(values))
    lines = script.table(rows).splitlines()
    assert lines[0] == "| plugin | 50% | 10% | 2% | fit at 10 %, s |"
    assert lines[2] == f"| svd | {of_svd[0.5]['error']:.3f} (41.7) | no rank | no rank |  |"
    assert [line.split(":")[0] for line in lines if line.startswith("* svd")] == ["* svd at 10%", "* svd at 2%"]


def test_the_numbers_go_through_json_and_name_the_slowest_fit(script):
    rows = script.measure(np.ones((12, 8), "float32"), ["svd"], (0.5,))

    found = json.loads(json.dumps({"w": {"shape": (1536, 384), "rows": rows}}))

    assert script.slowest(found).startswith("Slowest fit of a 1536 x 384 matrix, of those by svd: svd at 50%")
