"""What a compression did, weight by weight: a `Report` as table, JSON and picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from tnc.errors import MissingExtraError

__all__ = ["Report", "Row"]


@dataclass(frozen=True)
class Row:
    """One weight.

    Attributes
    ----------
    name, method : str
        Parameter name; the decomposition, ``"dense"`` where the weight was kept.
    shape, ranks : tuple of int
        Shape of the weight, size of every bond.
    before, after : int
        Parameters, dense and kept.
    nominal : int
        Parameters at the ranks as asked; larger than `after` where bonds were clipped to what they can use.
    error : float or None
        Relative Frobenius error of the weight; None where none was approximated.
    seconds : float
        Time to choose the ranks and to fit.
    note : str
        Why a weight stayed dense, or what it is tied to.
    kept : int
        Bytes of the rebuilt weight that a model in evaluation may keep beside the cores.
    """

    name: str
    method: str
    shape: tuple[int, ...]
    ranks: tuple[int, ...] = ()
    before: int = 0
    after: int = 0
    nominal: int = 0
    error: float | None = 0.0
    seconds: float = 0.0
    note: str = ""
    kept: int = 0


class Report:
    """Rows of a compression and their totals.

    Parameters
    ----------
    rows : iterable of Row
    total : int
        Parameters of everything, matched or not; the rows' when 0.
    """

    def __init__(self, rows: Iterable[Row], total: int = 0) -> None:
        self.rows = tuple(rows)
        self.before = sum(row.before for row in self.rows)
        self.after = sum(row.after for row in self.rows)
        self.total = total or self.before

    @property
    def ratio(self) -> float:
        """Parameters kept of the matched weights, as a fraction."""
        return self.after / self.before if self.before else 1.0

    @property
    def total_after(self) -> int:
        """Parameters of everything after compression."""
        return self.total - self.before + self.after

    def keeping(self, kept: Mapping[str, int]) -> Report:
        """The same report with the bytes, by name, that evaluation may keep of rebuilt weights."""
        return Report([replace(row, kept=kept.get(row.name, 0)) for row in self.rows], self.total)

    def table(self) -> Table:
        """A rich table, one row a weight, totals below."""
        left = f"{self.after:,} of {self.before:,} matched parameters kept ({self.ratio:.2%})"
        whole = f"{self.total_after:,} of {self.total:,} in all"
        kept = sum(row.kept for row in self.rows)
        beside = f"; evaluation may keep {decimal(kept)} of rebuilt weights" if kept else ""
        table = Table(caption=f"{left}; {whole}{beside}", caption_justify="left")
        for column in ("name", "method", "shape", "ranks", "before", "after", "error", "seconds", "note"):
            numeric = column in ("before", "after", "error", "seconds")
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in self.rows:
            clipped = f"as asked {row.nominal:,}" if row.nominal > row.after and row.method != "dense" else ""
            cells = [row.name, row.method, "x".join(map(str, row.shape)), " ".join(map(str, row.ranks))]
            cells += [
                f"{row.before:,}",
                f"{row.after:,}",
                "" if row.error is None else f"{row.error:.4f}",
                f"{row.seconds:.2f}",
            ]
            cells.append("; ".join(filter(None, (row.note, clipped))))
            table.add_row(*map(Text, cells))  # names are text, whatever brackets they have
        return table

    def __str__(self) -> str:
        console = Console(width=140, record=True, file=open_null())
        console.print(self.table())
        return console.export_text()

    def __repr__(self) -> str:
        return f"<Report: {len(self.rows)} weights, {self.after:,} of {self.before:,} parameters kept>"

    def to_json(self) -> str:
        """JSON text; `from_json` is its inverse."""
        return json.dumps({"total": self.total, "rows": [asdict(row) for row in self.rows]})

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Inverse of `to_json`."""
        data = json.loads(text)
        return cls([_row(row) for row in data["rows"]], data["total"])

    def picture(self, path: str | Path) -> None:
        """Draw parameters before and after, and the error, of every weight (extra ``plot``).

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingExtraError("pictures need matplotlib: pip install 'tncompress[plot]'") from error
        figure = Figure(figsize=(9, 1.5 + 0.3 * len(self.rows)), layout="constrained")
        sizes, errors = figure.subplots(1, 2, sharey=True)
        places, names = range(len(self.rows)), [row.name for row in self.rows]
        sizes.barh(places, [row.before for row in self.rows], color="0.85", label="dense")
        sizes.barh(places, [row.after for row in self.rows], color="tab:blue", height=0.5, label="kept")
        sizes.set(xscale="log", xlabel="parameters", yticks=list(places), yticklabels=names)
        sizes.invert_yaxis()
        sizes.legend(loc="lower left", fontsize="small")
        errors.barh(places, [row.error or 0 for row in self.rows], color="tab:orange", height=0.5)
        errors.set(xlabel="relative error", xlim=(0, 1))
        figure.savefig(path)


def _row(data: dict[str, Any]) -> Row:
    return Row(**{**data, "shape": tuple(data["shape"]), "ranks": tuple(data["ranks"])})


def open_null() -> Any:
    """A file that keeps nothing: rich renders to it and exports what it recorded."""
    import io

    return io.StringIO()
