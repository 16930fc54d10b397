"""Plugins by entry point: listing imports nothing, loading imports one, and four errors say what to do."""

from __future__ import annotations

import json
import subprocess
import sys

import array_api_strict
import numpy as np
import pytest

import tnc
from tnc import Decomposition
from tnc.errors import MissingExtraError, PluginError, TncError, UnknownNameError
from tnc.registry import Registry, backends, decompositions


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install distributions for one test: a folder with metadata and a module each, in front of the search path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def install(name, entries, module="", *, version="1.0", group="tnc.decompositions"):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
        (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
        if module:
            (tmp_path / f"{name.replace('-', '_')}.py").write_text(module)

    yield install
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


GOOD = """
from dataclasses import dataclass
from tnc import Decomposition, Network

@dataclass(frozen=True)
class Halves(Decomposition):
    order: int = 2
    factors: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.order < 1:
            raise ValueError("order must be positive")

    def network(self, shape, rank):
        return Network.of_rank("m r, r n -> m n", {"m": shape[0], "n": shape[1]}, rank)
"""


def test_a_stranger_is_found_like_our_own(installed):
    installed("tnc-halves", {"halves": "tnc_halves:Halves"}, GOOD)
    assert "halves" in decompositions and {"mpo", "svd", "tucker"} <= set(decompositions)
    plugin = next(p for p in decompositions.plugins() if p.name == "halves")
    assert (plugin.target, plugin.distribution, plugin.version) == ("tnc_halves:Halves", "tnc-halves", "1.0")
    assert issubclass(decompositions["halves"], Decomposition)
    weights = {"w": np.random.default_rng(0).standard_normal((6, 8))}
    assert tnc.compress_weights(weights, "halves", rank=2)["w"].network.ranks == (2,)


def test_what_is_installed_later_is_found(installed):
    assert "late" not in decompositions
    installed("tnc-late", {"late": "tnc_late:Halves"}, GOOD)
    assert "late" in decompositions and len(decompositions) == len(list(decompositions))


def test_listing_imports_nothing(installed):
    installed("tnc-loud", {"loud": "tnc_loud:Loud"}, "raise RuntimeError('imported')")
    assert "loud" in list(decompositions)
    assert decompositions.plugins() and "tnc_loud" not in sys.modules


def test_listing_in_a_fresh_process_imports_no_plugin():
    code = "import sys, json, tnc; names = list(tnc.decompositions); list(tnc.backends.registry)\n"
    code += "print(json.dumps([names, [m for m in sys.modules if m.startswith(('tnc_plugins', 'torch', 'cupy'))]]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, imported = json.loads(done.stdout)
    assert {"mpo", "svd", "tucker"} <= set(names) and imported == []


def test_loading_one_imports_that_one():
    code = "import sys, tnc; tnc.decompositions['svd']; print([m for m in sys.modules if m.startswith('tnc_plugins.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['tnc_plugins.svd']"


def test_names_are_sorted_and_every_plugin_of_ours_loads():
    names = [plugin.name for plugin in decompositions.plugins()]
    assert names == sorted(names)
    for name in names:
        assert decompositions[name].__name__.lower() == name


# ---------------------------------------------------------------- four errors


def test_unknown(installed):
    with pytest.raises(UnknownNameError) as caught:
        decompositions["mop"]
    text = str(caught.value)
    assert "'mop' is not installed in 'tnc.decompositions'" in text and "Did you mean 'mpo'?" in text
    assert "svd" in text and "tucker" in text and "Install the distribution that registers 'mop'" in text
    assert isinstance(caught.value, KeyError) and not text.startswith('"')
    with pytest.raises(UnknownNameError, match=r"Did you mean 'torch'\?"):
        tnc.backends.get("toch:cuda")
    with pytest.raises(UnknownNameError) as caught:
        decompositions["zzzzzzz"]
    assert "Did you mean" not in str(caught.value)
    assert decompositions.get("mop") is None


def test_clash(installed):
    installed("tnc-first", {"twice": "tnc_first:Halves"}, GOOD)
    installed("tnc-second", {"twice": "tnc_second:Halves"}, GOOD, version="2.1")
    with pytest.raises(PluginError, match=r"tnc-first 1.0 \(tnc_first:Halves\) and tnc-second 2.1.*uninstall one"):
        decompositions["twice"]
    assert list(decompositions).count("twice") == 1


def test_clash_with_ours(installed):
    installed("tnc-thief", {"mpo": "tnc_thief:Halves"}, GOOD)
    with pytest.raises(PluginError, match=r"tnc-thief 1.0 .* and tncompress|tncompress .* and tnc-thief"):
        tnc.Rule("*", "mpo", 2)
    assert decompositions["svd"]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("class Other: pass", "AttributeError: module 'tnc_broken' has no attribute 'Halves'"),
        ("1 / 0", "ZeroDivisionError"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_does_not_import(installed, module, words):
    installed("tnc-broken", {"broken": "tnc_broken:Halves"}, module)
    with pytest.raises(PluginError) as caught:
        decompositions["broken"]
    text = str(caught.value)
    assert "'broken' (tnc_broken:Halves, from tnc-broken 1.0) does not import" in text and words in text
    assert "Reinstall or uninstall tnc-broken" in text and isinstance(caught.value, ImportError)


def test_a_missing_extra_speaks_for_itself(installed):
    module = "from tnc.errors import MissingExtraError\nraise MissingExtraError('pip install everything')"
    installed("tnc-poor", {"poor": "tnc_poor:Halves"}, module)
    with pytest.raises(MissingExtraError, match="pip install everything"):
        decompositions["poor"]


@pytest.mark.parametrize("module", ["class Halves: pass", "Halves = 3", "def Halves(): pass"])
def test_wrong_type(installed, module):
    installed("tnc-wrong", {"wrong": "tnc_wrong:Halves"}, module)
    with pytest.raises(PluginError, match=r"'wrong'.*not a subclass of tnc.decomposition.Decomposition"):
        decompositions["wrong"]


# --------------------------------------------------------------------- parse


def test_parse(installed):
    installed("tnc-halves", {"halves": "tnc_halves:Halves"}, GOOD)
    halves = decompositions["halves"]
    assert decompositions.parse("halves") == decompositions.parse(" halves( ) ") == halves()
    assert decompositions.parse("halves(order=3, factors=(4, 4))") == halves(3, (4, 4))
    assert decompositions.parse(str(halves(3, (4, 4)))) == halves(3, (4, 4))


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("", PluginError, "'' is not a plugin: write name"),
        ("mpo(", PluginError, "is not a plugin"),
        ("mpo)(", PluginError, "is not a plugin"),
        ("mpo(order=)", PluginError, "does not parse: write mpo"),
        ("mpo(4)", PluginError, "does not parse"),
        ("mpo(order=open('x'))", PluginError, "does not parse"),
        ("mpo(order=__import__('os').getpid())", PluginError, "does not parse"),
        ("mpo(order=2)(order=3)", PluginError, "does not parse"),
        ("mpo(order=2) + dict(order=3)", PluginError, "does not parse"),
        ("mpo(order={[]: 1})", PluginError, "does not parse"),
        ("mpo(order=2, order=3)", PluginError, "does not parse"),
        ("mpo(**{'order': 2})", UnknownNameError, "has no field"),
        ("mpo(ordre=4)", UnknownNameError, "mpo has no field 'ordre'. Did you mean 'order'? Its fields: order, rows"),
        ("mpo(order='four')", PluginError, "mpo refuses \"mpo(order='four')\""),
        ("mpo(order=0)", TncError, "order"),
        ("mop(order=4)", UnknownNameError, "Did you mean 'mpo'?"),
    ],
)
def test_parse_refuses(text, error, words):
    with pytest.raises(error) as caught:
        decompositions.parse(text)
    assert words in str(caught.value)


