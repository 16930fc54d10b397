"""The results of a compression for every weight: a `Report`, as a table, JSON or a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from tnc import claims, showing

__all__ = ["Candidate", "Report", "Row"]


class Candidate(NamedTuple):
    """A decomposition that was considered for a weight, at about the size of the one that was chosen.

    Attributes
    ----------
    method : str
    size : int
        Parameters: as many as the chosen one has at most, if this decomposition has so small a network.
    predicted : float or None
        The predicted rise of the loss, as in `Row.predicted`; None if it is not a number.
    """

    method: str
    size: int
    predicted: float | None


@dataclass(frozen=True)
class Row:
    """One weight.

    Attributes
    ----------
    name : str
        Name of the parameter.
    method : str
        The decomposition; ``"dense"`` if the weight stayed dense.
    shape : tuple of int
        Shape of the weight.
    ranks : tuple of int
        Size of every bond.
    before, after : int
        Parameters of the dense weight, and after compression.
    nominal : int
        Parameters at the ranks that were asked for. Larger than `after` if bonds were clipped.
    error : float or None
        Relative Frobenius error of the weight; None if no weight was approximated.
    seconds : float
        Time to choose the ranks and to fit.
    note : str
        Why a weight stayed dense, or which weight it is tied to.
    kept : int
        Bytes of the rebuilt weight that a model in evaluation may keep in addition to the cores.
    conditioning : float or None
        Norm of the network's terms, relative to that of the weight (``Factorization.conditioning``). About 1 is best.
        Its product with the precision of a dtype is the relative error from rounding the cores to that dtype. None if
        there are no terms, or no weight was fitted.
    output_error : float or None
        Relative error of the layer's outputs on calibration inputs (root of the mean square); None without such inputs.
    predicted : float or None
        The predicted rise of the loss, from the choice of the ranks: the squared relative error times the importance of
        the weight. Where no importance is known, it is the squared relative error alone. None if nothing was predicted.
    itemsize : int
        Bytes of a stored number; 0 if it is not known.
    operations_before, operations_after : int or None
        Multiplications for each sample of a batch of 32 with the dense weight, and after compression: through the cores
        or with the rebuilt weight, whichever are fewer. None if it is not known how often a sample uses the weight.
    candidates : tuple of Candidate
        The decompositions that were considered, where there was more than one.
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
    conditioning: float | None = None
    output_error: float | None = None
    predicted: float | None = None
    itemsize: int = 0
    operations_before: int | None = None
    operations_after: int | None = None
    candidates: tuple[Candidate, ...] = ()


