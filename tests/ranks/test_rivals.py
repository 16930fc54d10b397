"""Several decompositions to choose among: what each would have given stands beside what was chosen."""

from __future__ import annotations

import numpy as np
import pytest

import tnc
from tests.ranked import weight_of
from tnc import Budget, Fixed, Ratio, Tolerance
from tnc.errors import PromiseError
from tnc.ranks.curves import Point, Subject
from tnc.rules import Rule

AUTO = tnc.decompositions["auto"]


def subject(x, *among):
    return Subject(x, Rule("*", AUTO(among=among), 1).candidates(x.shape))


@pytest.mark.parametrize("policy", [Budget(0.5), Ratio(0.5), Fixed(3), Tolerance(0.6)], ids=str)
def test_every_candidate_is_a_rival(policy):
    subjects = {f"w{k}": subject(weight_of((16, 24), power=1.0 + k), "svd", "tt", "cp") for k in range(2)}
    for found in policy.plan(subjects, {}).values():
        if isinstance(found, PromiseError):
            continue
        assert {str(rival.decomposition) for rival in found.rivals} <= {"svd", "tt", "cp"} and len(found.rivals) > 1
        mine = [rival for rival in found.rivals if rival.decomposition == found.decomposition]
        assert mine == [found.rival]


def test_one_candidate_has_no_rivals():
    x = weight_of((16, 24), power=1.0)
    for policy in (Budget(0.5), Ratio(0.5)):
        assert policy.plan({"w": subject(x, "svd")}, {})["w"].rivals == ()


def test_a_rival_is_the_best_that_is_no_larger():
    x = weight_of((16, 24), power=1.0)
    one, other = subject(x, "svd", "tt").candidates
    svd = [Point(one, one.network((16, 24), r), 1 / r) for r in (1, 2, 3)]
    tt = [Point(other, other.network((16, 24), r), 2 / r) for r in (1, 4, 8)]
    rivals = {rival.decomposition: rival for rival in svd[1].among([*svd, *tt]).rivals}
    assert rivals[one] == svd[1].rival
    small = [point for point in tt if point.network.n_params <= svd[1].network.n_params]
    assert rivals[other] == (small[-1] if small else tt[0]).rival
    assert svd[1].among(svd).rivals == ()


def test_the_report_says_why_one_won(rng):
    weights = {"a": weight_of((24, 24), power=2.0), "b": rng.standard_normal((24, 24))}
    checkpoint = tnc.compress_weights(weights, AUTO(among=("svd", "cp")), rank=Budget(0.5))
    rows = [row for row in checkpoint.report.rows if row.method != "dense"]
    assert rows
    for row in rows:
        by_method = {c.method: c for c in row.candidates}
        assert set(by_method) == {"svd", "cp"} and by_method[row.method].predicted == row.predicted
        assert all(np.isfinite(c.predicted) for c in row.candidates)
    assert "instead of" in str(checkpoint.report)
    assert tnc.Report.from_json(checkpoint.report.to_json()).rows == checkpoint.report.rows
