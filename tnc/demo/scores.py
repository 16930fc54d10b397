"""Results of a demo run: one row for each method, as a table, JSON and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tnc.draw.shapes import figure

if TYPE_CHECKING:
    from rich.table import Table

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
    """Results of one method. A value is None if it could not be measured; `note` says why.

    Attributes
    ----------
    method : str
        The decomposition, or ``"dense"``.
    parameters : int
        Parameters of the whole network.
    kept : float
        Parameters of the replaced layers, as a fraction of those of the dense layers.
    error : float
        Relative error of all replaced weights together, in the Frobenius norm.
    before, compressed, tuned : float
        Test accuracy of the dense network, after compression, and after fine-tuning.
    validation : float
        Accuracy after fine-tuning, on the images that the best model is chosen by.
    milliseconds : float
        Time of a forward pass of one batch.
    steps : int
        Number of fine-tuning steps.
    note : str
        Errors, and other remarks.
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
    """Results of a run.

    Attributes
    ----------
    title : str
    rows : list of Score
        The dense network first.
    best : str or None
        Method of the best model.
    reloaded : bool
        Whether the best model was saved and loaded, with the same predictions.
    seconds : float
        Time of the run.
    settings : dict
        Arguments of the run, and the numbers of fine-tuning ``steps`` that were taken and ``planned``.
    files : dict of str to str
        Paths of the files that were written.
    """

    title: str
    rows: list[Score] = field(default_factory=list)
    best: str | None = None
    reloaded: bool = False
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """All numbers as JSON text, not rounded."""
        return json.dumps(asdict(self), indent=2)

    def table(self) -> Table:
        """A table of 80 columns. The best method is bold, and notes are below."""
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
        """Notes, settings and the best method."""
        words = [f"{row.method}: {row.note}" for row in self.rows if row.note]
        if "steps" in self.settings:
            words.append(_tuning(self.settings["steps"], self.settings["planned"]))
        if self.best:
            checked = "; saved, loaded back, same predictions" if self.reloaded else ""
            words.append(f"Best on the validation split: {self.best}{checked}.")
        batch = f"A batch is {self.settings['batch']} images, forward only. " if "batch" in self.settings else ""
        return "\n".join([*words, f"{batch}{self.seconds:.0f} s in all."])

    def picture(self, path: str | Path) -> None:
        """Save a plot of accuracy against parameters: hollow marks after compression, full ones after fine-tuning.

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        """
        drawn = figure(9, 5, layout="constrained")
        _draw(drawn.subplots(), [row for row in self.rows if row.parameters and row.tuned is not None])
        drawn.suptitle(self.title, fontsize="medium")
        drawn.legend(loc="outside right upper", title="hollow: compressed\nfull: fine-tuned", fontsize="small")
        drawn.savefig(path, dpi=150)


def _tuning(steps: int, planned: int) -> str:
    if steps < planned:
        return f"Every row was tuned for {steps} of {planned} steps: this machine has no time for more."
    return f"Every row was tuned for {steps} steps."


def _draw(axes: Any, rows: Sequence[Score]) -> None:
    """Plot all rows. The first one, the dense network, is a line: as a point it would make the x axis too long."""
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
    """Texts of a row of the table, after the method."""

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
    """A fraction inside the range of the logit axis."""
    return min(max(share or 0.0, 0.01), 0.9999)


def _percent_ticks(axes: Any, values: Sequence[float | None]) -> None:
    """Ticks at round percentages around `values`. By default a logit axis has labels such as 1-10⁻²."""
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.9995]
    shares = [_inside(value) for value in values if value is not None] or [0.5]
    low = max((t for t in ticks if t < min(shares)), default=0.005)
    high = min((t for t in ticks if t > max(shares)), default=0.99995)
    inner = [t for t in ticks if low <= t <= high]
    axes.set_ylim(low, high)
    axes.minorticks_off()
    axes.set_yticks(inner, [f"{100 * t:g}" for t in inner])
