"""`tensorize`: the weights of any model replaced by networks with fresh cores, to train from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import isfinite, prod
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from tnc.checkpoint import Checkpoint
from tnc.decomposition import Factorization
from tnc.errors import PromiseError, WeightError
from tnc.nn.factorized import deviation, fresh, topology
from tnc.nn.install import replaced
from tnc.nn.layers import factorized_class
from tnc.report import Row
from tnc.weights import Rule, assembled, matched, rules_of, ties

__all__ = ["tensorize"]


def tensorize(
    model: nn.Module,
    rules: Any,
    rank: Any = None,
    *,
    execution: str = "auto",
    clip: bool = True,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Replace the matched weights of a model by networks with fresh random cores, in place; nothing is fitted.

    The rebuilt entries have the standard deviation that the model gave the weight: it is measured on the weight, so
    that a network keeps the initialization its author chose. A weight on the meta device has no values to measure;
    it gets the deviation that torch's layer would draw, and cores that exist, so that it may be too large to exist.
    Per core that is a variance of ``(σ² / ∏ r) ** (1 / n)`` for n cores with bonds r; as few cores deviate from
    their expectation, the scale is then measured on the network contracted with itself.

    Parameters
    ----------
    model : torch.nn.Module
        Not trained yet, or trained: only the scale of the matched weights is kept. The other parameters are left as
        they are, those on the meta device too. Random numbers follow ``torch.manual_seed``.
    rules, rank
        As in `tnc.nn.compress`; a rank or a ratio, as there is nothing to approximate.
    execution : {"auto", "dense", "factorized"}
    clip : bool
        False takes stated ranks literally, as papers count them: no bond is cut to what it can use, and a weight is
        replaced even where its cores are larger.
    device : torch.device or str, optional
        Where the cores of weights on the meta device go; torch's default device.

    Returns
    -------
    torch.nn.Module
        The same object; ``model.tnc_report`` is the `Report`, without errors. A weight stays dense where its
        cores would be no fewer parameters, or where it is constant, as zeros are; the report says so.

    Raises
    ------
    MatchError, RankError, UnknownNameError, PluginError
        The rules match nothing or ask for what does not exist, or for a tolerance.
    WeightError
        A matched weight is not finite, integer or complex, or on the meta device in a module whose
        initialization is not known; and whatever `tnc.nn.compress` refuses.
    """
    place = torch.device(device or torch.get_default_device())
    return replaced(model, rules_of(rules, rank), execution, partial(_drawn, model, clip, place))


def _drawn(
    model: nn.Module, clip: bool, device: torch.device, weights: Mapping[str, Tensor], rules: list[Rule]
) -> Checkpoint:
    aliases = ties(weights)
    done = {}
    for rule, names in matched(weights, rules, aliases, values=False):
        for name in names:
            weight = weights[name]
            scale = _scale(model, name, weight)
            place = device if weight.is_meta else weight.device
            done[name] = _draw(name, rule, weight, scale, clip, place)
    return assembled(weights, done, aliases)


def _scale(model: nn.Module, name: str, weight: Tensor) -> float:
    """Standard deviation of a weight, or where it has no values of what torch would draw."""
    if weight.is_meta:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if leaf != "weight" or factorized_class(module) is None:
            raise WeightError(
                f"{name} is on the meta device, and how {type(module).__name__} initializes it is not known: "
                "give it values first, or leave it out with a rule"
            )
        return deviation(module)
    scale = float(weight.std(correction=0))
    if not isfinite(scale):
        raise WeightError(f"{name} has entries that are NaN or infinite: repair it, or leave it out with a rule")
    return scale


def _draw(
    name: str, rule: Rule, weight: Tensor, scale: float, clip: bool, device: torch.device
) -> tuple[Factorization | None, Row]:
    """Fresh cores and their row; no cores, and why, where the weight stays dense."""
    start, shape, size = perf_counter(), tuple(weight.shape), prod(weight.shape)
    try:
        network = topology(shape, rule, clip=clip)
        if clip and network.n_params >= size:
            raise PromiseError(
                f"{rule.decomposition}@{rule.rank} would keep {network.n_params:,} of {size:,} parameters"
            )
        if not scale:
            raise PromiseError("it is constant: there is no deviation to match")
    except PromiseError as reason:
        return None, Row(name, "dense", shape, (), size, size, size, None, note=str(reason))
    found = fresh(network, shape, scale, weight.dtype, device)
    nominal = rule.rank.nominal(shape, rule.decomposition, network)
    numbers = size, network.n_params, nominal
    return found, Row(name, str(rule.decomposition), shape, network.ranks, *numbers, None, perf_counter() - start)
