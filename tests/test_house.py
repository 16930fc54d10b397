"""The house keeps its promises: a small door, short files, light imports, nothing unsafe."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("tnc", "plugins") for path in (ROOT / folder).rglob("*.py"))
# Layers of torch, command line, drawings and the demonstration stand on the core: the package has a budget of its own.
BESIDE = ("nn", "cli", "draw", "data.py")
PACKAGE = [path for path in SOURCES if path.is_relative_to(ROOT / "tnc")]
CORE = [path for path in PACKAGE if path.relative_to(ROOT / "tnc").parts[0] not in BESIDE]
TARGETS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
PLUGINS = sorted(
    {
        ROOT / "plugins" / f"{target.partition(':')[0].replace('.', '/')}.py"
        for target in TARGETS["tnc.decompositions"].values()
    }
)

FILE_LINES, PLUGIN_LINES, FUNCTION_LINES, CORE_LINES, PACKAGE_LINES = 300, 80, 40, 3150, 6400

DOOR = [
    *("Budget", "Checkpoint", "Decomposition", "Factorization", "Fixed", "Network", "Ratio", "Report", "Rule"),
    *("Tolerance", "compress", "compress_weights", "decompositions", "install", "load", "use_backend"),
]

TESTS = sorted((ROOT / "tests").rglob("*.py"))

each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())


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


def code_lines(path: Path) -> int:
    """Lines that hold code: no blanks, comments or docstrings."""
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    silent |= {tokenize.ENCODING, tokenize.ENDMARKER}
    lines: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in silent:
                lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - set().union(*map(docstring_lines, ast.walk(parse(path)))))


# ------------------------------------------------------------------- budgets


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.name)
def test_plugins_are_shorter(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= PLUGIN_LINES


@each_source
def test_functions_are_short(path):
    functions = [n for n in ast.walk(parse(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {f.name: (f.end_lineno or 0) - f.lineno + 1 - len(docstring_lines(f)) for f in functions}
    assert {name: n for name, n in lengths.items() if n > FUNCTION_LINES} == {}


def test_the_core_stays_small():
    sizes = {path: code_lines(path) for path in PACKAGE}
    core = {path.relative_to(ROOT).as_posix(): sizes[path] for path in CORE}
    assert sum(core.values()) <= CORE_LINES, core
    assert sum(sizes.values()) <= PACKAGE_LINES


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
import json, sys, time
start = time.process_time()  # of the processor: what a busy neighbour costs is not ours
import tnc
seconds = time.process_time() - start
print(json.dumps({"seconds": seconds, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def probe() -> dict:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


def test_import_is_light():
    runs = [probe() for _ in range(5)]  # the best of several: the others may have waited for the disk
    heavy = {"torch", "cupy", "tensorly", "transformers", "matplotlib", "tnc_plugins"}
    assert heavy.isdisjoint(runs[0]["modules"])
    assert min(run["seconds"] for run in runs) < 0.3


# -------------------------------------------------------------------- safety


@each_source
def test_nothing_is_unpickled(path):
    imported: set[str] = set()
    for node in ast.walk(parse(path)):
        match node:
            case ast.Import(names=names):
                imported |= {alias.name.partition(".")[0] for alias in names}
            case ast.ImportFrom(module=str(module)):
                imported.add(module.partition(".")[0])
            case ast.Attribute(value=ast.Name(id="torch"), attr=("load" | "save") as verb):
                pytest.fail(f"line {node.lineno}: torch.{verb} pickles; checkpoints are safetensors")
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                pytest.fail(f"line {node.value.lineno}: allow_pickle=True")
    assert imported.isdisjoint({"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"})


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