def test_values_a_plugin_refuses(installed):
    installed("tnc-halves", {"halves": "tnc_halves:Halves"}, GOOD)
    with pytest.raises(PluginError, match=r"halves refuses 'halves\(order=0\)': order must be positive"):
        decompositions.parse("halves(order=0)")


def test_a_plugin_that_forgot_its_method(installed):
    module = "from tnc import Decomposition\nclass Lazy(Decomposition):\n    pass\n"
    installed("tnc-lazy", {"lazy": "tnc_lazy:Lazy"}, module)
    with pytest.raises(PluginError, match=r"lazy refuses 'lazy'.*abstract"):
        decompositions.parse("lazy")


# ------------------------------------------------------------------ backends

STRICT = """
import array_api_strict
import numpy as np
from tnc.backends import Backend

class Strict(Backend):
    name = "array_api_strict"

    @property
    def xp(self):
        return array_api_strict

    def from_numpy(self, array):
        return array_api_strict.asarray(array)
"""


def test_a_backend_of_a_stranger(installed):
    installed("tnc-strict", {"array_api_strict": "tnc_strict:Strict"}, STRICT, group="tnc.backends")
    weights = {"w": np.random.default_rng(0).standard_normal((6, 8))}
    host = tnc.compress_weights(weights, "svd", rank=2)["w"]
    with tnc.use_backend("array_api_strict") as chosen:
        assert type(chosen).__name__ == "Strict"
        assert type(tnc.backends.of(array_api_strict.asarray([1.0]))).__name__ == "Strict"
        found = tnc.compress_weights(weights, "svd", rank=2)["w"]
    np.testing.assert_allclose(found.dense(), host.dense())


def test_a_backend_of_the_wrong_type(installed):
    installed("tnc-odd", {"odd": "tnc_odd:Halves"}, GOOD, group="tnc.backends")
    with pytest.raises(PluginError, match=r"not a subclass of tnc\.backends\.Backend"):
        backends["odd"]


def test_an_empty_group():
    empty = Registry("tnc.nothing", "tnc.backends:Backend")
    assert len(empty) == 0 and list(empty) == []
    with pytest.raises(UnknownNameError, match="Installed: none"):
        empty["x"]
