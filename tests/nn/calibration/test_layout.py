"""Views of a weight are known by where they lie."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tnc.nn.calibration.layout import REPEATED, Layout, Part  # noqa: E402

W = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
LAYOUT = Layout.of(W.shape, W.stride(), 0)

SHOWN = {
    "whole": (W, [[(0, 0, 2)], [(1, 0, 3)], [(2, 0, 4)], [(3, 0, 5)]]),
    "permuted": (W.permute(2, 0, 3, 1), [[(2, 0, 4)], [(0, 0, 2)], [(3, 0, 5)], [(1, 0, 3)]]),
    "flat": (W.flatten(1, 2), [[(0, 0, 2)], [(1, 0, 3), (2, 0, 4)], [(3, 0, 5)]]),
    "all": (W.view(-1), [[(0, 0, 2), (1, 0, 3), (2, 0, 4), (3, 0, 5)]]),
    "cut": (W[1:, 1:3, :, 2:4], [[], [(1, 1, 2)], [(2, 0, 4)], [(3, 2, 2)]]),
    "picked": (W[1, :, 2], [[(1, 0, 3)], [(3, 0, 5)]]),
    "repeated": (W[None].expand(6, *W.shape)[:, 0, 0], [[(REPEATED, 0, 6)], [(2, 0, 4)], [(3, 0, 5)]]),
    "cut and flat": (W[0, 1:].flatten(0, 1), [[(1, 1, 2), (2, 0, 4)], [(3, 0, 5)]]),
}


def view(x, layout=LAYOUT):
    return layout.view(x.shape, x.stride(), x.storage_offset())


@pytest.mark.parametrize("kind", SHOWN)
def test_views_are_read(kind):
    x, axes = SHOWN[kind]
    found = view(x)
    assert [list(axis) for axis in found.axes] == [[Part(*part) for part in axis] for axis in axes]
    assert int(x.flatten()[0]) == sum(s * found.fixed[k] for k, s in enumerate(W.stride()))


@pytest.mark.parametrize(
    "x",
    [W[:, ::2], W.view(10, 12), W.as_strided((2, 2), (7, 3)), W.as_strided((7, 3), (1, 5)), W.view(-1)[1:].view(7, 17)],
)
def test_other_tensors_are_not(x):
    assert view(x) is None


def test_what_lies_elsewhere_is_not():
    buffer = torch.zeros(40)
    layout = Layout.of((4, 5), (5, 1), 10)
    assert view(buffer[10:30].view(4, 5), layout).fixed == {0: 0, 1: 0}
    assert view(buffer[:20].view(4, 5), layout) is None and view(buffer[20:].view(4, 5), layout) is None


def test_axes_of_length_one_have_no_part():
    layout = Layout.of((1, 5, 1), (5, 1, 1), 0)
    assert view(torch.zeros(5, 1, 1), layout).axes == ((Part(1, 0, 5),), (), ())


def test_copies_are_followed():
    part = W[:, 1:3].transpose(1, 3)[None].expand(3, 2, 5, 4, 2)
    copy = part.clone(memory_format=torch.contiguous_format)
    layout = LAYOUT.copied(view(part), copy.stride(), 0)
    found = view(copy.flatten(0, 1)[:, 2], layout)
    assert found.axes == ((Part(REPEATED, 0, 3), Part(0, 0, 2)), (Part(2, 0, 4),), (Part(1, 1, 2),))
    assert found.fixed == {0: 0, 1: 1, 2: 0, 3: 2}
