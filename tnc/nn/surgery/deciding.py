"""Weights that the catch-all rule leaves dense: routers, tables, norms, and parameters that are no linear maps.

To compress them saves next to nothing, and changes what a model does. For example, a router then chooses other experts.
A rule that names such a weight factorizes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import NamedTuple

from torch import nn

from tnc.nn.layers.roles import stated
from tnc.report import Row
from tnc.rules import Rule, rule_of

__all__ = ["SMALL_TABLE", "deciding"]

SMALL_TABLE = 16_384
"""Embedding tables of fewer entries stay dense by default."""

_FLAT = 4
"""A gate is a router if one side is at least this many times as long as the other."""

_THIN = 32
"""A parameter of two axes that no known layer holds is taken for a linear map if its shorter side is at least this."""

_ROUTER_NAMES = frozenset({"gate", "router", "wg", "gating"})

_ROUTER_CLASSES = re.compile(r"router|top_?k|gat(?:e(?!d)|ing)", re.IGNORECASE)

_POSITIONS = re.compile(r"position|pos_?emb|(^|\.)wpe(\.|$)", re.IGNORECASE)

_LINEAR_NAMES = re.compile(r"^weight|(weight|kernel)$", re.IGNORECASE)


class _Place(NamedTuple):
    """A parameter of two axes or more under one of its names."""

    name: str
    module: nn.Module
    parent: nn.Module
    shape: tuple[int, ...]

    @property
    def unknown(self) -> bool:
        """Whether the roles of the axes are not known by the kind of module."""
        return stated.dispatch(type(self.module)) is stated.dispatch(nn.Module)

    @property
    def raw(self) -> bool:
        """Whether a module holds it by itself, under a name that does not say that it is a linear map."""
        leaf = self.name.rpartition(".")[2]
        return self.unknown and not _LINEAR_NAMES.search(leaf) and leaf not in getattr(self.module, "tnc_roles", {})

    @property
    def embedding(self) -> bool:
        return isinstance(self.module, nn.Embedding | nn.EmbeddingBag)


def deciding(model: nn.Module, dense: Mapping[str, nn.Parameter], rules: Sequence[Rule]) -> dict[str, Row]:
    """Weights that the rule ``"*"`` leaves dense, by name, with rows of the report that say why.

    A tied parameter is not among them if it is a linear map under another name, such as an embedding that is tied to
    the output layer. If the model has no other weights, there are none, because the user means these.

    Parameters
    ----------
    model : torch.nn.Module
    dense : mapping of str to Parameter
        The dense parameters of the model, by name.
    rules : sequence of Rule
    """
    places = {name: place for name, x in dense.items() if (place := _place(model, name, x))}
    reasons = {name: _reason(place) for name, place in places.items()}
    maps = {id(dense[name]) for name, why in reasons.items() if why is None}
    found = {name: why for name, why in reasons.items() if why is not None and id(dense[name]) not in maps}
    if not maps:
        return {}
    return {name: _row(name, why, places[name].shape) for name, why in found.items() if _by_default(name, rules)}


def _place(model: nn.Module, name: str, x: nn.Parameter) -> _Place | None:
    """Where a parameter is. None if it cannot be compressed anyway."""
    if x.ndim < 2 or not x.is_floating_point():
        return None
    path = name.rpartition(".")[0]
    return _Place(name, model.get_submodule(path), model.get_submodule(path.rpartition(".")[0]), tuple(x.shape))


def _by_default(name: str, rules: Sequence[Rule]) -> bool:
    """Whether the first rule that matches a name is the catch-all one, which says nothing about its roles."""
    rule = rule_of(name, rules)
    return rule is not None and rule.match == "*" and rule.decomposition is not None and rule.roles is None


def _row(name: str, why: str, shape: tuple[int, ...]) -> Row:
    return Row(name, "dense", shape, note=f"{why}; to factorize it, name it in a rule: tnc.Rule({name!r}, ...)")


def _reason(place: _Place) -> str | None:
    return next((why for test, why in _REASONS if test(place)), None)


def _router(place: _Place) -> bool:
    *path, leaf = place.name.split(".")
    holders = [place.module, place.parent]
    named = not _ROUTER_NAMES.isdisjoint([*path[-1:], leaf])
    called = any(_ROUTER_CLASSES.search(type(holder).__name__) for holder in holders)
    return len(place.shape) == 2 and (named or called) and _FLAT * min(place.shape) <= max(place.shape)


def _vector(place: _Place) -> bool:
    return len(place.shape) == 2 and min(place.shape) == 1


def _norm(place: _Place) -> bool:
    return place.unknown and "norm" in type(place.module).__name__.lower()


def _positions(place: _Place) -> bool:
    whole = place.raw and len(place.shape) == 3 and place.shape[0] == 1
    return whole or ((place.raw or place.embedding) and _POSITIONS.search(place.name) is not None)


def _small_table(place: _Place) -> bool:
    return place.embedding and prod(place.shape) < SMALL_TABLE


def _no_map(place: _Place) -> bool:
    return place.raw and len(place.shape) == 2 and min(place.shape) < _THIN


_REASONS: tuple[tuple[Callable[[_Place], bool], str], ...] = (
    (_router, "it is a router: small changes of it choose other experts"),
    (_vector, "it has an axis of one, so that nothing can be saved"),
    (_norm, "it belongs to a normalization"),
    (_positions, "it is a table of positions, not a linear map"),
    (_small_table, f"it is a table of fewer than {SMALL_TABLE:,} entries"),
    (_no_map, f"it is no linear map of a known layer, and one side is shorter than {_THIN}"),
)
"""Tests, and what the report says if a weight passes one. It says the first reason that holds."""
