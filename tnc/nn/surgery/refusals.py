"""Weights that cannot be compressed or replaced, and the messages that say why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from tnc.backends import get
from tnc.checkpoint import Checkpoint
from tnc.errors import DataError, WeightError
from tnc.nn.layers.holder import obstacle
from tnc.nn.surgery.parameters import computed, parameters
from tnc.report import Row
from tnc.rules import Rule, rule_of

__all__ = ["foreign", "initialized", "passed_over", "refuse_hidden", "refuse_without_data"]


def initialized(model: nn.Module) -> dict[str, nn.Parameter]:
    """The dense parameters of a model, by name.

    Raises
    ------
    WeightError
        A parameter of a lazy module has no shape before the first forward. Or a module is compiled by ``torch.jit``,
        so that its class cannot be exchanged.
    """
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise WeightError(f"{path or 'the model'} is compiled by torch.jit: compress what it was made from instead")
    dense = parameters(model)
    for name, parameter in dense.items():
        if isinstance(parameter, UninitializedParameter):
            raise WeightError(f"{name} is not initialized yet: run the model once on an example input")
    return dense


class _Reason(NamedTuple):
    """Why a weight cannot be factorized."""

    why: str
    shape: tuple[int, ...]
    """Shape of the weight; empty if it is computed."""
    remedy: str
    """What the user can do, as an imperative."""


def passed_over(model: nn.Module, dense: dict[str, nn.Parameter], rules: list[Rule]) -> dict[str, Row | None]:
    """Weights that no decomposition can replace, by name.

    The catch-all rule ``"*"`` passes over them, and a row of the report says why. A rule with another pattern is an
    error.

    Parameters
    ----------
    model : torch.nn.Module
    dense : dict of str to Parameter
        The dense parameters of the model, by name.
    rules : list of Rule

    Returns
    -------
    dict of str to Row or None
        None for a weight that the rules leave dense anyway.

    Raises
    ------
    WeightError
        A rule other than ``"*"`` matches such a weight.
    """
    reasons = _parametrized(model) | _unsuitable(model, dense)
    return {name: _row(name, reason, rules) for name, reason in reasons.items()}


def _parametrized(model: nn.Module) -> dict[str, _Reason]:
    """Weights that a parametrization computes."""
    remedy = (
        "make it a parameter with torch.nn.utils.parametrize.remove_parametrizations "
        "(tnc.nn.load does so in a fresh model)"
    )
    return {
        name: _Reason(f"it is computed by the parametrization {how}", (), remedy)
        for name, how in computed(model).items()
    }


def _unsuitable(model: nn.Module, dense: dict[str, nn.Parameter]) -> dict[str, _Reason]:
    """Dense weights that are no plain tensors of floats, or whose module has no place for cores."""
    obstacles = _obstacles(model, dense)
    reasons = {}
    for name, parameter in dense.items():
        if parameter.ndim < 2:
            continue
        shape = tuple(parameter.shape)
        if (kind := foreign(parameter)) is not None:
            reasons[name] = _Reason(f"it is {kind}", shape, "make it a plain tensor of floats")
        elif id(parameter) in obstacles:
            where, what = obstacles[id(parameter)]
            why = what if where == name else f"it is tied to {where}, which cannot be replaced: {what}"
            reasons[name] = _Reason(why, shape, "give the parameter to a module of its own")
    return reasons


def _obstacles(model: nn.Module, dense: dict[str, nn.Parameter]) -> dict[int, tuple[str, str]]:
    """Parameters, by identity, whose module has no place for cores: the name in that module and the obstacle."""
    obstacles: dict[int, tuple[str, str]] = {}
    for name, parameter in dense.items():
        path, _, leaf = name.rpartition(".")
        if what := obstacle(model.get_submodule(path), leaf):
            obstacles.setdefault(id(parameter), (name, what))
    return obstacles


def _row(name: str, reason: _Reason, rules: list[Rule]) -> Row | None:
    """The row for a weight that a catch-all rule passes over; None if no rule is about it."""
    rule = rule_of(name, rules)
    if rule is None or rule.decomposition is None:
        return None
    if rule.match != "*":
        raise WeightError(
            f"{name} cannot be factorized: {reason.why}. To factorize it, {reason.remedy}; or leave it out with "
            f"tnc.Rule({name!r}, None)"
        )
    return Row(name, "dense", reason.shape, note=f"{reason.why}; to factorize it, {reason.remedy}")


def foreign(x: Tensor) -> str | None:
    """The kind of a tensor that is not a plain array of numbers (sparse, quantized, sharded); else None."""
    return get("torch").foreign(x)


def refuse_hidden(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Refuse to replace a parameter that a module also holds in a plain attribute, list or dict.

    That reference would keep the old dense weight.

    Raises
    ------
    WeightError
        There is such a reference. The message names it.
    """
    names = _replaced_parameters(model, checkpoint)
    for path, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            continue  # our class of recurrent layers replaces torch's list of weights
        for attribute, tensor in _plain_attributes(module):
            if id(tensor) in names:
                raise WeightError(
                    f"{names[id(tensor)]} is also held by {path or 'the model'}.{attribute}, which would keep the "
                    "dense weight: remove that reference or leave the weight out with a rule"
                )


def _replaced_parameters(model: nn.Module, checkpoint: Checkpoint) -> dict[int, str]:
    """The parameters that the checkpoint replaces by cores, by identity, and their names."""
    replaced = set(checkpoint.factorized)
    replaced |= {name for name, home in checkpoint.aliases.items() if home in checkpoint.factorized}
    return {id(parameter): name for name, parameter in parameters(model).items() if name in replaced}


def _plain_attributes(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that a module holds outside its parameters and buffers, and the name of the attribute."""
    for attribute, value in vars(module).items():
        if attribute not in ("_parameters", "_modules", "_buffers", "_tnc"):
            for tensor in _tensors(value):
                yield attribute, tensor


def _tensors(value: object, depth: int = 4) -> Iterator[Tensor]:
    """Tensors in a value and in nested dicts, lists and tuples, down to `depth`."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple) and depth:
        items = value.values() if isinstance(value, dict) else value
        for item in items:
            yield from _tensors(item, depth - 1)


def refuse_without_data(forward: object, objective: str, statistics: object, *, predicts: bool) -> None:
    """Refuse arguments that mean something with calibration inputs only, where there are none.

    Parameters
    ----------
    forward : callable or None
    objective : str
    statistics : Statistics or None
        They are enough for a prediction, and say what an objective is about.
    predicts : bool
        Whether nothing is compressed.

    Raises
    ------
    DataError
        There is such an argument.
    """
    without = statistics is None or not predicts
    given = [name for name, there in (("forward", forward), ("statistics", not predicts and statistics)) if there]
    given += ["objective"] if objective != "auto" and without else []
    if given:
        raise DataError(
            f"{', '.join(given)}= needs calibration inputs, too: pass data=, such as some batches of inputs"
        )
