"""`Subject`: a trained network, its data and its score; and what the rows of the table have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

__all__ = ["Forward", "Made", "Row", "Subject", "call"]

Forward = Callable[[nn.Module, Any], Any]
"""``forward(model, batch)``: how a batch of calibration inputs is put through a network."""


@dataclass(frozen=True)
class Subject:
    """A trained network of the table.

    Attributes
    ----------
    name : str
    load : callable
        Makes the network: eval mode, float32.
    calibration : callable
        ``calibration(n)`` gives n samples, without labels, in batches. They are no test data.
    score : callable
        ``score(model, limit)`` on the first `limit` test samples, or on all of them.
    weights : str
        Globs on the names of the weights that are compressed, with spaces between them.
    unit : str
        What the score is.
    forward : callable, optional
        Where calling the model with a batch takes more than `call` does.
    better : {"higher", "lower"}
    samples : int
        How many samples the calibration of the table has.
    lessons : int, optional
        How many samples the refinement of the table has: more inputs than a fit needs. By default those of the
        calibration.
    dense : float or None
        The score of the uncompressed network, if it has been published.
    """

    name: str
    load: Callable[[], nn.Module]
    calibration: Callable[[int], list[Any]]
    score: Callable[[nn.Module, int | None], float]
    weights: str
    unit: str
    forward: Forward | None = None
    better: str = "higher"
    samples: int = 512
    lessons: int | None = None
    dense: float | None = None


class Made(NamedTuple):
    """What a row makes: a network, the number of parameters its matched weights have now, and a remark.

    `earlier` are seconds that another row has spent on it.
    """

    model: nn.Module
    parameters: int
    note: str = ""
    earlier: float = 0.0


Row = Callable[..., Made]
"""``row(model, weights, share, calibration, forward)``. The model may be changed. Rows with a refinement take one list
more, ``lessons=``, the inputs for it."""


def call(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """Put a batch through a network: a dict by keywords, a tuple or list by position, else as the one argument."""
    if forward is not None:
        return forward(model, batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)
