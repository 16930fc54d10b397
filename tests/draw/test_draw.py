"""Diagrams: every core, index and size is there once, nothing lies on another, and no library is needed."""

from __future__ import annotations

import sys
from itertools import combinations
from xml.etree import ElementTree

import pytest

from tnc import Network
from tnc.draw import plane
from tnc.draw.shapes import Disc, Line, Word
from tnc.draw.sketch import Sketch
from tnc.errors import MissingExtraError
from tnc.network import Feed


def network(pattern, feed=None, **sizes):
    """A network of the pattern, sizes 2 unless given otherwise."""
    names = pattern.translate(str.maketrans("->(),", "     ")).split()
    return Network(pattern, dict.fromkeys(names, 2) | sizes, feed)


WALL = "m0 r1, r2 r3, r4 n2, m1 m2 r1 r2, n0 n1 r3 r4 -> (m0 m1 m2) (n0 n1 n2)"
FED = "f0 f1 f2 f3 f4 f5, m0 r1 f0 f1, r2 r3 f2 f3, r4 n2 f4 f5, m1 m2 r1 r2, n0 n1 r3 r4 -> (m0 m1 m2) (n0 n1 n2)"
ODD = "v r2 r3, m0 r1, m1 n0 r1 r2, n1 n2 r3 v -> (m0 m1) (n0 n1 n2)"
GRID = "a h0 v0, h0 b h1 v1, h1 c v2, v0 d h2, v1 h2 e h3, v2 h3 f -> (a b c) (d e f)"

NETWORKS = {
    "chain": network("m0 n0 r1, r1 m1 n1 r2, r2 m2 n2 -> (m0 m1 m2) (n0 n1 n2)", m0=16, r2=128),
    "kernel": network("m0 r0, r0 k0 k1 r1, r1 n0 -> m0 n0 k0 k1"),
    "star": network("m0 r0, m1 r1, n0 r2, n1 r3, r0 r1 r2 r3 -> (m0 m1) (n0 n1)"),
    "ring": network("r0 m0 r1, r1 m1 r2, r2 n0 r3, r3 n1 r0 -> (m0 m1) (n0 n1)"),
    "dot": network("m0 r0, m1 r0, n0 r0, n1 r0 -> (m0 m1) (n0 n1)"),
    "wide dot": network("m0 r0, m1 r0, m2 r0, k0 k1 r0, n0 r0, n1 r0, n2 r0 -> (m0 m1 m2) (n0 n1 n2) k0 k1", r0=256),
    "two hubs": network("b m0 n0 r0, b m1 n1 r1, b m2 n2 r2, b r0 r1 r2 -> (m0 m1 m2) (n0 n1 n2)"),
    "pass": network("m0 r1 t1, r1 m1 r2 t2, r2 n0 r3 t3, r3 n1 -> (m0 m1 t1) (n0 t2 n1 t3)"),
    "pass star": network("m0 r0, m1 r1, n0 r2, n1 r3, r0 t0 r1 t1 r2 t2 r3 t3 -> (m0 t0 m1 t1) (n0 t2 n1 t3)"),
    "pass ring": network("r0 m0 r1 t1, r1 m1 r2 t2, r2 n0 r3 t3, r3 n1 r0 t0 -> (m0 t0 m1 t1) (n0 t2 n1 t3)"),
    "wall": network(WALL),
    "stack": network(FED, Feed(network(FED, Feed(network(WALL), "tanh")), "relu")),
    "cap": network(ODD, Feed(network("r2 r3 -> r2 r3"), "identity")),
    "fed by less": network(ODD, Feed(network("a b -> a b"), "relu")),
    "grid": network(GRID),
    "two bonds": network("m0 r0 r1, r0 r1 n0 -> m0 n0"),
    "batch": network("t0 m0 r0, r0 t0 n0 -> t0 m0 n0"),
    "pieces": network("m0, n0 -> m0 n0"),
    "one": network("m0 n0 -> m0 n0"),
    "past": network("q0 q1 r0, r0 m0 -> (q0 m0) q1", Feed(network("m0 r0, r0 n0 -> m0 n0"), "relu")),
}

each = pytest.mark.parametrize("net", NETWORKS.values(), ids=NETWORKS)
SVG = "{http://www.w3.org/2000/svg}"


def levels(net):
    """The networks of a stack; one core fed as it is has no level of its own."""
    return [net] + (levels(net.feed.network) if net.feed and net.feed.activation != "identity" else [])


