"""``python -m benchmarks.compare --base COMMIT``: both trees, cell by cell, and a verdict."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from benchmarks.compare import base as bases
from benchmarks.compare.driver import AGAIN, CELLS, FULL, SHORT, SHORT_TOTAL, Broken, Result, compare, running
from benchmarks.compare.table import short_name, show, table, write
from benchmarks.compare.verdict import LIMIT, confirmed, refused

ROOT = Path(__file__).resolve().parents[2]


def options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--base", help="commit, tag or branch; default: the last release, else twenty commits back")
    parser.add_argument("--short", action="store_true", help="fewer cells and pairs: at most two minutes on two cores")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"what is slower, as a ratio (default {LIMIT})")
    parser.add_argument("--repeat", action="store_true", help="a slowdown counts only when a second run repeats it")
    parser.add_argument("--json", type=Path, help="where all values are written")
    return parser.parse_args(words)


def both(here: Path, base: Path, asked: argparse.Namespace, scratch: Path) -> list[Result]:
    """Compare two folders; slow cells a second time, in new processes, if that is asked.

    Parameters
    ----------
    here, base : Path
        This tree and the other one. Cells are copied into `base` where it has none.
    asked : argparse.Namespace
        The options.
    scratch : Path
        An empty folder.
    """
    begin = monotonic()
    folders = {"here": here, "base": base}
    for name, tree in folders.items():
        bases.write_metadata(tree, scratch / name)
    if not (base / CELLS).is_dir():  # older than the cells: this tree's cells run with its library
        shutil.copytree(here / CELLS, base / CELLS)
    with running(here, base, scratch) as sides:
        results = list(compare(sides, None, asked.short, SHORT if asked.short else FULL))
    slow = [result.cell for result in results if result.verdict(asked.limit) == "slower"]
    if not (asked.repeat and slow):
        return results
    # New processes: where memory happened to lie in the first ones is not measured twice.
    with running(here, base, scratch) as sides:
        left = SHORT_TOTAL - (monotonic() - begin)
        effort = replace(AGAIN, total=left) if asked.short else AGAIN
        again = {result.cell: result for result in compare(sides, slow, False, effort)}
    second = {cell: None if result.note == "no time left" else result for cell, result in again.items()}
    return [confirmed(r, second.get(r.cell), asked.limit) if r.cell in slow else r for r in results]


def interrupted(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main(words: list[str] | None = None, root: Path = ROOT) -> int:
    """Compare, print and write.

    Returns
    -------
    int
        1 where a cell is slower than the limit allows or does not run in this tree, 2 where the base does not exist or
        a process does not start, 130 after an interruption, else 0.
    """
    asked, begin = options(words), monotonic()
    try:
        found = bases.named_base(root, asked.base) if asked.base else bases.default_base(root)
    except bases.NothingToCompare as reason:
        show(f"Benchmarks: nothing to compare with, as {reason}. Nothing was measured.")
        return 0
    except bases.UnknownCommit as error:
        show(f"Benchmarks: {error}")
        return 2
    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        with TemporaryDirectory(prefix="tnc-compare-") as folder:  # removed after an interruption, too
            tree = Path(folder, "tree")
            bases.check_out(root, found.commit, tree)
            results = both(root, tree, asked, Path(folder))
    except KeyboardInterrupt:
        show("Benchmarks: interrupted; the folder of the base is removed.")
        return 130
    except Broken as error:
        show(f"Benchmarks: {error}")
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)
    seconds, bad = monotonic() - begin, refused(results, asked.limit)
    show(table(results, f"this tree / {found.commit[:12]} ({found.why}), {seconds:.0f} s", asked.limit))
    if asked.json:
        about = {"base": found.commit, "why": found.why, "here": bases.head(root), "seconds": round(seconds, 1)}
        changed = bool(bases.git(root, "status", "--porcelain"))
        write(asked.json, results, asked.limit, **about, uncommitted=changed, refused=[r.cell for r in bad])
    for result in bad:
        detail = f"{result.ratio:.2f} times the base's" if result.verdict(asked.limit) == "slower" else result.reason
        show(f"REFUSED {short_name(result.cell)}: {result.verdict(asked.limit)}, {detail}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
