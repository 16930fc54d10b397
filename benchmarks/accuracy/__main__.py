"""The command line: see the package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.accuracy.networks import SUBJECTS
from benchmarks.accuracy.rows import ROWS
from benchmarks.accuracy.run import run
from benchmarks.accuracy.state import State
from benchmarks.accuracy.table import page, picture

RESULTS = Path(__file__).resolve().parents[1] / "results"
SHARES = (0.75, 0.5, 0.33, 0.2)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    made.add_argument("--state", type=Path, default=RESULTS / "accuracy.json", help="what has been measured")
    commands = made.add_subparsers(dest="command", required=True)
    measured = commands.add_parser("run", help="measure what the state does not hold yet")
    measured.add_argument("--networks", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS), metavar="NETWORK")
    measured.add_argument("--shares", nargs="+", type=float, default=SHARES, metavar="SHARE")
    measured.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    measured.add_argument("--samples", type=int, help="calibration samples; by default those of the network")
    measured.add_argument("--limit", type=int, help="test samples; by default all")
    measured.add_argument("--threads", type=int, default=1)
    commands.add_parser("table", help="write accuracy.md and accuracy.svg beside the state")
    commands.add_parser("list", help="networks and rows")
    return made


def main() -> None:
    given = parser().parse_args()
    if given.command == "list":
        print("networks:", *SUBJECTS)
        print("rows:", *ROWS)
        return
    state = State(given.state)
    if given.command == "run":
        torch.set_num_threads(given.threads)
        run(state, given.networks, given.shares, given.rows, given.samples, given.limit)
    elif not state.results:
        sys.exit(f"{given.state} holds nothing: run first")
    else:
        drawn = given.state.with_suffix(".svg")
        picture(state, drawn)
        given.state.with_suffix(".md").write_text(page(state, drawn.name), encoding="utf-8")


if __name__ == "__main__":
    main()
