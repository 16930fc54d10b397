"""The house keeps its promises: a small door, short files, light imports, nothing unsafe."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from radon.visitors import ComplexityVisitor, Function

from tests.where import ELSEWHERE, files_for, mirrored, sources
from tnc.errors import MissingExtraError

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("tnc", "plugins") for path in (ROOT / folder).rglob("*.py"))
TARGETS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
PLUGINS = sorted(
    {
        ROOT / "plugins" / f"{target.partition(':')[0].replace('.', '/')}.py"
        for target in TARGETS["tnc.decompositions"].values()
    }
)

FILE_LINES, PLUGIN_LINES, FUNCTION_LINES, COMPLEXITY = 400, 80, 60, 15

DOOR = [
    *("Budget", "Checkpoint", "Decomposition", "Factorization", "Fixed", "Network", "Ratio", "Report", "Rule"),
    *("Tolerance", "compress", "compress_weights", "decompositions", "install", "load", "use_backend"),
]

TESTS = sorted((ROOT / "tests").rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def docstring_lines(node: ast.AST) -> set[int]:
    """Line numbers of the docstring of a module, class or function, if it has one."""
    body = getattr(node, "body", None)
    if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
        value = body[0].value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return set(range(value.lineno, (value.end_lineno or value.lineno) + 1))
    return set()


# ------------------------------------------------------------------- budgets


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_files_are_short():
    assert {name(path): n for path in SOURCES + TESTS if (n := lines_of(path)) > FILE_LINES} == {}


def test_plugins_are_shorter():
    assert PLUGINS and {name(path): n for path in PLUGINS if (n := lines_of(path)) > PLUGIN_LINES} == {}


def test_functions_are_short():
    lengths = {
        f"{name(path)}:{f.name}": (f.end_lineno or 0) - f.lineno + 1 - len(docstring_lines(f))
        for path in SOURCES
        for f in ast.walk(parse(path))
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(lengths) > 500 and {name: n for name, n in lengths.items() if n > FUNCTION_LINES} == {}


def test_blocks_are_simple():
    """Counted by radon, which sees conditions that are packed into comprehensions and assignments, too."""
    blocks = {
        f"{path.relative_to(ROOT).as_posix()}: {block.fullname}": block.complexity
        for path in [*SOURCES, *TESTS, *BENCHMARKS]
        for block in methods_apart(path)
    }
    assert {name: n for name, n in blocks.items() if n > COMPLEXITY} == {}


def methods_apart(path: Path) -> list[Function]:
    """Functions and methods; of a class radon has a mean only."""
    visited = ComplexityVisitor.from_code(path.read_text(encoding="utf-8"))
    return [*visited.functions, *(method for kind in visited.classes for method in kind.methods)]


# ---------------------------------------------------------------- docstrings


def documented(path: Path) -> Iterator[tuple[str, ast.FunctionDef, str]]:
    """Exported functions, and public methods of exported classes that override nothing: name, definition, docstring."""
    tree = parse(path)
    exported = {name for node in tree.body if _assigns(node, "__all__") for name in ast.literal_eval(node.value)}
    for node in tree.body:
        if getattr(node, "name", None) not in exported:
            continue
        inherited = _inherited(path, node.name) if isinstance(node, ast.ClassDef) else set()
        for method in node.body if isinstance(node, ast.ClassDef) else [node]:
            if getattr(method, "name", "") in inherited:
                continue  # described where it is first defined
            text = ast.get_docstring(method) if isinstance(method, ast.FunctionDef) else None
            if text and not method.name.startswith("_"):
                owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
                yield owner + method.name, method, text


def _inherited(path: Path, name: str) -> set[str]:
    """Names that a class has from its bases."""
    home = ROOT if path.is_relative_to(ROOT / "tnc") else ROOT / "plugins"
    try:
        module = import_module(".".join(path.relative_to(home).with_suffix("").parts))
    except MissingExtraError:  # cupy is on few machines
        return set()
    return {attribute for base in getattr(module, name).__mro__[1:] for attribute in dir(base)}


def _assigns(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)


def test_parameters_are_documented():
    """Every exported function of three arguments or more says what each of them is."""
    missing = {}
    for path in SOURCES:
        for name, function, text in documented(path):
            given = function.args
            names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            names = [n for n in names if n not in ("self", "cls")]
            unsaid = [n for n in names if not re.search(rf"(?m)^(.*, )?\*{{0,2}}{n}(, .*)?( :|$)", text)]
            if len(names) >= 3 and ("Parameters\n----------" not in text or unsaid):
                missing[f"{path.relative_to(ROOT).as_posix()}: {name}"] = unsaid
    commands = {"tnc/cli/demo.py: demo", "tnc/cli/weights.py: compress"}  # their options have help texts of their own
    assert {name: unsaid for name, unsaid in missing.items() if name not in commands} == {}


# ---------------------------------------------------------------------- door


def test_the_door_is_exactly_what_was_agreed():
    import tnc

    assert list(tnc.__all__) == DOOR == sorted(DOOR)
    assert len(DOOR) <= 16


@pytest.mark.parametrize("name", [*DOOR, "set_backend", "backends", "nn", "testing", "errors"])
def test_names_of_the_door_resolve(name):
    import tnc

    assert getattr(tnc, name) is not None


def test_no_module_shadows_a_function():
    import tnc

    modules = {path.stem for path in (ROOT / "tnc").iterdir()}
    assert modules.isdisjoint(DOOR)  # `import tnc.compress` would replace the function by the module
    assert callable(tnc.compress)


PROBE = """
import json, sys
import tnc
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_import_is_light():
    """What it takes in time, `make compare` measures."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"torch", "cupy", "tensorly", "transformers", "matplotlib", "tnc_plugins"}
    assert heavy.isdisjoint(json.loads(done.stdout))


# -------------------------------------------------------------------- safety


def unpickles(path: Path) -> list[str]:
    """What a file does that could run code out of data, by line."""
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    found = []
    for node in ast.walk(parse(path)):
        match node:
            case ast.Import(names=names) if unsafe & {alias.name.partition(".")[0] for alias in names}:
                found.append(f"{name(path)}:{node.lineno}: imports what unpickles")
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in unsafe:
                found.append(f"{name(path)}:{node.lineno}: imports what unpickles")
            case ast.Attribute(value=ast.Name(id="torch"), attr=("load" | "save") as verb):
                found.append(f"{name(path)}:{node.lineno}: torch.{verb} pickles; checkpoints are safetensors")
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                found.append(f"{name(path)}:{node.value.lineno}: allow_pickle=True")
    return found


def test_nothing_is_unpickled():
    assert [line for path in SOURCES for line in unpickles(path)] == []


def tracked_files() -> list[Path]:
    """What git would commit; an unpacked source distribution has no git and nothing to check."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def test_no_registry_host_and_no_machine_path_is_written_down():
    # In pieces, so that this file passes its own test.
    hosts = ["py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "npm" + "js.com", "anaconda" + ".org"]
    paths = ["/ro" + "ot/", "/wo" + "rk/", "/opt/" + "wheels", "/opt/" + "py" + "pi"]
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [(path.relative_to(ROOT).as_posix(), word) for word in hosts + paths if word in text]
    assert found == []


def test_every_file_says_what_it_is():
    assert [path.name for path in SOURCES if path.stat().st_size and not docstring_lines(parse(path))] == []


# --------------------------------------------------------------------- tests


def test_the_tests_of_every_file_are_found_by_its_name():
    """Or by the table in `tests/where.py`, which holds what is there and needed, and nothing else."""
    assert [name(path) for path in sources() if not files_for(path)] == []
    assert [name(path) for path in sources() for test in files_for(path) if not test.is_file()] == []
    assert set(ELSEWHERE) <= {name(path) for path in sources()}
    assert [name(path) for path in sources() if mirrored(path).is_file() and name(path) in ELSEWHERE] == []
    assert all(why for why, _ in ELSEWHERE.values())
