"""Sphinx configuration; built with ``-n -W``, offline, so no inventories of other projects are fetched."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "tnc"
author = "The tncompress authors"
copyright = "2026, the tncompress authors"
release = installed_version("tncompress")
version = ".".join(release.split(".")[:2])

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
    "myst_parser",
    "executed",
    "modules",
    "diagrams",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"tnc {release}"
html_static_path = ["_static"]
html_css_files = ["output.css"]

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["cupy", "array_api_compat.cupy"]  # needs a GPU only to run, not to be described
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "py:obj"
suppress_warnings = ["ref.python"]  # `rows` in a docstring may be a field of two classes; that is prose too

# The classes of other libraries have no page here, and a short name in a docstring ("array of float",
# "str, optional") is prose. A wrong name under `tnc.` or `tnc_plugins.` still fails the build.
nitpick_ignore_regex = [(r"py:.*", r"(?!tnc(_plugins)?\.).*")]


def unexported(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: Element) -> Element | None:
    """A class that a signature names but its module does not export has no page: show it unlinked."""
    module, _, name = node["reftarget"].rpartition(".")
    home = sys.modules.get(module)
    return shown if hasattr(home, name) and name not in getattr(home, "__all__", ()) else None


def setup(app: Sphinx) -> None:
    """Connect what this file adds to Sphinx."""
    app.connect("missing-reference", unexported)
