"""Zeros after the end of an axis, and cutting them off, on every array library."""

from __future__ import annotations

import numpy as np

from tnc.contract import crop, pad


def test_pad_then_crop(place, rng):
    x = rng.standard_normal((3, 4))
    mine = place.from_numpy(x)
    wide = pad(mine, (5, 4))
    assert np.array_equal(place.to_numpy(wide), np.pad(x, ((0, 2), (0, 0))))
    assert np.array_equal(place.to_numpy(crop(wide, (3, 4))), x)
    assert np.array_equal(place.to_numpy(pad(mine, (4, 7))), np.pad(x, ((0, 1), (0, 3))))


def test_nothing_is_copied_where_nothing_changes(place, rng):
    x = place.from_numpy(rng.standard_normal((3, 4)))
    assert pad(x, (3, 4)) is x and crop(x, (3, 4)) is x and crop(x, None) is x
