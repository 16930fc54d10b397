"""Faults put into functions at random: what share of them do the tests notice?

`python -m tests.mutate --seed 0 --functions 40` draws functions over all folders, puts one fault into each, on a copy
of the tree, and runs the tests that belong to the file. A run that was killed goes on where it was. Not part of the
tests: a survivor is either a test that is missing, or a change that changes nothing, and a person has to say which.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from tests.where import ROOT, files_for, sources

NOT_HERE = {"tnc/backends/cupy.py"}
"""Files whose tests need another machine."""
BESIDE = {
    "tnc": "test_weights.py test_checkpoint.py",
    "tnc/backends": "test_settings.py test_third_party.py",
    "tnc/cli": "cli/test_cli.py",
    "tnc/contract": "contract/test_contract.py contract/test_strategies.py contract/test_cost.py",
    "tnc/demo": "demo/test_run.py",
    "tnc/draw": "draw/test_draw.py",
    "tnc/fit": "fit/test_fit.py",
    "tnc/nn/layers": "nn/layers/test_modules.py nn/test_anywhere.py",
    "tnc/nn/runtime": "nn/runtime/test_schedule.py nn/layers/test_embedding.py",
    "tnc/nn/surgery": "nn/surgery/test_loading.py nn/surgery/test_failures.py",
    "tnc/nn/training": "nn/training/test_heal.py",
    "tnc/ranks": "ranks/test_policies.py ranks/test_tolerance.py ranks/test_budget.py",
    "plugins/tnc_plugins": "test_testing.py",
}
"""A few more tests for the files of a folder, run after their own."""

ALWAYS_NOTICED = {"isinstance", "issubclass", "getattr", "hasattr", "setattr", "map"}
"""Functions that raise whenever two arguments are swapped: no test is needed for that."""

Edit = Callable[[], None]
SWAPPED: dict[type[ast.AST], list[type[ast.AST]]] = {
    ast.Lt: [ast.LtE, ast.Gt], ast.LtE: [ast.Lt, ast.GtE], ast.Gt: [ast.GtE, ast.Lt], ast.GtE: [ast.Gt, ast.LtE],
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot], ast.IsNot: [ast.Is], ast.In: [ast.NotIn],
    ast.NotIn: [ast.In], ast.Add: [ast.Sub], ast.Sub: [ast.Add], ast.Mult: [ast.Add], ast.FloorDiv: [ast.Mult],
    ast.Div: [ast.Mult], ast.And: [ast.Or], ast.Or: [ast.And],
}  # fmt: skip


# --------------------------------------------------------------------- faults


def faults(function: ast.AST) -> Iterator[tuple[str, int, str, Edit]]:
    """All faults that can be put into a function: kind, line, words, and what does it, in place."""
    for node in _own(function):
        line = getattr(node, "lineno", 0)
        for of_kind in (_operator_faults, _value_faults, _branch_faults):
            for kind, words, edit in of_kind(node):
                yield kind, line, words, edit


def _operator_faults(node: ast.AST) -> Iterator[tuple[str, str, Edit]]:
    """Another comparison or operator, and no `not`."""
    match node:
        case ast.Compare(ops=[op, *_]) if type(op) in SWAPPED:
            for new in SWAPPED[type(op)]:
                yield "comparison", f"{_word(op)} -> {new.__name__}", _setter(node.ops, 0, new())
        case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.BoolOp(op=op) if type(op) in SWAPPED:
            for new in SWAPPED[type(op)]:
                yield "operator", f"{_word(op)} -> {new.__name__}", _setter(node, "op", new())
        case ast.UnaryOp(op=ast.Not()):
            yield "not", "not removed", _setter(node, "operand", ast.UnaryOp(ast.Not(), node.operand))


def _value_faults(node: ast.AST) -> Iterator[tuple[str, str, Edit]]:
    """Another constant, a result that is dropped, two arguments swapped."""
    match node:
        case ast.Constant(value=bool() as value):
            yield "constant", f"{value} -> {not value}", _setter(node, "value", not value)
        case ast.Constant(value=int() | float() as value):
            new = value + 1 if isinstance(value, int) else 2 * value + 1
            yield "constant", f"{value} -> {new}", _setter(node, "value", new)
        case ast.Return(value=ast.expr() as value) if not _is_none(value):
            yield "return", "value dropped", _setter(node, "value", ast.Constant(None))
        case ast.Call(func=called, args=[first, second, *rest]) if ast.dump(first) != ast.dump(second):
            starred = any(isinstance(x, ast.Starred) for x in (first, second))
            if not starred and ast.unparse(called) not in ALWAYS_NOTICED:
                yield "argument", "first two swapped", _setter(node, "args", [second, first, *rest])


def _branch_faults(node: ast.AST) -> Iterator[tuple[str, str, Edit]]:
    """A branch that is always or never taken, a condition that is negated. A loop without end is no test."""
    if isinstance(node, ast.If | ast.IfExp):
        yield "branch", "always taken", _setter(node, "test", ast.Constant(True))
        yield "branch", "never taken", _setter(node, "test", ast.Constant(False))
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield "not", "condition negated", _setter(node, "test", ast.UnaryOp(ast.Not(), node.test))


def _own(function: ast.AST) -> Iterator[ast.AST]:
    """Nodes of the body in the order of the text; no annotations, no words of errors, no functions within."""
    waiting = list(function.body)  # type: ignore[attr-defined]
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Raise | ast.JoinedStr):
            continue
        yield node
        skipped = {id(getattr(node, "annotation", None))}
        waiting = [child for child in ast.iter_child_nodes(node) if id(child) not in skipped] + waiting


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _word(op: ast.AST) -> str:
    return type(op).__name__


def _setter(where: object, name: str | int, value: object) -> Edit:
    def edit() -> None:
        if isinstance(name, int):
            where[name] = value  # type: ignore[index]
        else:
            setattr(where, name, value)

    return edit


# ---------------------------------------------------------------------- draws


@cache
def functions() -> dict[str, list[tuple[Path, str, int]]]:
    """By folder: file, name and number of each function among all of its file."""
    found = defaultdict(list)
    for path in sources():
        if path.relative_to(ROOT).as_posix() in NOT_HERE:
            continue
        nodes = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.FunctionDef)]
        for k, node in enumerate(nodes):
            if next(faults(node), None):
                found[path.parent.relative_to(ROOT).as_posix()].append((path, node.name, k))
    return dict(found)


def drawn(seed: int, many: int) -> list[tuple[Path, str, int]]:
    """So many functions, at least two of each folder, the rest in proportion to their number."""
    rng, folders = random.Random(seed), {name: list(each) for name, each in functions().items()}
    for each in folders.values():
        rng.shuffle(each)
    taken = dict.fromkeys(folders, 2)
    while sum(taken.values()) < many:
        taken[max(folders, key=lambda name: (len(folders[name]) / taken[name], name))] += 1
    return [one for name in sorted(folders) for one in folders[name][: taken[name]]]


def mutant(path: Path, number: int, seed: int) -> tuple[str, dict[str, object]]:
    """The text of a file with one fault in one function, and what it is."""
    tree = ast.parse(path.read_text("utf-8"))
    function = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)][number]
    kinds = defaultdict(list)
    for fault in faults(function):
        kinds[fault[0]].append(fault)
    rng = random.Random(f"{seed} {path.relative_to(ROOT).as_posix()} {function.name} {number}")
    before = copy.deepcopy(function)
    kind, line, words, edit = rng.choice(kinds[rng.choice(sorted(kinds))])
    edit()
    assert ast.dump(function) != ast.dump(before)
    text = path.read_text("utf-8").splitlines()[line - 1].strip()
    return ast.unparse(ast.fix_missing_locations(tree)), {"kind": kind, "line": line, "fault": words, "text": text}


# ----------------------------------------------------------------------- runs


class Copy:
    """A copy of the tree to put faults into; the working tree is never touched."""

    def __init__(self, folder: Path):
        self.root = folder
        for part in ("tnc", "plugins", "tests", "benchmarks", "pyproject.toml", "README.md", "docs"):
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__", "_build"))
            else:
                shutil.copy(source, folder / part)

    def run(self, tests: list[Path], limit: float, fast: bool = True) -> tuple[int | None, float, str]:
        """Exit status (None: the limit was passed), seconds, and the last lines of what was said."""
        names = [test.relative_to(ROOT).as_posix() for test in tests]
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *(["-x"] * fast), *names]
        paths = {"PYTHONPATH": os.pathsep.join([str(self.root), str(self.root / "plugins")])}
        # Without files of bytecode: those of a fault could be as old as the next one, and be taken for it.
        env = {**os.environ, **paths, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        start = time.monotonic()
        with subprocess.Popen(
            command, cwd=self.root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        ) as process:
            try:
                said = process.communicate(timeout=limit)[0].decode(errors="replace")
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                said, _ = process.communicate()[0].decode(errors="replace"), process.wait()
                return None, time.monotonic() - start, said[-300:]
        return process.returncode, time.monotonic() - start, "\n".join(said.splitlines()[-3:])


def verdict(place: Copy, path: Path, text: str, limit: float) -> dict[str, object]:
    """Whether tests notice a file's new text: its own one by one, then those beside it, until the time is up."""
    folder = path.parent.relative_to(ROOT).as_posix()
    beside = [ROOT / "tests" / name for name in BESIDE.get(folder, "").split()]
    target, spent, late = place.root / path.relative_to(ROOT), 0.0, False
    target.write_text(text, encoding="utf-8")
    try:
        for test in dict.fromkeys([*files_for(path), *beside]):
            code, seconds, said = place.run([test], limit - spent)
            spent += seconds
            if code not in (None, 0, 5):
                return {"verdict": "caught", "by": test.relative_to(ROOT).as_posix(), "seconds": spent, "said": said}
            if code is None or spent > limit - 2:
                late = True
                break
    finally:
        shutil.copy(path, target)
    return {"verdict": "timeout" if late else "survived", "by": None, "seconds": spent, "said": ""}


