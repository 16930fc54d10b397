"""What convolutions cost: lanes that are filled up, forwards and backwards."""

from __future__ import annotations

import pytest

from tnc.contract import cost
from tnc.contract.cost import Device


def priced(m, n, groups=1, training=False):
    """Of 3 x 3 kernels over so many places that calls count for nothing."""
    return cost.convolution(groups, m, n, 9, 1 << 20, Device(), training=training)


def test_few_channels_of_a_convolution_cost_what_a_full_lane_does():
    assert priced(1, 64) == pytest.approx(priced(16, 64), 1e-3)  # out: always filled up
    assert priced(16, 64) < 0.6 * priced(17, 64)
    assert priced(64, 20) > 0.9 * priced(64, 32) and priced(64, 4) < 0.4 * priced(64, 16)  # in: only where many


def test_backward_the_channels_in_are_filled_up_once():
    """The gradient of the input fills up both sides, that of the kernel one: measured within a third."""
    assert 2.5 < priced(64, 64, training=True) / priced(64, 64) < 3.5
    assert 6 < priced(16, 2, training=True) / priced(16, 2) < 10