@each
def test_every_core_index_and_size_is_there(net):
    root = ElementTree.fromstring(net.draw())
    assert root.tag == f"{SVG}svg" and root.findtext(f"{SVG}title") == net.pattern
    cores = [c for c in root.iter(f"{SVG}circle") if c.get("class") == "core"]
    assert len(cores) == len(net.core_shapes)
    for core, shape in zip(sorted(cores, key=number), net.core_shapes, strict=True):
        assert f": {'×'.join(map(str, shape))}, " in core.findtext(f"{SVG}title")
    words = [text.text for text in root.iter(f"{SVG}text")]
    expected = [f"{name}={size}" for level in levels(net) for name, size in level.sizes.items()]
    assert sorted(word for word in words if "=" in word) == sorted(expected)


def number(core):
    return int(core.findtext(f"{SVG}title").partition(":")[0].removeprefix("G"))


@each
def test_the_same_network_gives_the_same_diagram(net):
    assert net.draw() == Network.from_json(net.to_json()).draw()


@each
def test_nothing_lies_on_another(net):
    shapes = Sketch(net).shapes
    words = [s for s in shapes if isinstance(s, Word) and "=" in s.text]
    discs = [s for s in shapes if isinstance(s, Disc)]
    for a, b in [*combinations([*words, *discs], 2)]:
        touching = plane.shared(inner(a), inner(b))
        assert touching == 0, (a, b)
    through = [p for s in shapes if isinstance(s, Line) for p in plane.samples(s.points)]
    for word in words:
        assert sum(plane.shared(inner(word), box) for box in through) < 12, word


@each
def test_the_picture_is_as_large_as_what_is_in_it(net):
    left, top, width, height = map(float, ElementTree.fromstring(net.draw()).get("viewBox").split())
    boxes = [shape.box for shape in Sketch(net).shapes]
    low = [min(box[k] for box in boxes) for k in (0, 1)]
    high = [max(box[k] for box in boxes) for k in (2, 3)]
    for start, size, least, most in zip((left, top), (width, height), low, high, strict=True):
        margin = least - start
        assert 0 < margin < 40 and start + size == pytest.approx(most + margin, abs=1.1)


def inner(shape):
    """Its box without the margin; of a core the square inside the circle."""
    left, top, right, bottom = shape.box
    margin = 0.15 * (right - left) if isinstance(shape, Disc) else 1
    return left + margin, top + margin, right - margin, bottom - margin


def dashed(net):
    root = ElementTree.fromstring(net.draw())
    return len([path for path in root.iter(f"{SVG}path") if path.get("stroke-dasharray")])


def test_what_passes_through_is_dashed():
    assert [dashed(NETWORKS[name]) for name in ("chain", "pass", "pass star")] == [0, 3, 4]


def test_an_index_of_many_cores_is_a_dot():
    kinds = {name: [s.kind for s in Sketch(net).shapes if isinstance(s, Disc)] for name, net in NETWORKS.items()}
    assert {name for name, found in kinds.items() if "dot" in found} == {"dot", "wide dot", "two hubs", "batch"}


def test_rows_stand_above_and_columns_below():
    words = {s.text[:2]: s.centre for s in Sketch(NETWORKS["chain"]).shapes if isinstance(s, Word)}
    cores = [s.centre for s in Sketch(NETWORKS["chain"]).shapes if isinstance(s, Disc)]
    assert len({y for _, y in cores}) == 1 and [x for x, _ in cores] == sorted(x for x, _ in cores)
    for k, (x, y) in enumerate(cores):
        assert words[f"m{k}"][1] < y < words[f"n{k}"][1] and words[f"m{k}"][0] == pytest.approx(x)


def test_activations_stand_between_layers():
    words = {s.text: s.centre[1] for s in Sketch(NETWORKS["stack"]).shapes if isinstance(s, Word)}
    assert words["G14"] < words["relu"] < words["G9"] < words["tanh"] < words["G4"]  # the weight comes out on top


def test_equal_sizes_that_do_not_fit_are_a_power():
    net = network("a b c d e f -> a b c d e f", f=3)
    assert "2⁵×3" in [text.text for text in ElementTree.fromstring(net.draw()).iter(f"{SVG}text")]


def test_markup_is_escaped():
    odd = network("m0 -> m0", Feed(network("m0 -> m0"), "<&>"))
    assert "<&>" in [text.text for text in ElementTree.fromstring(odd.draw()).iter(f"{SVG}text")]


def test_files_are_written_by_suffix(tmp_path):
    net = NETWORKS["chain"]
    text = net.draw(tmp_path / "net.svg")
    assert (tmp_path / "net.svg").read_text(encoding="utf-8") == text == net.draw()


def test_png_needs_matplotlib(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    for name in ("stack", "pass star", "two hubs"):
        NETWORKS[name].draw(tmp_path / "net.png")
        assert (tmp_path / "net.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"tncompress\[plot\]"):
        NETWORKS["chain"].draw(tmp_path / "other.png")


def test_svg_needs_only_the_standard_library(said_without):
    expression = "Network('a b -> a b', {'a': 2, 'b': 3}).draw()[:4]"
    assert said_without(["numpy", "matplotlib"], expression) == "<svg"
