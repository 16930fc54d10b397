"""`tensorize` replaces weights of a model by networks with new random cores, to train from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import isfinite, prod
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from tnc.checkpoint import Checkpoint
from tnc.decomposition import Factorization
from tnc.errors import PromiseError, WeightError
from tnc.nn.layers.init import deviation, fresh
from tnc.nn.layers.registry import factorized_class
from tnc.nn.surgery.replace import replaced
from tnc.report import Row
from tnc.roles import AxisRoles
from tnc.rules import Rule, matched, rules_of, ties
from tnc.weights import assembled, guess

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
    """Replace the matched weights of a model by networks with new random cores, in place. Nothing is fitted.

    The entries of the rebuilt weight have the standard deviation of the entries of the dense weight. So a model keeps
    the initialization that its author chose. A weight on the meta device has no values, and gets the deviation of
    torch's initialization. Its cores have values, so that the dense weight may be too large for the memory.

    The variance of each core is ``(σ² / ∏ r) ** (1 / n)`` for n cores with bonds r. This is right only on average over
    many cores. So the scale is measured afterwards, on the network contracted with itself, and corrected.

    Parameters
    ----------
    model : torch.nn.Module
        Trained or not. Only the scale of the matched weights is used. The other parameters do not change, also those
        on the meta device. Random numbers follow ``torch.manual_seed``.
    rules : str, Decomposition, Rule or list of Rule
        As in `tnc.nn.compress`.
    rank : int, sequence of int or float, optional
        A rank or a ratio, as in `tnc.nn.compress`. A tolerance is not possible: there is nothing to approximate.
    execution : {"auto", "dense", "factorized"}
        As in `tnc.nn.compress`.
    clip : bool
        False takes ranks literally, as papers count them. Then no rank is reduced to what its bond can use, and a
        weight is replaced even where its cores have more parameters.
    device : torch.device or str, optional
        The device of the cores of weights that are on the meta device. By default torch's default device.

    Returns
    -------
    torch.nn.Module
        The same object. ``model.tnc_report`` is the `Report`, without errors. A weight stays dense where its cores
        would not have fewer parameters, or where all its entries are equal. The report says so.

    Raises
    ------
    MatchError, RankError, UnknownNameError, PluginError
        The rules match nothing, ask for a tolerance, or name a rank or a decomposition that does not exist.
    WeightError
        A matched weight is not finite, integer or complex. Or it is on the meta device, in a module whose
        initialization is not known. Or `tnc.nn.compress` would raise this error, too.
    """
    target = torch.device(device or torch.get_default_device())
    return replaced(model, rules_of(rules, rank), execution, partial(_drawn, model, clip, target))


def _drawn(
    model: nn.Module,
    clip: bool,
    device: torch.device,
    weights: Mapping[str, Tensor],
    rules: list[Rule],
    roles: Mapping[str, AxisRoles],
) -> Checkpoint:
    aliases = ties(weights)
    done = {}
    for rule, names in matched(weights, rules, aliases, values=False):
        for name in names:
            weight = weights[name]
            scale = _scale(model, name, weight)
            target = device if weight.is_meta else weight.device
            done[name] = _draw(name, rule, weight, scale, clip, target, roles.get(name))
    return assembled(weights, done, aliases)


def _scale(model: nn.Module, name: str, weight: Tensor) -> float:
    """Standard deviation of the entries of a weight; on the meta device that of torch's initialization."""
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
    name: str,
    rule: Rule,
    weight: Tensor,
    scale: float,
    clip: bool,
    device: torch.device,
    roles: AxisRoles | None,
) -> tuple[Factorization | None, Row]:
    """New cores and their row of the report. Where the weight stays dense, None and a row with the reason."""
    start, shape, size = perf_counter(), tuple(weight.shape), prod(weight.shape)
    try:
        decomposition = rule.decomposed(shape, roles)
        network = rule.rank.fresh(shape, decomposition)
        network = network.clipped() if clip else network
        if clip and network.n_params >= size:
            raise PromiseError(
                f"{rule.decomposition}@{rule.rank} would keep {network.n_params:,} of {size:,} parameters"
            )
        if not scale:
            raise PromiseError("it is constant: there is no deviation to match")
    except PromiseError as reason:
        return None, Row(name, "dense", shape, (), size, size, size, None, note=str(reason))
    factorization = fresh(network, shape, scale, weight.dtype, device, decomposition)
    nominal = rule.rank.nominal(shape, decomposition, network)
    row = Row(name, str(decomposition), shape, network.ranks, size, network.n_params, nominal, None)
    return factorization, replace(row, seconds=perf_counter() - start, note=guess(factorization.roles))
