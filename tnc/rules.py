"""`Rule` says which weights get which decomposition with which rank. `matched` finds the weights of each rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any

from array_api_compat import array_namespace

from tnc.backends import of
from tnc.decomposition import Decomposition, InRoles
from tnc.errors import BackendError, MatchError, RankError, WeightError, listed
from tnc.ranks.short import policy
from tnc.registry import decompositions
from tnc.roles import AxisRoles, guessed
from tnc.typing import Array, Shape

__all__ = ["Rule", "matched", "rule_of", "rules_of", "ties"]


@dataclass(frozen=True)
class Rule:
    """A decomposition and a rank for the weights whose names match.

    Parameters
    ----------
    match : str
        Glob on parameter names: ``"*"``, ``"*.fc*.weight"``. If several rules match, the first one is used.
    decomposition : str or Decomposition or None
        A plugin's name, with fields if wanted (``"mpo(order=4)"``), or an instance. None keeps the weight dense.
    rank : int, sequence of int, float, str or RankPolicy
        See `tnc.ranks.short.policy`.
    roles : str or AxisRoles, optional
        The roles of the weights' axes, such as ``"stack columns rows"`` (see `tnc.roles`). By default the module that
        has the weight says them. For a plain array they are guessed, and the report says so.

    Raises
    ------
    UnknownNameError, PluginError, RankError
        The decomposition or the rank does not exist.
    WeightError
        The roles are not understood.
    """

    match: str
    decomposition: Any
    rank: Any = None
    roles: Any = None

    def __post_init__(self) -> None:
        chosen = self.decomposition
        if isinstance(chosen, str):
            chosen = decompositions.parse(chosen)
        if isinstance(chosen, type) and issubclass(chosen, Decomposition):
            chosen = chosen()
        if chosen is not None and not isinstance(chosen, Decomposition):
            raise WeightError(f"rule {self.match!r}: {chosen!r} is neither a decomposition nor a plugin's name")
        if chosen is not None and self.rank is None:
            raise RankError(f"rule {self.match!r}: no rank given; write rank=8, rank=0.1 or rank='tolerance:0.02'")
        object.__setattr__(self, "decomposition", chosen)
        object.__setattr__(self, "rank", None if chosen is None else policy(self.rank))
        object.__setattr__(self, "roles", AxisRoles(self.roles) if isinstance(self.roles, str) else self.roles)

    def decomposed(self, shape: Shape, stated: AxisRoles | None = None) -> InRoles:
        """The decomposition with the roles of a weight's axes; the first one where there are several to choose among.

        The arguments and errors are those of `candidates`.
        """
        return self.candidates(shape, stated)[0]

    def candidates(self, shape: Shape, stated: AxisRoles | None = None) -> tuple[InRoles, ...]:
        """The decompositions to choose among, with the roles of a weight's axes.

        The roles are those of the rule. Without them they are those that the module states, and else they are guessed.

        Parameters
        ----------
        shape : tuple of int
            Shape of the weight.
        stated : AxisRoles, optional
            The roles that the module of the weight states.

        Raises
        ------
        WeightError
            The roles do not fit a weight of this shape.
        """
        roles = self.roles or stated or guessed(shape)
        roles.split(shape)  # raises where they do not fit
        return tuple(InRoles(candidate, roles) for candidate in self.decomposition.candidates)

    @classmethod
    def parse(cls, text: str) -> Rule:
        """A rule from ``"GLOB=METHOD@RANK"``, such as ``"*.fc*=mpo(order=4)@ratio:0.1"``.

        Raises
        ------
        RankError
            The text is not of this form.
        """
        match, equal, rest = text.partition("=")
        method, at, rank = rest.rpartition("@")
        if not (equal and at and match.strip() and method.strip()):
            raise RankError(
                f"rule {text!r} is not understood: write 'GLOB=METHOD@RANK', such as '*.fc*=mpo(order=4)@ratio:0.1'"
            )
        return cls(match.strip(), method.strip(), rank.strip())


def rules_of(rules: Any, rank: Any = None) -> list[Rule]:
    """A list of rules, from a list of rules, one rule, or one decomposition for all weights with `rank`.

    Raises
    ------
    MatchError
        `rules` is none of these.
    """
    if isinstance(rules, Rule):
        return [rules]
    if isinstance(rules, str | Decomposition | type):
        return [Rule("*", rules, rank)]
    listing = list(rules) if isinstance(rules, Iterable) else []
    if not listing or not all(isinstance(rule, Rule) for rule in listing):
        raise MatchError(f"rules {rules!r}: pass tnc.Rule(match, decomposition, rank), or a list of them")
    return listing


def rule_of(name: str, rules: Sequence[Rule]) -> Rule | None:
    """The first rule that matches a name; None if there is none."""
    return next((rule for rule in rules if fnmatchcase(name, rule.match)), None)


def ties(weights: Mapping[str, Array]) -> dict[str, str]:
    """Tied names: each shares the whole memory of an earlier name, which is its value here.

    Raises
    ------
    WeightError
        The memory of a weight cannot be identified.
    """
    homes: dict[Any, str] = {}
    tied = {}
    for name, x in weights.items():
        try:
            key = of(x).memory(x)
        except BackendError as error:
            raise WeightError(f"{name}: {error}") from error
        if prod(x.shape) > 1 and (home := homes.setdefault(key, name)) != name:
            tied[name] = home
    return tied


def matched(
    weights: Mapping[str, Array], rules: Sequence[Rule], aliases: Mapping[str, str], *, values: bool = True
) -> list[tuple[Rule, list[str]]]:
    """The weights of each rule that has a decomposition.

    The first rule that matches a name, or a name tied to it, is used.

    Parameters
    ----------
    weights : mapping of str to array
    rules : sequence of Rule
    aliases : mapping of str to str
        Tied names, and the name that has the weight.
    values : bool
        Whether the weights must have values, all of them finite.

    Returns
    -------
    list of (Rule, list of str)

    Raises
    ------
    MatchError
        A rule matches no weight, or all rules together match no weight that can be factorized.
    WeightError
        A matched weight cannot be factorized.
    """
    _refuse_idle(rules, weights)
    groups: list[tuple[Rule, list[str]]] = [(rule, []) for rule in rules]
    for name in weights:
        k = None if name in aliases else _first_rule(name, rules, aliases)
        if k is not None and len(weights[name].shape) >= 2 and _check(name, weights[name], rules[k], values):
            groups[k][1].append(name)
    compressing = [(rule, names) for rule, names in groups if rule.decomposition is not None]
    used = [(rule, names) for rule, names in compressing if names]
    if compressing and not used:
        shapes = listed((f"{name} {tuple(x.shape)} {x.dtype}" for name, x in weights.items()), 40)
        raise MatchError(f"the rules match no floating-point weight of two or more axes. Weights: {shapes}")
    return used


def _refuse_idle(rules: Sequence[Rule], weights: Mapping[str, Array]) -> None:
    """Refuse a rule that matches no name."""
    for rule in rules:
        if not any(fnmatchcase(name, rule.match) for name in weights):
            raise MatchError(f"rule {rule.match!r} matches no weight. Names: {listed(weights, 40)}")


def _first_rule(name: str, rules: Sequence[Rule], aliases: Mapping[str, str]) -> int | None:
    """The number of the first rule that matches a name, or a name that is tied to it."""
    called = [name, *(other for other, home in aliases.items() if home == name)]
    hits = (k for k, rule in enumerate(rules) if any(fnmatchcase(n, rule.match) for n in called))
    return next(hits, None)


def _check(name: str, x: Array, rule: Rule, values: bool) -> bool:
    """Whether a matched weight can be factorized.

    The rule ``"*"`` leaves out integers and arrays that are not plain. Anything else that does not fit is an error.
    """
    if rule.decomposition is None or 0 in x.shape:
        return False
    if (what := of(x).foreign(x)) is not None:
        if rule.match == "*":
            return False
        raise WeightError(
            f"{name} is {what}: only plain arrays can be factorized; convert it, or leave it out with a rule"
        )
    xp = array_namespace(x)
    if values and str(x.device) == "meta":
        raise WeightError(f"{name} is on the meta device and has no values: load the weights before compressing")
    if not xp.isdtype(x.dtype, "real floating"):
        if rule.match == "*" and not xp.isdtype(x.dtype, "complex floating"):
            return False
        raise WeightError(
            f"{name} has dtype {x.dtype}: only real floating-point weights can be factorized; leave it out with a rule"
        )
    if values and not bool(xp.all(xp.isfinite(x))):
        raise WeightError(f"{name} has entries that are NaN or infinite: repair it, or leave it out with a rule")
    return True
