"""From arrays and rules to a checkpoint: `Rule` and `compress_weights`, pure and without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod
from time import perf_counter
from typing import Any

from array_api_compat import array_namespace

from tnc.backends import Backend, move, of
from tnc.checkpoint import Checkpoint
from tnc.decomposition import Decomposition, Factorization
from tnc.errors import BackendError, MatchError, PromiseError, RankError, TncError, WeightError, listed
from tnc.linalg import working
from tnc.network import Network
from tnc.ranks import RankPolicy, policy
from tnc.registry import decompositions
from tnc.report import Report, Row
from tnc.settings import current_backend
from tnc.storage import bfloat16, widen
from tnc.typing import Array

__all__ = ["Progress", "Rule", "assembled", "compress_weights", "matched", "rules_of", "ties"]

Progress = Callable[..., Iterable[Any]]
"""Wraps a sized iterable: ``progress(iterable, total=..., description=...)``."""


@dataclass(frozen=True)
class Rule:
    """Which weights get which decomposition at which rank.

    Parameters
    ----------
    match : str
        Glob on parameter names: ``"*"``, ``"*.fc*.weight"``. Of several rules the first that matches wins.
    decomposition : str or Decomposition or None
        A plugin's name, with fields if wanted (``"mpo(order=4)"``), or an instance. None keeps the weight dense.
    rank : int, sequence of int, float, str or RankPolicy
        See `tnc.ranks.policy`.

    Raises
    ------
    UnknownNameError, PluginError, RankError
        The decomposition or the rank does not exist.
    """

    match: str
    decomposition: Any
    rank: Any = None

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
    """Rules as `compress` takes them: a list of rules, one rule, or a decomposition for everything at `rank`."""
    if isinstance(rules, Rule):
        return [rules]
    if isinstance(rules, str | Decomposition | type):
        return [Rule("*", rules, rank)]
    found = list(rules) if isinstance(rules, Iterable) else []
    if not found or not all(isinstance(rule, Rule) for rule in found):
        raise MatchError(f"rules {rules!r}: pass tnc.Rule(match, decomposition, rank), or a list of them")
    return found


def compress_weights(
    weights: Mapping[str, Array],
    rules: Any,
    *,
    rank: Any = None,
    backend: str | Backend | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Checkpoint:
    """Factorize the matched weights; nothing given is modified.

    Parameters
    ----------
    weights : mapping of str to array
        A state dict of NumPy, CuPy or PyTorch arrays. Weights of fewer than two axes are kept as they are.
    rules : list of Rule, Rule, Decomposition or str
        A decomposition alone applies to every weight, at `rank`.
    backend : str, optional
        Where the fits run; the backend in force, else where each weight is. The cores come back to the weight.
    seed : int
        Seed of all random numbers; the same seed starts the same on every backend.
    progress : callable, optional
        Wraps the loop over weights, `rich.progress.track` for instance.

    Returns
    -------
    Checkpoint
        Every name of `weights`, factorized or as given; tied weights once.

    Raises
    ------
    MatchError
        A rule matches no weight.
    WeightError
        A matched weight is integer, complex, on the meta device, or has entries that are not finite.
    RankError, UnknownNameError, PluginError
        A rule asks for what does not exist.
    """
    rules, place = rules_of(rules, rank), current_backend(backend)
    aliases, narrow = ties(weights), frozenset(getattr(weights, "narrow", ()))
    groups = matched(weights, rules, aliases)
    jobs = [(rule, names) for rule, names in groups if rule.rank.shared] + [
        (rule, [name]) for rule, names in groups if not rule.rank.shared for name in names
    ]
    done: dict[str, tuple[Factorization | None, Row]] = {}

    def fitted(job: tuple[Rule, list[str]]) -> dict[str, tuple[Factorization | None, Row]]:
        rule, names = job
        try:
            return _compress_group(rule, {name: weights[name] for name in names}, place, seed, narrow)
        except Exception as error:
            error.add_note(f"while compressing {', '.join(names)} with {rule.decomposition}@{rule.rank}")
            raise

    wrap = progress or (lambda found, **_: found)
    run = (place or of(weights[jobs[0][1][0]])).concurrently if jobs else map
    for found in wrap(run(fitted, jobs), total=len(jobs), description="factorizing"):
        done |= found
    return assembled(weights, done, aliases, narrow)


def assembled(
    weights: Mapping[str, Array],
    done: Mapping[str, tuple[Factorization | None, Row]],
    aliases: Mapping[str, str],
    narrow: frozenset[str] = frozenset(),
) -> Checkpoint:
    """The checkpoint of `weights` of which those in `done` are factorized, or kept, as their rows say."""
    entries: dict[str, Any] = {name: x for name, x in weights.items() if name not in aliases}
    entries |= {name: found for name, (found, _) in done.items() if found is not None}
    rows = [done[name][1] for name in weights if name in done]
    rows += [
        Row(name, "tied", tuple(weights[name].shape), note=f"tied to {home}")
        for name, home in aliases.items()
        if home in done
    ]
    total = sum(prod(x.shape) for name, x in weights.items() if name not in aliases)
    methods = {row.name: row.method for row in rows if isinstance(entries.get(row.name), Factorization)}
    return Checkpoint(entries, methods=methods, aliases=aliases, narrow=narrow, report=Report(rows, total))


def ties(weights: Mapping[str, Array]) -> dict[str, str]:
    """Names that share the whole memory of an earlier name."""
    homes: dict[Any, str] = {}
    found = {}
    for name, x in weights.items():
        try:
            key = of(x).memory(x)
        except BackendError as error:
            raise WeightError(f"{name}: {error}") from error
        if prod(x.shape) > 1 and (home := homes.setdefault(key, name)) != name:
            found[name] = home
    return found


def matched(
    weights: Mapping[str, Array], rules: Sequence[Rule], aliases: Mapping[str, str], *, values: bool = True
) -> list[tuple[Rule, list[str]]]:
    """Names of every rule that compresses; the first rule that matches a name, or a name tied to it, wins.

    Parameters
    ----------
    values : bool
        Whether the weights must have finite values to approximate.
    """
    for rule in rules:
        if not any(fnmatchcase(name, rule.match) for name in weights):
            raise MatchError(f"rule {rule.match!r} matches no weight. Names: {listed(weights, 40)}")
    groups: list[tuple[Rule, list[str]]] = [(rule, []) for rule in rules]
    for name in weights:
        if name in aliases:
            continue
        called = [name, *(other for other, home in aliases.items() if home == name)]
        hits = [k for k, rule in enumerate(rules) if any(fnmatchcase(n, rule.match) for n in called)]
        if hits and len(weights[name].shape) >= 2 and _check(name, weights[name], rules[hits[0]], values):
            groups[hits[0]][1].append(name)
    groups = [(rule, names) for rule, names in groups if rule.decomposition is not None]
    if groups and not any(names for _, names in groups):
        shapes = listed((f"{name} {tuple(x.shape)} {x.dtype}" for name, x in weights.items()), 40)
        raise MatchError(f"the rules match no floating-point weight of two or more axes. Weights: {shapes}")
    return [(rule, names) for rule, names in groups if names]


def _check(name: str, x: Array, rule: Rule, values: bool) -> bool:
    """Whether a matched weight can be factorized; the catch-all passes over integers, anything else is an error."""
    xp = array_namespace(x)
    if rule.decomposition is None or 0 in x.shape:
        return False
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


def _compress_group(
    rule: Rule, weights: Mapping[str, Array], place: Backend | None, seed: int, narrow: frozenset[str]
) -> dict[str, tuple[Factorization | None, Row]]:
    """Choose the ranks of one rule's weights, fit each, and say what happened."""
    start = perf_counter()
    fitted = {name: working(move(of(x).plain(x), place or of(x))) for name, x in weights.items()}
    try:
        chosen = rule.rank.assign(fitted, rule.decomposition)
    except TncError as error:
        raise type(error)(f"{', '.join(weights)}: {error}") from error
    share, done = (perf_counter() - start) / len(weights), {}
    for name, x in fitted.items():
        since = perf_counter() - share
        try:
            found, row = _fit(rule, name, x, chosen[name], weights[name], name in narrow, seed)
        except TncError as error:
            raise type(error)(f"{name}: {error}") from error
        done[name] = found, replace(row, seconds=perf_counter() - since)
    return done


