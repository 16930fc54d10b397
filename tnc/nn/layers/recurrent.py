"""Torch's recurrent layers with factorized weights: every forward rebuilds each weight once for torch's kernels."""

from __future__ import annotations

from threading import local
from typing import Any

from torch import Tensor, nn

from tnc.nn.layers.holder import Holder, cores_of

__all__ = ["Recurrent"]


class Recurrent(Holder, nn.RNNBase):
    """A recurrent layer whose weights are rebuilt from the cores once in every forward."""

    @staticmethod
    def _tnc_entered(module: Any) -> None:
        module.__dict__.pop("_flat_weights", None)  # the list would keep the dense weights in memory

    @staticmethod
    def _tnc_left(module: Any) -> None:
        module._init_flat_weights()

    @property
    def _flat_weights(self) -> list[Tensor]:
        """The weights in the order of torch's kernels; inside a forward, those that it has rebuilt."""
        return _running.weights.get(id(self)) or [self._read(name) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, value: list[Tensor]) -> None:
        """Ignore the list that torch keeps: it would be outdated when the cores change."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute as other holders do, without the assignment of torch's recurrent layers.

        That would also write to the list of weights, at times when not all of them exist.
        """
        if cores_of(self, name) is None and name != "_flat_weights":
            nn.Module.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _replicate_for_data_parallel(self) -> nn.Module:
        """Make a replica as for any other module.

        Torch's recurrent layers would read the list of weights, but a replica gets its parameters only later.
        """
        module: Any = nn.Module
        replica: nn.Module = module._replicate_for_data_parallel(self)
        return replica

    def _read(self, name: str) -> Tensor:
        """A parameter, or the weight rebuilt from its cores."""
        cores = cores_of(self, name)
        return getattr(self, name) if cores is None else cores.weight(cores.held(), self._tnc.keeps)

    def _weights_have_changed(self) -> bool:
        """Say that they have not: to find out, torch would read, and thus rebuild, every weight."""
        return False

    def flatten_parameters(self) -> None:
        """Do nothing: rebuilt weights do not lie in one block of memory, so that cuDNN copies them."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run torch's forward, with every weight rebuilt once."""
        _running.weights[id(self)] = self._flat_weights
        try:
            return super().forward(*args, **kwargs)
        finally:
            _running.weights.pop(id(self), None)


class _Running(local):
    """The rebuilt weights of the recurrent layers whose forward runs in this thread, by the identity of the layer."""

    def __init__(self) -> None:
        self.weights: dict[int, list[Tensor]] = {}


_running = _Running()
