"""Fingerprints: the smallest change is seen, in every dtype, above and below the size where sums are compared."""

from __future__ import annotations

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from tnc.nn.runtime.fingerprint import _SMALL, Fingerprint  # noqa: E402 - after the check that torch is here


@pytest.mark.parametrize("size", [8, 1000, _SMALL // 4 + 2, _SMALL + 1022, 600_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_fingerprint_sees_every_change(size, dtype):
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, generator=generator).to(dtype)
    before, print_ = x.clone(), Fingerprint([x])
    places = [0, 1, size // 2, size - 1]
    for k in places:
        assert print_.holds([x])
        bits = x.view(torch.uint8)
        bits[k * x.element_size()] ^= 1  # the smallest change there is
        assert not print_.holds([x])
        x.copy_(before)
    for a, b in pairwise(places):
        x[[a, b]] = x[[b, a]]
        assert not print_.holds([x]) or before[a] == before[b]
        x.copy_(before)
    assert print_.holds([x])
    assert not print_.holds([x.clone()])  # elsewhere: not looked at
    assert not print_.holds([])


def test_of_a_fingerprint_signs_and_nan_count():
    x = torch.zeros(1000)
    print_ = Fingerprint([x])
    x[3] = -0.0
    assert not print_.holds([x])
    x[3] = float("nan")
    print_ = Fingerprint([x])
    assert print_.holds([x])
