"""What the ratios of a cell mean: slower, faster, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

LIMIT = 1.10
"""A cell whose ratio is above this, beyond its spread, is slower."""
BAD = ("slower", "failed here", "failed on both sides", "does not run at all")

MEANT = {
    "fit[mpo-matrix]": 8.0,  # trees of up to 65,536 entries are swept until they converge
    "fit[cp-matrix]": 5.0,  # small networks with cycles or hyperedges are fitted from up to 96 starts
    "compress[mpo]": 3.5,  # trees of up to 16,384 entries are fitted from up to 17 starts
    "compress[tucker]": 3.0,
    "evaluation[Linear-1]": 2.0,  # a kept weight is used only after a check that no core was written to
    "evaluation[Embedding-64]": 3.2,  # rows that are kept are used only after that check, too
}
"""Slowdowns that were meant, against a base from before them: the largest ratio of each cell, and the reason.

A line is removed when the base has the change, too.
"""


@dataclass(frozen=True)
class Result:
    """One cell.

    Parameters
    ----------
    cell : str
        Its node id.
    unit : str
        ``s`` or ``bytes``; empty where nothing was measured.
    here, base : sequence of float
        A value per pair, of this tree and of the base.
    note : str
        Why nothing was measured: ``new``, ``vanished``, ``failed here``, ...
    reason : str
        What a failed cell says.
    """

    cell: str
    unit: str = ""
    here: Sequence[float] = ()
    base: Sequence[float] = ()
    note: str = ""
    reason: str = ""
    ratios: list[float] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratios", [ours / theirs for ours, theirs in zip(self.here, self.base, strict=True)])

    @property
    def ratio(self) -> float:
        """The median over pairs of this tree's value divided by the base's in the same pair."""
        return median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The lower and the upper quartile of the ratios: half of all pairs lie between."""
        if len(self.ratios) < 2:
            return self.ratio, self.ratio
        low, _, high = quantiles(self.ratios, n=4, method="inclusive")
        return low, high

    def verdict(self, limit: float = LIMIT) -> str:
        """``slower`` if the lower quartile is above the limit, ``faster`` if the upper one is below its inverse.

        ``slower, as meant`` is for what `MEANT` allows.
        """
        if self.note or not self.ratios:
            return self.note or "not measured"
        low, high = self.spread
        if low > limit:
            meant = max((ratio for name, ratio in MEANT.items() if self.cell.endswith(f"_{name}")), default=limit)
            return "slower" if low > meant else "slower, as meant"
        return "faster" if high < 1 / limit else ""

    def as_dict(self, limit: float) -> dict[str, Any]:
        """What the JSON file holds."""
        told: dict[str, Any] = {"cell": self.cell, "verdict": self.verdict(limit), "reason": self.reason}
        if self.ratios and not self.note:
            told |= {"unit": self.unit, "here": median(self.here), "base": median(self.base)}
            told |= {"ratio": self.ratio, "quartiles": self.spread, "ratios": self.ratios}
        return told


def confirmed(first: Result, again: Result | None, limit: float = LIMIT) -> Result:
    """A slowdown counts only if a second run of the cell repeats it: then that of the smaller ratio, else the second.

    Parameters
    ----------
    first : Result
        Slower in the first run.
    again : Result or None
        The second run; None where there was no time for one, which is said.
    limit : float
        As in `Result.verdict`.
    """
    if again is None:
        return Result(
            first.cell, note="not repeated", reason=f"{first.ratio:.2f} times in a first run; no time was left"
        )
    if again.verdict(limit) == "slower":
        return min(first, again, key=lambda result: result.ratio)
    return again


def refused(results: Sequence[Result], limit: float = LIMIT) -> list[Result]:
    """The cells for which a comparison fails: slower ones, and those that do not run in this tree."""
    return [result for result in results if result.verdict(limit) in BAD]
