"""`compress_weights` makes a checkpoint from arrays and rules, without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from time import perf_counter
from typing import Any

from tnc.backends import Backend, move, of
from tnc.checkpoint import Checkpoint
from tnc.decomposition import Factorization
from tnc.errors import PromiseError, RankError
from tnc.fit.linalg import working
from tnc.jobs import Chosen, Done, Job, Weighing, bytes_of, choose, foresee, guess, store, timed
from tnc.ranks.curves import Point
from tnc.report import Report, Row
from tnc.roles import AxisRoles
from tnc.rules import Rule, matched, rules_of, ties
from tnc.settings import current_backend
from tnc.typing import Array

__all__ = ["Progress", "Rule", "assembled", "compress_group", "compress_weights", "guess", "job_of", "jobs_of", "store"]

Progress = Callable[..., Iterable[Any]]
"""Wraps a sized iterable: ``progress(iterable, total=..., description=...)``."""


def compress_weights(
    weights: Mapping[str, Array],
    rules: Any,
    *,
    rank: Any = None,
    backend: str | Backend | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    roles: Mapping[str, AxisRoles] | None = None,
    weighings: Mapping[str, Weighing] | None = None,
    dry_run: bool = False,
) -> Checkpoint:
    """Factorize the matched weights. The arguments are not modified.

    Parameters
    ----------
    weights : mapping of str to array
        A state dict of NumPy, CuPy or PyTorch arrays. Weights of fewer than two axes are kept as they are.
    rules : list of Rule, Rule, Decomposition or str
        A decomposition alone applies to every weight, with `rank`.
    rank : int, sequence of int, float, str or RankPolicy, optional
        The rank, where `rules` is a decomposition (see `tnc.ranks.short.policy`).
    backend : str, optional
        Where the fits run. By default the current backend, or else the device of each weight. The cores are moved to
        the device of the weight.
    seed : int
        Seed of all random numbers. With the same seed every backend starts from the same numbers.
    progress : callable, optional
        Wraps the loop over weights, `rich.progress.track` for instance.
    roles : mapping of str to AxisRoles, optional
        The roles of the axes of some weights (see `tnc.roles`). The roles of a rule have priority. Without roles the
        axes are guessed: ``(out, in, *kernel)``, or ``(stack, out, in)`` for three axes of which the last is longer
        than 32. The report says where roles were guessed.
    weighings : mapping of str to Weighing, optional
        How errors of some weights count: usually from statistics of their inputs (`tnc.nn.calibration`). Their fits
        minimize the error of the outputs, and a `Budget` the predicted rise of the loss.
    dry_run : bool
        Only predict: the ranks are chosen, and nothing is fitted that they do not need. The checkpoint has the weights
        as given. Its report has the predicted rises of the loss.

    Returns
    -------
    Checkpoint
        Every name of `weights`, factorized or as given. Tied weights are stored once.

    Raises
    ------
    MatchError
        A rule matches no weight.
    WeightError
        A matched weight is integer, complex, on the meta device, or has entries that are not finite.
    RankError, UnknownNameError, PluginError
        A rule names a rank or a decomposition that does not exist.
    """
    rules, aliases, narrow = rules_of(rules, rank), ties(weights), frozenset(getattr(weights, "narrow", ()))
    groups = matched(weights, rules, aliases)
    outside, stated = _outside(weights, aliases, groups), dict(roles or {})
    fit_backend, weighed = current_backend(backend), dict(weighings or {})

    def prepared(rule: Rule, name: str) -> Job:
        job = job_of(rule, weights[name], fit_backend, stated.get(name), weighed.get(name), seed)
        return replace(job, narrow=name in narrow)

    def finished(part: tuple[Rule, list[str]]) -> dict[str, Done]:
        rule, names = part
        try:
            work = foresee_group if dry_run else compress_group
            return work({name: prepared(rule, name) for name in names}, outside)
        except Exception as error:
            error.add_note(f"while compressing {', '.join(names)} with {rule.decomposition}@{rule.rank}")
            raise

    parts = _parts(groups)
    wrap, words = progress or (lambda results, **_: results), "predicting" if dry_run else "factorizing"
    run = (fit_backend or of(weights[parts[0][1][0]])).concurrently if parts else map
    done: dict[str, Done] = {}
    for results in wrap(run(finished, parts), total=len(parts), description=words):
        done |= results
    return assembled(weights, done, aliases, narrow)


def job_of(
    rule: Rule,
    weight: Array,
    backend: Backend | None = None,
    roles: AxisRoles | None = None,
    weighing: Weighing | None = None,
    seed: int = 0,
) -> Job:
    """The job of a weight.

    Parameters
    ----------
    rule : Rule
    weight : array
    backend : Backend, optional
        Where the fits run; by default where the weight is.
    roles : AxisRoles, optional
        The roles of its axes, from its module.
    weighing : Weighing, optional
    seed : int
    """
    x = working(move(of(weight).plain(weight), backend or of(weight)))
    candidates = rule.candidates(tuple(weight.shape), roles)
    return Job(rule, candidates, weight, x, False, seed, weighing.like(x) if weighing else None)


def jobs_of(
    weights: Mapping[str, Array],
    groups: Sequence[tuple[Rule, list[str]]],
    roles: Mapping[str, AxisRoles],
    backend: Backend | None = None,
    seed: int = 0,
) -> dict[str, Job]:
    """The jobs of all weights that rules match, without weighings.

    Parameters
    ----------
    weights : mapping of str to array
    groups : sequence of (Rule, list of str)
        The weights of each rule (see `tnc.rules.matched`).
    roles : mapping of str to AxisRoles
    backend : Backend, optional
    seed : int
    """
    return {
        name: job_of(rule, weights[name], backend, roles.get(name), seed=seed)
        for rule, names in groups
        for name in names
    }


def _parts(groups: Sequence[tuple[Rule, list[str]]]) -> list[tuple[Rule, list[str]]]:
    """What is compressed at a time: all weights of a rule that share an allowance, or else each weight."""
    shared = [(rule, names) for rule, names in groups if rule.rank.shared]
    return shared + [(rule, [name]) for rule, names in groups if not rule.rank.shared for name in names]


def assembled(
    weights: Mapping[str, Array],
    done: Mapping[str, Done],
    aliases: Mapping[str, str],
    narrow: frozenset[str] = frozenset(),
) -> Checkpoint:
    """The checkpoint of all weights.

    Parameters
    ----------
    weights : mapping of str to array
    done : mapping of str to (Factorization or None, Row)
        The result for each matched weight.
    aliases : mapping of str to str
        Tied names, and the name that has the weight.
    narrow : frozenset of str
        Names of float32 weights that are stored as bfloat16.

    Returns
    -------
    Checkpoint
    """
    entries: dict[str, Any] = {name: x for name, x in weights.items() if name not in aliases}
    entries |= {name: factorization for name, (factorization, _) in done.items() if factorization is not None}
    report = _report(weights, done, aliases)
    methods = {row.name: row.method for row in report.rows if isinstance(entries.get(row.name), Factorization)}
    return Checkpoint(entries, methods=methods, aliases=aliases, narrow=narrow, report=report)


def _report(weights: Mapping[str, Array], done: Mapping[str, Done], aliases: Mapping[str, str]) -> Report:
    """The rows of all matched weights, in the order of the weights, and those of names that are tied to them."""
    rows = [done[name][1] for name in weights if name in done]
    rows += [
        Row(name, "tied", tuple(weights[name].shape), note=f"tied to {home}")
        for name, home in aliases.items()
        if home in done
    ]
    return Report(rows, sum(prod(x.shape) for name, x in weights.items() if name not in aliases))


def _outside(weights: Mapping[str, Array], aliases: Mapping[str, str], groups: Sequence[tuple[Rule, list[str]]]) -> int:
    """Size of all weights that no rule with a decomposition matches: parameters, or bytes where a budget counts them.

    Raises
    ------
    RankError
        A budget is for the whole model, but there is another rule.
    """
    if len(groups) > 1 and any(getattr(rule.rank, "whole", False) for rule, _ in groups):
        raise RankError(f"{groups[0][0].rank} is for the whole model: give it as the rank of one rule for all weights")
    matched_names = {name for _, names in groups for name in names}
    others = [name for name in weights if name not in aliases and name not in matched_names]
    in_bytes = any(getattr(rule.rank, "of", "") == "bytes" for rule, _ in groups)
    narrow = frozenset(getattr(weights, "narrow", ()))
    return sum(
        prod(weights[name].shape) * (bytes_of(weights[name], name in narrow) if in_bytes else 1) for name in others
    )


def compress_group(jobs: Mapping[str, Job], outside: int = 0) -> dict[str, Done]:
    """Choose the ranks of the weights of one rule, and fit each weight.

    Where the weights share an allowance and one of them stays dense after its fit, the ranks of the others are chosen
    again without it.

    Parameters
    ----------
    jobs : mapping of str to Job
        All of one rule.
    outside : int
        Size of all other weights of the model.
    """
    start, policy = perf_counter(), next(iter(jobs.values())).rule.rank
    dense: dict[str, PromiseError] = {}
    done: dict[str, Done] = {}
    tried: dict[str, Chosen] = {}
    while True:
        chosen = choose(jobs, dense, outside)
        share = (perf_counter() - start) / len(jobs)  # seconds of the choice per weight
        names = [name for name in jobs if not _same(chosen[name], tried.get(name))]
        backend = of(next(iter(jobs.values())).x)

        def fitted(name: str, chosen: Mapping[str, Chosen] = chosen, share: float = share) -> Done:
            return timed(name, jobs[name], chosen[name], share)

        done |= zip(names, backend.concurrently(fitted, names), strict=True)
        late = [name for name in jobs if done[name][0] is None and isinstance(chosen[name], Point)]
        if not (policy.shared and late):
            return done
        dense |= {name: PromiseError(done[name][1].note) for name in late}
        tried, start = {**chosen, **dense}, perf_counter()


def foresee_group(jobs: Mapping[str, Job], outside: int = 0) -> dict[str, Done]:
    """Choose the ranks of the weights of one rule, as `compress_group`, without fits.

    Parameters
    ----------
    jobs : mapping of str to Job
    outside : int
    """
    start = perf_counter()
    chosen = choose(jobs, {}, outside)
    share = (perf_counter() - start) / len(jobs)
    rows = {name: foresee(name, job, chosen[name]) for name, job in jobs.items()}
    return {name: (None, replace(row, seconds=share)) for name, row in rows.items()}


def _same(new: Chosen, old: Chosen | None) -> bool:
    """Whether a choice is the one that was fitted already."""
    if isinstance(new, Point) and isinstance(old, Point):
        return new[:2] == old[:2]
    return new is old
