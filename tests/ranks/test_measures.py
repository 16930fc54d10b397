"""Sizes in parameters, bytes and operations, against formulas by hand."""

from __future__ import annotations

import numpy as np
import pytest

import tnc
from tnc.decomposition import InRoles
from tnc.ranks.curves import Subject
from tnc.ranks.measures import MEASURES
from tnc.roles import AxisRoles


def subject_of(text, shape, **more):
    return Subject(np.ones(shape), (InRoles(tnc.decompositions["svd"](), AxisRoles(text)),), **more)


def network_of(name, text, shape, rank):
    return InRoles(tnc.decompositions.parse(name), AxisRoles(text)).network(shape, rank)


MATRIX, KERNEL = ("rows columns", (64, 96)), ("rows columns kernel kernel", (32, 16, 3, 3))
TURNED = ("columns rows kernel kernel", (16, 32, 3, 3))


def test_parameters_and_bytes():
    network = network_of("svd", *MATRIX, 5)
    parameters, size = MEASURES["parameters"](1), MEASURES["bytes"](1)
    assert parameters.dense(subject_of(*MATRIX)) == 64 * 96
    assert parameters.of(network, subject_of(*MATRIX)) == 5 * (64 + 96)
    assert size.dense(subject_of(*MATRIX, itemsize=2)) == 2 * 64 * 96
    assert size.of(network, subject_of(*MATRIX, itemsize=2)) == 2 * 5 * (64 + 96)


def test_operations_of_dense_weights():
    flops = MEASURES["flops"](1)
    assert flops.dense(subject_of(*MATRIX)) == 2 * 64 * 96
    assert flops.dense(subject_of(*MATRIX, uses=7.0)) == 2 * 64 * 96 * 7
    assert flops.dense(subject_of(*KERNEL, uses=100.0)) == 2 * 32 * 16 * 9 * 100


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("uses", [1.0, 5.0])
def test_operations_of_a_linear_map(batch, uses):
    network = network_of("svd", *MATRIX, 5)
    assert MEASURES["flops"](batch).of(network, subject_of(*MATRIX, uses=uses)) == uses * 2 * 5 * (64 + 96)


def test_no_more_operations_than_the_rebuilt_weight_takes():
    network = network_of("svd", *MATRIX, 60)
    assert MEASURES["flops"](1).of(network, subject_of(*MATRIX)) == 2 * 64 * 96


@pytest.mark.parametrize("text", [KERNEL, TURNED], ids=["convolution", "transposed"])
def test_operations_of_a_convolution(text):
    """At each of many places: through the cores, whose kernels are made once for all places."""
    places, flops = 1e6, MEASURES["flops"](1)
    subject = subject_of(*text, uses=places)
    tucker = network_of("tucker", *text, (4, 6))
    into, out = 16, 32
    ranks = {4, 6}
    hand = {2 * (into * a + a * b * 9 + b * out) for a in ranks for b in ranks if a != b}
    assert min(abs(flops.of(tucker, subject) / places - n) for n in hand) < 1
    svd = network_of("svd", *text, 5)
    hand_svd = 2 * 5 * (16 * 9 + 32)
    assert flops.of(svd, subject) / places == pytest.approx(hand_svd, abs=1)
    cp = network_of("cp(order=1)", *text, 7)
    depthwise = 2 * 7 * (16 + 9 + 32)
    assert flops.of(cp, subject) / places == pytest.approx(depthwise, rel=0.5)


def test_kernels_that_are_made_once_cost_less_at_many_places():
    network, flops = network_of("tt", *KERNEL, 4), MEASURES["flops"](1)
    each = [flops.of(network, subject_of(*KERNEL, uses=uses)) / uses for uses in (1.0, 10.0, 1e4)]
    assert each == sorted(each, reverse=True)
    shared = MEASURES["flops"](64).of(network, subject_of(*KERNEL, uses=1.0))
    assert shared <= each[0]


@pytest.mark.parametrize("name", [name for name in tnc.decompositions if name != "auto"])
@pytest.mark.parametrize("text", [MATRIX, KERNEL, TURNED, ("stack rows columns", (3, 24, 40))], ids=lambda t: t[0])
def test_every_format_can_be_counted(name, text):
    plugin = tnc.decompositions[name]()
    network, subject = network_of(name, *text, 2 * plugin.step), subject_of(*text, uses=9.0)
    for measure in (make(4) for make in MEASURES.values()):
        assert 0 < measure.of(network, subject) <= max(measure.dense(subject), network.n_params * subject.itemsize)


def test_operations_of_groups():
    """Each group goes through cores of its own; for svd, the kernel is in the first of the two convolutions."""
    text, groups, places = ("(group=2 rows) columns kernel", (16, 8, 3)), 2, 1e5
    network = network_of("svd", *text, 3)
    found = MEASURES["flops"](1).of(network, subject_of(*text, uses=places)) / places
    assert found == pytest.approx(groups * 2 * 3 * (8 * 3 + 8), abs=1)


def test_a_plan_that_merges_cores_does_not_count():
    """For one input the planner may rebuild a wide weight: that is fast, and takes more operations than needed."""
    text = ("rows columns", (32, 1024))
    assert MEASURES["flops"](1).of(network_of("svd", *text, 9), subject_of(*text)) == 2 * 9 * (32 + 1024)
