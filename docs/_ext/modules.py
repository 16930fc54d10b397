"""A directive that documents every module of a package, so that a new one cannot be forgotten."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Modules(SphinxDirective):
    """``automodule`` for a package and its modules, in alphabetical order; packages inside are left out.

    The door, `tnc` itself, only repeats names of its modules and is described by hand. ``:inside:`` leaves out the
    package itself, whose names a package above it repeats.
    """

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"except": str.split, "inside": directives.flag}

    def run(self) -> list[nodes.Node]:
        package = self.arguments[0]
        inside = [found.name for found in pkgutil.iter_modules(import_module(package).__path__) if not found.ispkg]
        names = [] if "inside" in self.options else [package]
        names += (f"{package}.{name}" for name in inside if name not in self.options.get("except", []))
        text = "\n".join(f".. automodule:: {name}\n   :members:\n" for name in names if name != "tnc")
        return self.parse_text_to_nodes(text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("modules", Modules)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
