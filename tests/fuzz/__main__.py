"""The large budget: ``python -m tests.fuzz [section ...]`` tries, and writes ``docs/reliability.md``.

``TNC_FUZZ`` is how many times as many cases as in the usual tests are tried, 100 unless set. A section is a function
of that number and a seed that returns a `Section`; sections that are not run keep what they said last.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from tests.fuzz import grammars, kill_heal, kills, layers, mutants
from tests.fuzz.sections import Section, apart, keep

Found = tuple[Counter[str], list[str]]
ROOT = Path(__file__).parents[2]


def _counted(
    title: str,
    words: str,
    heads: tuple[str, ...],
    run: Callable[[str, int, int], Found],
    kinds: Iterable[str],
    times: int,
    seed: int,
) -> Section:
    """What a fuzzer found, so many times for each kind; `heads` are the kinds' and its verdicts."""
    piece = 2500
    kinds = list(kinds)
    cases = [(kind, seed + k, min(piece, times - k * piece)) for kind in kinds for k in range(-(-times // piece))]
    totals: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    failures: list[str] = []
    for (kind, part, size), found in zip(cases, apart(run, cases), strict=True):
        if found is None:
            totals[kind]["failed"] += size
            failures.append(f"{kind}, seed {part}: the process crashed")
        else:
            totals[kind] += found[0]
            failures += found[1]
    rows = [(kind, *(total[verdict] for verdict in (*heads[1:], "failed"))) for kind, total in totals.items()]
    tried = sum(total.total() for total in totals.values())
    return Section(title, words, (*heads, "failures"), rows, tried, failures, seed)


def damaged(scale: int, seed: int) -> Section:
    """Files that are not what was saved."""
    words = (
        "Checkpoints of every kind (compressed by chains, rings, hyperedges and feeds, dense, tied, in every dtype), "
        "damaged and loaded. A damaged file must be refused with a `CheckpointError`, or be loaded as exactly what was "
        "saved, where the change means nothing. Any other error, a crash, a load that takes seconds, and above all "
        "another network than was saved, is a failure."
    )
    heads = "what was changed", "refused", "as it was"
    return _counted("Damaged files", words, heads, mutants.run, mutants.DAMAGE, 100 * scale, seed)


def strange(scale: int, seed: int) -> Section:
    """Files whose digests are right and whose words are not."""
    words = (
        "The same files as someone would write them who means harm or does not know better: with hostile values, and "
        "with digests that are right for them. Such a file must be refused with a `CheckpointError`, or be usable: the "
        "weights are rebuilt and applied, shown by `tnc inspect` without a control character, saved and loaded again. "
        "Any other error, a crash or a load that takes seconds is a failure. Files of the first format had no digests: "
        "damage to their tensors cannot be told."
    )
    heads = "what was changed", "refused", "as it was", "usable"
    return _counted("Files of strangers", words, heads, mutants.run, mutants.STRANGERS, 100 * scale, seed)


def texts(scale: int, seed: int) -> Section:
    """Patterns and rules."""
    words = (
        "Text of pieces of the grammars, and right text with words lost, doubled or changed. It must be refused with "
        "an error of `tnc` that says what to write, or be read: then what it prints is read as the same value, and a "
        "small network rebuilds what `numpy.einsum` gives. Anything else is a failure."
    )
    heads = "grammar", "refused", "read"
    return _counted("Patterns and rules", words, heads, grammars.run, grammars.GRAMMARS, 1000 * scale, seed)


def any_layer(scale: int, seed: int) -> Section:
    """Factorized layers beside dense ones."""
    words = (
        "Layers drawn at random (sizes, strides, padding, groups, padded tables, bags, directions, sizes of keys), "
        "factorized by any decomposition at any rank, in any dtype and execution, used with any batch in training, "
        "evaluation, `no_grad`, `inference_mode` or frozen. Outputs and gradients must be those of the same layer made "
        "dense, to the roundings of the dtype times the conditioning of the cores; again after a core was written in "
        "one of nine ways; and copies, pickles and files must answer the same. `refused`: an error of `tnc` before "
        "anything was changed. `dense`: no size of the format is smaller than the weight. `not in torch`: the dense "
        "layer fails as well. Anything else is a failure."
    )
    return _counted("Layers", words, ("layer", *layers.WELL), layers.run, layers.KINDS, 5 * scale, seed)


def killed(scale: int, seed: int) -> Section:
    """Saves that SIGKILL ends."""
    with tempfile.TemporaryDirectory() as folder:
        found, failures = kills.run(Path(folder), seed, min(50, 4 * scale))
    words = (
        "A process saves one of two checkpoints of some MB over the other without end and is killed (`kill -9`) at a "
        "random moment. What is there must load as one of the two, whole."
    )
    rows = sorted((state, number) for state, number in found.items() if state != "failed")
    rows += [("failures", len(failures))]
    return Section("Killed while saving", words, ("what was left", "times"), rows, found.total(), failures, seed)


def killed_runs(scale: int, seed: int) -> Section:
    """Training runs that SIGKILL ends."""
    found = kill_heal.kills(min(50, 4 * scale), seed)
    words = (
        "A process heals a compressed model with `checkpoint=` and is killed (`kill -9`) at a random moment; another "
        "one goes on. It must end with the same bytes as a run that was never interrupted, and what was in the file "
        "meanwhile must load."
    )
    wrong = ("damaged", "otherwise", "failed")
    rows = [(what, int(found[what])) for what in ("while writing", "before the first checkpoint", *wrong)]
    failures = [f"{what}: {found[what]:.0f} of seed {seed}" for what in wrong if found[what]]
    return Section("Killed while healing", words, ("what happened", "times"), rows, int(found["tried"]), failures, seed)


FITS = {
    "test_one_weight": 50,
    "test_three_weights_share_a_rule": 6,
    "test_zeros_and_constants_are_in_every_format[float32]": 30,
    "test_zeros_and_constants_are_in_every_format[float64]": 30,
}
"""Cases of each property at scale 1."""


def fits(scale: int, seed: int) -> Section:
    """Weights of any shape, dtype and scale, every decomposition and rank policy."""
    scale = max(1, scale // 5)
    rows, failures = [], []
    for name, cases in FITS.items():
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            f"tests/fuzz/test_fits.py::{name}",
            f"--hypothesis-seed={seed}",
        ]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"TNC_FUZZ": str(scale)}, capture_output=True, text=True, check=False
        )
        failed = done.returncode != 0
        failures += [f"{name}, seed {seed}: {done.stdout.splitlines()[-1]}"] if failed else []
        rows.append((name.removeprefix("test_").replace("_", " "), cases * scale, int(failed)))
    words = (
        "Weights of one to six axes, any length, four dtypes, scales from 1e-30 to 1e30: noise, zeros, constants, "
        "single entries, products, low rank. What is fitted must be finite, the error reported the true one (as NumPy "
        "alone measures it), the ratio, budget or tolerance kept, or the weight left dense with the reason. Zeros and "
        "constants must be exact. Any error but one of `tnc` is a failure."
    )
    tried = sum(cases * scale for cases in FITS.values())
    return Section("Fits", words, ("property", "cases", "failures"), rows, tried, failures, seed)


SECTIONS: dict[str, Callable[[int, int], Section]] = {
    "files damaged": damaged,
    "files of strangers": strange,
    "fits": fits,
    "kill while healing": killed_runs,
    "kill while saving": killed,
    "layers": any_layer,
    "texts": texts,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("section", nargs="*", default=list(SECTIONS), help=", ".join(map(repr, SECTIONS)))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    failed = 0
    for name in given.section:
        start = perf_counter()
        found = SECTIONS[name](int(os.environ.get("TNC_FUZZ", "100")), given.seed)
        keep(name, replace(found, seconds=perf_counter() - start))
        failed += len(found.failures)
        print(f"{found.title}: {found.tried:,} cases, {len(found.failures)} failures", *found.failures[:20], sep="\n  ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
