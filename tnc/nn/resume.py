"""A training run as a value that is kept in a file, so that an interrupted one goes on to the same end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tnc import storage
from tnc.backends import get
from tnc.errors import CheckpointError, listed

__all__ = ["Epoch", "Run", "Score"]


class Score(NamedTuple):
    """Mean loss and share of right labels; the share is NaN where labels are no classes."""

    loss: float
    accuracy: float

    @property
    def merit(self) -> tuple[float, float]:
        """What the better of two has more of: accuracy, then the smaller loss."""
        return (0.0 if isnan(self.accuracy) else self.accuracy), -self.loss


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data.

    Attributes
    ----------
    loss, accuracy : float
        Over the training samples, each before the step that learned from it; the loss is what was minimized.
    seconds : float
        Training and validation.
    validation : Score, optional
        After the pass, without distillation.
    """

    loss: float
    accuracy: float
    seconds: float
    validation: Score | None = None


@dataclass
class Run:
    """All that changes in training.

    Attributes
    ----------
    epochs : list of Epoch
        Passes done.
    before : Score, optional
        Validation of the model as given.
    best : int
        Passes after which the validation was best; all of them without one.
    best_state : dict, optional
        The model's state then.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epochs: list[Epoch] = field(default_factory=list)
    before: Score | None = None
    best: int = 0
    best_state: dict[str, Tensor] | None = None

    def judge(self, score: Score | None) -> None:
        """Take note of a validation of the model as it is now, and keep its state if it is the best so far."""
        done = len(self.epochs)
        if not done:
            self.before = score
        earlier = self.epochs[self.best - 1].validation if self.best else self.before
        if score is None or earlier is None or not done or score.merit > earlier.merit:
            self.best = done
            if score is not None:
                self.best_state = {n: x.detach().to("cpu", copy=True) for n, x in self.model.state_dict().items()}

    def over(self, epochs: int, patience: int | None) -> bool:
        """Whether all epochs are done, or the last `patience` of them brought nothing."""
        done = len(self.epochs)
        return done >= epochs or (patience is not None and done - self.best >= patience)

    def finish(self) -> None:
        """Give the model its best state back."""
        if self.best_state is not None:
            self.model.load_state_dict(self.best_state)

    def save(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        """Write everything to one safetensors file; an interruption leaves the earlier one."""
        slots = self.optimizer.state_dict()
        tensors = {f"model.{name}": x for name, x in self.model.state_dict().items()}
        tensors |= {f"best.{name}": x for name, x in (self.best_state or {}).items()}
        tensors |= {f"optimizer.{k}.{key}": x for k, slot in slots["state"].items() for key, x in slot.items()}
        header = {
            "settings": dict(settings),
            "groups": [{key: group[key] for key in _RATES} for group in slots["param_groups"]],
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "before": self.before,
            "best": self.best,
        }
        narrow = frozenset(name for name, x in tensors.items() if x.dtype == torch.bfloat16)
        arrays = {name: get("torch").to_numpy(x) for name, x in tensors.items()}
        storage.write(path, arrays, {"tnc.run": json.dumps(header), "format": "pt"}, narrow)

    def load(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        """Become the run that was saved.

        Raises
        ------
        CheckpointError
            The file is damaged, no training checkpoint, or of a run with another model or other settings.
        """
        arrays, metadata, _ = storage.read(path)
        if "tnc.run" not in metadata:
            raise CheckpointError(f"{str(path)!r} is no checkpoint of a training run: name another file")
        header = json.loads(metadata["tnc.run"])
        now = json.loads(json.dumps(dict(settings)))
        differ = [f"{k}={header['settings'].get(k)!r} there, {v!r} here" for k, v in now.items()
                  if header["settings"].get(k) != v]  # fmt: skip
        held = {name: torch.from_numpy(array) for name, array in arrays.items()}
        state = {name.removeprefix("model."): x for name, x in held.items() if name.startswith("model.")}
        own = self.model.state_dict()
        differ += [name for name in {*own, *state} if name not in own or name not in state
                   or own[name].shape != state[name].shape]  # fmt: skip
        if differ:
            raise CheckpointError(
                f"{str(path)!r} is of another run: {listed(differ)}. Delete it, or call as it was called"
            )
        self.model.load_state_dict(state)
        slots: dict[int, dict[str, Tensor]] = {}
        for name, x in held.items():
            if name.startswith("optimizer."):
                _, k, key = name.split(".")
                slots.setdefault(int(k), {})[key] = x
        groups = self.optimizer.state_dict()["param_groups"]
        groups = [group | kept for group, kept in zip(groups, header["groups"], strict=True)]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.epochs = [Epoch(**e | {"validation": _score(e["validation"])}) for e in header["epochs"]]
        self.before, self.best = _score(header["before"]), header["best"]
        best = {name.removeprefix("best."): x for name, x in held.items() if name.startswith("best.")}
        self.best_state = best or None


_RATES = ("lr", "base", "weight_decay", "eps")


def _score(pair: Any) -> Score | None:
    return None if pair is None else Score(*pair)
