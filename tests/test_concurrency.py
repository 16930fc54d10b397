"""Several weights fitted at a time: the same cores, the same errors, the threads given back."""

import threading
from dataclasses import dataclass

import numpy as np
import pytest

import tnc
from tnc.backends import get
from tnc.settings import current_backend, use_backend

torch = pytest.importorskip("torch")


@pytest.fixture
def threads():
    """Two threads for torch, whatever there were before."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return {f"w{k}": torch.randn(24 + k, 36, dtype=torch.float64) for k in range(6)}


def test_jobs_run_side_by_side_in_order(threads):
    """Each waits for the other, which it could not if they came in turn."""
    meeting = threading.Barrier(2, timeout=20)

    def job(k):
        meeting.wait()
        return k, torch.get_num_threads(), threading.get_ident()

    found = list(get("torch").concurrently(job, range(4)))
    assert [k for k, *_ in found] == [0, 1, 2, 3]
    assert {one for _, one, _ in found} == {1}
    assert threading.get_ident() not in {thread for *_, thread in found}


@pytest.mark.parametrize("method", ["svd", "mpo(order=2)", "tucker", "sttu"])
def test_the_cores_are_those_of_fits_in_turn(threads, weights, method):
    rule = tnc.Rule("*", method, 4)
    together = tnc.compress_weights(weights, rule)
    assert [row.name for row in together.report.rows] == list(weights)
    for name, weight in weights.items():
        alone = tnc.compress_weights({name: weight}, rule)
        a, b = together[name], alone[name]
        np.testing.assert_allclose(a.dense().numpy(), b.dense().numpy(), rtol=1e-8, atol=1e-10)


def test_the_first_error_is_raised_and_names_its_weight(threads, weights):
    @dataclass(frozen=True)
    class Broken(tnc.Decomposition):
        name = "broken"

        def network(self, shape, rank):
            return tnc.decompositions["svd"]().network(shape, rank)

        def fit(self, x, network, *, seed=0, metric=None):
            if x.shape[0] >= 27:
                raise ZeroDivisionError("no fit")
            return tnc.decompositions["svd"]().fit(x, network, seed=seed)

    with pytest.raises(ZeroDivisionError) as caught:
        tnc.compress_weights(weights, tnc.Rule("*", Broken(), 4))
    assert "while compressing w3 with" in caught.value.__notes__[0]


def test_settings_are_in_force_in_the_threads(threads):
    with use_backend("numpy"):
        found = list(get("torch").concurrently(lambda _: current_backend(), range(3)))
    assert [backend.name for backend in found] == ["numpy"] * 3
