"""Pages of panels as SVG, and the plots of the grid: a panel per layer, a row per format, a point per cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIBRARIES = {
    "tltorch factorized": ("TensorLy-Torch, factorized", "#e69f00"),
    "tltorch reconstructed": ("TensorLy-Torch, reconstructed", "#cc79a7"),
    "tednet": ("tednet", "#009e73"),
    "tnc auto": ("ours, auto", "#0072b2"),
}


@contextmanager
def panels(
    path: Path, count: int, rows: int, columns: int, size: tuple[float, float], **options: Any
) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, of which the first `count` are used. At the end it is written as SVG, always the same."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tnc", "font.size": 9}):
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
        for panel in axes.flat[count:]:
            panel.set_axis_off()
        yield figure, axes
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def strips(cells: Sequence[Any], path: Path) -> None:
    """Time relative to dense on a logarithmic axis, as SVG."""
    layers = list(dict.fromkeys(cell.layer for cell in cells))
    if not layers:
        return
    formats = list(dict.fromkeys(cell.format for cell in cells))[::-1]
    columns = min(2, len(layers))
    rows = -(-len(layers) // columns)
    size = (9, 0.9 + 1.9 * rows)
    with panels(path, len(layers), rows, columns, size, sharex=True, sharey=True) as (figure, axes):
        for panel, layer in zip(axes.flat, layers, strict=False):
            panel.axvline(1, color="0.6", linewidth=1)
            for k, (name, (label, colour)) in enumerate(LIBRARIES.items()):
                here = [cell for cell in cells if cell.layer == layer and name in cell.seconds]
                heights = [formats.index(cell.format) + 0.27 - 0.18 * k for cell in here]
                ratios = [cell.ratio(name) for cell in here]
                panel.scatter(ratios, heights, s=9, color=colour, alpha=0.7, linewidths=0, label=label)
            panel.set(title=layer, xscale="log", yticks=range(len(formats)), yticklabels=formats)
        for panel in axes[-1]:
            panel.set_xlabel("time relative to dense")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
