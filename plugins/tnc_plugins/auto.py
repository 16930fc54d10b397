"""The best of several decompositions, for each weight by itself."""

from __future__ import annotations

from dataclasses import dataclass

import tnc
from tnc import Decomposition, Network
from tnc.errors import WeightError
from tnc.typing import Rank, Shape

__all__ = ["Auto"]


@dataclass(frozen=True)
class Auto(Decomposition):
    """Each weight gets the decomposition with the smallest predicted error at its size.

    With a `Budget`, sizes and decompositions are chosen together. With a `Ratio` or a fixed rank the smallest error
    decides, with a `Tolerance` the smallest size. A new weight, which has no values yet, gets the first one.

    Parameters
    ----------
    among : tuple of str
        The decompositions to choose among, with fields if wanted: ``auto(among=("svd", "tt(order=3)"))``.

    Raises
    ------
    UnknownNameError, PluginError
        A decomposition is not installed.
    WeightError
        There is none, or `auto` is among them.
    """

    among: tuple[str, ...] = ("svd", "cp", "tucker", "tt")

    def __post_init__(self) -> None:
        if isinstance(self.among, str):
            object.__setattr__(self, "among", (self.among,))
        if not self.among or not all(isinstance(name, str) for name in self.among):
            raise WeightError(f"auto(among={self.among!r}): name one decomposition at least")
        if any(isinstance(one, Auto) for one in self.candidates):
            raise WeightError(f"auto(among={self.among!r}): name decompositions other than auto")

    @property
    def candidates(self) -> tuple[Decomposition, ...]:
        return tuple(tnc.decompositions.parse(name) for name in self.among)

    @property
    def step(self) -> int:
        return self.candidates[0].step

    def network(self, shape: Shape, rank: Rank) -> Network:
        """The network of the first decomposition."""
        return self.candidates[0].network(shape, rank)
