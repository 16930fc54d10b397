"""The state of a training run, and the file that holds it.

An interrupted run that goes on from its file ends with the same weights as one that was not interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from math import inf, isnan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tnc import claims, storage
from tnc.backends import get
from tnc.errors import CheckpointError, listed
from tnc.nn.surgery.packing import PACKED, packed, storable, unpacked

__all__ = ["Epoch", "Run", "Score"]


class Score(NamedTuple):
    """Mean loss, and the share of right labels. The share is NaN if the labels are not classes."""

    loss: float
    accuracy: float

    @property
    def merit(self) -> tuple[float, float]:
        """The better of two scores has the larger merit: accuracy counts first, then a smaller loss."""
        return (0.0 if isnan(self.accuracy) else self.accuracy), -self.loss


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data.

    Attributes
    ----------
    loss, accuracy : float
        Means over the training samples. Each sample is counted before the step that learns from it. The loss is the
        one that training minimizes, with distillation if there is a teacher.
    seconds : float
        Time of training and validation.
    validation : Score, optional
        After the pass. Its loss is without distillation.
    """

    loss: float
    accuracy: float
    seconds: float
    validation: Score | None = None


@dataclass
class Run:
    """The state that changes during training.

    Attributes
    ----------
    model : torch.nn.Module
    optimizer : torch.optim.Optimizer
        An AdamW whose groups also have ``base``, the learning rate before the schedule scales it.
    epochs : list of Epoch
        The passes that are done.
    before : Score, optional
        Validation of the model before the first pass.
    best : int
        The number of passes after which the validation was best. Without validation, all passes that are done.
    best_state : dict, optional
        The state dict of the model at that time.
    frozen : bool
        Whether batch normalization keeps its statistics.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epochs: list[Epoch] = field(default_factory=list)
    before: Score | None = None
    best: int = 0
    best_state: dict[str, Any] | None = None
    frozen: bool = False

    @property
    def base(self) -> float:
        """The learning rate of the last group, which is of dense parameters if there are any."""
        return float(self.optimizer.param_groups[-1]["base"])

    def judge(self, score: Score | None) -> None:
        """Record a validation of the model as it is now. If it is the best so far, keep the model's state."""
        done = len(self.epochs)
        if not done:
            self.before = score
        earlier = self.epochs[self.best - 1].validation if self.best else self.before
        if score is None or earlier is None or not done or score.merit > earlier.merit:
            self.best = done
            if score is not None:
                self.best_state = {name: _copied(x) for name, x in self.model.state_dict().items()}

    def over(self, epochs: int, patience: int | None) -> bool:
        """Whether all epochs are done, or none of the last `patience` epochs improved the validation."""
        done = len(self.epochs)
        return done >= epochs or (patience is not None and done - self.best >= patience)

    def finish(self) -> None:
        """Give the model its best state back."""
        if self.best_state is not None:
            self.model.load_state_dict(self.best_state)

    def save(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        """Write the run to one safetensors file. If this is interrupted, the earlier file survives."""
        optimizer_state = self.optimizer.state_dict()
        header = {
            "settings": dict(settings),
            "groups": [{key: group[key] for key in _RATES} for group in optimizer_state["param_groups"]],
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "before": self.before,
            "best": self.best,
            "frozen": self.frozen,
        }
        arrays, narrow = _arrays(self._tensors(optimizer_state["state"]))
        storage.write(path, arrays, {_RUN: json.dumps(header), "format": "pt"}, narrow)

    def _tensors(self, moments: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Any]:
        """What the file holds, by name: the model, its best state, and the optimizer's moments."""
        values = {f"{_MODEL}{name}": x for name, x in self.model.state_dict().items()}
        values |= {f"{_BEST}{name}": x for name, x in (self.best_state or {}).items()}
        for number, of_parameter in moments.items():
            values |= {f"{_OPTIMIZER}{number}.{key}": x for key, x in of_parameter.items()}
        return values

    def load(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        """Take over the state of a saved run; after an error this run is as it was.

        Everything in the file is checked before any of it is used. A file without digests is refused: a run that goes
        on for hours should not start from a damaged file.

        Raises
        ------
        CheckpointError
            The file is damaged, no training checkpoint, or of a run with another model or other settings.
        """
        with storage.opened(path) as contents:
            if _RUN not in contents.metadata:
                raise CheckpointError(f"{str(path)!r} is no checkpoint of a training run: name another file")
            try:
                header = _header(contents, self.optimizer)
                differences = self._differences(header, contents.entries, settings)
                numbers = [] if differences else _with_moments(contents.entries, self.optimizer)
            except CheckpointError as error:
                message = f"cannot go on from {str(path)!r}: {error}. Delete it, or name another file"
                raise CheckpointError(message) from error
            if differences:
                message = f"{str(path)!r} is of another run: {listed(differences)}. Delete it, or use the same settings"
                raise CheckpointError(message)
            values = _unpacked(*contents.arrays())
        moments = {k: {key: values[f"{_OPTIMIZER}{k}.{key}"] for key in _MOMENTS} for k in numbers}
        self._become(_section(values, _MODEL), moments, header.groups)
        self.epochs, self.before, self.best = header.epochs, header.before, header.best
        self.frozen = header.frozen
        self.best_state = _section(values, _BEST) or None

    def _differences(
        self, header: _Header, entries: Mapping[str, storage.Entry], settings: Mapping[str, Any]
    ) -> list[str]:
        """Settings and tensors that differ between the file and this run, as text."""
        state = self.model.state_dict()
        best_state = {} if header.before is None else state
        here = json.loads(json.dumps(dict(settings)))  # as a file holds them: tuples become lists
        return [
            *_different_settings(header.settings, here),
            *_mismatches(_section(entries, _MODEL), state),
            *_mismatches(_section(entries, _BEST), best_state),
        ]

    def _become(self, state: dict[str, Any], moments: dict[int, dict[str, Tensor]], rates: list[Rates]) -> None:
        """Load the states of the model and of the optimizer, or neither."""
        optimizer_before, model_before = self.optimizer.state_dict(), deepcopy(self.model.state_dict())
        groups = [group | saved for group, saved in zip(optimizer_before["param_groups"], rates, strict=True)]
        try:
            self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
            self.model.load_state_dict(state)
        except Exception as error:  # hooks and modules with extra state run code of the user, which may raise anything
            self.optimizer.load_state_dict(optimizer_before)
            with suppress(RuntimeError):  # frozen cores refuse every write, so that nothing was written to them
                self.model.load_state_dict(model_before)
            raise CheckpointError(f"the model does not take the state of the run: {error}") from error


def _copied(x: Any) -> Any:
    return x.detach().to("cpu", copy=True) if isinstance(x, Tensor) else deepcopy(x)


# ------------------------------------------------------------- the header of a file

_RUN = "tnc.run"
"""The key of the header in the metadata of the file."""

_MODEL, _BEST, _OPTIMIZER = "model.", "best.", "optimizer."
"""Prefixes of the names of tensors in the file."""

_RATES = ("lr", "base", "weight_decay", "eps")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps for a parameter that has had a gradient."""

Rates = dict[str, float]


class _Header(NamedTuple):
    """The header of a run's file."""

    settings: dict[str, Any]
    groups: list[Rates]
    epochs: list[Epoch]
    before: Score | None
    best: int
    frozen: bool


def _header(contents: storage.Contents, optimizer: torch.optim.Optimizer) -> _Header:
    """The header of a file; every value is checked, by itself and against the groups of the optimizer."""
    if contents.digests is None:
        raise CheckpointError("it has no digests, so that damage cannot be detected")
    told = claims.parse(contents.metadata[_RUN], "the header")
    *required, late = _Header._fields  # earlier files do not have the last one
    header = claims.members(told, "the header", required, [late])
    settings = claims.members(header["settings"], "the settings")
    groups = [_rates(group, f"group {k}") for k, group in enumerate(claims.items(header["groups"], "the groups"))]
    if len(groups) != (here := len(optimizer.param_groups)):
        raise CheckpointError(f"it has {len(groups)} groups of parameters, and this run has {here}")
    epochs = [_epoch(epoch, f"epoch {k}") for k, epoch in enumerate(claims.items(header["epochs"], "the epochs"), 1)]
    before = _score(header["before"], "the first validation")
    best = claims.whole(header["best"], "the best epoch")
    if best > len(epochs):
        raise CheckpointError(f"the best epoch is {best}, of {len(epochs)}")
    if any((epoch.validation is None) != (before is None) for epoch in epochs):
        raise CheckpointError("some epochs have a validation and some have none")
    if not isinstance(frozen := header.get(late, False), bool):
        claims.fail(late, frozen, "true or false")
    return _Header(settings, groups, epochs, before, best, frozen)


def _rates(data: Any, where: str) -> Rates:
    claims.members(data, where, _RATES)
    return {key: _finite(data[key], f"{key} of {where}") for key in _RATES}


def _epoch(data: Any, where: str) -> Epoch:
    claims.members(data, where, [each.name for each in fields(Epoch)])
    loss, accuracy = (claims.number(data[key], f"{key} of {where}") for key in ("loss", "accuracy"))
    seconds = _finite(data["seconds"], f"seconds of {where}")
    return Epoch(loss, accuracy, seconds, _score(data["validation"], f"the validation of {where}"))


def _score(pair: Any, where: str) -> Score | None:
    if pair is None:
        return None
    if len(claims.items(pair, where)) != len(Score._fields):
        claims.fail(where, pair, "a loss and an accuracy")
    return Score(*(claims.number(value, where) for value in pair))


def _finite(value: Any, where: str) -> float:
    if not 0 <= claims.number(value, where) < inf:
        claims.fail(where, value, "a finite number from 0 on")
    return float(value)


# ------------------------------------------------------------ the tensors of a file


def _with_moments(entries: Mapping[str, storage.Entry], optimizer: torch.optim.Optimizer) -> list[int]:
    """Numbers of the parameters that have moments in the file.

    Raises
    ------
    CheckpointError
        The moments are not those of Adam or not of the parameters' shapes. Or a tensor belongs to no parameter.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    remaining = _section(entries, _OPTIMIZER)
    numbers = []
    for k, parameter in enumerate(parameters):
        wanted = {f"{k}.step": torch.zeros(()), **{f"{k}.{key}": parameter for key in _MOMENTS[1:]}}
        in_file = {name: remaining.pop(name) for name in wanted if name in remaining}
        if not in_file:
            continue
        if wrong := _mismatches(in_file, wanted):
            raise CheckpointError(f"of the optimizer's state, {listed(wrong)} is missing or of another shape")
        numbers.append(k)
    if remaining:
        raise CheckpointError(f"the optimizer has no parameters for {listed(sorted(remaining))}")
    _refuse_unknown(entries)
    return numbers


def _refuse_unknown(entries: Iterable[str]) -> None:
    unknown = sorted(name for name in entries if not name.startswith((_MODEL, _BEST, _OPTIMIZER)))
    if unknown:
        raise CheckpointError(f"there are tensors that belong to nothing: {listed(unknown)}")


def _section(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The values whose names start with a prefix, by their names without it."""
    return {name.removeprefix(prefix): x for name, x in values.items() if name.startswith(prefix)}


def _mismatches(entries: Mapping[str, storage.Entry], wanted: Mapping[str, Any]) -> list[str]:
    """Names that only the file or only `wanted` has, or whose shape or dtype differs."""
    expected: dict[str, storage.Entry | None] = {}  # None for packed values, which may have any shape
    for name, x in wanted.items():
        if storable(x):
            expected[name] = storage.entry(name, str(x.dtype).removeprefix("torch."), tuple(x.shape))
        else:
            expected[name + PACKED] = None
    wrong = []
    for name in _in_either(expected, entries):
        one_sided = name not in expected or name not in entries
        if one_sided or expected[name] not in (None, entries[name]):
            wrong.append(name)
    return wrong


def _different_settings(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Settings of the file and of this run that differ, as text."""
    different = []
    for name in _in_either(here, there):
        if there.get(name) != here.get(name):
            different.append(f"{name}={there.get(name)!r:.300} there, {here.get(name)!r:.300} here")
    return different


def _in_either(first: Iterable[str], second: Iterable[str]) -> list[str]:
    """The names of both, each once, those of `first` in front."""
    return list(dict.fromkeys([*first, *second]))


def _arrays(values: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], frozenset[str]]:
    """Values as the arrays that a file holds, and the names of those that are bfloat16 in the file."""
    arrays: dict[str, np.ndarray] = {}
    narrow = set()
    for name, x in values.items():
        if storable(x):
            arrays[name] = get("torch").to_numpy(x)
            if x.dtype == torch.bfloat16:
                narrow.add(name)
        else:
            arrays[name + PACKED] = packed(name, x)
    return arrays, frozenset(narrow)


def _unpacked(arrays: Mapping[str, np.ndarray], narrow: Collection[str]) -> dict[str, Any]:
    """The values of the arrays of a file: tensors, and other values that were packed. It undoes `_arrays`."""
    values: dict[str, Any] = {}
    for name, x in arrays.items():
        if name.endswith(PACKED):
            values[name.removesuffix(PACKED)] = unpacked(name, x)
            continue
        tensor = torch.from_numpy(x)
        values[name] = tensor.bfloat16() if name in narrow else tensor
    return values
