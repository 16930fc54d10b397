"""What a demo run found: one row per method, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tnc.errors import MissingExtraError

__all__ = ["Score", "Scores"]

HEADINGS = (
    "\nparameters",
    "\nkept",
    "\nerror",
    "accuracy\nbefore",
    "accuracy\nafter",
    "accuracy\ntuned",
    "ms per\nbatch",
)


@dataclass(frozen=True)
class Score:
    """One method on one network; what was not reached is None, and `note` says why.

    Attributes
    ----------
    parameters : int
        Of the whole network.
    kept : float
        Parameters of the replaced layers over those of their dense originals.
    error : float
        Relative error of the replaced weights together, in the Frobenius norm.
    before, compressed, tuned : float
        Test accuracy of the dense network, after compression, and after fine-tuning.
    validation : float
        Accuracy after fine-tuning on the split that models are chosen on.
    milliseconds : float
        Per batch, forward only.
    steps : int
        Fine-tuning steps taken.
    """

    method: str
    parameters: int | None = None
    kept: float | None = None
    error: float | None = None
    before: float | None = None
    compressed: float | None = None
    tuned: float | None = None
    validation: float | None = None
    milliseconds: float | None = None
    steps: int = 0
    note: str = ""


@dataclass
class Scores:
    """All rows of a run, the dense network first, and where its files are."""

    title: str
    rows: list[Score] = field(default_factory=list)
    best: str | None = None
    reloaded: bool = False
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Every number, unrounded."""
        return json.dumps(asdict(self), indent=2)

    def table(self) -> Any:
        """A `rich.table.Table` of 80 columns; the chosen method is bold, and notes stand below."""
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=self.title, caption=escape(self._caption()), caption_justify="left", box=box.SIMPLE_HEAD)
        table.pad_edge, table.collapse_padding = False, True
        table.add_column("\nmethod", overflow="fold", min_width=12)
        for heading in HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(escape(row.method), *_cells(row), style="bold" if row.method == self.best else None)
        return table

    def _caption(self) -> str:
        words = [f"{row.method}: {row.note}" for row in self.rows if row.note]
        if self.best:
            checked = "; saved, loaded back, same predictions" if self.reloaded else ""
            words.append(f"Best on the validation split: {self.best}{checked}.")
        batch = f"A batch is {self.settings['batch']} images, forward only. " if "batch" in self.settings else ""
        return "\n".join([*words, f"{batch}{self.seconds:.0f} s in all."])

    def picture(self, path: str | Path) -> None:
        """Save accuracy against parameters as an image: hollow after compression, full after fine-tuning.

        Raises
        ------
        MissingExtraError
            If matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingExtraError("the picture needs matplotlib: pip install 'tncompress[plot]'") from error
        figure = Figure(figsize=(9, 5), layout="constrained")
        _draw(figure.subplots(), [row for row in self.rows if row.parameters and row.tuned is not None])
        figure.suptitle(self.title, fontsize="medium")
        figure.legend(loc="outside right upper", title="hollow: compressed\nfull: fine-tuned", fontsize="small")
        figure.savefig(path, dpi=150)


def _draw(axes: Any, rows: Sequence[Score]) -> None:
    """The first row as a line: as a point, the dense network would squeeze all the others together."""
    dense, *others = rows
    label = f"{dense.method} ({dense.parameters:,})"
    axes.axhline(_inside(dense.tuned), color="0.4", linestyle="--", label=label)
    for number, row in enumerate(others):
        look = {"color": f"C{number % 10}", "marker": "osD^vPX*"[number // 10 % 8], "markersize": 7}
        heights = [_inside(row.compressed), _inside(row.tuned)]
        axes.plot([row.parameters] * 2, heights, color=look["color"], linewidth=1)
        axes.plot(row.parameters, heights[0], **look, fillstyle="none")
        axes.plot(row.parameters, heights[1], **look, linestyle="none", label=row.method)
    axes.set(yscale="logit", xlabel="parameters of the network", ylabel="test accuracy [%]")
    _percent_ticks(axes, [share for row in others for share in (row.compressed, row.tuned)] + [dense.tuned])
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)


def _cells(row: Score) -> list[str]:
    def written(value: float | None, how: str) -> str:
        return "–" if value is None else format(value, how)

    def percent(value: float | None, digits: int) -> str:
        return "–" if value is None else f"{100 * value:.{digits}f} %"

    return [
        written(row.parameters, ",d"),
        percent(row.kept, 1),
        written(row.error, ".3f"),
        *(percent(value, 2) for value in (row.before, row.compressed, row.tuned)),
        written(row.milliseconds, ".2f"),
    ]


def _inside(share: float | None) -> float:
    """A share that a logit axis can show."""
    return min(max(share or 0.0, 0.01), 0.9999)


def _percent_ticks(axes: Any, values: Sequence[float | None]) -> None:
    """Ticks at round percentages around `values`: a logit axis would write 1-10⁻²."""
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.9995]
    held = [_inside(value) for value in values if value is not None] or [0.5]
    low = max([t for t in ticks if t < min(held)], default=0.005)
    high = min([t for t in ticks if t > max(held)], default=0.99995)
    axes.set_ylim(low, high)
    axes.minorticks_off()
    axes.set_yticks(inner := [t for t in ticks if low <= t <= high], [f"{100 * t:g}" for t in inner])
