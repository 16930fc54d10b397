"""What is known about the inputs and the outputs of the weights of a model, and the file that keeps it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tnc import claims, files, storage
from tnc.errors import CheckpointError, DataError, listed

__all__ = ["LARGEST", "WIDEST", "Moments", "Statistics"]

LARGEST = 2304
"""The most columns times kernel of a convolution whose moment is kept whole: 256 channels of 3 × 3. Larger ones are
kept as a moment over channels and one over the kernel."""

WIDEST = 16384
"""The most inputs or outputs of a weight whose second moment is kept whole. If there are more, such as the logits of a
language model, only the diagonal is kept."""

_KEY = "tnc.statistics"
"""The member of the header of a file that describes the statistics. Its format is version 1."""

_TENSORS = ("columns", "kernel", "mean", "rows", "frequency")


@dataclass(frozen=True)
class Moments:
    """Moments of what one weight sees. All expectations are means over input vectors.

    A weight maps an input vector ``x`` on its columns to an output on its rows: ``y = W x``. For a convolution, ``x``
    is an unfolded patch, the channels slow and the positions of the kernel fast. A transposed convolution maps the
    channels at one position, so its ``x`` has no kernel axes; its kernel belongs to the outputs and has no metric.

    If the model uses the weight the other way round only (``y = W^T x``, or a lookup), `transposed` is set. Then `rows`
    is the moment of the inputs, `mean` their mean, and `columns` the moment of gradients at the outputs. For a lookup
    the moment of the inputs is ``diag(frequency)``.

    Attributes
    ----------
    columns : Tensor, optional
        ``E[x x^T]``. With one more axis in front if the matrices of a stack have inputs of their own, or for the groups
        of a convolution. All matrices are divided by the same number, so one that sees more inputs weighs more.
    kernel : Tensor, optional
        The moment over the kernel, if channels times kernel are more than ``LARGEST``. Then `columns` is the moment
        over channels. The Kronecker product of the two approximates ``E[x x^T]`` and has the same trace. Both have the
        axis of groups in front.
    mean : Tensor, optional
        ``E[x]``, each matrix of a stack by its own inputs.
    rows : Tensor, optional
        Second moment of the gradient of the loss at the outputs: the sum over the positions of one sample, averaged
        over samples. With one more axis in front for stacks and groups. If there are more than ``WIDEST`` outputs (or
        inputs), it is the diagonal only, which has one axis less.
    frequency : Tensor, optional
        How often each row is looked up, as shares of 1.
    count : int
        How many input vectors there were; of one matrix on average, where there are several.
    uses : float
        Input vectors per sample, on average; of one matrix, where there are several. The squared change of the output
        of one sample, summed over positions, is ``uses * trace(dW columns dW^T)``, summed over matrices.
    lookups : float
        Rows looked up per sample.
    transposed : bool
    """

    columns: Tensor | None = None
    kernel: Tensor | None = None
    mean: Tensor | None = None
    rows: Tensor | None = None
    frequency: Tensor | None = None
    count: int = 0
    uses: float = 0.0
    lookups: float = 0.0
    transposed: bool = False


class Statistics(Mapping[str, Moments]):
    """Moments of the weights of a model, by the first name of each parameter.

    Parameters
    ----------
    moments : mapping of str to Moments
    samples : int
        How many samples they are from.
    shapes : mapping of str to tuple of int
        Shape of each of these parameters.
    """

    def __init__(self, moments: Mapping[str, Moments], samples: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._moments = dict(moments)
        self.samples, self.shapes = samples, {name: tuple(shapes[name]) for name in moments}

    def __getitem__(self, name: str) -> Moments:
        return self._moments[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._moments)

    def __len__(self) -> int:
        return len(self._moments)

    def __repr__(self) -> str:
        return f"Statistics({len(self)} weights, {self.samples:,} samples)"

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that the statistics can be of a model whose parameters have these shapes.

        Raises
        ------
        DataError
            A weight does not exist in the model, or has another shape there.
        """
        absent = [name for name in self if name not in shapes]
        other = [
            f"{name} {self.shapes[name]} (in the model {tuple(shapes[name])})"
            for name in self
            if name in shapes and self.shapes[name] != tuple(shapes[name])
        ]
        if absent or other:
            parts = [f"the model has no {listed(absent)}"] if absent else []
            parts += [f"other shapes: {listed(other)}"] if other else []
            raise DataError(f"statistics are of another model: {'; '.join(parts)}. Gather them with this model")

    def save(self, path: files.File) -> None:
        """Write a safetensors file. An old file stays as it is if this fails.

        Raises
        ------
        CheckpointError
            The file cannot be written.
        """
        arrays, weights = {}, {}
        for name, moments in self.items():
            weights[name] = {
                "shape": list(self.shapes[name]), "count": moments.count, "uses": moments.uses,
                "lookups": moments.lookups, "transposed": moments.transposed,
            }  # fmt: skip
            for part in _TENSORS:
                if (x := getattr(moments, part)) is not None:
                    arrays[f"{name}:{part}"] = x.detach().cpu().numpy()
        described = {"version": 1, "samples": self.samples, "weights": weights}
        storage.write(path, arrays, {_KEY: json.dumps(described)}, frozenset())

    @classmethod
    def load(cls, path: files.File) -> Statistics:
        """Read a file of `save`.

        Raises
        ------
        CheckpointError
            There is no such file, it is damaged, or it is no file of statistics.
        """
        arrays, header, _ = storage.read(path)
        try:
            if _KEY not in header:
                raise CheckpointError("it is no file of statistics; make one with tnc.nn.calibration.gather")
            return _parsed(claims.parse(header[_KEY], "the description"), arrays)
        except CheckpointError as error:
            raise CheckpointError(f"cannot load {files.label(path)}: {error}") from error