def sound(place: Copy, tests: list[Path], state: dict) -> bool:
    """Whether the tests pass without a fault: only then does a failure say anything."""
    known = state.setdefault("unchanged", {})
    for test in tests:
        name = test.relative_to(ROOT).as_posix()
        if name not in known:
            code, seconds, said = place.run([test], 600)
            known[name] = {"passes": code in (0, 5), "seconds": seconds, "said": said}
    return all(known[test.relative_to(ROOT).as_posix()]["passes"] for test in tests)


def table(done: dict[str, dict]) -> str:
    """One line per fault that was not caught, then the counts."""
    counts: dict[str, int] = defaultdict(int)
    lines = []
    for key, one in done.items():
        counts[one["verdict"]] += 1
        if one["verdict"] != "caught":
            lines.append(f"{one['verdict']:9} {key} line {one['line']}: {one['fault']} in `{one['text']}`")
    judged = counts["caught"] + counts["survived"]
    share = f"{counts['caught']} of {judged} caught" + (f" ({counts['caught'] / judged:.0%})" if judged else "")
    return "\n".join([*lines, f"{share}, {counts['timeout']} not decided in time"])


def main() -> None:
    """Draw, put in, run, and say."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--functions", type=int, default=40, help="how many to draw")
    parser.add_argument("--limit", type=float, default=60, help="seconds for the tests of one fault")
    parser.add_argument("--state", type=Path, default=None, help="file of results; what is in it is not run again")
    parser.add_argument("--again", action="store_true", help="run again what is not caught in the file of results")
    options = parser.parse_args()
    file = options.state or Path(tempfile.gettempdir()) / f"tnc-mutate-{options.seed}.json"
    state = json.loads(file.read_text()) if file.exists() else {"done": {}}
    if options.again:
        state["unchanged"] = {}
        state["done"] = {key: one for key, one in state["done"].items() if one["verdict"] == "caught"}
    with tempfile.TemporaryDirectory() as folder:
        place = Copy(Path(folder))
        for path, name, number in drawn(options.seed, options.functions):
            key = f"{path.relative_to(ROOT).as_posix()}:{name}#{number}"
            if key in state["done"]:
                continue
            text, what = mutant(path, number, options.seed)
            found = verdict(place, path, text, options.limit)
            if found["verdict"] == "caught" and not sound(place, [ROOT / str(found["by"])], state):
                found["verdict"] = "unsound"  # the test fails without a fault, too
            state["done"][key] = {**what, **found}
            file.with_suffix(".new").write_text(json.dumps(state, indent=1))
            file.with_suffix(".new").replace(file)
            print(
                f"{found['verdict']:9} {found['seconds']:5.0f} s  {key}: {what['fault']} (line {what['line']})",
                flush=True,
            )
    print(table(state["done"]))
    print(f"all of it: {file}")


if __name__ == "__main__":
    main()
