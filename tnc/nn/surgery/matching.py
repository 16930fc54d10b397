"""The weights of a model that rules can be about, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from glob import escape
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from tnc.errors import MatchError, listed
from tnc.nn.layers.roles import roles_of
from tnc.nn.surgery.deciding import deciding
from tnc.nn.surgery.parameters import factorizations
from tnc.nn.surgery.refusals import foreign, initialized, passed_over
from tnc.report import Report, Row
from tnc.roles import AxisRoles
from tnc.rules import Rule

__all__ = ["Found", "Weights", "dense_weights"]

Weights = Mapping[str, torch.Tensor]

T = TypeVar("T")


class Found(NamedTuple):
    """The dense weights of a model.

    Attributes
    ----------
    weights : dict of str to Tensor
        Those that can be factorized. Tied weights are one object.
    rules : list of Rule
        The rules that are about them.
    roles : dict of str to AxisRoles
        The roles of the axes of each weight, as its module states them.
    notes : list of Row
        Rows of the weights that a catch-all rule passes over.
    earlier : list of Row
        Rows of the weights that are factorized already.
    factorized : list of str
        Their names.
    """

    weights: dict[str, torch.Tensor]
    rules: list[Rule]
    roles: dict[str, AxisRoles]
    notes: list[Row]
    earlier: list[Row]
    factorized: list[str]

    def given_to(self, work: Callable[[Weights, list[Rule], Mapping[str, AxisRoles]], T]) -> T:
        """Call a function with the weights, rules and roles.

        An error about rules that match nothing also names the weights that were left out.
        """
        try:
            return work(self.weights, self.rules, self.roles)
        except MatchError as error:
            again = over = ""
            if self.factorized:
                again = (
                    f" Factorized already: {listed(self.factorized)}; tnc.nn.uninstall(model) makes them dense again."
                )
            if self.notes:
                over = f" Passed over: {'; '.join(f'{row.name}, as {row.note}' for row in self.notes)}."
            raise MatchError(f"{error}{again}{over}") from error

    def whole(self, report: Report) -> Report:
        """A report of the weights, with the rows of all others."""
        total = report.total + sum(row.before for row in self.earlier)
        return Report([*self.earlier, *report.rows, *self.notes], total, report.calibration)


def dense_weights(model: nn.Module, rules: list[Rule]) -> Found:
    """The dense weights of a model.

    Parameters
    ----------
    model : torch.nn.Module
    rules : list of Rule

    Raises
    ------
    WeightError
        A rule other than ``"*"`` matches a weight that cannot be factorized, or a parameter is not initialized yet.
    """
    dense = initialized(model)
    left_out = passed_over(model, dense, rules)
    plain = {id(parameter): parameter.detach() for parameter in dense.values()}  # tied parameters remain one object
    weights = {
        name: plain[id(parameter)]
        for name, parameter in dense.items()
        if name not in left_out and foreign(parameter) is None
    }
    factorized = [name for name, *_ in factorizations(model)]
    decides = deciding(model, {name: dense[name] for name in weights}, rules)
    used = [Rule(escape(name), None) for name in decides]
    used += [rule for rule in rules if _applies(rule, weights, left_out)]
    notes = [*(row for row in left_out.values() if row), *decides.values()]
    earlier = [row for row in getattr(model, "tnc_report", Report([])).rows if row.name in factorized]
    return Found(weights, used, _roles(model, weights), notes, earlier, factorized)


def _roles(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, AxisRoles]:
    """The roles of the axes of each weight, from its module. For a tied weight it is the module of its first name."""
    stated = {}
    for name, weight in weights.items():
        path, _, leaf = name.rpartition(".")
        if (roles := roles_of(model.get_submodule(path), leaf, tuple(weight.shape))) is not None:
            stated[name] = roles
    return stated


def _applies(rule: Rule, weights: Mapping[str, Any], left_out: Mapping[str, Any]) -> bool:
    """Whether a rule matches a weight that can be factorized, or no weight at all, which is an error later."""
    return any(fnmatchcase(n, rule.match) for n in weights) or not any(fnmatchcase(n, rule.match) for n in left_out)