class Report:
    """Rows of a compression and their totals.

    Parameters
    ----------
    rows : iterable of Row
    total : int
        Parameters of all weights, matched by a rule or not; 0 means those of the rows.
    calibration : mapping, optional
        What a calibrated compression did: samples, distances of the model's outputs on held-out inputs for everything
        that was tried, what was kept, seconds. JSON can hold it.
    """

    def __init__(self, rows: Iterable[Row], total: int = 0, calibration: Mapping[str, Any] | None = None) -> None:
        self.rows, self.calibration = tuple(rows), dict(calibration or {})
        self.before = sum(row.before for row in self.rows)
        self.after = sum(row.after for row in self.rows)
        self.total = total or self.before

    @property
    def ratio(self) -> float:
        """Fraction of the parameters of the matched weights that is kept."""
        return self.after / self.before if self.before else 1.0

    @property
    def total_after(self) -> int:
        """Parameters of all weights after compression."""
        return self.total - self.before + self.after

    def keeping(self, kept: Mapping[str, int]) -> Report:
        """The same report, with the bytes of rebuilt weights that evaluation may keep, by name of the weight."""
        rows = [replace(row, kept=kept.get(row.name, 0)) for row in self.rows]
        return Report(rows, self.total, self.calibration)

    def calibrated(self, calibration: Mapping[str, Any]) -> Report:
        """The same report, with what a calibrated compression did."""
        return Report(self.rows, self.total, calibration)

    @property
    def bytes(self) -> tuple[int, int] | None:
        """Bytes of the matched weights before and after; None if that of a number is not known for all of them."""
        if any(row.before and not row.itemsize for row in self.rows):
            return None
        return sum(row.before * row.itemsize for row in self.rows), sum(row.after * row.itemsize for row in self.rows)

    @property
    def operations(self) -> tuple[int, int] | None:
        """Multiplications for each sample before and after, of the weights for which they are known; None if of none.

        They are known in compressions with calibration inputs.
        """
        pairs = [(row.operations_before, row.operations_after) for row in self.rows]
        known = [(before, after) for before, after in pairs if before is not None and after is not None]
        return (sum(before for before, _ in known), sum(after for _, after in known)) if known else None

    def table(self) -> Table:
        """A rich table: one row for each weight, and the totals below."""
        return showing.table(showing.columns(self.rows), showing.caption(self))

    def __str__(self) -> str:
        return showing.plain(self.table())

    def _repr_html_(self) -> str:
        """The table for notebooks."""
        return showing.html(showing.columns(self.rows), showing.caption(self))

    def __repr__(self) -> str:
        return f"<Report: {len(self.rows)} weights, {self.after:,} of {self.before:,} parameters kept>"

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain types: ``total``, ``rows``, and ``calibration`` if there was one."""
        data = {"total": self.total, "rows": [asdict(row) for row in self.rows]}
        return data | ({"calibration": self.calibration} if self.calibration else {})

    def to_json(self) -> str:
        """JSON text; `from_json` is its inverse."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Inverse of `to_json`.

        Raises
        ------
        CheckpointError
            The text is not JSON, or a member is missing, unknown or of the wrong type.
        """
        value = claims.parse(claims.text(text, "the report"), "the report")
        data = claims.members(value, "the report", _MEMBERS, ("calibration",))
        rows = [_row(row, f"row {k} of the report") for k, row in enumerate(claims.items(data["rows"], "the rows"))]
        calibration = _calibration(data.get("calibration", {}))
        return cls(rows, claims.whole(data["total"], "the report's total"), calibration)

    def picture(self, path: str | Path) -> None:
        """Draw parameters before and after, and the error, of every weight (extra ``plot``).

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        """
        showing.picture(self.rows, path)


_MEMBERS = ("total", "rows")


def _row(data: Any, where: str) -> Row:
    """A row from JSON."""
    needed = [field.name for field in fields(Row) if field.default is MISSING]
    data = claims.members(data, where, needed, [field.name for field in fields(Row)])
    kinds = {field.name: str(field.type) for field in fields(Row)}
    return Row(**{name: _checked(value, kinds[name], f"{name} in {where}") for name, value in data.items()})


def _checked(value: Any, kind: str, where: str) -> Any:
    """A value from JSON, if it has the type of a field's annotation; else an error."""
    if kind.endswith(" | None"):
        return None if value is None else _checked(value, kind.removesuffix(" | None"), where)
    if kind.startswith("tuple["):
        inner = kind.removeprefix("tuple[").removesuffix(", ...]")
        return tuple(_CHECKS[inner](item, where) for item in claims.items(value, where))
    return _CHECKS[kind](value, where)


def _candidate(value: Any, where: str) -> Candidate:
    """A candidate from JSON: a list of its members."""
    if len(claims.items(value, where)) != len(Candidate._fields):
        claims.fail(where, value, f"a list of {', '.join(Candidate._fields)}")
    method, size, predicted = value
    predicted = None if predicted is None else claims.number(predicted, where)
    return Candidate(claims.text(method, where), claims.whole(size, where), predicted)


_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "str": claims.text,
    "int": claims.whole,
    "float": claims.number,
    "Candidate": _candidate,
}
"""By the type of a field, or of the items of a tuple."""


_FACTS: dict[str, Callable[[Any, str], Any]] = {
    "samples": claims.whole,
    "held_out": claims.whole,
    "biases": claims.whole,
    "distance": claims.number,
    "objective": claims.text,
}
"""What is said of a calibration. Other members are yes or no, numbers, text, or numbers by name."""


def _calibration(data: Any) -> dict[str, Any]:
    """What a calibrated compression did, from JSON."""
    where = "the calibration of the report"
    return {name: _fact(name, value, f"{name} in {where}") for name, value in claims.members(data, where).items()}


def _fact(name: str, value: Any, where: str) -> Any:
    if name in _FACTS:
        return _FACTS[name](value, where)
    if isinstance(value, Mapping):
        return {claims.text(key, where): claims.number(each, where) for key, each in value.items()}
    if isinstance(value, bool | str | None):
        return claims.text(value, where) if isinstance(value, str) else value
    return claims.number(value, where)
