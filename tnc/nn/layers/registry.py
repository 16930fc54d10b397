"""The classes that run modules with cores. They are registered under the entry-point group ``tnc.layers``."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import nn

from tnc.nn.layers.base import Factorized
from tnc.nn.layers.holder import beneath
from tnc.registry import Registry

__all__ = ["factorized_class", "layers"]

layers = Registry("tnc.layers", "tnc.nn.layers.base:Factorized")
"""The installed fast layers. ``layers["linear"]`` is a class."""


def factorized_class(module: nn.Module) -> type[Factorized] | None:
    """The registered class that can replace the class of `module`, because its torch layer has the same ``forward``.

    Raises
    ------
    PluginError
        A registered class cannot be imported, or is not a subclass of `Factorized`.
    """
    kind = beneath(module)
    fitting = [layer for layer in _classes() if _runs_as(kind, layer._tnc_base)]
    # If several fit, take the most derived layer: it is first in the method resolution order.
    return min(fitting, key=lambda layer: kind.__mro__.index(layer._tnc_base), default=None)


def _classes() -> tuple[type[Factorized], ...]:
    return _loaded(tuple(plugin.target for plugin in layers.plugins()))


@lru_cache(maxsize=4)
def _loaded(targets: tuple[str, ...]) -> tuple[type[Factorized], ...]:
    """The installed classes. They are loaded again only if `targets`, the list of what is installed, has changed."""
    return tuple(layers[name] for name in layers)


def _runs_as(kind: Any, base: Any) -> bool:
    """Whether a class inherits the methods that compute the output of `base`, unchanged."""
    methods = [name for name in ("forward", "_conv_forward") if hasattr(base, name)]
    return issubclass(kind, base) and all(getattr(kind, name) is getattr(base, name) for name in methods)