def _parsed(described: Any, arrays: dict[str, np.ndarray]) -> Statistics:
    """Statistics from what a file holds. Every array must belong to a weight."""
    claims.members(described, "the description", ("version", "samples", "weights"))
    if described["version"] != 1:
        claims.fail("the version of the statistics", described["version"], "1 (a newer tnc may read it)")
    left, moments, shapes = dict(arrays), {}, {}
    for name, entry in claims.members(described["weights"], "the list of weights").items():
        where = f"weight {name!r}"
        claims.members(entry, where, ("shape", "count", "uses", "lookups", "transposed"))
        shapes[name] = tuple(claims.whole(n, f"the shape of {where}") for n in claims.items(entry["shape"], where))
        tensors = {part: left.pop(f"{name}:{part}", None) for part in _TENSORS}
        for part, x in tensors.items():
            if x is not None:
                _check(x, shapes[name], part, f"{part} of {where}")
        if type(entry["transposed"]) is not bool:
            claims.fail(f"transposed of {where}", entry["transposed"], "true or false")
        moments[name] = Moments(
            **{part: None if x is None else torch.from_numpy(x) for part, x in tensors.items()},
            count=claims.whole(entry["count"], f"the count of {where}"),
            uses=float(claims.number(entry["uses"], f"the uses of {where}")),
            lookups=float(claims.number(entry["lookups"], f"the lookups of {where}")),
            transposed=entry["transposed"],
        )
    if left:
        raise CheckpointError(f"it has tensors of no weight: {listed(left)}")
    return Statistics(moments, claims.whole(described["samples"], "the number of samples"), shapes)


def _check(x: np.ndarray, shape: tuple[int, ...], part: str, where: str) -> None:
    """Refuse an array that cannot be a moment of a weight of this shape.

    It has floating-point numbers, no axis of it is larger than the weight, and a second moment is square.

    Raises
    ------
    CheckpointError
        It is not so.
    """
    is_flat = part in ("mean", "frequency") or x.ndim == 1 or x.shape[-1] > WIDEST  # of many outputs a diagonal
    is_fit = x.ndim in (1, 2, 3) and x.shape[-1] <= prod(shape) and (is_flat or x.shape[-1] == x.shape[-2])
    if x.dtype.kind != "f" or not is_fit:
        raise CheckpointError(f"{where} is {x.dtype} of shape {x.shape}, which a weight of shape {shape} cannot have")
