"""The shapes of a diagram, and two ways to write them: SVG as text, all other formats through matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from tnc.errors import MissingExtraError

__all__ = ["EDGE", "INK", "NAME", "Bar", "Box", "Disc", "Line", "Shape", "Word", "figure", "paint", "svg"]

INK = "currentColor"
"""The text colour of the page, so that a diagram is readable on a dark page, too."""

FILL, EDGE, NAME = "#dce8f7", "#41618f", "#14253d"
_MARGIN, _FONT = 10.0, "Helvetica, Arial, sans-serif"

Point: TypeAlias = tuple[float, float]
Box: TypeAlias = tuple[float, float, float, float]


class Line(NamedTuple):
    """A line from the first point to the last. With three points it is a quadratic Bézier curve."""

    points: tuple[Point, ...]
    colour: str = INK
    dashed: bool = False

    @property
    def box(self) -> Box:
        xs, ys = zip(*self.points, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def svg(self) -> str:
        spots = [f"{x:.1f} {y:.1f}" for x, y in self.points]
        path = f"M{spots[0]} {'Q' if len(spots) == 3 else 'L'}{' '.join(spots[1:])}"
        dash = ' stroke-dasharray="5 4"' if self.dashed else ""
        return f'<path d="{path}" fill="none" stroke="{self.colour}" stroke-width="1.8"{dash}/>'

    def paint(self, axes: Any) -> None:
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path as Curve

        codes = [Curve.MOVETO, *([Curve.CURVE3] * 2 if len(self.points) == 3 else [Curve.LINETO])]
        style = {"linestyle": (0, (2.8, 2.2)) if self.dashed else "-", "edgecolor": _solid(self.colour)}
        axes.add_patch(PathPatch(Curve(self.points, codes), facecolor="none", linewidth=1.35, **style))


class Disc(NamedTuple):
    """A core, or the dot of a hyperedge."""

    centre: Point
    radius: float
    kind: str
    title: str

    @property
    def box(self) -> Box:
        (x, y), r = self.centre, self.radius
        return x - r, y - r, x + r, y + r

    @property
    def _fill(self) -> str:
        return FILL if self.kind == "core" else EDGE

    def svg(self) -> str:
        (x, y), r = self.centre, self.radius
        look = f'fill="{self._fill}" stroke="{EDGE}" stroke-width="1.5"'
        title = f"<title>{escape(self.title)}</title>"
        return f'<circle class="{self.kind}" cx="{x:.1f}" cy="{y:.1f}" r="{r:g}" {look}>{title}</circle>'

    def paint(self, axes: Any) -> None:
        from matplotlib.patches import Circle

        axes.add_patch(Circle(self.centre, self.radius, facecolor=self._fill, edgecolor=EDGE, linewidth=1.1, zorder=2))


class Bar(NamedTuple):
    """The bar between two networks, where an activation is applied."""

    box: Box

    def svg(self) -> str:
        left, top, right, bottom = self.box
        size = f'width="{right - left:.1f}" height="{bottom - top:.1f}"'
        return f'<rect x="{left:.1f}" y="{top:.1f}" {size} rx="6" fill="#fbe7c6" stroke="#b98a3c"/>'

    def paint(self, axes: Any) -> None:
        from matplotlib.patches import FancyBboxPatch

        left, top, right, bottom = self.box
        look: dict[str, Any] = {"facecolor": "#fbe7c6", "edgecolor": "#b98a3c", "zorder": 2}
        look |= {"boxstyle": "round,pad=0,rounding_size=6"}
        axes.add_patch(FancyBboxPatch((left, top), right - left, bottom - top, **look))


class Word(NamedTuple):
    """Text, centred at a point."""

    centre: Point
    text: str
    size: float = 12.0
    colour: str = INK
    bold: bool = False

    @property
    def box(self) -> Box:
        x, y = self.centre
        half = 0.3 * self.size * len(self.text) + 2  # a letter is about 0.6 times as wide as its size
        return x - half, y - 0.6 * self.size, x + half, y + 0.6 * self.size

    def svg(self) -> str:
        (x, y), bold = self.centre, ' font-weight="bold"' if self.bold else ""
        place = f'x="{x:.1f}" y="{y + 0.35 * self.size:.1f}" font-size="{self.size:.1f}"'
        return f'<text {place} fill="{self.colour}"{bold}>{escape(self.text)}</text>'

    def paint(self, axes: Any) -> None:
        (x, y), weight = self.centre, "bold" if self.bold else "normal"
        style = {"fontsize": 0.72 * self.size, "color": _solid(self.colour), "weight": weight, "zorder": 3}
        axes.text(x, y, self.text, ha="center", va="center_baseline", **style)


Shape: TypeAlias = Line | Disc | Bar | Word


def _solid(colour: str) -> str:
    return "black" if colour == INK else colour


def _frame(shapes: Sequence[Shape]) -> Box:
    left, top, right, bottom = zip(*(shape.box for shape in shapes), strict=True)
    return min(left) - _MARGIN, min(top) - _MARGIN, max(right) + _MARGIN, max(bottom) + _MARGIN


def svg(shapes: Sequence[Shape], title: str) -> str:
    """The shapes as SVG text; later shapes cover earlier ones."""
    left, top, right, bottom = _frame(shapes)
    width, height = ceil(right - left), ceil(bottom - top)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left:.1f} {top:.1f} {width} {height}" '
    head += f'width="{width}" height="{height}" role="img" font-family="{_FONT}" text-anchor="middle">'
    return "\n".join([head, f"<title>{escape(title)}</title>", *(shape.svg() for shape in shapes), "</svg>\n"])


def figure(width: float, height: float, what: str = "a picture", **options: Any) -> Any:
    """A figure of matplotlib.

    Parameters
    ----------
    width, height : float
        In inches.
    what : str
        What is drawn, for the error message.
    **options
        Of ``matplotlib.figure.Figure``.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(f"{what} needs matplotlib: pip install 'tncompress[plot]'") from error
    return Figure(figsize=(width, height), **options)


def paint(shapes: Sequence[Shape], path: Path) -> None:
    """Write the shapes as PNG, PDF or any other format of matplotlib, by the suffix of the path.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    left, top, right, bottom = _frame(shapes)
    drawn = figure((right - left) / 96, (bottom - top) / 96, "a diagram that is not SVG", dpi=192)
    axes = drawn.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    for shape in shapes:
        shape.paint(axes)
    drawn.savefig(path)
