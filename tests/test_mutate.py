"""The script that puts faults into functions: what it puts in, what it draws, and what it leaves alone."""

from __future__ import annotations

import ast
import copy

import pytest

from tests.mutate import drawn, faults, functions, mutant, table
from tests.where import ROOT

FUNCTION = '''
def f(a: int = 3, b=None):
    """1 + 1."""
    if a < b and not a:
        return g(a, b)
    raise ValueError(1 + 2)
'''


def parsed():
    return ast.parse(FUNCTION).body[0]


def test_every_fault_changes_the_body_alone():
    found = {}
    for number, (kind, *_) in enumerate(faults(parsed())):
        function = parsed()
        [*faults(function)][number][3]()
        text = ast.unparse(function)
        assert text.startswith('def f(a: int=3, b=None):\n    """1 + 1."""') and text.endswith("ValueError(1 + 2)")
        found.setdefault(kind, set()).add(text.split("\n", 2)[2].partition("\n    raise")[0])
    kept = "\n        return g(a, b)"
    assert found == {
        "comparison": {f"    if a <= b and (not a):{kept}", f"    if a > b and (not a):{kept}"},
        "operator": {f"    if a < b or not a:{kept}"},
        "not": {f"    if a < b and (not not a):{kept}", f"    if not (a < b and (not a)):{kept}"},
        "branch": {f"    if True:{kept}", f"    if False:{kept}"},
        "return": {"    if a < b and (not a):\n        return None"},
        "argument": {"    if a < b and (not a):\n        return g(b, a)"},
    }


def test_draws_are_spread_over_all_folders_and_the_same_each_time():
    many = functions()
    found = drawn(0, 60)
    assert found == drawn(0, 60) != drawn(1, 60) and len(found) == len(set(found)) == 60
    folders = [path.parent.relative_to(ROOT).as_posix() for path, _, _ in found]
    assert set(folders) == set(many) and min(map(folders.count, many)) >= 2
    assert folders.count("tnc") > folders.count("tnc/cli")
    assert not any(path.name == "cupy.py" for path, _, _ in found)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_mutant_is_another_text_of_one_file(seed):
    for path, name, number in drawn(seed, 26)[::3]:
        before = path.read_text("utf-8")
        text, what = mutant(path, number, seed)
        assert (text, what) == mutant(path, number, seed) and path.read_text("utf-8") == before
        old, new = ast.parse(before), ast.parse(text)
        changed = [
            a.name
            for a, b in zip(
                *([n for n in ast.walk(x) if isinstance(n, ast.FunctionDef)] for x in (old, new)), strict=True
            )
            if ast.dump(a) != ast.dump(b)
        ]
        assert name in changed  # and whatever it stands in
        assert what["text"] in before and before.splitlines()[what["line"] - 1].strip() == what["text"]


def test_the_table_names_what_was_not_caught():
    one = {"line": 3, "fault": "0 -> 1", "text": "x = 0", "verdict": "survived"}
    done = {"a.py:f#0": one} | {f"b.py:f#{k}": copy.copy(one) | {"verdict": "caught"} for k in range(3)}
    done["c.py:f#0"] = one | {"verdict": "timeout"}
    said = table(done).splitlines()
    assert said[0].startswith("survived  a.py:f#0 line 3: 0 -> 1") and said[1].startswith("timeout   c.py")
    assert said[2] == "3 of 4 caught (75%), 1 not decided in time"