def _fit(
    rule: Rule, name: str, x: Array, network: Network | PromiseError, weight: Array, narrow: bool, seed: int
) -> tuple[Factorization | None, Row]:
    """Fit, round to how the weight is stored, and check the promise on that; ask for more where rounding broke it."""
    shape, size, why = tuple(weight.shape), prod(weight.shape), ""
    policy: RankPolicy = rule.rank
    for _ in range(4):
        if isinstance(network, PromiseError):
            why = why or str(network)
            break
        if network.n_params >= size:
            why = why or f"{rule.decomposition}@{policy} would keep {network.n_params:,} of {size:,} parameters"
            break
        cores = rule.decomposition.fit(x, network, seed=seed)
        found = Factorization(network, [store(core, weight, narrow) for core in cores], shape)
        error = found.map(lambda core: move(working(core), of(x))).error(x)
        if not error < float("inf"):
            raise WeightError(f"{rule.decomposition} returned cores that are not finite")
        if rule.rank.accepts(error):
            nominal = policy.nominal(shape, rule.decomposition, network)
            return found, Row(
                name, str(rule.decomposition), shape, network.ranks, size, network.n_params, nominal, error
            )
        why = f"stored as {'bfloat16' if narrow else weight.dtype} the error is {error:.3g}, above {rule.rank}"
        policy = policy.stricter(error)
        network = policy.assign({name: x}, rule.decomposition)[name]
    return None, Row(name, "dense", shape, (), size, size, size, note=why)


def store(core: Array, weight: Array, narrow: bool = False) -> Array:
    """A fitted core where and in what dtype the weight is; `narrow`: rounded to what bfloat16 holds."""
    home = of(weight)
    core = move(core, home)
    if narrow:
        core = home.from_numpy(widen(bfloat16(home.to_numpy(core))))
    return array_namespace(core).astype(core, weight.dtype)
